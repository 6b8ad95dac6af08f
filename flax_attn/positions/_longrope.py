"""LongRoPE."""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flax_attn.positions._scaling import Length, Scaling, Values, geometric


@dataclasses.dataclass(frozen=True)
class LongRoPE(Scaling):
    """LongRoPE: one divisor per pair, found by search, for short and for long sequences.

    θ_i ← θ_i / short_i  up to the original length,  θ_i / long_i  beyond it

    Cosines and sines are multiplied by the attention factor a at every length. Crossing the
    original length changes all frequencies, so cached keys that were rotated before do not agree
    with later queries. To decode beyond it, choose one `length` for the whole generation.

    Attributes:
      short_factors: Divisors up to the original length, R/2 numbers.
      long_factors: Divisors beyond it, R/2 numbers.
      original_length: The length of pretraining.
      factor: The longest length / the original length, at least 1; in a configuration of Hugging
        Face, max_position_embeddings / original_max_position_embeddings. It gives
        a = √(1 + ln(factor) / ln(original_length)).
      attention_factor: a. Overrides `factor`; one of the two must be given.

    Raises:
      ValueError: If a number is not above 0, `factor` is below 1, `original_length` is below 2,
        the two sequences differ in length, or neither `factor` nor `attention_factor` is given.
      TypeError: If one is not a number.

    Example:
      >>> from flax_attn import positions
      >>> long = positions.LongRoPE([1.0, 1.0], [1.0, 4.0], original_length=100, factor=4.0)
      >>> positions.frequencies(4, scaling=long, length=400).values
      Array([1.    , 0.0025], dtype=float32)

    References:
      Ding et al., "LongRoPE: Extending LLM Context Window Beyond 2 Million Tokens", ICML 2024,
      arXiv:2402.13753. The attention factor is that of Phi-3: Abdin et al., arXiv:2404.14219.
    """

    short_factors: Sequence[float]
    long_factors: Sequence[float]
    original_length: int
    factor: float | None = None
    attention_factor: float | None = None
    reads_length: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("short_factors", "long_factors"):
            self._set(name, self._check_factors(name))
        if len(self.short_factors) != len(self.long_factors):
            raise ValueError(
                f"LongRoPE: short_factors and long_factors must pair up, got "
                f"{len(self.short_factors)} and {len(self.long_factors)}."
            )
        self._check_original_length(least=2)
        if self.factor is not None:
            self._check_factor()
        self._check_positive("attention_factor")
        if self.factor is None and self.attention_factor is None:
            raise ValueError(
                "LongRoPE: factor or attention_factor must be given, got neither. factor is the "
                "longest length / original_length."
            )

    def _check_factors(self, name: str) -> tuple[float, ...]:
        given = getattr(self, name)
        try:
            factors = tuple(float(x) for x in given)
        except (TypeError, ValueError):
            raise TypeError(
                f"LongRoPE: {name} must be R/2 numbers, got {type(given).__name__}."
            ) from None
        wrong = [x for x in factors if not 0 < x < math.inf]
        if wrong:
            raise ValueError(f"LongRoPE: {name} must be above 0 and finite, got {wrong[0]}.")
        return factors

    def scale(self, head_dim: int, base: float, length: Length) -> tuple[Values, float]:
        """See `Scaling`."""
        if len(self.short_factors) != head_dim // 2:
            raise ValueError(
                f"LongRoPE: short_factors and long_factors must have R/2 = {head_dim // 2} "
                f"numbers, one per rotated pair, got {len(self.short_factors)}."
            )
        short, long = (
            geometric(head_dim, base) / np.asarray(factors)
            for factors in (self.short_factors, self.long_factors)
        )
        attention_factor = self._attention_factor()
        if isinstance(length, jax.Array):
            is_long = length.astype(jnp.float32) > self.original_length
            values = jnp.where(
                is_long, jnp.asarray(long, jnp.float32), jnp.asarray(short, jnp.float32)
            )
            return values, attention_factor
        return (long if (length or 0) > self.original_length else short), attention_factor

    def _attention_factor(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        assert self.factor is not None  # one of the two was given
        return math.sqrt(1 + math.log(self.factor) / math.log(self.original_length))
