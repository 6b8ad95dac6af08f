"""Masks as Flax's helpers make them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flax_attn._checks import check_array
from flax_attn.masks import Mask


def as_boolean(owner: str, mask: Any) -> Any:
    """An array of booleans from one of zeros and ones, as Flax's `make_attention_mask` gives.

    Anything but an array is returned as it is.
    """
    if isinstance(mask, list | tuple) and not any(isinstance(x, Mask) for x in mask):
        array = np.asarray(mask)
        mask = mask if array.dtype == object else array
    if mask is None or not hasattr(mask, "dtype"):
        return mask
    check_array(owner, "mask", mask)
    if mask.dtype != jnp.bool_ and is_known(mask):
        numbers = np.asarray(mask)
        other = numbers[(numbers != 0) & (numbers != 1)]
        if other.size:
            raise ValueError(
                f"{owner}: mask must be boolean, or hold 0 and 1 only, 1 = attend, got {other[0]}. "
                f"Pass what is added to the scores as a bias: bias=mask."
            )
    return jnp.asarray(mask).astype(bool)


def is_known(array: jax.Array) -> bool:
    """Whether the numbers of an array can be read here and now."""
    return not isinstance(array, jax.core.Tracer) and getattr(array, "is_fully_addressable", True)
