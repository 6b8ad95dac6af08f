"""Scalings of rotary frequencies, for sequences longer than those of pretraining."""

import dataclasses
import math
import numbers
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flax_attn._checks import check_positive

Values = np.ndarray | jax.Array
Length = int | float | jax.Array | None


def geometric(head_dim: int, base: float) -> np.ndarray:
    """θ_i = base^(−2i / R), float64 `[R/2]`."""
    return base ** -(np.arange(0, head_dim, 2) / head_dim)


class Scaling:
    """What is done to the frequencies of rotary positions. A frozen, hashable setting.

    Attributes:
      reads_length: Whether the frequencies depend on the length of the sequence.
    """

    reads_length: ClassVar[bool] = False

    def scale(self, head_dim: int, base: float, length: Length) -> tuple[Values, float]:
        """Returns (frequencies `[R/2]`, attention factor).

        Args:
          head_dim: R, the number of rotated features.
          base: The base of the frequencies.
          length: The length of the sequence. If it is an array, the frequencies are float32.
        """
        raise NotImplementedError

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_number(self, name: str, least: float | None = None) -> None:
        """Convert a field to a float; raise unless it is above 0, or at least `least`."""
        owner, value = type(self).__name__, getattr(self, name)
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            got = "an array" if hasattr(value, "shape") else repr(value)
            raise TypeError(f"{owner}: {name} must be a number, got {got}. It is a setting.")
        if not math.isfinite(value) or value <= 0 or (least is not None and value < least):
            must = "above 0" if least is None else f"at least {least:g}"
            fix = " It is the new length / the original length." if name == "factor" else ""
            raise ValueError(f"{owner}: {name} must be {must}, got {value}.{fix}")
        self._set(name, float(value))

    def _check_original_length(self) -> None:
        """Check the field `original_length`."""
        owner, value = type(self).__name__, getattr(self, "original_length")  # noqa: B009
        self._set("original_length", check_positive(owner, "original_length", value))


@dataclasses.dataclass(frozen=True)
class Linear(Scaling):
    """Positional interpolation: all positions are divided by a factor.

    θ_i ← θ_i / factor

    Attributes:
      factor: The new length / the original length, at least 1.

    Raises:
      ValueError: If `factor` is below 1.
      TypeError: If `factor` is not a number.

    Example:
      >>> from flax_attn import positions
      >>> positions.frequencies(4, scaling=positions.Linear(4)).values
      Array([0.25  , 0.0025], dtype=float32)

    References:
      Chen, Wong, Chen, Tian, "Extending Context Window of Large Language Models via Positional
      Interpolation", 2023, arXiv:2306.15595, equation 4.
    """

    factor: float

    def __post_init__(self) -> None:
        self._check_number("factor", least=1)

    def scale(self, head_dim: int, base: float, length: Length) -> tuple[Values, float]:
        """See `Scaling`."""
        del length
        return geometric(head_dim, base) / self.factor, 1.0


def _of_larger_base(head_dim: int, base: float, ratio: float | jax.Array) -> Values:
    """The frequencies of base · ratio^(R / (R − 2)): θ_i · ratio^(−2i / (R − 2))."""
    values, powers = geometric(head_dim, base), -np.arange(0, head_dim, 2) / max(head_dim - 2, 1)
    if isinstance(ratio, jax.Array):
        return jnp.asarray(values, ratio.dtype) * ratio ** jnp.asarray(powers, ratio.dtype)
    return values * ratio**powers


@dataclasses.dataclass(frozen=True)
class NTK(Scaling):
    """NTK-aware scaling: a larger base, so that the slowest pair is interpolated by the factor.

    base ← base · factor^(R / (R − 2))

    Attributes:
      factor: The new length / the original length, at least 1.

    Raises:
      ValueError: If `factor` is below 1.
      TypeError: If `factor` is not a number.

    Example:
      >>> from flax_attn import positions
      >>> positions.frequencies(4, scaling=positions.NTK(4)).values
      Array([1.    , 0.0025], dtype=float32)

    References:
      Peng, Quesnelle, Fan, Shippole, "YaRN: Efficient Context Window Extension of Large Language
      Models", ICLR 2024, arXiv:2309.00071, equation 16.
    """

    factor: float

    def __post_init__(self) -> None:
        self._check_number("factor", least=1)

    def scale(self, head_dim: int, base: float, length: Length) -> tuple[Values, float]:
        """See `Scaling`."""
        del length
        return _of_larger_base(head_dim, base, self.factor), 1.0


@dataclasses.dataclass(frozen=True)
class DynamicNTK(Scaling):
    """Dynamic NTK: `NTK` with a factor that grows with the length L of the sequence.

    base ← base · (factor · L / original_length − factor + 1)^(R / (R − 2)),  L ≥ original_length

    Up to the original length nothing is scaled. The frequencies change with every token beyond it,
    so cached keys that were rotated earlier do not agree with later queries. To decode beyond the
    original length, choose one `length` for the whole generation.

    Attributes:
      factor: How fast the base grows, at least 1. Hugging Face's `factor`.
      original_length: The length of pretraining. Hugging Face reads `max_position_embeddings`.

    Raises:
      ValueError: If `factor` or `original_length` is below 1.
      TypeError: If one is not a number.

    Example:
      >>> from flax_attn import positions
      >>> dynamic = positions.DynamicNTK(2, original_length=100)
      >>> positions.frequencies(4, scaling=dynamic, length=250).values
      Array([1.    , 0.0025], dtype=float32)

    References:
      Peng, Quesnelle, Fan, Shippole, "YaRN: Efficient Context Window Extension of Large Language
      Models", ICLR 2024, arXiv:2309.00071, section 3.3. The paper's factor is L / original_length;
      this is the form of Hugging Face, equal to it for `factor=1`.
    """

    factor: float
    original_length: int
    reads_length: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._check_number("factor", least=1)
        self._check_original_length()

    def scale(self, head_dim: int, base: float, length: Length) -> tuple[Values, float]:
        """See `Scaling`."""
        growth: float | jax.Array
        if isinstance(length, jax.Array):
            growth = jnp.maximum(length.astype(jnp.float32) / self.original_length, 1)
        else:
            growth = max((length or 0) / self.original_length, 1)
        return _of_larger_base(head_dim, base, self.factor * (growth - 1) + 1), 1.0


@dataclasses.dataclass(frozen=True)
class YaRN(Scaling):
    """YaRN: fast pairs stay, slow pairs are interpolated, and scores get a temperature.

    θ_i ← (1 − γ_i) θ_i + γ_i θ_i / factor

    γ_i is a ramp from 0 to 1: 0 for pairs that turn more than `beta_fast` times within the original
    length, 1 for pairs that turn less than `beta_slow` times, linear in i between. Cosines and
    sines are multiplied by the attention factor a, and so scores by a².

    DeepSeek also multiplies the scale of attention by (0.1 · mscale_all_dim · ln(factor) + 1)².
    That is not a part of the rotation: pass it to attention as `scale`.

    Attributes:
      factor: The new length / the original length, at least 1.
      original_length: The length of pretraining.
      beta_fast: Turns within the original length beyond which a pair stays as it is.
      beta_slow: Turns within the original length below which a pair is interpolated.
      attention_factor: a. Default: 0.1 · ln(factor) + 1. Overrides `mscale` and `mscale_all_dim`.
      mscale: With `mscale_all_dim`, a = (0.1 · mscale · ln(factor) + 1) / (0.1 · mscale_all_dim ·
        ln(factor) + 1), as in DeepSeek-V2 and V3.
      mscale_all_dim: See `mscale`. Both are given, or neither.
      truncate: Round the ends of the ramp to whole i. False for gpt-oss.

    Raises:
      ValueError: If `factor` or `original_length` is below 1, another number is not above 0,
        `beta_fast` is below `beta_slow`, or only one of `mscale` and `mscale_all_dim` is given.
      TypeError: If one is not a number.

    Example:
      >>> from flax_attn import positions
      >>> yarn = positions.YaRN(4, original_length=32_768)
      >>> made = positions.frequencies(128, base=1e6, scaling=yarn)
      >>> round(made.attention_factor, 4)
      1.1386

    References:
      Peng, Quesnelle, Fan, Shippole, "YaRN: Efficient Context Window Extension of Large Language
      Models", ICLR 2024, arXiv:2309.00071, sections 3.2 and 3.4. The paper's ramp is linear in the
      number of turns; this is the ramp of its code and of Hugging Face.
    """

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        self._check_number("factor", least=1)
        self._check_original_length()
        for name in ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"):
            if getattr(self, name) is not None:
                self._check_number(name)
        if self.beta_fast < self.beta_slow:
            raise ValueError(
                f"YaRN: beta_fast must be at least beta_slow, got {self.beta_fast} and "
                f"{self.beta_slow}."
            )
        if (self.mscale is None) != (self.mscale_all_dim is None):
            raise ValueError(
                f"YaRN: mscale and mscale_all_dim must be given together, got {self.mscale} and "
                f"{self.mscale_all_dim}. Give attention_factor instead."
            )

    def scale(self, head_dim: int, base: float, length: Length) -> tuple[Values, float]:
        """See `Scaling`."""
        del length
        values = geometric(head_dim, base)
        first, last = (self._index(head_dim, base, x) for x in (self.beta_fast, self.beta_slow))
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, head_dim - 1)
        # A ramp without width is a step; 0.001 is the width that the paper's code gives it.
        gamma = np.clip((np.arange(head_dim // 2) - first) / max(last - first, 0.001), 0, 1)
        return (1 - gamma) * values + gamma * values / self.factor, self._attention_factor()

    def _index(self, head_dim: int, base: float, turns: float) -> float:
        """The i, not whole, of the pair that turns so often within the original length."""
        slowness = math.log(self.original_length / (turns * 2 * math.pi))
        return head_dim * slowness / (2 * math.log(base))

    def _attention_factor(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        grown = 0.1 * math.log(self.factor)
        if self.mscale is None or self.mscale_all_dim is None:
            return grown + 1
        return (grown * self.mscale + 1) / (grown * self.mscale_all_dim + 1)


@dataclasses.dataclass(frozen=True)
class Llama3(Scaling):
    """The scaling of Llama 3.1: fast pairs stay, slow pairs are interpolated.

    θ_i ← (1 − γ_i) θ_i / factor + γ_i θ_i,
    γ_i = clip((turns_i − low) / (high − low), 0, 1),  turns_i = original_length · θ_i / 2π

    Attributes:
      factor: The new length / the original length, at least 1.
      original_length: The length of pretraining.
      low_frequency_factor: low, the turns within the original length below which a pair is
        interpolated.
      high_frequency_factor: high, the turns beyond which a pair stays as it is.

    Raises:
      ValueError: If `factor` or `original_length` is below 1, or not 0 < low < high.
      TypeError: If one is not a number.

    Example:
      >>> from flax_attn import positions
      >>> llama = positions.Llama3(8, original_length=8192)
      >>> positions.frequencies(128, base=500_000.0, scaling=llama).values.shape
      (64,)

    References:
      Llama Team, "The Llama 3 Herd of Models", 2024, arXiv:2407.21783. The formula is that of the
      released code.
    """

    factor: float
    original_length: int
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0

    def __post_init__(self) -> None:
        self._check_number("factor", least=1)
        self._check_original_length()
        self._check_number("low_frequency_factor")
        self._check_number("high_frequency_factor")
        if self.low_frequency_factor >= self.high_frequency_factor:
            raise ValueError(
                f"Llama3: low_frequency_factor must be below high_frequency_factor, got "
                f"{self.low_frequency_factor} and {self.high_frequency_factor}."
            )

    def scale(self, head_dim: int, base: float, length: Length) -> tuple[Values, float]:
        """See `Scaling`."""
        del length
        low, high = self.low_frequency_factor, self.high_frequency_factor
        values = geometric(head_dim, base)
        turns = self.original_length * values / (2 * math.pi)
        gamma = np.clip((turns - low) / (high - low), 0, 1)
        return (1 - gamma) * values / self.factor + gamma * values, 1.0


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
      >>> long = positions.LongRoPE([1.0, 1.0], [1.0, 4.0], original_length=100, factor=4)
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
        self._check_original_length()
        if self.original_length < 2:
            raise ValueError("LongRoPE: original_length must be at least 2, got 1.")
        if self.factor is not None:
            self._check_number("factor", least=1)
        if self.attention_factor is not None:
            self._check_number("attention_factor")
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
        wrong = [x for x in factors if not (math.isfinite(x) and x > 0)]
        if wrong:
            raise ValueError(f"LongRoPE: {name} must be above 0, got {wrong[0]}.")
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
        factor = self.attention_factor
        if factor is None:
            factor = math.sqrt(1 + math.log(self.factor or 1) / math.log(self.original_length))
        if isinstance(length, jax.Array):
            is_long = length.astype(jnp.float32) > self.original_length
            tables = (jnp.asarray(table, jnp.float32) for table in (long, short))
            return jnp.where(is_long, *tables), factor
        return (long if (length or 0) > self.original_length else short), factor
