"""YaRN."""

import dataclasses
import math

import numpy as np

from flax_attn.positions._scaling import Length, Scaling, Values, geometric


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
      >>> yarn = positions.YaRN(4.0, original_length=32_768)
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
        self._check_factor()
        self._check_original_length()
        self._check_positive(
            "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"
        )
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
