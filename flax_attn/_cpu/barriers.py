"""Barriers between two uses of an array, so that XLA for CPUs does not store what both could share.

XLA merges equal computations. If two loops over an image both need a gate broadcast to its shape,
or the image converted from bfloat16 to float32, XLA for CPUs computes that once and stores it: a
temporary of the size of the image, for something that costs nothing to compute again. A barrier
makes the second use a different one, and each loop computes its own.

Without `reread`, gates of channels in bfloat16 need 2 images more, and scSE, triplet attention and
channel attention take 2 to 2.6 times as long (jaxlib 0.12.0). Other platforms fuse such operations
into both loops, so there the functions do nothing.
"""

import jax
from jax import lax

from flax_attn._checks import is_wide
from flax_attn._cpu.switch import is_enabled
from flax_attn._jax import identity_primitive

separate = identity_primitive("separate", cpu=lax.optimization_barrier)
"""The same arrays for a second use, which XLA for CPUs computes separately from the first."""

_reread = identity_primitive("reread", cpu=lax.optimization_barrier, cotangents=False)


def reread(x: jax.Array, *after: jax.Array) -> jax.Array:
    """The same image for another reading of it, once the arrays `after` are computed.

    Only an image that must be converted to be summed, such as one of bfloat16, gets a barrier.
    Cotangents pass without one: XLA adds them to others where they are computed.
    """
    return x if is_wide(x) or not is_enabled() else _reread(x, *after)[0]
