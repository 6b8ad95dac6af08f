"""What a scaling of rotary frequencies is, for sequences longer than those of pretraining."""

import math
import numbers
from typing import Any, ClassVar

import jax
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
