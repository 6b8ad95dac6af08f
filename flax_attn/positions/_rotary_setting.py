"""Rotary positions as a setting of modules."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_attn._checks import as_integer, check_positive, statistics_dtype
from flax_attn._jax import varying_axes
from flax_attn.positions._frequencies import Frequencies, check_table, frequencies
from flax_attn.positions._rotary import rotary
from flax_attn.positions._rotary_checks import (
    Layout,
    Positions,
    as_positions,
    check_heads,
    check_layout,
    check_sections,
)
from flax_attn.positions._scaling import Length, Scaling


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotary positions with all their settings, as a function of queries or keys and positions.

    It is frozen and hashable and holds no arrays, so a Flax module can hold it.

    Attributes:
      head_dim: D, the size of a head.
      base: The base of the frequencies.
      scaling: For sequences longer than those of pretraining, as in `frequencies`.
      layout: Which features are pairs, as in `rotary`.
      sections: Numbers of frequencies for each axis of positions, as in `rotary`. A list becomes a
        tuple.
      rotated: R, the number of features that are rotated, the first of each head. Default: D.
      axial: Give each section the whole range of frequencies, `frequencies(2 * s)`, as vision
        transformers do for rows and columns. If False, the sections divide one table, as in
        Qwen2-VL.
      length: The length of the sequences, which `DynamicNTK` and `LongRoPE` read; None takes it
        from the positions of each call. With a cache it must be given: keys that were rotated for
        another length would not fit.

    Raises:
      ValueError: If R is odd or above D, the layout is unknown, the sections do not sum to R/2,
        `axial` is set without sections, or a number is wrong for `frequencies`.
      TypeError: If a setting has the wrong type.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import positions
      >>> llama = positions.Llama3(8.0, original_length=8192)
      >>> rotary = positions.Rotary(128, base=500_000.0, scaling=llama)
      >>> rotary(jnp.ones((2, 5, 3, 128)), jnp.arange(5)).shape
      (2, 5, 3, 128)

    References:
      Those of `rotary` and of the scalings.
    """

    head_dim: int
    base: float = 10_000.0
    scaling: Scaling | None = None
    layout: Layout = "half"
    sections: tuple[int, ...] | None = None
    rotated: int | None = None
    axial: bool = False
    length: int | None = None

    def __post_init__(self) -> None:
        size = as_integer("Rotary", "head_dim", self.head_dim)
        rotated = size
        if self.rotated is not None:
            rotated = as_integer("Rotary", "rotated", self.rotated)
            if rotated < 2 or rotated % 2 or rotated > size:
                raise ValueError(
                    f"Rotary: rotated must be even, in 2 ... head_dim = {size}, got {rotated}."
                )
            object.__setattr__(self, "rotated", rotated)
        check_layout("Rotary", self.layout)
        if self.sections is not None:
            sections = check_sections("Rotary", self.sections, rotated // 2)
            object.__setattr__(self, "sections", sections)
        elif self.axial:
            raise ValueError(
                f"Rotary: axial must come with sections, one for each axis, got sections=None. "
                f"For rows and columns: sections=({rotated // 4}, {rotated // 4})."
            )
        if self.length is not None:
            object.__setattr__(self, "length", check_positive("Rotary", "length", self.length))
        for width in self._widths():
            _, base = check_table("Rotary", width, self.base, self.scaling)
        object.__setattr__(self, "head_dim", size)
        object.__setattr__(self, "base", base)

    @property
    def reads_length(self) -> bool:
        """Whether the rotation depends on how long the sequence is."""
        return self.length is None and self.scaling is not None and self.scaling.reads_length

    def _widths(self) -> list[int]:
        """The rotated features of each table of frequencies."""
        if self.axial and self.sections is not None:
            return [2 * size for size in self.sections]
        return [self.rotated or self.head_dim]

    def frequencies(self, length: Length = None, dtype: jnp.dtype | None = None) -> Frequencies:
        """The frequencies of all sections.

        Args:
          length: See `frequencies`.
          dtype: See `frequencies`.

        Returns:
          `Frequencies` with `values` `[R/2]`.
        """
        tables = [
            frequencies(width, base=self.base, scaling=self.scaling, length=length, dtype=dtype)
            for width in self._widths()
        ]
        if len(tables) == 1:
            return tables[0]
        values = jnp.concatenate([table.values for table in tables])
        return Frequencies(values, tables[0].attention_factor)

    def __call__(
        self, x: Float[Array, "*B T N D"], positions: Positions, *, length: Length = None
    ) -> Float[Array, "*B T N D"]:
        """Rotate queries or keys.

        Args:
          x: Queries or keys `[*B, T, N, D]`.
          positions: Positions in tokens `[*#B, T]`, or `[*#B, T, A]` with sections.
          length: The length of the sequence, which `DynamicNTK` and `LongRoPE` read. Default: the
            attribute; if that is None, the largest position of all batch elements + 1, as in
            Hugging Face. Inside `shard_map` one of the two must be given.

        Returns:
          The rotated array, in the shape and dtype of `x`.

        Raises:
          ValueError: If D is not `head_dim`, positions do not fit the tokens of `x`, or the length
            cannot be known inside `shard_map`.
          TypeError: If an argument has the wrong type.
        """
        x = check_heads("Rotary", x)
        if x.shape[-1] != self.head_dim:
            rotated = self._widths()[0]
            partial = f"; to rotate a part of each head, Rotary({x.shape[-1]}, rotated={rotated})"
            fits = rotated <= x.shape[-1] and self.sections is None
            raise ValueError(
                f"Rotary: x must have heads of the size D = {self.head_dim} that it was made for, "
                f"got {list(x.shape)}. Write Rotary({x.shape[-1]}, ...){partial if fits else ''}."
            )
        places = as_positions("Rotary", positions, x, self.sections)
        length = self.length if length is None else length
        if length is None and self.reads_length:
            length = _length(places)
        table = self.frequencies(length, statistics_dtype(x.dtype))
        return rotary(x, places, table, layout=self.layout, sections=self.sections)


def _length(positions: jax.Array) -> jax.Array:
    axes = varying_axes(positions)
    if axes:
        raise ValueError(
            f"Rotary: length must be given inside shard_map, as each device sees only its own "
            f"positions along {sorted(axes)}, got None. Write rotary(x, positions, length=...)."
        )
    return jnp.max(positions, initial=-1) + 1
