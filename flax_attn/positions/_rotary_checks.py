"""Checks of the arguments of rotary positions."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flax_attn._checks import (
    as_floating,
    broadcasts_to,
    check_array,
    check_positive,
    statistics_dtype,
)
from flax_attn.coords import Coords

Layout = Literal["half", "interleaved"]
Positions = Int[Array, "..."] | Float[Array, "..."]


def check_heads(owner: str, x: jax.Array) -> jax.Array:
    """`x` as a JAX array; raise unless it has the axes of heads."""
    x = as_floating(owner, "x", x)
    if x.ndim < 3:
        raise ValueError(
            f"{owner}: x must be [*B, T, N, D], got {list(x.shape)}. Add a head axis: "
            f"x[..., None, :]."
        )
    return x


def check_layout(owner: str, layout: str) -> None:
    """Raise unless the layout is known."""
    if layout not in ("half", "interleaved"):
        raise ValueError(f'{owner}: layout must be "half" or "interleaved", got {layout!r}.')


def check_sections(owner: str, sections: Sequence[int], half: int) -> tuple[int, ...]:
    """The sections as integers; raise unless their sum is R/2."""
    if isinstance(sections, str) or not isinstance(sections, Sequence | np.ndarray):
        raise TypeError(
            f"{owner}: sections must be whole numbers, one per axis of positions, such as "
            f"(16, 24, 24), got {sections!r}."
        )
    sections = tuple(check_positive(owner, "sections", size) for size in sections)
    if sum(sections) != half:
        raise ValueError(
            f"{owner}: sections must sum to R/2 = {half}, got {sections} with sum "
            f"{sum(sections)}. They count frequencies, one for each pair of features."
        )
    return sections


def as_positions(
    owner: str, positions: Positions, x: jax.Array, sections: tuple[int, ...] | None
) -> jax.Array:
    """The positions in the dtype of angles; raise unless they fit the tokens of `x`."""
    if isinstance(positions, Coords):
        raise TypeError(f"{owner}: positions must be numbers, got Coords. Write coords.positions.")
    if not isinstance(positions, jax.Array):
        positions = np.asarray(positions) if isinstance(positions, list | tuple) else positions
        check_array(owner, "positions", positions)
    if not jnp.issubdtype(positions.dtype, np.integer) and not jnp.issubdtype(
        positions.dtype, np.floating
    ):
        raise TypeError(
            f"{owner}: positions must be integers or floating point, got {positions.dtype}."
        )
    _check_positions_shape(owner, positions.shape, x.shape, sections)
    dtype = statistics_dtype(x.dtype)
    if not isinstance(positions, jax.Array):  # JAX would wrap large ones to 32 bits
        return jnp.asarray(np.asarray(positions).astype(dtype))
    return positions.astype(dtype)


def _check_positions_shape(
    owner: str,
    shape: tuple[int, ...],
    x_shape: tuple[int, ...],
    sections: tuple[int, ...] | None,
) -> None:
    tokens = x_shape[:-2]
    axes, letters = ((), "[*B, T]") if sections is None else ((len(sections),), "[*B, T, A]")
    own = shape[: len(shape) - len(axes)]
    if shape[len(own) :] == axes and own[-1:] == tokens[-1:] and broadcasts_to(own, tokens):
        return
    fix = ""
    if sections is None and shape[-2:-1] == tokens[-1:]:
        fix = " Positions with several numbers per token need sections."
    elif sections is not None and broadcasts_to(shape, tokens) and shape[-1:] == tokens[-1:]:
        fix = f" For equal numbers on all axes: jnp.stack([positions] * {len(sections)}, axis=-1)."
    elif not shape:
        fix = " For one token: positions[None]."
    elif tokens[-1] == 1 and shape == tokens[:-1]:
        fix = " For one token per batch element: positions[:, None]."
    elif shape[-1:] == x_shape[-2:-1]:
        fix = " The layout of x is [*B, T, N, D]: jnp.swapaxes(x, -3, -2)."
    raise ValueError(
        f"{owner}: positions must broadcast to {letters} = {[*tokens, *axes]}, with all T, got "
        f"{list(shape)}.{fix}"
    )
