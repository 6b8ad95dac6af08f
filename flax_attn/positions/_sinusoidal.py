"""Sinusoidal positional encodings."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flax_attn._checks import as_integer, check_above_zero
from flax_attn.coords import Coords


def sinusoidal(
    positions: Int[Array, "*T"] | Float[Array, "*T"],
    features: int,
    *,
    base: float = 10_000.0,
    layout: Literal["interleaved", "half"] = "interleaved",
    dtype: jnp.dtype | None = None,
) -> Float[Array, "*T M"]:
    """The sinusoidal positional encoding.

    E[p, 2i] = sin(p / base^(2i / M)),  E[p, 2i + 1] = cos(p / base^(2i / M))

    Positions may be any numbers: there is no maximum length, and they may be packed, shifted or
    fractional. A shift by a fixed distance rotates each (sin, cos) pair.

    Args:
      positions: Positions in tokens, integer or floating, any shape `[*T]`.
      features: M, the width of the encoding, even.
      base: Wavelengths grow from 2π tokens towards 2π · base.
      layout: `"interleaved"`: sines and cosines alternate, as in the paper. `"half"`: all sines,
        then all cosines. tensor2tensor uses the latter order, but other frequencies.
      dtype: dtype of the result. Default: float32, or float64 for float64 positions. The angles are
        computed in at least float32.

    Returns:
      The encoding `[*T, M]`.

    Raises:
      ValueError: If `features` is not a positive even number, `base` is not above 0, or the layout
        is unknown.
      TypeError: If an argument has the wrong type.

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> from flax_attn import positions
      >>> print(np.asarray(positions.sinusoidal(jnp.arange(2), 4)).round(2))
      [[0.   1.   0.   1.  ]
       [0.84 0.54 0.01 1.  ]]

    References:
      Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv:1706.03762, section 3.5.
    """
    features = as_integer("sinusoidal", "features", features)
    if features < 2 or features % 2:
        raise ValueError(f"sinusoidal: features must be a positive even number, got {features}.")
    check_above_zero("sinusoidal", "base", base)
    if isinstance(positions, Coords):
        raise TypeError(
            "sinusoidal: positions must be numbers, got Coords. Write coords.positions."
        )
    if layout not in ("interleaved", "half"):
        raise ValueError(f'sinusoidal: layout must be "interleaved" or "half", got {layout!r}.')
    if not isinstance(positions, jax.Array):
        positions = np.asarray(positions)
        if positions.dtype.kind in "iu":  # JAX would wrap large ones to 32 bits
            positions = positions.astype(np.float32)
    positions = jnp.asarray(positions)
    wide = positions.dtype == jnp.float64
    angle_dtype = jnp.float64 if wide else jnp.float32
    exponents = jnp.arange(0, features, 2, dtype=angle_dtype) / features
    frequencies = jnp.power(jnp.asarray(base, angle_dtype), -exponents)
    angles = positions.astype(angle_dtype)[..., None] * frequencies.reshape(
        (1,) * positions.ndim + frequencies.shape
    )
    waves = jnp.sin(angles), jnp.cos(angles)
    if layout == "interleaved":
        encoding = jnp.stack(waves, axis=-1).reshape(*positions.shape, features)
    else:
        encoding = jnp.concatenate(waves, axis=-1)
    return encoding.astype(angle_dtype if dtype is None else dtype)
