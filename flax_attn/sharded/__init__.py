"""Attention whose tokens or heads are split over devices.

A placement says how arrays are split over a mesh axis, and what the devices exchange:

    Ring       keys go round, from device to device
    Ulysses    tokens are split outside, heads inside
    AllGather  each device gathers all keys
    AllReduce  keys stay, results are merged: for decoding
    Heads      heads are split, nothing is exchanged

One may stand within another: `Heads("heads", inner=Ring("seq"))`. Within `shard_map` a placement is
given to `dot_product_attention` or `MultiHeadAttention` as `placement=`; with a mesh,
`placement.on(mesh)` serves arrays of all devices, and so does `attention`.

Letters: as in `flax_attn.attention`, of the arrays of all devices.
"""

from flax_attn.sharded._attention import attention
from flax_attn.sharded.all_gather import AllGather
from flax_attn.sharded.all_reduce import AllReduce
from flax_attn.sharded.heads import Heads
from flax_attn.sharded.meshes import ring_mesh
from flax_attn.sharded.ring import Ring
from flax_attn.sharded.shifts import needed_shifts
from flax_attn.sharded.ulysses import Ulysses

__all__ = [
    "AllGather",
    "AllReduce",
    "Heads",
    "Ring",
    "Ulysses",
    "attention",
    "needed_shifts",
    "ring_mesh",
]


def __dir__() -> list[str]:
    return __all__
