"""Double attention (A²-Net)."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_attn._checks import Map, check_positive, reduced_features, statistics_dtype
from flax_attn.vision._checks import as_image, check_returned
from flax_attn.vision._tokens import check_projected


def double_attention(
    x: Float[Array, "*B H W C"],
    value: Map,
    gather: Map,
    distribute: Map,
    out: Map,
    *,
    return_weights: bool = False,
) -> Float[Array, "*B H W C"] | Any:
    """Double attention: gather features of the whole image, and distribute them to each place.

    B = softmax_{H,W}(gather(x)),   V = softmax_S(distribute(x))
    G_s = Σ_{H,W} B_s value(x),   y = out(Σ_s V_s G_s) + x

    The first softmax runs over the places: each of the S descriptors G_s is an average of features.
    The second runs over the descriptors: each place gets an average of them. The cost is linear in
    the number of places. Popular code omits the residual and the axis of both softmaxes, which then
    run over the batch.

    Args:
      x: Image `[*B, H, W, C]`.
      value: Map from `[*B, H, W, C]` to `[*B, H, W, R]`: the features A of the paper.
      gather: Map from `[*B, H, W, C]` to `[*B, H, W, S]`.
      distribute: Map from `[*B, H, W, C]` to `[*B, H, W, S]`.
      out: Map from `[*B, H, W, R]` to `[*B, H, W, C]`.
      return_weights: If True, also return B and V.

    Returns:
      The output `[*B, H, W, C]`. With `return_weights` also the pair B, V, each `[*B, H, W, S]` in
      float32 (float64 for float64 input).

    Raises:
      ValueError: If `x` is not an image, R or S is 0, or a map returns another shape.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x = jnp.array([[[[1.0], [5.0]]]])                    # two places of one channel
      >>> zero, identity = maps.dense(jnp.zeros((1, 2))), lambda u: u
      >>> vision.double_attention(x, identity, zero, zero, identity)[0, 0, :, 0]
      Array([4., 8.], dtype=float32)

    References:
      Chen, Kalantidis, Li, Yan, Feng, "A²-Nets: Double Attention Networks", NeurIPS 2018,
      arXiv:1810.11579, equations 2-6.
    """
    function = "double_attention"
    x = as_image(function, x, value=value, gather=gather, distribute=distribute, out=out)
    features, places, descriptors = value(x), gather(x), distribute(x)
    check_projected(function, "value", features, x, "[*B, H, W, R]")
    check_projected(function, "gather", places, x, "[*B, H, W, S]")
    check_returned(function, "distribute", descriptors, places.shape, "[*B, H, W, S]")
    dtype = statistics_dtype(features.dtype)
    gathering = jax.nn.softmax(places.astype(dtype), axis=(-3, -2))
    distributing = jax.nn.softmax(descriptors.astype(dtype), axis=-1)
    gathered = _product("...hws,...hwr->...sr", gathering, features)
    branch = out(_product("...hws,...sr->...hwr", distributing, gathered))
    check_returned(function, "out", branch, x.shape, "[*B, H, W, C]")
    y = branch.astype(x.dtype) + x
    return (y, (gathering, distributing)) if return_weights else y


def _product(subscripts: str, weights: jax.Array, features: jax.Array) -> jax.Array:
    """Products in the dtype of the features, summed in at least float32."""
    dtype = statistics_dtype(features.dtype)
    weights = weights.astype(features.dtype)
    total = jnp.einsum(subscripts, weights, features, preferred_element_type=dtype)
    return total.astype(features.dtype)


def double_attention_features(
    features: int, reduction: int, hidden_features: int | None, num_descriptors: int | None
) -> tuple[int, int]:
    """R and S of the modules."""
    hidden = reduced_features("DoubleAttention", features, reduction, hidden_features)
    descriptors = hidden if num_descriptors is None else num_descriptors
    return hidden, check_positive("DoubleAttention", "num_descriptors", descriptors)
