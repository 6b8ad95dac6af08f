"""Concurrent spatial and channel squeeze-and-excitation (scSE)."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_attn._checks import Activation, Map, statistics_dtype
from flax_attn._cpu.arithmetic import larger
from flax_attn._cpu.barriers import reread
from flax_attn._cpu.elementwise import elementwise
from flax_attn.vision._checks import as_image, check_reduced, check_returned
from flax_attn.vision._gates import apply_gate_sum, gate_sum
from flax_attn.vision._pooling import spatial_mean

Combine = Literal["max", "add"]


def scse(
    x: Float[Array, "*B H W C"],
    reduce: Map,
    expand: Map,
    project: Map,
    *,
    combine: Combine = "max",
    activation_fn: Activation = jax.nn.relu,
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B H W C"]:
    """scSE: gate the channels and gate the places, and combine the two.

    g_c = σ(expand(ReLU(reduce(mean_{H,W} x)))),   g_s = σ(project(x))
    y = max(g_c ⊙ x, g_s ⊙ x)   or   g_c ⊙ x + g_s ⊙ x

    The paper adds (`combine="add"`), as do many re-implementations. Its longer version
    (arXiv:1808.08127) compares ways to combine the two, and the released code takes the maximum, by
    default here. R = C / 2 in both; some re-implementations take C / 16.

    Args:
      x: Image `[*B, H, W, C]`.
      reduce: Map from `[*B, C]` to `[*B, R]`.
      expand: Map from `[*B, R]` to `[*B, C]`.
      project: Map from `[*B, H, W, C]` to `[*B, H, W, 1]`.
      combine: How the two scaled images are combined.
      activation_fn: Between `reduce` and `expand`.
      gate_fn: σ of both gates.

    Returns:
      The scaled image `[*B, H, W, C]`.

    Raises:
      ValueError: If `x` is not an image, R is 0, a map returns another shape, or `combine` is
        neither of the two.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x = jnp.ones((2, 7, 7, 16))
      >>> reduce, expand = maps.dense(jnp.ones((16, 8))), maps.dense(jnp.zeros((8, 16)))
      >>> y = vision.scse(x, reduce, expand, maps.dense(jnp.ones((16, 1))))
      >>> float(y[0, 0, 0, 0].round(4))                                # max(σ(0), σ(16))
      1.0

    References:
      Roy, Navab, Wachinger, "Concurrent Spatial and Channel 'Squeeze & Excitation' in Fully
      Convolutional Networks", MICCAI 2018, arXiv:1803.02579, section 2.
    """
    gates = _gates(x, reduce, expand, project, combine, activation_fn, gate_fn)
    return _SCALED[combine](x, *gates)


def scse_gate(
    x: Float[Array, "*B H W C"],
    reduce: Map,
    expand: Map,
    project: Map,
    *,
    combine: Combine = "max",
    activation_fn: Activation = jax.nn.relu,
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B H W C"]:
    """The factor of `scse`, `[*B, H, W, C]` in the dtype of x.

    To add, it is g_c + g_s. For the maximum, it is the larger gate where x is positive and the
    smaller gate where x is negative.
    """
    gates = _gates(x, reduce, expand, project, combine, activation_fn, gate_fn)
    return _JOINED[combine](x, *gates)


def scse_and_gate(
    x: jax.Array,
    reduce: Map,
    expand: Map,
    project: Map,
    combine: Combine,
    activation_fn: Activation,
    gate_fn: Activation,
) -> tuple[jax.Array, jax.Array]:
    """`scse` and `scse_gate` of the same gates."""
    gates = _gates(x, reduce, expand, project, combine, activation_fn, gate_fn)
    return _SCALED[combine](x, *gates), _JOINED[combine](x, *gates)


def _gates(
    x: jax.Array,
    reduce: Map,
    expand: Map,
    project: Map,
    combine: Combine,
    activation_fn: Activation,
    gate_fn: Activation,
) -> tuple[jax.Array, jax.Array]:
    """The channel gate `[*B, 1, 1, C]` and the spatial gate `[*B, H, W, 1]`."""
    x = as_image(
        "scse",
        x,
        reduce=reduce,
        expand=expand,
        project=project,
        activation_fn=activation_fn,
        gate_fn=gate_fn,
    )
    if combine not in _JOINED:
        raise ValueError(f'scse: combine must be "max" or "add", got {combine!r}.')
    pooled = spatial_mean(x)
    hidden = activation_fn(reduce(pooled))
    check_reduced("scse", hidden)
    channel = gate_fn(expand(hidden))
    check_returned("scse", "expand", channel, pooled.shape, "[*B, C]")
    spatial = gate_fn(project(reread(x, channel)))
    check_returned("scse", "project", spatial, (*x.shape[:-1], 1), "[*B, H, W, 1]")
    dtype = statistics_dtype(x.dtype)
    return channel[..., None, None, :].astype(dtype), spatial.astype(dtype)


def _larger(x: jax.Array, channel: jax.Array, spatial: jax.Array, *, half: Any) -> jax.Array:
    return larger(x * channel, x * spatial, half)


def _gate_of_larger(x: jax.Array, channel: jax.Array, spatial: jax.Array) -> jax.Array:
    # The larger gate where x is positive, the smaller one where it is negative. At 0 the scaled
    # images tie and share the gradient: the mean of the gates.
    return (channel + spatial + jnp.sign(x) * jnp.abs(channel - spatial)) / 2


_SCALED = {"max": elementwise(_larger, half=0.5), "add": apply_gate_sum}
_JOINED = {"max": elementwise(_gate_of_larger), "add": gate_sum}
