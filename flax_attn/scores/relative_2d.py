"""Learned biases of relative positions in an image."""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flax_attn._pytree import pytree, static
from flax_attn._record import Record
from flax_attn.coords import clamp_positions
from flax_attn.scores._leaves import as_leaf, check_heads, take
from flax_attn.scores._score_mod import ScoreMod
from flax_attn.scores.distance import names_of_axes


@pytree
class RelativeBias2D(ScoreMod):
    """The bias of Swin: a learned number for each offset of rows and columns.

    s ← s + t[(Δr + Mh − 1) · (2 Mw − 1) + Δc + Mw − 1, h],  Δr = r_i − r_j,  Δc = c_i − c_j

    The offsets are query minus key, as in the code of Swin, so its checkpoints can be used. Larger
    offsets than those in a window count as the largest.

    Attributes:
      table: t, one row per offset and one column per head `[(2 Mh − 1) · (2 Mw − 1), N]`.
      window: (Mh, Mw), height and width of the window.
      axes: Names of the integer features with the row and the column of a token.

    Raises:
      ValueError: If the table does not fit the window, or `axes` are not two names.
      TypeError: If the table is not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import Coords, scores
      >>> coords = Coords.grid(7, 7)  # has the features row and col
      >>> scores.RelativeBias2D(jnp.zeros((13 * 13, 3)), window=(7, 7))
      RelativeBias2D(table=float32[169, 3], window=(7, 7), axes=('row', 'col'))

    References:
      Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV
      2021, arXiv:2103.14030, eq. 4.
    """

    table: Float[Array, "R N"]
    window: tuple[int, int] = static()
    axes: tuple[str, str] = static(default=("row", "col"))

    per_head: ClassVar = ("table",)

    def __post_init__(self) -> None:
        if not isinstance(self.window, tuple | list):
            raise TypeError(
                f"RelativeBias2D: window must be (height, width), got {self.window!r}. For a "
                f"square write the number twice."
            )
        object.__setattr__(self, "window", tuple(self.window))
        object.__setattr__(self, "axes", names_of_axes("RelativeBias2D", self.axes))
        if len(self.axes) != 2 or len(self.window) != 2 or min(self.window) < 1:
            raise ValueError(
                f"RelativeBias2D: window and axes must be two sizes of at least 1 and two names, "
                f"for rows and for columns, got {self.window} and {self.axes}."
            )
        rows = (2 * self.window[0] - 1) * (2 * self.window[1] - 1)
        shape = f"[(2 Mh − 1) · (2 Mw − 1), N] = [{rows}, N]"
        table = as_leaf("RelativeBias2D: table", self.table, {2: shape})
        if table.shape[0] != rows:
            raise ValueError(
                f"RelativeBias2D: table must be {shape} for the window {self.window}, "
                f"got {list(table.shape)}."
            )
        object.__setattr__(self, "table", table)

    def __call__(
        self, scores: Float[Array, "..."], q: Record, k: Record, head_ids: Int[Array, "..."]
    ) -> Float[Array, "..."]:
        """See `ScoreMod`."""
        check_heads("RelativeBias2D: table", self.table.shape[1], head_ids)
        height, width = self.window

        # For the gradients only the rows and columns of tokens are saved, not the row of each
        # score.
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def look_up(table: Array, rows: tuple[Array, Array], cols: tuple[Array, Array]) -> Array:
            down, right = (clamp_positions(i) - clamp_positions(j) for i, j in (rows, cols))
            row = jnp.clip(down, 1 - height, height - 1) + height - 1
            col = jnp.clip(right, 1 - width, width - 1) + width - 1
            return take(table, row * (2 * width - 1) + col, head_ids)

        indices = [(getattr(q, axis), getattr(k, axis)) for axis in self.axes]
        for axis, sides in zip(self.axes, indices, strict=True):
            if not all(jnp.issubdtype(x.dtype, jnp.integer) for x in sides):
                raise TypeError(
                    f"RelativeBias2D: the feature {axis!r} must be integers, got "
                    f"{' and '.join(str(x.dtype) for x in sides)}. For floats use DistanceBias."
                )
        return scores + look_up(self.table.astype(scores.dtype), *indices)
