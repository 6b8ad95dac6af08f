"""Images as windows, and windows as images."""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Shaped

from flax_attn.scores import RelativeBias2D

Size = int | tuple[int, int]


def as_pair(function: str, name: str, size: Size, least: int) -> tuple[int, int]:
    """(height, width) from one number or a pair; each at least `least`."""
    try:
        pair = tuple(
            operator.index(n) for n in (size if isinstance(size, tuple | list) else (size, size))
        )
    except TypeError:
        raise TypeError(
            f"{function}: {name} must be one whole number or a pair, got {size!r}."
        ) from None
    if len(pair) != 2 or min(pair) < least:
        raise ValueError(
            f"{function}: {name} must be one number or (height, width), at least {least}, "
            f"got {size!r}."
        )
    return pair


def check_divides(
    function: str, name: str, size: tuple[int, int], x: jax.Array, fix: str = ""
) -> None:
    """Raise unless the height and width of an image are multiples of `size`."""
    height, width = x.shape[-3:-1]
    if height % size[0] or width % size[1]:
        raise ValueError(
            f"{function}: H and W must be multiples of {name} = {size}, got {height} · {width}. "
            f"{fix or 'Pad or resize the image.'}"
        )


def to_windows(
    x: Shaped[Array, "*B H W C"], size: tuple[int, int]
) -> Shaped[Array, "*B windows places C"]:
    """Cut an image into windows of `size`; windows and their places are in row-major order."""
    *batch, height, width, _ = x.shape
    rows, columns = height // size[0], width // size[1]
    x = reshape_places(x, len(batch), rows, size[0], columns, size[1])
    return reshape_places(jnp.swapaxes(x, -4, -3), len(batch), rows * columns, size[0] * size[1])


def from_windows(
    windows: Float[Array, "*B windows places C"], size: tuple[int, int], height: int, width: int
) -> Float[Array, "*B H W C"]:
    """The inverse of `to_windows`."""
    batch = windows.ndim - 3
    x = reshape_places(windows, batch, height // size[0], width // size[1], *size)
    return reshape_places(jnp.swapaxes(x, -4, -3), batch, height, width)


def reshape_places(x: jax.Array, batch: int, *places: int, last: int = 1) -> jax.Array:
    """Reshape the axes between the batch axes and the last ones.

    On an explicit mesh, JAX needs the sharding of the result to reshape several axes.
    """
    end = x.ndim - last
    spec = jax.typeof(x).sharding.spec
    known = any(spec) and not any(spec[batch:end])
    sharding = PartitionSpec(*spec[:batch], *(None,) * len(places), *spec[end:]) if known else None
    return jnp.reshape(x, (*x.shape[:batch], *places, *x.shape[end:]), out_sharding=sharding)


def overlapping(x: Shaped[Array, "..."], axis: int, block: int, halo: int) -> Shaped[Array, "..."]:
    """Cut an axis L into blocks with `halo` neighbours on both sides, padded by zeros.

    `[..., L, ...]` -> `[..., L / block, block + 2 halo, ...]`. It concatenates shifted views of the
    blocks. A gather would make the gradient a scatter.
    """
    axis %= x.ndim
    count, size = x.shape[axis] // block, block + 2 * halo
    parts = -(-size // block)
    padding = [(0, 0)] * x.ndim
    padding[axis] = (halo, (parts - 1) * block - halo)
    blocks = jnp.pad(x, padding)
    blocks = blocks.reshape(*x.shape[:axis], count + parts - 1, block, *x.shape[axis + 1 :])
    shifted = [lax.slice_in_dim(blocks, i, i + count, axis=axis) for i in range(parts)]
    return lax.slice_in_dim(jnp.concatenate(shifted, axis=axis + 1), 0, size, axis=axis + 1)


def num_offsets(module: str, name: str, size: Size) -> int:
    """(2 Mh − 1) · (2 Mw − 1), the number of rows of a window's table of relative biases."""
    height, width = as_pair(module, name, size, 1)
    return (2 * height - 1) * (2 * width - 1)


def with_relative_bias(
    function: str, attention: Callable[..., Array], table: jax.Array | None, size: tuple[int, int]
) -> Callable[..., Array]:
    """`attention` with a learned bias for each offset in a window; unchanged without a table."""
    if table is None:
        return attention
    bias = RelativeBias2D(table, size)

    def attend(query: jax.Array, key: jax.Array, value: jax.Array, **options: Any) -> jax.Array:
        if table.shape[1] != query.shape[-2]:
            raise ValueError(
                f"{function}: relative_bias must have a column for each of N = {query.shape[-2]} "
                f"heads, got {list(table.shape)}."
            )
        return attention(query, key, value, score_mod=bias, **options)

    return attend
