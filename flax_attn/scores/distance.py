"""Biases that grow with a distance between tokens: in space, or in forgetting."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flax_attn._integers import saturate
from flax_attn._pytree import pytree, static
from flax_attn._record import Record
from flax_attn.scores._leaves import as_leaf, of_heads
from flax_attn.scores._score_mod import ScoreMod


@pytree
class DistanceBias(ScoreMod):
    """A bias by the Euclidean distance of features, such as places or times.

    s ← s − λ_h · ‖x_i − y_j‖

    Where the distance is 0 its gradient counts as 0.

    Attributes:
      weight: λ, a number, or one per head `[N]`.
      axes: Names of the features, integer or floating, that are the components of x (of the
        queries' coordinates) and y (of the keys').

    Raises:
      ValueError: If the weight is neither, or no feature is named.
      TypeError: If the weight is not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import Coords, scores
      >>> coords = Coords.arange(5).with_features(time=jnp.array([0.0, 0.1, 0.5, 2.0, 2.5]))
      >>> scores.DistanceBias(jnp.ones(8), axes=("time",))
      DistanceBias(weight=float32[8], axes=('time',))

    References:
      The linear bias of ALiBi (arXiv:2108.12409), for distances in any space.
    """

    weight: float | int | Float[Array, ""] | Float[Array, "N"]
    axes: tuple[str, ...] = static(default=("row", "col"))

    per_head: ClassVar = ("weight",)

    def __post_init__(self) -> None:
        shapes = {0: "a number", 1: "one per head [N]"}
        object.__setattr__(self, "weight", as_leaf("DistanceBias: weight", self.weight, shapes))
        object.__setattr__(self, "axes", names_of_axes("DistanceBias", self.axes))

    def __call__(
        self, scores: Float[Array, "..."], q: Record, k: Record, head_ids: Int[Array, "..."]
    ) -> Float[Array, "..."]:
        """The scores less the bias."""
        weight = of_heads("DistanceBias: weight", self.weight, head_ids, scores.dtype)
        steps = [_difference(getattr(q, x), getattr(k, x), scores.dtype) for x in self.axes]
        if len(steps) == 1:
            # abs would have the slope 1 at 0.
            return scores - weight * (steps[0] * jnp.sign(steps[0]))
        square = sum(step * step for step in steps)
        # The root has no slope at 0, and no derivative may see it there, not even in a branch
        # that is not taken.
        apart = square > 0
        root = jnp.sqrt(jnp.where(apart, square, 1))
        return scores - weight * jnp.where(apart, root, 0)


@pytree
class Forget(ScoreMod):
    """The forgetting transformer's bias: what came before gates that closed counts less.

    s ← s + c_i − c_j,  c_i = Σ_{l ≤ i} log f_l

    It is meant for causal attention. Packed sequences need no new start of the sum, as it cancels.

    Attributes:
      feature: Name of the feature that holds the cumulative sums c, in the coordinates of queries
        and keys; as a rule one for each head, `PerHead([*B, T, N])`.

    Raises:
      TypeError: If the feature's name is not a string.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import Coords, scores
      >>> from flax_attn.coords import PerHead
      >>> log_gates_TN = jax.nn.log_sigmoid(jnp.ones((5, 2)))
      >>> coords = Coords.arange(5).with_features(log_forget=PerHead(jnp.cumsum(log_gates_TN, 0)))
      >>> scores.Forget()
      Forget(feature='log_forget')

    References:
      Lin, Nikishin, He, Courville, "Forgetting Transformer: Softmax Attention with a Forget Gate",
      ICLR 2025, arXiv:2503.02130, section 3.
    """

    feature: str = static(default="log_forget")

    def __post_init__(self) -> None:
        if not isinstance(self.feature, str):
            raise TypeError(
                f"Forget: feature must be the name of a feature of the coordinates, got "
                f"{type(self.feature).__name__}. Give the sums to Coords.with_features."
            )

    def __call__(
        self, scores: Float[Array, "..."], q: Record, k: Record, head_ids: Int[Array, "..."]
    ) -> Float[Array, "..."]:
        """The scores with the bias."""
        # Sums of long sequences are large, their differences are not: subtract first.
        sums = getattr(q, self.feature), getattr(k, self.feature)
        return scores + _difference(*sums, scores.dtype)


def names_of_axes(name: str, axes: tuple[str, ...]) -> tuple[str, ...]:
    """The names of features as a tuple, if there are any."""
    if isinstance(axes, str) or not axes or not all(isinstance(axis, str) for axis in axes):
        raise ValueError(
            f'{name}: axes must be names of features of the coordinates, ("row", "col"), '
            f"got {axes!r}."
        )
    return tuple(axes)


def _difference(mine: Array, theirs: Array, dtype: jnp.dtype) -> Float[Array, "..."]:
    if all(jnp.issubdtype(x.dtype, jnp.integer) for x in (mine, theirs)):
        # In two halves, of which none wraps: a sentinel is far, and times of today's clocks fit.
        mine, theirs = saturate(mine), saturate(theirs)
        high, low = (mine >> 16) - (theirs >> 16), (mine & 0xFFFF) - (theirs & 0xFFFF)
        return high.astype(dtype) * 2**16 + low.astype(dtype)
    return mine.astype(dtype) - theirs.astype(dtype)
