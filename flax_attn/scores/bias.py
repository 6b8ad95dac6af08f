"""An array that is added to the scores."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flax_attn._pytree import pytree, show_value
from flax_attn._record import Record
from flax_attn.coords import Aligned
from flax_attn.scores._score_mod import ScoreMod


@pytree
class Bias(ScoreMod):
    """An array that is added to the scores: attention's argument `bias`, at its place in a pipe.

    s ← s + values

    Unlike other modifiers it is bound to the order of the tokens: its axes are those of attention,
    and it is cut with them.

    Attributes:
      values: `[*B, N, T, S]` or fewer trailing axes, such as `[T, S]`, of any float dtype; axes of
        size 1 broadcast. Kept with the letters of its axes.

    Raises:
      ValueError: If it has fewer than two axes.
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
                "Bias: values must be floating point, got bool. A boolean array is a mask: "
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
                f"{list(values.shape)}. Add an axis: values[None] for the same for all queries."
            )
        if values.ndim == 2:
            values = values[None]
        object.__setattr__(self, "values", Aligned(values, "bnts"))

    def __call__(
        self, scores: Float[Array, "..."], q: Record, k: Record, head_ids: Int[Array, "..."]
    ) -> Float[Array, "..."]:
        """The scores with the bias."""
        return scores + self.values.values.astype(scores.dtype)

    def __repr__(self) -> str:
        values = self.values.values if isinstance(self.values, Aligned) else self.values
        return f"Bias(values={show_value(values)})"
