"""The frequencies of rotary positions."""

import functools
import numbers

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flax_attn._checks import as_integer
from flax_attn._pytree import pytree
from flax_attn.positions._scaling import Length, Scaling, geometric


@pytree
class Frequencies:
    """The frequencies of rotary positions, and a factor of the rotated features.

    Attributes:
      values: θ, in radians per token `[R/2]`.
      attention_factor: a, by which cosines and sines are multiplied. As queries and keys are both
        rotated, it multiplies scores by a².

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import positions
      >>> positions.Frequencies(jnp.array([1.0, 0.1]))
      Frequencies(values=float32[2], attention_factor=1.0)
    """

    values: Float[Array, "F"]
    attention_factor: float | Float[Array, ""] = 1.0


def frequencies(
    head_dim: int,
    *,
    base: float = 10_000.0,
    scaling: Scaling | None = None,
    length: Length = None,
    dtype: jnp.dtype | None = None,
) -> Frequencies:
    """The frequencies of rotary positions.

    θ_i = base^(−2i / R),  i = 0 ... R/2 − 1

    Args:
      head_dim: R, the number of rotated features of a head, even. It is the size of a head unless
        only a part of it is rotated.
      base: Wavelengths grow from 2π tokens towards 2π · base; above 1.
      scaling: For sequences longer than those of pretraining: `Linear`, `NTK`, `DynamicNTK`,
        `YaRN`, `Llama3` or `LongRoPE`.
      length: The length of the sequence so far, which `DynamicNTK` and `LongRoPE` read; it may be
        traced. Default: the original length.
      dtype: dtype of the values. Default: float32. A table is computed in float64 and rounded,
        except for a length that is an array of JAX: then it is computed in float32.

    Returns:
      `Frequencies` with `values` `[R/2]`.

    Raises:
      ValueError: If `head_dim` is not a positive even number, `base` is not above 1, `length` is
        not one number, or the scaling has another number of factors.
      TypeError: If an argument has the wrong type.

    Example:
      >>> from flax_attn import positions
      >>> positions.frequencies(4).values
      Array([1.  , 0.01], dtype=float32)

    References:
      Su, Lu, Pan, Murtadha, Wen, Liu, "RoFormer: Enhanced Transformer with Rotary Position
      Embedding", 2021, arXiv:2104.09864, equation 15.
    """
    head_dim, base = check_table("frequencies", head_dim, base, scaling)
    shape = getattr(length, "shape", ())
    if shape:
        raise ValueError(
            f"frequencies: length must be one number, got {list(shape)}. Write jnp.max(length)."
        )
    if isinstance(length, jax.Array) and scaling is not None and scaling.reads_length:
        values, factor = scaling.scale(head_dim, base, length)
    else:
        values, factor = _table(head_dim, base, scaling, _known(length, scaling))
    return Frequencies(jnp.asarray(values, jnp.float32 if dtype is None else dtype), factor)


@functools.lru_cache(maxsize=256)
def _table(
    head_dim: int, base: float, scaling: Scaling | None, length: float | None
) -> tuple[np.ndarray | jax.Array, float]:
    """A table that is known when tracing, in float64."""
    if scaling is None:
        return geometric(head_dim, base), 1.0
    return scaling.scale(head_dim, base, length)


def _known(length: Length, scaling: Scaling | None) -> float | None:
    reads_length = scaling is not None and scaling.reads_length
    return float(length) if reads_length and length is not None else None


def check_table(
    owner: str, head_dim: int, base: float, scaling: Scaling | None
) -> tuple[int, float]:
    """R and the base; raise unless they make a table with the scaling."""
    head_dim = as_integer(owner, "head_dim", head_dim)
    if head_dim < 2 or head_dim % 2:
        raise ValueError(
            f"{owner}: head_dim must be a positive even number, got {head_dim}. Features are "
            f"rotated in pairs; rotate {max(head_dim - 1, 2)} of them."
        )
    if not isinstance(base, numbers.Real) or isinstance(base, bool):
        got = "an array" if hasattr(base, "shape") else repr(base)
        raise TypeError(f"{owner}: base must be a number, got {got}.")
    if not base > 1:
        raise ValueError(f"{owner}: base must be above 1, got {base}. Usual is 10,000.")
    if scaling is not None and not isinstance(scaling, Scaling):
        got = scaling.__name__ if isinstance(scaling, type) else type(scaling).__name__
        fix = "Write positions.YaRN(factor, original_length), or another scaling."
        if isinstance(scaling, type):
            fix = f"Create an instance: positions.{got}(...)."
        elif isinstance(scaling, numbers.Real):
            fix = f"Write positions.Linear({scaling})."
        raise TypeError(f"{owner}: scaling must be a scaling or None, got {got}. {fix}")
    _table(head_dim, float(base), scaling, None)  # raises if it has another number of factors
    return head_dim, float(base)
