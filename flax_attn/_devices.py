"""A choice between two equal computations by whether XLA divides the program among devices.

XLA's partitioner keeps a batch divided through most operations, but not through all. Where it would
gather the parts, another computation of the same numbers keeps them divided.
"""

from collections.abc import Callable

import jax

from flax_attn._jax import choice_primitive, is_divided

_choice = choice_primitive("devices_dependent", is_divided)


def devices_dependent(
    *arrays: jax.Array,
    one: Callable[..., jax.Array],
    several: Callable[..., jax.Array],
) -> jax.Array:
    """`one(*arrays)`, or the equal `several(*arrays)` in programs that XLA divides among devices.

    The choice is made when the program is lowered, as in `jax.lax.platform_dependent`. Inside a
    `shard_map` over all axes of a mesh it is `one`: there each device runs its own program.
    """
    (result,) = _choice(lambda *xs: [one(*xs)], lambda *xs: [several(*xs)], *arrays)
    return result
