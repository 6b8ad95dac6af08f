"""Criss-cross attention."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_attn._checks import Map, check_positive
from flax_attn.attention import Partial, attention_weights, merge, partial
from flax_attn.masks import Window
from flax_attn.vision._checks import as_image, check_returned
from flax_attn.vision._tokens import add_scaled, check_projected

# The query's own place is part of its row; the column excludes it, so that it counts once.
ELSEWHERE = ~Window(0, 0)


def criss_cross_attention(
    x: Float[Array, "*B H W C"],
    query: Map,
    key: Map,
    value: Map,
    gamma: Float[Array, ""],
    *,
    recurrence: int = 2,
    return_weights: bool = False,
) -> Float[Array, "*B H W C"] | Any:
    """Criss-cross attention: each place attends to its row and column, several times.

    q = query(x),   k = key(x),   v = value(x),   N_i = the H + W − 1 places in i's row or column
    A_ij = softmax_{j ∈ N_i}(q_i · k_j),   y_i = γ Σ_{j ∈ N_i} A_ij v_j + x_i,   and x ← y

    One softmax runs over row and column: attention over each is computed separately and merged,
    with O(H W (H + W)) scores. Two steps with the same maps connect all places. The scores are not
    scaled. In the released code R = C / 8, all three maps are 1×1 convolutions with biases, and γ
    starts at 0: the identity.

    Args:
      x: Image `[*B, H, W, C]`.
      query: Map from `[*B, H, W, C]` to `[*B, H, W, R]`.
      key: Map from `[*B, H, W, C]` to `[*B, H, W, R]`.
      value: Map of `[*B, H, W, C]`.
      gamma: γ, one number.
      recurrence: Number of steps.
      return_weights: If True, also return A.

    Returns:
      The output `[*B, H, W, C]`. With `return_weights` also a tuple of A for each step,
      `[*B, H, W, H + W]` in float32 (float64 for float64 input): the weights of the column from top
      to bottom, with 0 at the place itself, then those of the row.

    Raises:
      ValueError: If `x` is not an image, R is 0, a map returns another shape, `gamma` is not one
        number, or `recurrence` is not at least 1.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x = jnp.array([[[[1.0], [5.0]], [[3.0], [7.0]]]])    # 2×2 places of one channel
      >>> zero, identity = maps.dense(jnp.zeros((1, 1))), lambda u: u
      >>> y = vision.criss_cross_attention(
      ...     x, zero, zero, identity, jnp.array(1.0), recurrence=1
      ... )
      >>> round(float(y[0, 0, 0, 0]), 6)                       # 1 + (1 + 5 + 3) / 3
      4.0

    References:
      Huang, Wang, Huang, Huang, Wei, Liu, "CCNet: Criss-Cross Attention for Semantic Segmentation",
      ICCV 2019, arXiv:1811.11721, equations 1-2.
    """
    function = "criss_cross_attention"
    x = as_image(function, x, query=query, key=key, value=value)
    steps = []
    for _ in range(check_positive(function, "recurrence", recurrence)):
        q, k, v = query(x), key(x), value(x)
        check_projected(function, "query", q, x, "[*B, H, W, R]")
        check_returned(function, "key", k, q.shape, "[*B, H, W, R]")
        check_returned(function, "value", v, x.shape, "[*B, H, W, C]")
        q, k, v = (features[..., None, :] for features in (q, k, v))  # one head
        joint = _attend(q, k, v)
        x = add_scaled(function, x, gamma, joint.output[..., 0, :])
        if return_weights:
            steps.append(_weights(q, k, joint))
    return (x, tuple(steps)) if return_weights else x


def _attend(
    q: Float[Array, "*B H W 1 R"], k: Float[Array, "*B H W 1 R"], v: Float[Array, "*B H W 1 C"]
) -> Partial:
    """Attention over rows, merged with attention over columns."""
    turned_q, turned_k, turned_v = _turned((q, k, v), q.ndim - 4)
    column = partial(turned_q, turned_k, turned_v, mask=ELSEWHERE, scale=1.0)
    return merge([_turned(column, q.ndim - 4), partial(q, k, v, scale=1.0)])


def _weights(
    q: Float[Array, "*B H W 1 R"], k: Float[Array, "*B H W 1 R"], joint: Partial
) -> Float[Array, "*B H W S"]:
    axis = q.ndim - 4
    turned_q, turned_k, turned = _turned((q, k, joint), axis)
    column = attention_weights(turned_q, turned_k, mask=ELSEWHERE, scale=1.0, lse=turned.lse)
    row = attention_weights(q, k, scale=1.0, lse=joint.lse)
    return jnp.concatenate([_turned(column[..., 0, :, :], axis), row[..., 0, :, :]], axis=-1)


def _turned(tree: Any, axis: int) -> Any:
    """Swap rows and columns: the axis and the next one."""
    return jax.tree.map(lambda array: jnp.swapaxes(array, axis, axis + 1), tree)
