"""The scaling of Llama 3.1."""

import dataclasses
import math

import numpy as np

from flax_attn.positions._scaling import Length, Scaling, Values, geometric


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
      >>> llama = positions.Llama3(8.0, original_length=8192)
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
        self._check_factor()
        self._check_original_length()
        self._check_positive("low_frequency_factor", "high_frequency_factor")
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
