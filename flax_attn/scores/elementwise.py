"""Modifiers that depend on the score alone, or also on the position of the query."""

import operator
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flax_attn._integers import LARGEST, saturate
from flax_attn._pytree import pytree
from flax_attn._record import Record
from flax_attn.scores._leaves import as_leaf, may_hold, of_heads
from flax_attn.scores._score_mod import ScoreMod


@pytree
class Scale(ScoreMod):
    """Multiply the scores by a factor.

    s ← s · factor_h

    Attributes:
      factor: One number, or one per head `[N]`.

    Raises:
      ValueError: If the factor has another shape.
      TypeError: If the factor is not floating point.

    Example:
      >>> from flax_attn import scores
      >>> scores.Scale(0.5) >> scores.SoftCap(30.0)
      Scale(factor=0.5) >> SoftCap(cap=30.0)
    """

    factor: float | int | Float[Array, ""] | Float[Array, "N"]

    per_head: ClassVar = ("factor",)

    def __post_init__(self) -> None:
        factor = as_leaf("Scale: factor", self.factor, {0: "a number", 1: "one per head [N]"})
        object.__setattr__(self, "factor", factor)

    def __call__(
        self, scores: Float[Array, "..."], q: Record, k: Record, head_ids: Int[Array, "..."]
    ) -> Float[Array, "..."]:
        """See `ScoreMod`."""
        return scores * of_heads("Scale: factor", self.factor, head_ids, scores.dtype)


@pytree
class Temperature(ScoreMod):
    """The attention temperature of Llama 4: scores of later queries are scaled up in steps.

    s ← s · (1 + attn_scale · log(1 + ⌊(i + 1) / floor_scale⌋))

    i is the position in the coordinates of the query, so the formula also holds while decoding.
    Positions below 0 count as 0.

    Attributes:
      floor_scale: Length of a step in tokens, an integer above 0.
      attn_scale: Growth of the factor.

    Raises:
      ValueError: If `floor_scale` is below 1, or `attn_scale` is not one number.
      TypeError: If `floor_scale` is not an integer.

    Example:
      >>> from flax_attn import scores
      >>> scores.Temperature(floor_scale=4096)
      Temperature(floor_scale=4096, attn_scale=0.1)

    References:
      Meta, "Llama 4", 2025, model code (layers without positions); after Nakanishi, "Scalable-
      Softmax Is Superior for Attention", 2025, arXiv:2501.19399.
    """

    floor_scale: int | Int[Array, ""] = 8192
    attn_scale: float | int | Float[Array, ""] = 0.1

    def __post_init__(self) -> None:
        steps = _as_whole_number("Temperature: floor_scale", self.floor_scale)
        if not may_hold(lambda x: x >= 1, steps):
            raise ValueError(f"Temperature: floor_scale must be at least 1, got {steps}.")
        steps = saturate(steps) if hasattr(steps, "dtype") else min(steps, LARGEST)
        object.__setattr__(self, "floor_scale", steps)
        growth = as_leaf("Temperature: attn_scale", self.attn_scale, {0: "a number"})
        object.__setattr__(self, "attn_scale", growth)

    def __call__(
        self, scores: Float[Array, "..."], q: Record, k: Record, head_ids: Int[Array, "..."]
    ) -> Float[Array, "..."]:
        """See `ScoreMod`."""
        length = saturate(jnp.asarray(self.floor_scale))
        steps = (jnp.maximum(q.positions, 0) + 1) // length
        growth = jnp.asarray(self.attn_scale).astype(scores.dtype)
        return scores * (1 + growth * jnp.log1p(steps.astype(scores.dtype)))


@pytree
class SoftCap(ScoreMod):
    """Limit scores smoothly to ±cap.

    s ← cap · tanh(s / cap)

    Attributes:
      cap: The limit, above 0.

    Raises:
      ValueError: If the cap is not a number above 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import scores
      >>> scores.ALiBi.for_heads(8) >> scores.SoftCap(30.0)
      ALiBi(slopes=float32[8]) >> SoftCap(cap=30.0)

    References:
      Bello, Pham, Le, Norouzi, Bengio, "Neural Combinatorial Optimization with Reinforcement
      Learning", 2017, arXiv:1611.09940, section 5 ("C tanh(u)"); Gemma Team, "Gemma 2: Improving
      Open Language Models at a Practical Size", 2024, arXiv:2408.00118, section 2.
    """

    cap: float | int | Float[Array, ""]

    def __post_init__(self) -> None:
        cap = as_leaf("SoftCap: cap", self.cap, {0: "a number"})
        if not may_hold(lambda x: x > 0, cap):
            raise ValueError(f"SoftCap: cap must be above 0, got {cap}. For no cap omit SoftCap.")
        object.__setattr__(self, "cap", cap)

    def __call__(
        self, scores: Float[Array, "..."], q: Record, k: Record, head_ids: Int[Array, "..."]
    ) -> Float[Array, "..."]:
        """See `ScoreMod`."""
        cap = jnp.asarray(self.cap).astype(scores.dtype)
        return cap * jnp.tanh(scores / cap)


def _as_whole_number(name: str, value: Any) -> Any:
    """Check that a value is one integer, or a float that is equal to one."""
    if hasattr(value, "dtype"):
        if jnp.issubdtype(value.dtype, jnp.integer) and value.ndim == 0:
            return value
    elif isinstance(value, float) and value.is_integer():
        return int(value)
    elif not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    shown = value if not hasattr(value, "shape") else f"{value.dtype}{list(value.shape)}"
    raise TypeError(f"{name} must be one whole number, got {shown}.")
