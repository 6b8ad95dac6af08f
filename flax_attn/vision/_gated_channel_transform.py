"""The gated channel transformation (GCT)."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from flax_attn._checks import expand_rank, statistics_dtype
from flax_attn.vision._checks import as_image
from flax_attn.vision._gates import apply_gate


def gated_channel_transform(
    x: Float[Array, "*B H W C"],
    alpha: Float[Array, "C"],
    gamma: Float[Array, "C"],
    beta: Float[Array, "C"],
    *,
    epsilon: float = 1e-5,
) -> Float[Array, "*B H W C"]:
    """Gated channel transformation: channels compete by their norms, with three weights each.

    e = α √(Σ_{H,W} x² + ε),   n = γ / √(mean_C e² + ε),   y = x ⊙ (1 + tanh(e n + β))

    A positive γ amplifies channels of large norm relative to the others, a negative γ evens them
    out. The paper puts the transformation before convolutions and starts it at α = 1, γ = β = 0:
    the identity.

    Args:
      x: Image `[*B, H, W, C]`.
      alpha: α, the weight of each channel's norm, `[C]`.
      gamma: γ, the weight of the normalised norm in the gate, `[C]`.
      beta: β, the bias of the gate, `[C]`.
      epsilon: ε; keeps the gradients of both roots finite on an image of zeros.

    Returns:
      The scaled image `[*B, H, W, C]`.

    Raises:
      ValueError: If `x` is not an image, or an array is not `[C]`.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import vision
      >>> x, ones, zeros = jnp.ones((2, 7, 7, 16)), jnp.ones(16), jnp.zeros(16)
      >>> y = vision.gated_channel_transform(x, ones, ones, zeros)     # 1 + tanh(1)
      >>> round(float(y[0, 0, 0, 0]), 4)
      1.7616

    References:
      Yang, Zhu, Wu, Yang, "Gated Channel Transformation for Visual Recognition", CVPR 2020,
      arXiv:1909.11519, equations 2-4.
    """
    return apply_gate(x, gated_channel_transform_gate(x, alpha, gamma, beta, epsilon=epsilon))


def gated_channel_transform_gate(
    x: Float[Array, "*B H W C"],
    alpha: Float[Array, "C"],
    gamma: Float[Array, "C"],
    beta: Float[Array, "C"],
    *,
    epsilon: float = 1e-5,
) -> Float[Array, "*B 1 1 C"]:
    """The factor 1 + tanh(e n + β) of `gated_channel_transform`, `[*B, 1, 1, C]`, dtype of x."""
    x = as_image("gated_channel_transform", x)
    dtype = statistics_dtype(x.dtype)
    alpha, gamma, beta = (
        _per_channel(name, array, x).astype(dtype)
        for name, array in (("alpha", alpha), ("gamma", gamma), ("beta", beta))
    )
    energy = jnp.sum(jnp.square(x.astype(dtype)), axis=(-3, -2), keepdims=True)
    embedding = alpha * jnp.sqrt(energy + epsilon)
    scale = lax.rsqrt(jnp.mean(jnp.square(embedding), axis=-1, keepdims=True) + epsilon)
    return (1 + jnp.tanh(embedding * (gamma * scale) + beta)).astype(x.dtype)


def _per_channel(name: str, array: Array, x: Array) -> Array:
    if array.shape != x.shape[-1:]:
        raise ValueError(
            f"gated_channel_transform: {name} must be [C] = [{x.shape[-1]}], "
            f"got {list(array.shape)}."
        )
    return expand_rank(array, x.ndim)
