"""Split attention (ResNeSt)."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_attn._checks import (
    Activation,
    Map,
    check_multiple,
    check_odd,
    check_positive,
    output_features,
    reduced_features,
    statistics_dtype,
)
from flax_attn.vision._checks import as_image, check_reduced, check_returned
from flax_attn.vision._gates import apply_gate
from flax_attn.vision._pooling import spatial_mean


def split_attention(
    x: Float[Array, "*B H W C"],
    conv: Map,
    conv_norm: Map,
    reduce: Map,
    reduce_norm: Map,
    expand: Map,
    *,
    radix: int = 2,
    groups: int = 1,
    activation_fn: Activation = jax.nn.relu,
    return_gate: bool = False,
) -> Float[Array, "*B H2 W2 C2"] | Any:
    """Split attention: each channel of a convolution is a weighted sum of several splits.

    [u_1; ...; u_S] = ReLU(norm(conv(x)))
    z = ReLU(norm(reduce(mean_{H,W} Σ_s u_s))),   a = softmax_s(expand(z)),   y = Σ_s a_s ⊙ u_s

    S is the radix. It replaces a convolution: `conv` decides the stride and the output channels C'.
    In the paper `conv` has K · S groups and no bias, where K is the cardinality (`groups`).
    `reduce` and `expand` have K groups, so that cardinal groups are independent, and
    R = max(C · S / 4, 32). As in the released code, the channels of `conv` are ordered by split,
    and those of `expand` by cardinal group and then by split. With a radix of 1 the softmax is a
    sigmoid, and this is squeeze-and-excitation after a convolution.

    Args:
      x: Image `[*B, H, W, C]`.
      conv: Map from `[*B, H, W, C]` to `[*B, H', W', S · C']`, ordered by split.
      conv_norm: Map of `[*B, H', W', S · C']`.
      reduce: Map from `[*B, 1, 1, C']` to `[*B, 1, 1, R]`: a 1×1 convolution of K groups, or a
        dense map if K is 1.
      reduce_norm: Map of `[*B, 1, 1, R]`. In training with a batch of 1, batch normalisation of the
        single pooled vector returns its bias and shrinks its running variance. (PyTorch raises.)
      expand: Map from `[*B, 1, 1, R]` to `[*B, 1, 1, S · C']`, of K groups, each ordered by
        split.
      radix: S, the number of splits.
      groups: K, the number of cardinal groups.
      activation_fn: After each normalisation.
      return_gate: If True, also return a.

    Returns:
      The output `[*B, H', W', C']` in the dtype of x. With `return_gate` also a
      `[*B, 1, 1, S, C']`, which sums to 1 over S if S > 1.

    Raises:
      ValueError: If `x` is not an image, radix or groups is not positive, the channels of the
        output of `conv` are not a multiple of S · K, R is 0, or a map returns another shape.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x, identity = jnp.ones((2, 8, 8, 4)), lambda u: u
      >>> conv = maps.conv(jnp.ones((3, 3, 2, 12)), strides=2, groups=2)
      >>> reduce, expand = maps.dense(jnp.ones((6, 3))), maps.dense(jnp.zeros((3, 12)))
      >>> vision.split_attention(x, conv, identity, reduce, identity, expand).shape
      (2, 4, 4, 6)

    References:
      Zhang, Wu, Zhang, Zhu, Lin, Zhang, Sun, He, Mueller, Manmatha, Li, Smola, "ResNeSt:
      Split-Attention Networks", CVPR Workshops 2022, arXiv:2004.08955, equations 1-2.
    """
    x = as_image(
        "split_attention",
        x,
        conv=conv,
        conv_norm=conv_norm,
        reduce=reduce,
        reduce_norm=reduce_norm,
        expand=expand,
        activation_fn=activation_fn,
    )
    radix = check_positive("split_attention", "radix", radix)
    groups = check_positive("split_attention", "groups", groups)
    splits = activation_fn(conv_norm(conv(x))).astype(x.dtype)
    channels = splits.shape[-1]
    shape = (*x.shape[:-3], *splits.shape[-3:])
    check_returned("split_attention", "conv", splits, shape, "[*B, H', W', S · C']")
    if channels % (radix * groups):
        raise ValueError(
            f"split_attention: conv must return a multiple of radix · groups = {radix} · {groups} "
            f"channels, got {channels}."
        )
    features = channels // radix
    splits_HWSC = splits.reshape(*splits.shape[:-1], radix, features)

    pooled_SC = spatial_mean(splits).reshape(*x.shape[:-3], radix, features)
    pooled_11C = jnp.sum(pooled_SC, axis=-2)[..., None, None, :]
    hidden = activation_fn(reduce_norm(reduce(pooled_11C)))
    check_reduced("split_attention", hidden)
    logits = expand(hidden)
    ones = pooled_11C.shape[:-1]
    check_returned("split_attention", "expand", logits, (*ones, channels), "[*B, 1, 1, S · C']")
    logits_11KSD = logits.reshape(*ones, groups, radix, features // groups)
    logits_11SKD = jnp.swapaxes(logits_11KSD, -3, -2).astype(statistics_dtype(logits.dtype))
    logits_11SC = logits_11SKD.reshape(*ones, radix, features)
    gate = jax.nn.sigmoid(logits_11SC) if radix == 1 else jax.nn.softmax(logits_11SC, axis=-2)
    gate = gate.astype(x.dtype)
    y = jnp.sum(apply_gate(splits_HWSC, gate), axis=-2)
    return (y, gate) if return_gate else y


def split_attention_features(
    features: int,
    *,
    out_features: int | None,
    radix: int,
    groups: int,
    kernel_size: int,
    strides: int,
    dilation: int,
    reduction: int,
    min_features: int,
    hidden_features: int | None,
) -> tuple[int, int]:
    """C' and R of the modules."""
    module = "SplitAttention"
    out = output_features(module, features, out_features)
    splits = check_positive(module, "radix", radix) * check_positive(module, "groups", groups)
    check_multiple(module, "C", features, "radix · groups", splits)
    check_multiple(module, "out_features", out, "groups", groups)
    hidden = reduced_features(
        module, features * radix, reduction, hidden_features, least=min_features
    )
    check_multiple(module, "hidden_features", hidden, "groups", groups)
    check_odd(module, kernel_size)
    check_positive(module, "strides", strides)
    check_positive(module, "dilation", dilation)
    return out, hidden
