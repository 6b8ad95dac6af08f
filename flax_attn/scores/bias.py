"""A score modifier that adds an array."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flax_attn._pytree import pytree, show_value
from flax_attn._record import Record
from flax_attn.coords import Aligned
from flax_attn.scores._score_mod import ScoreMod


@pytree
class Bias(ScoreMod):
    """Add an array to the scores: the argument `bias` of attention, at any place of a composition.

    s ← s + values

    Unlike other modifiers, it depends on the order of the tokens: element [t, s] belongs to query t
    and key s, whatever their positions are.

    Attributes:
      values: `[*B, N, T, S]` or fewer leading axes, such as `[T, S]`, of any float dtype; axes of
        size 1 broadcast. They are stored as an `Aligned`.

    Raises:
      ValueError: If the array has fewer than two axes.
      TypeError: If it is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import scores
      >>> scores.SoftCap(30.0) >> scores.Bias(jnp.zeros((8, 16, 16)))
      SoftCap(cap=30.0) >> Bias(values=float32[8, 16, 16])
    """

    values: Any

    def __post_init__(self) -> None:
        if isinstance(self.values, Aligned):
            return
        if not hasattr(self.values, "dtype"):
            raise TypeError(
                f"Bias: values must be an array, got {type(self.values).__name__}. Wrap it: "
                f"jnp.asarray(values)."
            )
        if self.values.dtype == jnp.bool_:
            raise TypeError(
                "Bias: values must be floating point, got bool. For a mask write "
                "masks.Dense(values)."
            )
        if not jnp.issubdtype(self.values.dtype, jnp.floating):
            raise TypeError(
                f"Bias: values must be floating point, got {self.values.dtype}. Convert them: "
                f"values.astype(jnp.float32)."
            )
        values = jnp.asarray(self.values)
        if values.ndim < 2:
            raise ValueError(
                f"Bias: values must be [*B, N, T, S] or its last axes, at least [T, S], got "
                f"{list(values.shape)}. If all queries have the same bias, write values[None]."
            )
        if values.ndim == 2:
            values = values[None]
        object.__setattr__(self, "values", Aligned(values, "bnts"))

    def __call__(
        self, scores: Float[Array, "..."], q: Record, k: Record, head_ids: Int[Array, "..."]
    ) -> Float[Array, "..."]:
        """See `ScoreMod`."""
        return scores + self.values.values.astype(scores.dtype)

    def __repr__(self) -> str:
        values = self.values.values if isinstance(self.values, Aligned) else self.values
        return f"Bias(values={show_value(values)})"
