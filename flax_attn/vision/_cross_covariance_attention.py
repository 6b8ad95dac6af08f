"""Cross-covariance attention (XCA)."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from flax_attn._checks import Map, as_floating, check_above_zero, expand_rank, statistics_dtype
from flax_attn.vision._checks import as_image, check_returned


def cross_covariance_attention(
    x: Float[Array, "*B H W C"],
    query: Map,
    key: Map,
    value: Map,
    out: Map,
    temperature: Float[Array, "N"],
    *,
    epsilon: float = 1e-12,
    return_weights: bool = False,
) -> Any:
    """Cross-covariance attention: channels attend to channels, at a cost linear in H · W.

    A_n = softmax_e(τ_n · Q̂_nᵀ K̂_n),   y = out(A_n V_n),   Q̂ = Q / max(‖Q‖, ε) over H, W

    Each channel of a head is a query of H · W features with norm 1, so A is `[D, D]` for any image
    size. The paper divides by τ. Its released code multiplies by it, starting at τ = 1, and so do
    we.

    Args:
      x: Image `[*B, H, W, C]`.
      query: Map from `[*B, H, W, C]` to `[*B, H, W, N, D]`.
      key: Map like `query`.
      value: Map like `query`.
      out: Map from `[*B, H, W, N, D]` to `[*B, H, W, C]`.
      temperature: τ, one factor for each head `[N]`.
      epsilon: ε. A channel with a smaller norm, such as one of zeros, is divided by ε, and its
        gradient is finite. (The gradient is as large as 1 / ε, which in float16 must be less than
        65,504.)
      return_weights: If True, also return A.

    Returns:
      The output `[*B, H, W, C]`. With `return_weights` also A `[*B, N, D, D]` in float32 (float64
      for float64 input), whose rows sum to 1.

    Raises:
      ValueError: If `x` is not an image, a map or `temperature` has another shape, or `epsilon` is
        not above 0.
      TypeError: If `x` or `temperature` is not a floating-point array.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x = jax.random.normal(jax.random.key(0), (2, 7, 7, 16))
      >>> split = maps.dense(jnp.eye(16).reshape(16, 2, 8))
      >>> join = maps.dense(jnp.eye(16).reshape(2, 8, 16), axes=2)
      >>> y, weights = vision.cross_covariance_attention(
      ...     x, split, split, split, join, jnp.ones(2), return_weights=True
      ... )
      >>> y.shape, weights.shape
      ((2, 7, 7, 16), (2, 2, 8, 8))

    References:
      El-Nouby, Touvron, Caron, Bojanowski, Douze, Joulin, Laptev, Neverova, Synnaeve, Verbeek,
      Jégou, "XCiT: Cross-Covariance Image Transformers", NeurIPS 2021, arXiv:2106.09681,
      section 3.2.
    """
    function = "cross_covariance_attention"
    x = as_image(function, x, query=query, key=key, value=value, out=out)
    temperature = as_floating(function, "temperature", temperature)
    check_above_zero(function, "epsilon", epsilon)
    q, k, v = query(x), key(x), value(x)
    if q.ndim != x.ndim + 1 or q.shape[:-2] != x.shape[:-1]:
        raise ValueError(
            f"{function}: query must return [*B, H, W, N, D] = "
            f"{list(x.shape[:-1])} + [heads, head size], got {list(q.shape)}."
        )
    check_returned(function, "key", k, q.shape, "[*B, H, W, N, D]")
    check_returned(function, "value", v, q.shape, "[*B, H, W, N, D]")
    if temperature.shape != q.shape[-2:-1]:
        raise ValueError(
            f"{function}: temperature must be [N] = {list(q.shape[-2:-1])}, "
            f"got {list(temperature.shape)}. Give one for each head."
        )
    dtype = statistics_dtype(q.dtype)
    products_NDE = jnp.einsum("...hwnd,...hwne->...nde", q, k, preferred_element_type=dtype)
    inverse_ND, inverse_NE = _inverse_length(q, epsilon), _inverse_length(k, epsilon)
    cosines_NDE = products_NDE * inverse_ND[..., :, None] * inverse_NE[..., None, :]
    factor_N11 = expand_rank(temperature.astype(dtype)[:, None, None], cosines_NDE.ndim)
    weights_NDE = jax.nn.softmax(factor_N11 * cosines_NDE, axis=-1)
    mixed = jnp.einsum(
        "...nde,...hwne->...hwnd", weights_NDE.astype(v.dtype), v, preferred_element_type=dtype
    )
    y = out(mixed.astype(v.dtype))
    check_returned(function, "out", y, x.shape, "[*B, H, W, C]")
    y = y.astype(x.dtype)
    return (y, weights_NDE) if return_weights else y


def _inverse_length(q: jax.Array, epsilon: float) -> jax.Array:
    """1 / max(‖q‖, ε) over the places: `[*B, H, W, N, D]` -> `[*B, N, D]`.

    The squares are compared: the gradient of the square root is not a number at 0.
    """
    squares = jnp.sum(jnp.square(q.astype(statistics_dtype(q.dtype))), axis=(-4, -3))
    long = squares > epsilon**2  # used twice: for ε² the second derivative would overflow
    return jnp.where(long, lax.rsqrt(jnp.where(long, squares, 1)), 1 / epsilon)
