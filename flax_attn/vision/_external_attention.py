"""External attention."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_attn._checks import Activation, Map, statistics_dtype
from flax_attn.vision._checks import as_image, check_returned
from flax_attn.vision._tokens import check_projected

EPSILON = 1e-9


def external_attention(
    x: Float[Array, "*B H W C"],
    query: Map,
    key: Map,
    value: Map,
    out: Map,
    *,
    norm: Map | None = None,
    activation_fn: Activation = jax.nn.relu,
    return_weights: bool = False,
) -> Float[Array, "*B H W C"] | Any:
    """External attention: places attend to a learned memory of S slots shared by all images.

    a = softmax_{H,W}(key(query(x))),   A_is = a_is / (ε + Σ_s a_is)
    y = δ(norm(out(value(A))) + x)

    Keys and values are weights, so the cost is linear in the number of places. The scores are
    normalised twice, over the places and then over the slots (ε = 1e-9), because a softmax over the
    slots depends on the scale of each place's features. The formula is the block of the released
    code, where `query` has a bias, S = 64, δ = ReLU, and `value` starts as the transpose of `key`.
    Pass identity maps to omit `query` and `out`.

    Args:
      x: Image `[*B, H, W, C]`.
      query: Map from `[*B, H, W, C]` to `[*B, H, W, D]`.
      key: Map from `[*B, H, W, D]` to `[*B, H, W, S]`: the memory of keys.
      value: Map from `[*B, H, W, S]` to `[*B, H, W, D]`: the memory of values.
      out: Map from `[*B, H, W, D]` to `[*B, H, W, C]`.
      norm: Map of `[*B, H, W, C]`, or None.
      activation_fn: δ.
      return_weights: If True, also return A.

    Returns:
      The output `[*B, H, W, C]`. With `return_weights` also A `[*B, H, W, S]` in float32 (float64
      for float64 input).

    Raises:
      ValueError: If `x` is not an image, S is 0, or a map returns another shape.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x, identity = jnp.ones((2, 7, 5, 16)), lambda u: u
      >>> key, value = maps.dense(jnp.ones((16, 4))), maps.dense(jnp.ones((4, 16)))
      >>> vision.external_attention(x, identity, key, value, identity)[0, 0, 0, :2]   # 4 · 1/4 + 1
      Array([2., 2.], dtype=float32)

    References:
      Guo, Liu, Mu, Hu, "Beyond Self-Attention: External Attention Using Two Linear Layers for
      Visual Tasks", TPAMI 2023, arXiv:2105.02358, sections 3.1 and 3.2.
    """
    function = "external_attention"
    x = as_image(
        function,
        x,
        query=query,
        key=key,
        value=value,
        out=out,
        norm=norm,
        activation_fn=activation_fn,
    )
    scores = key(query(x))
    check_projected(function, "key", scores, x, "[*B, H, W, S]")
    dtype = statistics_dtype(scores.dtype)
    over_places = jax.nn.softmax(scores.astype(dtype), axis=(-3, -2))
    weights = over_places / (EPSILON + jnp.sum(over_places, axis=-1, keepdims=True))
    branch = out(value(weights.astype(scores.dtype)))
    check_returned(function, "out", branch, x.shape, "[*B, H, W, C]")
    if norm is not None:
        branch = norm(branch)
        check_returned(function, "norm", branch, x.shape, "[*B, H, W, C]")
    y = activation_fn(branch.astype(x.dtype) + x)
    return (y, weights) if return_weights else y
