"""Shuffle attention (SA-Net)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_attn._checks import Activation, expand_rank, statistics_dtype
from flax_attn.vision._checks import as_image
from flax_attn.vision._gates import apply_gate
from flax_attn.vision._groups import split_groups, standardize_places


def shuffle_attention(
    x: Float[Array, "*B H W C"],
    channel_scale: Float[Array, "P"],
    channel_bias: Float[Array, "P"],
    norm_scale: Float[Array, "P"],
    norm_bias: Float[Array, "P"],
    spatial_scale: Float[Array, "P"],
    spatial_bias: Float[Array, "P"],
    *,
    epsilon: float = 1e-5,
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B H W C"]:
    """Shuffle attention: gate channels in half of each group, places in the other half; shuffle.

    Each of the G groups of consecutive channels has two halves a, b of P = C / (2 G) channels:
    a' = a ⊙ σ(w_c mean_{H,W} a + b_c)
    b' = b ⊙ σ(w_s b̂ + b_s),   b̂ = γ (b − mean_{H,W} b) / √(var_{H,W} b + ε) + β
    y = shuffle([a'_1; b'_1; ...; a'_G; b'_G])

    All groups share the six vectors, so their length P determines G (64 in the paper). The shuffle
    interleaves the first C / 2 channels with the others. The parameters start at w_c = w_s = 0 and
    b_c = b_s = 1, where every gate is σ(1). In an image of one place b̂ = β for any b.

    Args:
      x: Image `[*B, H, W, C]`.
      channel_scale: w_c, `[P]`.
      channel_bias: b_c, `[P]`.
      norm_scale: γ, `[P]`.
      norm_bias: β, `[P]`.
      spatial_scale: w_s, `[P]`.
      spatial_bias: b_s, `[P]`.
      epsilon: ε, added to the variance.
      gate_fn: σ, from the scaled statistics to the gates.

    Returns:
      The scaled image with shuffled channels, `[*B, H, W, C]`.

    Raises:
      ValueError: If `x` is not an image, the vectors are not all `[P]`, or C is not a multiple of
        2 P.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import vision
      >>> x, zeros = jnp.arange(4.0).reshape(1, 1, 1, 4), jnp.zeros(1)
      >>> y = vision.shuffle_attention(x, zeros, zeros, zeros, zeros, zeros, zeros)
      >>> y[0, 0, 0]     # σ(0) · (0, 1, 2, 3), shuffled
      Array([0. , 1. , 0.5, 1.5], dtype=float32)

    References:
      Zhang, Yang, "SA-Net: Shuffle Attention for Deep Convolutional Neural Networks", ICASSP 2021,
      arXiv:2102.00240, equations 1-3.
    """
    gate = shuffle_attention_gate(
        x,
        channel_scale,
        channel_bias,
        norm_scale,
        norm_bias,
        spatial_scale,
        spatial_bias,
        epsilon=epsilon,
        gate_fn=gate_fn,
    )
    return channel_shuffle(apply_gate(x, gate))


def shuffle_attention_gate(
    x: Float[Array, "*B H W C"],
    channel_scale: Float[Array, "P"],
    channel_bias: Float[Array, "P"],
    norm_scale: Float[Array, "P"],
    norm_bias: Float[Array, "P"],
    spatial_scale: Float[Array, "P"],
    spatial_bias: Float[Array, "P"],
    *,
    epsilon: float = 1e-5,
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B H W C"]:
    """The gate of `shuffle_attention` before the shuffle, `[*B, H, W, C]` in the dtype of x."""
    x = as_image("shuffle_attention", x, gate_fn=gate_fn)
    vectors = channel_scale, channel_bias, norm_scale, norm_bias, spatial_scale, spatial_bias
    sizes = [list(vector.shape) for vector in vectors]
    if any(vector.ndim != 1 or vector.shape != channel_scale.shape for vector in vectors):
        raise ValueError(
            f"shuffle_attention: the six scales and biases must all be [P], got {sizes}. Each "
            f"needs one number for each channel of half a group."
        )
    (part,) = channel_scale.shape
    channels = x.shape[-1]
    if part == 0 or channels % (2 * part):
        raise ValueError(
            f"shuffle_attention: C must be a multiple of 2 P = 2 · {part}, got C = {channels}. "
            f"Scales and biases have P = C / (2 G) entries."
        )
    halves = split_groups(x, channels // (2 * part), 2, part)
    a, b = halves[..., 0, :], halves[..., 1, :]
    dtype = statistics_dtype(x.dtype)
    w_c, b_c, gamma, beta, w_s, b_s = (
        expand_rank(vector.astype(dtype), a.ndim) for vector in vectors
    )
    mean = jnp.mean(a, axis=(-4, -3), keepdims=True, dtype=dtype)
    by_channel = gate_fn(w_c * mean + b_c)
    by_place = gate_fn(w_s * (gamma * standardize_places(b, epsilon) + beta) + b_s)
    gates = jnp.stack([jnp.broadcast_to(by_channel, b.shape), by_place], axis=-2)
    return gates.reshape(x.shape).astype(x.dtype)


def channel_shuffle(features: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
    """Interleave the first and the second half of the channels: 0, C/2, 1, C/2 + 1, ..."""
    halves = features.reshape(*features.shape[:-1], 2, features.shape[-1] // 2)
    return jnp.swapaxes(halves, -1, -2).reshape(features.shape)
