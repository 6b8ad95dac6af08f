"""Scalings by one number for all pairs: of positions, or of the base."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flax_attn.positions._scaling import Length, Scaling, Values, geometric


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
      >>> positions.frequencies(4, scaling=positions.Linear(4.0)).values
      Array([0.25  , 0.0025], dtype=float32)

    References:
      Chen, Wong, Chen, Tian, "Extending Context Window of Large Language Models via Positional
      Interpolation", 2023, arXiv:2306.15595, equation 4.
    """

    factor: float

    def __post_init__(self) -> None:
        self._check_factor()

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
      >>> positions.frequencies(4, scaling=positions.NTK(4.0)).values
      Array([1.    , 0.0025], dtype=float32)

    References:
      Peng, Quesnelle, Fan, Shippole, "YaRN: Efficient Context Window Extension of Large Language
      Models", ICLR 2024, arXiv:2309.00071, equation 16.
    """

    factor: float

    def __post_init__(self) -> None:
        self._check_factor()

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
      >>> dynamic = positions.DynamicNTK(2.0, original_length=100)
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
        self._check_factor()
        self._check_original_length()

    def scale(self, head_dim: int, base: float, length: Length) -> tuple[Values, float]:
        """See `Scaling`."""
        growth: float | jax.Array
        if isinstance(length, jax.Array):
            growth = jnp.maximum(length.astype(jnp.float32) / self.original_length, 1)
        else:
            growth = max((length or 0) / self.original_length, 1)
        return _of_larger_base(head_dim, base, self.factor * (growth - 1) + 1), 1.0
