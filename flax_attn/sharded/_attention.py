"""Attention of arrays that are split over the devices of a mesh."""

from typing import Any

from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from flax_attn.attention import dot_product_attention
from flax_attn.masks import Mask
from flax_attn.sharded._placement import AxisPlacement


def attention(
    mesh: Mesh,
    placement: AxisPlacement,
    query: Float[Array, "*B T N D"],
    key: Float[Array, "*B S K D"],
    value: Float[Array, "*B S K Dv"],
    bias: Float[Array, "..."] | None = None,
    mask: Mask | Bool[Array, "..."] | None = None,
    *,
    batch: str | tuple[str, ...] | None = None,
    heads: str | None = None,
    **options: Any,
) -> Float[Array, "*B T N Dv"] | Any:
    """Scaled dot-product attention of arrays of all devices, split as a placement says.

    The result is that of `dot_product_attention` on one device. It is the same as
    `dot_product_attention(..., placement=placement.on(mesh, batch=batch, heads=heads))`.

    Every mask, score modifier, normaliser, bias, dropout and derivative works. What depends on the
    numbers of heads, batch elements and tokens reads those of the whole. Lengths that the devices
    do not divide are padded, and the padding is hidden. What is split over a mesh axis that nothing
    names stays split in a ring; otherwise the axis must be named.

    Args:
      mesh: The mesh, with Auto or Explicit axes.
      placement: How tokens are split: `Ring("seq")`, `Ulysses("seq")`, `AllGather("seq")`,
        `AllReduce("seq")`, `Heads("heads")`, or one within another.
      query: Queries `[*B, T, N, D]` of all devices.
      key: Keys `[*B, S, K, D]`.
      value: Values `[*B, S, K, Dv]`.
      bias: As in `dot_product_attention`.
      mask: As in `dot_product_attention`.
      batch: The mesh axis that splits the first batch axis, or several in a tuple.
      heads: The mesh axis that splits the heads.
      **options: As in `dot_product_attention`.

    Returns:
      The output `[*B, T, N, Dv]`; with `return_residual` also the LSE `[*B, T, N]`.

    Raises:
      ValueError: As `dot_product_attention`; if a mesh axis does not exist or is used twice, or if
        heads or batch elements cannot be split.
      TypeError: As `dot_product_attention`.
      NotImplementedError: If the results of blocks cannot be merged, as for `TopK` in a ring.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import dot_product_attention, masks, sharded
      >>> mesh = jax.make_mesh((8,), ("seq",))
      >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 50, 2, 8))
      >>> mask = masks.Window(16, 0) | masks.Prefix(4)
      >>> out = sharded.attention(mesh, sharded.Ring("seq"), q, k, v, mask=mask)
      >>> bool(jnp.allclose(out, dot_product_attention(q, k, v, mask=mask), atol=1e-5))
      True
    """
    check_placement_on_mesh(placement)
    on_mesh = placement.on(mesh, batch=batch, heads=heads)
    return dot_product_attention(query, key, value, bias, mask, placement=on_mesh, **options)


def check_placement_on_mesh(placement: Any) -> None:
    """Raise unless it is a placement by the names of axes."""
    if not isinstance(placement, AxisPlacement):
        raise TypeError(
            f'sharded.attention: placement must be one such as Ring("seq"), got {placement!r}.'
        )
