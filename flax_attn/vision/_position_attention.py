"""DANet's position attention."""

from typing import Any

from jaxtyping import Array, Float

from flax_attn._checks import Map
from flax_attn.attention import attention_weights, dot_product_attention
from flax_attn.vision._checks import as_image, check_returned
from flax_attn.vision._tokens import add_scaled, as_places, as_tokens, check_projected


def position_attention(
    x: Float[Array, "*B H W C"],
    query: Map,
    key: Map,
    value: Map,
    gamma: Float[Array, ""],
    *,
    return_weights: bool = False,
) -> Float[Array, "*B H W C"] | Any:
    """DANet's position attention: each place attends to all places.

    q = query(x),   k = key(x),   v = value(x)
    A_ij = softmax_j(q_i · k_j),   y_i = γ Σ_j A_ij v_j + x_i

    i and j run over the H · W places. The scores are not scaled. In the released code R = C / 8,
    all three maps are 1×1 convolutions with biases, and γ starts at 0: the identity.

    Args:
      x: Image `[*B, H, W, C]`.
      query: Map from `[*B, H, W, C]` to `[*B, H, W, R]`.
      key: Map from `[*B, H, W, C]` to `[*B, H, W, R]`.
      value: Map of `[*B, H, W, C]`.
      gamma: γ, one number.
      return_weights: If True, also return A, which takes memory for (H · W)² numbers.

    Returns:
      The output `[*B, H, W, C]`. With `return_weights` also A `[*B, H·W, H·W]` in float32 (float64
      for float64 input).

    Raises:
      ValueError: If `x` is not an image, R is 0, a map returns another shape, or `gamma` is not
        one number.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x = jnp.array([[[[1.0], [5.0]]]])                    # two places of one channel
      >>> zero, identity = maps.dense(jnp.zeros((1, 1))), lambda u: u
      >>> vision.position_attention(x, zero, zero, identity, jnp.array(2.0))[0, 0, :, 0]
      Array([ 7., 11.], dtype=float32)

    References:
      Fu, Liu, Tian, Li, Bao, Fang, Lu, "Dual Attention Network for Scene Segmentation", CVPR 2019,
      arXiv:1809.02983, equations 1-2.
    """
    function = "position_attention"
    x = as_image(function, x, query=query, key=key, value=value)
    q, k, v = query(x), key(x), value(x)
    check_projected(function, "query", q, x, "[*B, H, W, R]")
    check_returned(function, "key", k, q.shape, "[*B, H, W, R]")
    check_returned(function, "value", v, x.shape, "[*B, H, W, C]")
    q, k, v = as_tokens(q), as_tokens(k), as_tokens(v)
    attended = dot_product_attention(q, k, v, scale=1.0)
    y = add_scaled(function, x, gamma, as_places(attended, x))
    return (y, attention_weights(q, k, scale=1.0)[..., 0, :, :]) if return_weights else y
