"""What a scaling of rotary frequencies is, for sequences longer than those of pretraining."""

import math
import numbers
from typing import Any, ClassVar

import jax
import numpy as np

from flax_attn._checks import check_at_least

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

    def _check_factor(self) -> None:
        """Check the field `factor`: at least 1."""
        self._check_positive("factor")
        factor = self._field("factor")
        if factor < 1:
            raise ValueError(
                f"{type(self).__name__}: factor must be at least 1, got {factor}. It is the new "
                f"length / the original length."
            )

    def _check_original_length(self, least: int = 1) -> None:
        """Check the field `original_length`."""
        owner, length = type(self).__name__, self._field("original_length")
        self._set("original_length", check_at_least(owner, "original_length", length, least))

    def _check_positive(self, *names: str) -> None:
        """Convert fields to floats; raise unless they are above 0. None stays."""
        owner = type(self).__name__
        for name in names:
            number = self._field(name)
            if number is None:
                continue
            if not isinstance(number, numbers.Real) or isinstance(number, bool):
                got = "an array" if hasattr(number, "shape") else repr(number)
                raise TypeError(f"{owner}: {name} must be a number, got {got}. It is a setting.")
            number = float(number)
            if not 0 < number < math.inf:
                raise ValueError(f"{owner}: {name} must be above 0 and finite, got {number}.")
            self._set(name, number)

    def _field(self, name: str) -> Any:
        return getattr(self, name)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
