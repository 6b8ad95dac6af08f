"""Efficient channel attention (ECA)."""

import math
import warnings

import jax
from jaxtyping import Array, Float

from flax_attn._checks import Activation, Map, check_odd, check_positive
from flax_attn.vision._checks import as_image, check_returned
from flax_attn.vision._gates import apply_gate
from flax_attn.vision._pooling import spatial_mean


def eca(
    x: Float[Array, "*B H W C"], conv: Map, *, gate_fn: Activation = jax.nn.sigmoid
) -> Float[Array, "*B H W C"]:
    """Efficient channel attention: gate each channel by a few neighbouring channels.

    z = mean_{H,W} x,   g = σ(conv_k(z)) along the channels,   y = g ⊙ x

    All channels share one kernel of k weights. In the paper k depends on C (`eca_kernel_size`). The
    released models set k by hand, from 1 to 7.

    Args:
      x: Image `[*B, H, W, C]`.
      conv: Map from `[*B, C, 1]` to `[*B, C, 1]`, a convolution along the channels, zero-padded.
      gate_fn: σ, from the convolved statistics to the gate.

    Returns:
      The scaled image `[*B, H, W, C]`.

    Raises:
      ValueError: If `x` is not an image, or the map returns another shape.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x = jnp.ones((2, 7, 7, 64))
      >>> k = vision.eca_kernel_size(64)
      >>> vision.eca(x, maps.conv1d(jnp.ones((k, 1, 1)))).shape
      (2, 7, 7, 64)

    References:
      Wang, Wu, Zhu, Li, Zuo, Hu, "ECA-Net: Efficient Channel Attention for Deep Convolutional
      Neural Networks", CVPR 2020, arXiv:1910.03151, equation 9.
    """
    return apply_gate(x, eca_gate(x, conv, gate_fn=gate_fn))


def eca_gate(
    x: Float[Array, "*B H W C"], conv: Map, *, gate_fn: Activation = jax.nn.sigmoid
) -> Float[Array, "*B 1 1 C"]:
    """The gate g of `eca`, `[*B, 1, 1, C]` in the dtype of x."""
    x = as_image("eca", x, conv=conv, gate_fn=gate_fn)
    pooled = spatial_mean(x)[..., None]
    convolved = conv(pooled)
    check_returned("eca", "conv", convolved, pooled.shape, "[*B, C, 1]")
    return gate_fn(convolved)[..., None, None, :, 0].astype(x.dtype)


def eca_kernel_size(channels: int, *, gamma: float = 2.0, beta: float = 1.0) -> int:
    """The kernel size for C channels in the paper.

    k = ⌊t⌋ if that is odd, otherwise ⌊t⌋ + 1,   t = |(log₂ C + β) / γ|

    Args:
      channels: C.
      gamma: γ; a larger γ gives smaller kernels.
      beta: β, the offset.

    Returns:
      k, odd and at least 1.

    Raises:
      ValueError: If `channels` is not at least 1, or `gamma` is 0.

    Example:
      >>> from flax_attn import vision
      >>> [vision.eca_kernel_size(c) for c in (1, 8, 64, 128, 512, 2048)]
      [1, 3, 3, 5, 5, 7]

    References:
      Wang et al., CVPR 2020, arXiv:1910.03151, equation 12.
    """
    channels = check_positive("eca_kernel_size", "channels", channels)
    if gamma == 0:
        raise ValueError(f"eca_kernel_size: gamma must not be 0, got {gamma}. The paper's is 2.")
    size = int(abs((math.log2(channels) + beta) / gamma))
    return size if size % 2 else size + 1


def as_kernel_size(channels: int, kernel_size: int | None) -> int:
    """The kernel size of a module: as given, or the paper's."""
    if kernel_size is None:
        return eca_kernel_size(channels)
    size, widest = check_odd("ECA", kernel_size), 2 * channels - 1
    if size > widest:
        warnings.warn(
            f"ECA: a kernel of {size} weights is wider than {channels} channels can use: "
            f"{size - widest} weights only meet padding. Use kernel_size={widest} at most.",
            stacklevel=3,
        )
    return size
