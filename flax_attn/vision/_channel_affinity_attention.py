"""DANet's channel attention, over the affinity of channels."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_attn._checks import statistics_dtype
from flax_attn.vision._checks import as_image
from flax_attn.vision._tokens import add_scaled


def channel_affinity_attention(
    x: Float[Array, "*B H W C"], gamma: Float[Array, ""], *, return_weights: bool = False
) -> Float[Array, "*B H W C"] | Any:
    """DANet's channel attention: each channel attends to the channels that differ from it.

    E_cd = Σ_{H,W} x_c x_d,   A_cd = softmax_d(max_d E_cd − E_cd),   y_c = γ Σ_d A_cd x_d + x_c

    The paper's equation 3 is softmax_d(E_cd), which prefers similar channels. The released code
    computes the formula above, which the authors found to converge better. The maximum is constant
    in a row, so A = softmax(−E). γ is the only parameter and starts at 0: the identity.

    Args:
      x: Image `[*B, H, W, C]`.
      gamma: γ, one number.
      return_weights: If True, also return A.

    Returns:
      The output `[*B, H, W, C]`. With `return_weights` also A `[*B, C, C]` in float32 (float64 for
      float64 input).

    Raises:
      ValueError: If `x` is not an image, or `gamma` is not one number.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import vision
      >>> x = jnp.array([[[[9.0, 0.0]]]])                      # one place of two channels
      >>> vision.channel_affinity_attention(x, jnp.array(1.0))[0, 0, 0]
      Array([9. , 4.5], dtype=float32)

    References:
      Fu, Liu, Tian, Li, Bao, Fang, Lu, "Dual Attention Network for Scene Segmentation", CVPR 2019,
      arXiv:1809.02983, equations 3-4.
    """
    x = as_image("channel_affinity_attention", x)
    dtype = statistics_dtype(x.dtype)
    energy = jnp.einsum("...hwc,...hwd->...cd", x, x, preferred_element_type=dtype)
    weights = jax.nn.softmax(-energy, axis=-1)
    attended = jnp.einsum(
        "...cd,...hwd->...hwc", weights.astype(x.dtype), x, preferred_element_type=dtype
    )
    y = add_scaled("channel_affinity_attention", x, gamma, attended)
    return (y, weights) if return_weights else y
