"""SimAM: attention without parameters."""

from typing import Any

import jax
from jaxtyping import Array, Float

from flax_attn._checks import check_above_zero
from flax_attn._cpu.arithmetic import sigmoid
from flax_attn._cpu.elementwise import elementwise
from flax_attn._cpu.squared_deviation import squared_deviation
from flax_attn.vision._checks import as_image
from flax_attn.vision._pooling import spatial_mean


def simam(x: Float[Array, "*B H W C"], *, e_lambda: float = 1e-4) -> Float[Array, "*B H W C"]:
    """SimAM: gate each entry by its deviation from the channel's mean. It has no parameters.

    d = (x − mean_{H,W} x)²,   v = Σ_{H,W} d / (H W − 1),   y = x ⊙ σ(d / (4 (v + λ)) + ½)

    Args:
      x: Image `[*B, H, W, C]` of at least two places.
      e_lambda: λ; keeps the quotient finite in a constant channel.

    Returns:
      The scaled image `[*B, H, W, C]`.

    Raises:
      ValueError: If `x` is not an image, or has only one place (its variance is undefined), or
        `e_lambda` is not above 0.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import vision
      >>> vision.simam(jnp.ones((1, 2, 2, 1)))[0, 0, 0].round(4)     # d = 0: σ(½)
      Array([0.6225], dtype=float32)

    References:
      Yang, Zhang, Li, Xie, "SimAM: A Simple, Parameter-Free Attention Module for Convolutional
      Neural Networks", ICML 2021, equations 5 and 6.
    """
    x = as_image("simam", x)
    return _scale(x, *_statistics(x, e_lambda))


def simam_gate(x: Float[Array, "*B H W C"], *, e_lambda: float = 1e-4) -> Float[Array, "*B H W C"]:
    """The gate σ(d / (4 (v + λ)) + ½) of `simam`, `[*B, H, W, C]` in the dtype of x."""
    x = as_image("simam", x)
    return _gate(x, *_statistics(x, e_lambda))


def simam_and_gate(x: jax.Array, e_lambda: float) -> tuple[jax.Array, jax.Array]:
    """`simam` and `simam_gate` of the same statistics."""
    x = as_image("simam", x)
    statistics = _statistics(x, e_lambda)
    return _scale(x, *statistics), _gate(x, *statistics)


def _open(x: Array, mean: Array, factor: Array, *, half: Any, one: Any) -> Array:
    """σ((x − mean)² · factor + ½)."""
    deviation = x - mean
    return sigmoid(deviation * deviation * factor + half, one)


def _scaled(x: Array, mean: Array, factor: Array, *, half: Any, one: Any) -> Array:
    return x * _open(x, mean, factor, half=half, one=one)


_gate = elementwise(_open, half=0.5, one=1.0)
_scale = elementwise(_scaled, half=0.5, one=1.0)


def _statistics(x: jax.Array, e_lambda: float) -> tuple[jax.Array, jax.Array]:
    """The mean, and 1 / (4 (v + λ)): `[*B, 1, 1, C]`, in at least float32."""
    places = x.shape[-3] * x.shape[-2]
    if places == 1:
        raise ValueError("simam: x must have at least two places, got H · W = 1 · 1.")
    check_above_zero("simam", "e_lambda", e_lambda)
    mean = spatial_mean(x)[..., None, None, :]
    variance = squared_deviation(x, mean) / (places - 1)
    return mean, 1 / (4 * (variance + e_lambda))
