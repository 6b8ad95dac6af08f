"""Learned biases of relative positions along one axis."""

import functools
import math
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flax_attn._pytree import pytree, static
from flax_attn._record import Record
from flax_attn.scores._by_distance import by_distance
from flax_attn.scores._leaves import as_leaf, check_heads, take
from flax_attn.scores._score_mod import ScoreMod


class ByDistance(ScoreMod):
    """A bias that is looked up in a table by the distance of two positions, and by head.

    Attributes:
      table: One row per distance or bucket of distances, and one column per head `[R, N]`.
    """

    table: Float[Array, "R N"]

    per_head: ClassVar = ("table",)

    def _rows(self, distances: Int[Array, "..."]) -> Int[Array, "..."]:
        """The row of the table for each distance j − i."""
        raise NotImplementedError

    @property
    def _ends(self) -> tuple[int, int]:
        """The distances (first, last) at and beyond which the row does not change."""
        raise NotImplementedError

    def of_distance(
        self, distances: Int[Array, "..."], head_ids: Int[Array, "..."], dtype: jnp.dtype
    ) -> Float[Array, "..."]:
        """The bias for each distance j − i and head, which broadcast against each other."""
        check_heads(f"{type(self).__name__}: table", self.table.shape[1], head_ids)
        return take(self.table.astype(dtype), self._rows(distances), head_ids)

    def __call__(
        self, scores: Float[Array, "..."], q: Record, k: Record, head_ids: Int[Array, "..."]
    ) -> Float[Array, "..."]:
        """See `ScoreMod`."""
        check_heads(f"{type(self).__name__}: table", self.table.shape[1], head_ids)
        table = self.table.astype(scores.dtype)
        positions = q.positions, k.positions
        return scores + by_distance(table, self._rows, self._ends, *positions, head_ids)


@pytree
class RelativeBias(ByDistance):
    """A learned bias for each relative position.

    s ← s + t[clip(j − i, −M, M) + M, h]

    Attributes:
      table: t, one row per distance from −M to M and one column per head `[2 M + 1, N]`.

    Raises:
      ValueError: If the table is not `[2 M + 1, N]`.
      TypeError: If the table is not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import scores
      >>> scores.RelativeBias(jnp.zeros((2 * 64 + 1, 8)))
      RelativeBias(table=float32[129, 8])

    References:
      Shaw, Uszkoreit, Vaswani, "Self-Attention with Relative Position Representations", NAACL 2018,
      arXiv:1803.02155, section 3.2 (the clipping; the paper has a vector per distance, this has a
      number per distance and head).
    """

    table: Float[Array, "R N"]

    def __post_init__(self) -> None:
        table = as_leaf("RelativeBias: table", self.table, {2: "[2 M + 1, N]"})
        if table.shape[0] % 2 == 0:
            raise ValueError(
                f"RelativeBias: table must be [2 M + 1, N], one row per distance from −M to M, "
                f"got {list(table.shape)}, an even number of rows."
            )
        object.__setattr__(self, "table", table)

    @property
    def _ends(self) -> tuple[int, int]:
        reach = self.table.shape[0] // 2
        return -reach, reach

    def _rows(self, distances: Int[Array, "..."]) -> Int[Array, "..."]:
        first, last = self._ends
        return jnp.clip(distances, first, last) - first


@pytree
class T5Bias(ByDistance):
    """The bias of T5: a learned number for each bucket of distances, which widen with the distance.

    s ← s + t[bucket(j − i), h]

    bucket = r for r < e, else min(n − 1, e + ⌊log(r / e) / log(max_distance / e) · (n − e)⌋)

    with r = |j − i| and e = ⌊n / 2⌋. If `bidirectional`, n is half of `num_buckets`, and n is added
    to the buckets of later keys. Otherwise n is `num_buckets`, and r = 0 for later keys. As in the
    released code, the logarithms are float32, whose rounding decides where the ratio is an exact
    power. The buckets are equal to those of Hugging Face's T5.

    T5 does not scale its scores: pass `scale=1` to attention.

    Attributes:
      table: t, one row per bucket and one column per head `[num_buckets, N]`.
      max_distance: All greater distances share the last bucket.
      bidirectional: If True, later keys have buckets of their own, as in encoders.

    Raises:
      ValueError: If the table is not `[num_buckets, N]` with at least 2 buckets per direction and
        equally many for both, or `max_distance` is not above e.
      TypeError: If the table is not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import scores
      >>> scores.T5Bias(jnp.zeros((32, 8)), bidirectional=False)
      T5Bias(table=float32[32, 8], max_distance=128, bidirectional=False)

    References:
      Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
      Transformer", JMLR 2020, arXiv:1910.10683, section 2.1.
    """

    table: Float[Array, "R N"]
    max_distance: int = static(default=128)
    bidirectional: bool = static(default=True)

    def __post_init__(self) -> None:
        table = as_leaf("T5Bias: table", self.table, {2: "[num_buckets, N]"})
        object.__setattr__(self, "table", table)
        sides = 2 if self.bidirectional else 1
        if table.shape[0] < 2 * sides or table.shape[0] % sides:
            raise ValueError(
                f"T5Bias: table must be [num_buckets, N] with at least {2 * sides} buckets"
                f"{', an even number' if sides == 2 else ''}, got {list(table.shape)}."
            )
        exact = table.shape[0] // sides // 2
        if self.max_distance <= exact:
            raise ValueError(
                f"T5Bias: max_distance must be above {exact}, the number of distances that have a "
                f"bucket of their own, got {self.max_distance}."
            )

    @property
    def _ends(self) -> tuple[int, int]:
        first, buckets = self._buckets
        return first, first + len(buckets) - 1

    @property
    def _buckets(self) -> tuple[int, np.ndarray]:
        return _buckets(self.table.shape[0], self.max_distance, self.bidirectional)

    def _rows(self, distances: Int[Array, "..."]) -> Int[Array, "..."]:
        first, last = self._ends
        return jnp.asarray(self._buckets[1])[jnp.clip(distances, first, last) - first]


@functools.cache
def _buckets(num_buckets: int, max_distance: int, bidirectional: bool) -> tuple[int, np.ndarray]:
    """The first distance and the buckets from there on; beyond them the bucket does not change."""
    buckets = num_buckets // 2 if bidirectional else num_buckets
    exact = buckets // 2
    distances = np.arange(max_distance + 1)
    # In float32, as in the code of T5: the rounding decides at exact powers.
    ratio = np.log(np.maximum(distances, exact).astype(np.float32) / np.float32(exact))
    ratio = ratio / np.float32(math.log(max_distance / exact)) * np.float32(buckets - exact)
    wide = np.minimum(exact + ratio.astype(np.int32), buckets - 1)
    behind = np.where(distances < exact, distances, wide).astype(np.int32)
    behind = behind[: np.searchsorted(behind, buckets - 1) + 1]
    ahead = behind[1:] + buckets if bidirectional else behind[:0]
    return 1 - len(behind), np.concatenate([behind[::-1], ahead]).astype(np.int32)
