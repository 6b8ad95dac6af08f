"""Selective kernels (SK)."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_attn._checks import (
    Activation,
    Map,
    check_dilations,
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


def selective_kernel(
    x: Float[Array, "*B H W C"],
    convs: Sequence[Map],
    conv_norms: Sequence[Map],
    reduce: Map,
    reduce_norm: Map,
    select: Map,
    *,
    activation_fn: Activation = jax.nn.relu,
    return_gate: bool = False,
) -> Float[Array, "*B H2 W2 C2"] | Any:
    """Selective kernels: each channel of a convolution chooses between several kernels.

    U_i = ReLU(norm_i(conv_i(x))),   i = 1 ... P
    z = ReLU(norm(reduce(mean_{H,W} Σ_i U_i))),   a = softmax_i(select(z)),   y = Σ_i a_i ⊙ U_i

    It replaces a convolution: `convs` decide the stride and the output channels C'. In the paper
    P = 2, both kernels are 3×3, the second with dilation 2 (which reaches as far as 5×5),
    R = max(C' / 16, 32), and there are no biases. By default timm gives each kernel half of the
    channels; its `split_input=False` is the paper's.

    Args:
      x: Image `[*B, H, W, C]`.
      convs: P maps from `[*B, H, W, C]` to `[*B, H', W', C']`.
      conv_norms: P maps of `[*B, H', W', C']`.
      reduce: Map from `[*B, C']` to `[*B, R]`.
      reduce_norm: Map of `[*B, R]`. In training with a batch of 1, batch normalisation of the
        single pooled vector returns its bias and shrinks its running variance. (PyTorch raises.)
      select: Map from `[*B, R]` to `[*B, P · C']`, ordered by kernel.
      activation_fn: After each normalisation.
      return_gate: If True, also return a.

    Returns:
      The output `[*B, H', W', C']` in the dtype of x. With `return_gate` also a
      `[*B, P, 1, 1, C']`, which sums to 1 over P.

    Raises:
      ValueError: If `x` is not an image, there are fewer than two kernels, `convs` and `conv_norms`
        do not pair up, R is 0, or a map returns another shape.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x, identity = jnp.ones((2, 8, 8, 4)), lambda u: u
      >>> convs = [maps.conv(jnp.ones((3, 3, 4, 6)), strides=2, dilation=d) for d in (1, 2)]
      >>> reduce, select = maps.dense(jnp.ones((6, 3))), maps.dense(jnp.zeros((3, 12)))
      >>> vision.selective_kernel(x, convs, [identity] * 2, reduce, identity, select).shape
      (2, 4, 4, 6)

    References:
      Li, Wang, Hu, Yang, "Selective Kernel Networks", CVPR 2019, arXiv:1903.06586, equations 1-6.
    """
    x = as_image(
        "selective_kernel",
        x,
        convs=convs,
        conv_norms=conv_norms,
        reduce=reduce,
        reduce_norm=reduce_norm,
        select=select,
        activation_fn=activation_fn,
    )
    if len(convs) != len(conv_norms):
        raise ValueError(
            f"selective_kernel: convs and conv_norms must pair up, got {len(convs)} and "
            f"{len(conv_norms)}."
        )
    if len(convs) < 2:
        raise ValueError(
            f"selective_kernel: convs must be at least 2 kernels to choose from, got {len(convs)}. "
            f"For one kernel use squeeze_excite after the convolution."
        )
    paths = [
        activation_fn(norm(conv(x))).astype(x.dtype)
        for conv, norm in zip(convs, conv_norms, strict=True)
    ]
    shape = (*x.shape[:-3], *paths[0].shape[-3:])
    for i, path in enumerate(paths):
        check_returned("selective_kernel", f"convs[{i}]", path, shape, "[*B, H', W', C']")

    pooled = functools.reduce(jnp.add, map(spatial_mean, paths))
    hidden = activation_fn(reduce_norm(reduce(pooled)))
    check_reduced("selective_kernel", hidden)
    logits = select(hidden)
    batch, features = pooled.shape[:-1], pooled.shape[-1]
    check_returned(
        "selective_kernel", "select", logits, (*batch, len(paths) * features), "[*B, P · C']"
    )
    logits_PC = logits.reshape(*batch, len(paths), features)
    gate_PC = jax.nn.softmax(logits_PC.astype(statistics_dtype(logits.dtype)), axis=-2)
    gate = gate_PC[..., None, None, :].astype(x.dtype)
    y = functools.reduce(
        jnp.add, (apply_gate(path, gate[..., i, :, :, :]) for i, path in enumerate(paths))
    )
    return (y, gate) if return_gate else y


def selective_kernel_sizes(
    features: int,
    *,
    out_features: int | None,
    kernel_size: int,
    dilations: Sequence[int],
    strides: int,
    groups: int,
    reduction: int,
    min_features: int,
    hidden_features: int | None,
) -> tuple[int, int, list[int]]:
    """C', R and the dilation of each kernel, in the modules."""
    module = "SelectiveKernel"
    out = output_features(module, features, out_features)
    check_multiple(module, "C", features, "groups", groups)
    check_multiple(module, "out_features", out, "groups", groups)
    hidden = reduced_features(module, out, reduction, hidden_features, least=min_features)
    check_odd(module, kernel_size)
    check_positive(module, "strides", strides)
    return out, hidden, check_dilations(module, dilations)
