"""Large selective kernels (LSK)."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_attn._checks import Activation, Map, check_odd, dilated_kernels, reduced_features
from flax_attn.vision._checks import as_image, check_reduced, check_returned
from flax_attn.vision._gates import apply_gate
from flax_attn.vision._pooling import maximum, mean


def large_selective_kernel(
    x: Float[Array, "*B H W C"],
    convs: Sequence[Map],
    reduces: Sequence[Map],
    select: Map,
    project: Map,
    *,
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B H W C"]:
    """Large selective kernels: large kernel attention where each place selects kernel sizes.

    a_i = conv_i(a_{i−1}),   a_0 = x,   u_i = reduce_i(a_i)
    s = σ(select([mean_C u; max_C u])),   u = [u_1; ...; u_P]
    a = project(Σ_i s_i ⊙ u_i),   y = x ⊙ a

    In the paper P = 2: depthwise 5×5, then 7×7 with dilation 3, which reaches 23×23 places.
    R = C / 2, and `select` is a 7×7 convolution. The masks s are separate sigmoids and do not sum
    to 1. a is not bounded.

    Args:
      x: Image `[*B, H, W, C]`.
      convs: P maps of `[*B, H, W, C]`, depthwise convolutions, applied one after another.
      reduces: P maps from `[*B, H, W, C]` to `[*B, H, W, R]`.
      select: Map from `[*B, H, W, 2]` to `[*B, H, W, P]`.
      project: Map from `[*B, H, W, R]` to `[*B, H, W, C]`.
      gate_fn: σ, from the output of `select` to the masks.

    Returns:
      The scaled image `[*B, H, W, C]`.

    Raises:
      ValueError: If `x` is not an image, there is no kernel, `convs` and `reduces` do not pair up,
        R is 0, or a map returns another shape.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> convs = [maps.depthwise_conv(jnp.ones((1, 1, 1, 4)))] * 2
      >>> reduces = [maps.dense(jnp.ones((4, 2)))] * 2
      >>> select = maps.conv(jnp.zeros((7, 7, 2, 2)))                    # σ(0) = 1/2 of either
      >>> project = maps.dense(jnp.full((2, 4), 0.125))
      >>> x = jnp.ones((2, 8, 8, 4))
      >>> vision.large_selective_kernel(x, convs, reduces, select, project)[0, 0, 0, :2]
      Array([1., 1.], dtype=float32)

    References:
      Li, Hou, Zheng, Cheng, Yang, Li, "Large Selective Kernel Network for Remote Sensing Object
      Detection", ICCV 2023, arXiv:2303.09030, equations 2-9.
    """
    gate = large_selective_kernel_gate(x, convs, reduces, select, project, gate_fn=gate_fn)
    return apply_gate(x, gate)


def large_selective_kernel_gate(
    x: Float[Array, "*B H W C"],
    convs: Sequence[Map],
    reduces: Sequence[Map],
    select: Map,
    project: Map,
    *,
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B H W C"]:
    """The factor a of `large_selective_kernel`, `[*B, H, W, C]` in the dtype of x."""
    x = as_image(
        "large_selective_kernel",
        x,
        convs=convs,
        reduces=reduces,
        select=select,
        project=project,
        gate_fn=gate_fn,
    )
    if not len(convs) == len(reduces) >= 1:
        raise ValueError(
            f"large_selective_kernel: convs and reduces must pair up, at least 1 of each, "
            f"got {len(convs)} and {len(reduces)}."
        )
    scales = []
    seen = x
    for i, (conv, reduce) in enumerate(zip(convs, reduces, strict=True)):
        seen = conv(seen)
        scales.append(reduce(seen))
        check_reduced("large_selective_kernel", scales[i])
        shape = (*x.shape[:-1], scales[0].shape[-1])
        check_returned("large_selective_kernel", f"reduces[{i}]", scales[i], shape, "[*B, H, W, R]")

    channels = jnp.concatenate(scales, axis=-1)
    pooled = jnp.stack([mean(channels, -1), maximum(channels, -1)], axis=-1)
    masks = gate_fn(select(pooled))
    check_returned(
        "large_selective_kernel", "select", masks, (*x.shape[:-1], len(convs)), "[*B, H, W, P]"
    )
    masks = masks.astype(channels.dtype)
    selected = functools.reduce(
        jnp.add, (apply_gate(scale, masks[..., i : i + 1]) for i, scale in enumerate(scales))
    )
    gate = project(selected)
    check_returned("large_selective_kernel", "project", gate, x.shape, "[*B, H, W, C]")
    return gate.astype(x.dtype)


def large_selective_kernel_sizes(
    features: int,
    reduction: int,
    hidden_features: int | None,
    kernel_sizes: Sequence[int],
    dilations: Sequence[int],
    select_kernel_size: int,
) -> tuple[int, list[tuple[int, int]]]:
    """R, and the size and dilation of each kernel, in the modules."""
    module = "LargeSelectiveKernel"
    check_odd(module, select_kernel_size, "select_kernel_size")
    hidden = reduced_features(module, features, reduction, hidden_features)
    return hidden, dilated_kernels(module, kernel_sizes, dilations)
