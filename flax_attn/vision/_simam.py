"""SimAM, attention without parameters."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_attn._checks import check_above_zero
from flax_attn._cpu.barriers import separate
from flax_attn._cpu.elementwise import elementwise
from flax_attn.vision._checks import as_image
from flax_attn.vision._pooling import spatial_mean


def simam(x: Float[Array, "*B H W C"], *, e_lambda: float = 1e-4) -> Float[Array, "*B H W C"]:
    """SimAM: what stands out from its channel counts more. There is nothing to learn.

    d = (x − mean_{H,W} x)²,   v = Σ_{H,W} d / (H W − 1),   y = x ⊙ σ(d / (4 (v + λ)) + ½)

    Args:
      x: Image `[*B, H, W, C]` of at least two places.
      e_lambda: λ, which keeps the quotient finite in a constant channel.

    Returns:
      The scaled image `[*B, H, W, C]`.

    Raises:
      ValueError: If `x` is not an image, or has one place only (its variance is undefined), or
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
    """Both, of one mean and variance."""
    x = as_image("simam", x)
    statistics = _statistics(x, e_lambda)
    return _scale(x, *statistics), _gate(x, *statistics)


def _open(
    x: jax.Array,
    mean: jax.Array,
    factor: jax.Array,
    half: jax.Array | float,
    one: jax.Array | float,
) -> jax.Array:
    deviation = x - mean
    return _sigmoid(deviation * deviation * factor + half, one)


_gate = elementwise(_open, 0.5, 1.0)
_scale = elementwise(lambda x, *others: x * _open(x, *others), 0.5, 1.0)


@jax.custom_jvp
def _sigmoid(x: jax.Array, one: jax.Array | float) -> jax.Array:
    return one / (one + jnp.exp(-x))


@_sigmoid.defjvp
def _sigmoid_jvp(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple:
    y = _sigmoid(*primals)
    return y, (y - y * y) * tangents[0]


def _statistics(x: jax.Array, e_lambda: float) -> tuple[jax.Array, jax.Array]:
    """The mean, and 1 / (4 (v + λ)): `[*B, 1, 1, C]`, in at least float32."""
    places = x.shape[-3] * x.shape[-2]
    if places == 1:
        raise ValueError("simam: x must have at least two places, got H · W = 1 · 1.")
    check_above_zero("simam", "e_lambda", e_lambda)
    mean = spatial_mean(x)[..., None, None, :]
    variance = _squared_deviation(x, mean) / (places - 1)
    return mean, 1 / (4 * (variance + e_lambda))


@jax.custom_jvp
def _squared_deviation(x: jax.Array, mean: jax.Array) -> jax.Array:
    """Σ_{H,W} (x − mean)², of the mean."""
    return jnp.sum(jnp.square(_deviation(x, mean)), axis=(-3, -2), keepdims=True)


@_squared_deviation.defjvp
def _squared_deviation_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    x, mean = primals

    @jax.checkpoint
    def change(dx: jax.Array, x: jax.Array, mean: jax.Array) -> jax.Array:
        moved = 2 * _deviation(x, mean) * dx.astype(mean.dtype)  # Σ (x − mean) is 0
        return jnp.sum(moved, axis=(-3, -2), keepdims=True)

    return _squared_deviation(x, mean), change(tangents[0], x, mean)


def _deviation(x: jax.Array, mean: jax.Array) -> jax.Array:
    x, mean = separate(x, mean)
    return x.astype(mean.dtype) - mean
