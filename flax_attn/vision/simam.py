"""SimAM, attention without parameters."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_attn._checks import statistics_dtype
from flax_attn.vision._checks import as_image
from flax_attn.vision._memory import again, apart
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
      ValueError: If `x` is not an image, or has one place only: its variance is undefined.
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
    return simam_and_gate(x, e_lambda)[0]


def simam_and_gate(x: jax.Array, e_lambda: float) -> tuple[jax.Array, jax.Array]:
    """The scaled image and its gate, of which reverse mode keeps nothing but x."""

    @jax.checkpoint
    def scaled(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        gate = simam_gate(x, e_lambda=e_lambda)
        return x * gate, gate

    return scaled(as_image("simam", x))


def simam_gate(x: Float[Array, "*B H W C"], *, e_lambda: float = 1e-4) -> Float[Array, "*B H W C"]:
    """The gate σ(d / (4 (v + λ)) + ½) of `simam`, `[*B, H, W, C]` in the dtype of x."""
    x = as_image("simam", x)
    places = x.shape[-3] * x.shape[-2]
    if places == 1:
        raise ValueError("simam: x must have at least two places, got H · W = 1 · 1.")
    dtype = statistics_dtype(x.dtype)
    mean = spatial_mean(x)[..., None, None, :]
    deviation = jnp.square(again(x, mean).astype(dtype) - mean)
    variance = jnp.sum(deviation, axis=(-3, -2), keepdims=True) / (places - 1)
    mean, variance = apart(mean, variance)
    deviation = jnp.square(again(x, variance).astype(dtype) - mean)
    return jax.nn.sigmoid(deviation / (4 * (variance + e_lambda)) + 0.5).astype(x.dtype)
