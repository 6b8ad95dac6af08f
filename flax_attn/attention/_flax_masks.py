"""Masks as Flax's helpers make them: arrays of zeros and ones."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from flax_attn._checks import check_array
from flax_attn._integers import known
from flax_attn.masks import Mask


def as_boolean(owner: str, mask: Any) -> Any:
    """An array of booleans from one of zeros and ones, as Flax's `make_attention_mask` gives.

    Anything but an array is returned as it is.

    Args:
      owner: The module or function, for error messages.
      mask: The argument.

    Raises:
      ValueError: If a known number is neither 0 nor 1.
    """
    if isinstance(mask, list | tuple) and not any(isinstance(x, Mask) for x in mask):
        array = np.asarray(mask)
        mask = mask if array.dtype == object else array
    if mask is None or not hasattr(mask, "dtype"):
        return mask
    check_array(owner, "mask", mask)
    numbers = None if mask.dtype == jnp.bool_ else known(mask)
    if numbers is not None:
        other = numbers[(numbers != 0) & (numbers != 1)]
        if other.size:
            raise ValueError(
                f"{owner}: mask must be boolean, or hold 0 and 1 only, 1 = attend, got {other[0]}. "
                f"Pass an additive mask as a bias: bias=mask."
            )
    return jnp.asarray(mask).astype(bool)
