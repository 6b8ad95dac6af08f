"""Biases from differences of features: Euclidean distance, and forget gates."""

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
    """A bias that is proportional to the Euclidean distance of features, such as places or times.

    s ← s − λ_h · ‖x_i − y_j‖

    The gradient of a distance of 0 is taken as 0.

    Attributes:
      weight: λ, one number, or one per head `[N]`.
      axes: Names of the features, integer or floating point, that are the components of x (in the
        coordinates of the queries) and y (in those of the keys).

    Raises:
      ValueError: If the weight has another shape, or no feature is named.
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
        """See `ScoreMod`."""
        weight = of_heads("DistanceBias: weight", self.weight, head_ids, scores.dtype)
        steps = [_difference(getattr(q, x), getattr(k, x), scores.dtype) for x in self.axes]
        if len(steps) == 1:
            # The derivative of `abs` at 0 would be 1.
            return scores - weight * (steps[0] * jnp.sign(steps[0]))
        square = sum(step * step for step in steps)
        # The derivative of √ is infinite at 0, and would give NaN even where it is not selected.
        is_apart = square > 0
        root = jnp.sqrt(jnp.where(is_apart, square, 1))
        return scores - weight * jnp.where(is_apart, root, 0)


@pytree
class Forget(ScoreMod):
    """The bias of the forgetting transformer: the log of the forget gates between key and query.

    s ← s + c_i − c_j,  c_i = Σ_{l ≤ i} log f_l

    It is meant for causal attention. For packed sequences the sum need not restart, as the gates of
    earlier sequences cancel.

    Attributes:
      feature: Name of the feature with the cumulative sums c, in the coordinates of queries and
        keys. Normally there is one sum per head, `PerHead([*B, T, N])`.

    Raises:
      TypeError: If the name of the feature is not a string.

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
                f"{type(self.feature).__name__}. Pass the sums to Coords.with_features."
            )

    def __call__(
        self, scores: Float[Array, "..."], q: Record, k: Record, head_ids: Int[Array, "..."]
    ) -> Float[Array, "..."]:
        """See `ScoreMod`."""
        # Sums over long sequences are large, and their differences are small: subtract first.
        sums = getattr(q, self.feature), getattr(k, self.feature)
        return scores + _difference(*sums, scores.dtype)


def names_of_axes(name: str, axes: tuple[str, ...]) -> tuple[str, ...]:
    """Check the names of features, and return them as a tuple."""
    if isinstance(axes, str) or not axes or not all(isinstance(axis, str) for axis in axes):
        raise ValueError(
            f'{name}: axes must be names of features of the coordinates, ("row", "col"), '
            f"got {axes!r}."
        )
    return tuple(axes)


def _difference(a: Array, b: Array, dtype: jnp.dtype) -> Float[Array, "..."]:
    """a − b in a float dtype."""
    if all(jnp.issubdtype(x.dtype, jnp.integer) for x in (a, b)):
        # A difference of int32 may wrap. Those of the upper and of the lower 16 bits do not.
        a, b = saturate(a), saturate(b)
        high, low = (a >> 16) - (b >> 16), (a & 0xFFFF) - (b & 0xFFFF)
        return high.astype(dtype) * 2**16 + low.astype(dtype)
    return a.astype(dtype) - b.astype(dtype)
