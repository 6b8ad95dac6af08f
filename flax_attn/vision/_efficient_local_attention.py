"""Efficient local attention (ELA)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_attn._checks import Activation, Map, check_multiple, check_odd
from flax_attn.vision._checks import as_image, check_returned
from flax_attn.vision._gates import apply_gate
from flax_attn.vision._pooling import mean


def efficient_local_attention(
    x: Float[Array, "*B H W C"],
    conv: Map,
    norm: Map,
    *,
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B H W C"]:
    """Efficient local attention: gate rows and columns by a convolution along each strip.

    z_h = mean_W x,   z_w = mean_H x
    y = x ⊙ σ(norm(conv(z_h))) ⊙ σ(norm(conv(z_w)))

    It is coordinate attention without the reduction. Both strips share one convolution and one
    group normalisation, with separate statistics. ELA-B has a depthwise kernel of 7 and a
    normalisation of 16 groups, ELA-T a depthwise kernel of 5 and 32 groups. ELA-S and ELA-L have
    kernels of 5 and 7 with 8 channels per group of the convolution. If a group of the normalisation
    has one channel and the strip one place, the normalisation returns its bias.

    Args:
      x: Image `[*B, H, W, C]`.
      conv: Map of `[*B, L, C]`, for L = H and L = W.
      norm: Map of `[*B, L, C]`, for L = H and L = W.
      gate_fn: σ, from the normalised strips to the gates.

    Returns:
      The scaled image `[*B, H, W, C]`.

    Raises:
      ValueError: If `x` is not an image, or a map returns another shape.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x = jnp.ones((2, 7, 5, 32))
      >>> conv = maps.conv1d(jnp.ones((7, 1, 32)), groups=32)
      >>> norm = maps.group_norm(num_groups=16, spatial_axes=1)
      >>> vision.efficient_local_attention(x, conv, norm).shape
      (2, 7, 5, 32)

    References:
      Xu, Wan, "ELA: Efficient Local Attention for Deep Convolutional Neural Networks",
      arXiv 2024, arXiv:2403.01123, section 3.
    """
    height, width = efficient_local_attention_gate(x, conv, norm, gate_fn=gate_fn)
    return apply_gate(x, height, width)


def efficient_local_attention_gate(
    x: Float[Array, "*B H W C"],
    conv: Map,
    norm: Map,
    *,
    gate_fn: Activation = jax.nn.sigmoid,
) -> tuple[Float[Array, "*B H 1 C"], Float[Array, "*B 1 W C"]]:
    """The two gates of `efficient_local_attention`, `[*B, H, 1, C]` and `[*B, 1, W, C]`."""
    x = as_image("efficient_local_attention", x, conv=conv, norm=norm, gate_fn=gate_fn)

    def strip_gate(axis: int, letters: str) -> jax.Array:
        strip = mean(x, axis)
        convolved = conv(strip)
        check_returned("efficient_local_attention", "conv", convolved, strip.shape, letters)
        gate = gate_fn(norm(convolved))
        check_returned("efficient_local_attention", "norm", gate, strip.shape, letters)
        return jnp.expand_dims(gate, axis).astype(x.dtype)

    return strip_gate(-2, "[*B, H, C]"), strip_gate(-3, "[*B, W, C]")


def check_efficient_local_attention(
    features: int, kernel_size: int, group_size: int, num_groups: int
) -> None:
    """Check the sizes of the modules."""
    check_odd("EfficientLocalAttention", kernel_size)
    check_multiple("EfficientLocalAttention", "C", features, "group_size", group_size)
    check_multiple("EfficientLocalAttention", "C", features, "num_groups", num_groups)
