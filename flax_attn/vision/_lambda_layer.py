"""The lambda layer, from LambdaNetworks."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_attn._checks import Map, check_odd, check_positive, head_features, statistics_dtype
from flax_attn.vision._checks import as_image, check_returned


def lambda_layer(
    x: Float[Array, "*B H W C"],
    query: Map,
    query_norm: Map,
    key: Map,
    value: Map,
    value_norm: Map,
    position: Map,
) -> Float[Array, "*B H W M"]:
    """The lambda layer: turn the context into a linear map per place, applied to its queries.

    q = norm(query(x)),   k̄ = softmax_{H,W}(key(x)),   v = norm(value(x))
    λ_i = Σ_j k̄_j v_jᵀ + position(v)_i   `[K, D]`,   y_i[n] = λ_iᵀ q_i[n]

    The first term is the content lambda, the same for all places. The second is the position
    lambda, a convolution of the values with K kernels of r×r (the paper's lambda convolution, with
    K = 16, N = 4 and intra-depth u = 1). All heads share the lambdas, so the values have the size D
    of one head, and M = N · D. There is no attention map: memory is O(H W K D) for any r.

    Args:
      x: Image `[*B, H, W, C]`.
      query: Map from `[*B, H, W, C]` to `[*B, H, W, N · K]`.
      query_norm: Map of `[*B, H, W, N · K]`.
      key: Map from `[*B, H, W, C]` to `[*B, H, W, K]`.
      value: Map from `[*B, H, W, C]` to `[*B, H, W, D]`.
      value_norm: Map of `[*B, H, W, D]`.
      position: Map from `[*B, D, H, W, 1]`, each channel of the values as a separate image, to
        `[*B, D, H, W, K]`.

    Returns:
      The output `[*B, H, W, M]`.

    Raises:
      ValueError: If `x` is not an image, the channels of the queries are not a multiple of K, or a
        map returns another shape.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x, identity = jnp.ones((1, 4, 4, 8)), lambda u: u
      >>> query, key, value = (maps.dense(jnp.full((8, m), 1 / 8)) for m in (4 * 2, 2, 3))
      >>> position = maps.conv(jnp.zeros((3, 3, 1, 2)))
      >>> y = vision.lambda_layer(x, query, identity, key, value, identity, position)
      >>> y.shape, y[0, 0, 0, :2]                       # 4 heads; Σ_k q_k · mean v = 2
      ((1, 4, 4, 12), Array([2., 2.], dtype=float32))

    References:
      Bello, "LambdaNetworks: Modeling Long-Range Interactions Without Attention", ICLR 2021,
      arXiv:2102.08602, section 3.
    """
    function = "lambda_layer"
    x = as_image(
        function,
        x,
        query=query,
        query_norm=query_norm,
        key=key,
        value=value,
        value_norm=value_norm,
        position=position,
    )
    places = x.shape[:-1]
    q, k, v = query_norm(query(x)), key(x), value_norm(value(x))
    check_returned(function, "query", q, (*places, q.shape[-1]), "[*B, H, W, N · K]")
    check_returned(function, "key", k, (*places, k.shape[-1]), "[*B, H, W, K]")
    check_returned(function, "value", v, (*places, v.shape[-1]), "[*B, H, W, D]")
    depth = k.shape[-1]
    if depth == 0 or q.shape[-1] % depth:
        raise ValueError(
            f"{function}: query must return a multiple of the keys' K = {depth} channels, "
            f"got N · K = {q.shape[-1]}."
        )
    planes_DHW1 = jnp.moveaxis(v, -1, -3)[..., None]
    position_DHWK = position(planes_DHW1)
    check_returned(
        function, "position", position_DHWK, (*planes_DHW1.shape[:-1], depth), "[*B, D, H, W, K]"
    )

    dtype = statistics_dtype(k.dtype)
    weights_HWK = jax.nn.softmax(k.astype(dtype), axis=(-3, -2))
    content_KD = jnp.einsum("...hwk,...hwd->...kd", weights_HWK, v.astype(dtype))
    lambdas_DHWK = position_DHWK.astype(dtype) + _to_planes(content_KD)
    heads = q.shape[-1] // depth
    queries_NK = q.reshape(*places, heads, depth)
    y_ND = jnp.einsum(
        "...hwnk,...dhwk->...hwnd",
        queries_NK,
        lambdas_DHWK.astype(q.dtype),
        preferred_element_type=dtype,
    )
    return y_ND.reshape(*places, heads * v.shape[-1]).astype(x.dtype)


def _to_planes(content_KD: jax.Array) -> jax.Array:
    """`[*B, K, D]` -> `[*B, D, 1, 1, K]`."""
    return jnp.swapaxes(content_KD, -1, -2)[..., :, None, None, :]


def lambda_layer_features(
    features: int, num_heads: int, key_features: int, kernel_size: int
) -> int:
    """The channels of the values in the modules."""
    check_positive("LambdaLayer", "key_features", key_features)
    check_odd("LambdaLayer", kernel_size)
    return head_features("LambdaLayer", features, num_heads)
