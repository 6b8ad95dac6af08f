"""Programs of sharded attention for slices of TPUs, compiled by libtpu without a TPU."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from sharding_costs import Attention

from flax_attn import Coords, masks, sharded

PLACEMENTS = {
    "ring": sharded.Ring("seq"),
    "all-gather": sharded.AllGather("seq"),
    "ulysses": sharded.Ulysses("seq"),
    "ulysses x ring": sharded.Ulysses("near", inner=sharded.Ring("far")),
    "heads": sharded.Heads("seq"),
}
# What libtpu would ask the network for, and leave for several processes to compile at once.
LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# XLA lets five permutes be on their way at once. The gradient of a ring over packed documents has
# six: keys, values, positions, documents, and the gradients of keys and values.
# The scheduler of v5p and v6e sends some keys after a block instead of during it, and has features,
# off by default, with which it does not (libtpu 0.0.52).
OPTIONS = {
    "xla_max_concurrent_async_collective_permutes": "8",
    "xla_tpu_enable_all_experimental_scheduler_features": "true",
}
SLICES = {1: "v5e:1x1", 4: "v5e:2x2", 8: "v5e:2x4", 16: "v5e:4x4", 64: "v5e:8x8", 256: "v5e:16x16"}


def slice_of(chips: int) -> Sequence[Any]:
    """The devices of a v5e slice, which need not be here."""
    os.environ.update(LIBTPU)
    return topologies.get_topology_desc(platform="tpu", topology_name=SLICES[chips]).devices


def mesh_of(devices: Sequence[Any], strategy: str, call: Attention) -> Mesh:
    """One ring of all devices, or groups of them for each key head."""
    if strategy == "ulysses x ring":
        return sharded.ring_mesh(devices, call.key_heads, axis_names=("far", "near"))
    return sharded.ring_mesh(devices)


def compile_attention(
    mesh: Mesh, strategy: str, call: Attention, options: Mapping[str, str] = OPTIONS
) -> Any:
    """The program of causal attention over packed documents, or of that and its gradient.

    Args:
      mesh: As `mesh_of` makes it.
      strategy: One of `PLACEMENTS`.
      call: The sizes.
      options: Options of the compiler.
    """
    batch = "data" if "data" in mesh.axis_names else None
    tokens = {"heads": None, "ulysses x ring": ("far", "near")}.get(strategy, "seq")
    spec = P(batch, tokens, "seq" if strategy == "heads" else None)

    def attend(query: Any, key: Any, value: Any, documents: Any) -> Any:
        coords = Coords.from_segments(documents)
        return sharded.attention(
            mesh,
            PLACEMENTS[strategy],
            query,
            key,
            value,
            mask=masks.Causal() & masks.SameSegment(),
            query_coords=coords,
            key_coords=coords,
            batch=batch,
        )

    def gradient(query: Any, key: Any, value: Any, documents: Any, cotangent: Any) -> Any:
        output, pull_back = jax.vjp(lambda *x: attend(*x, documents), query, key, value)
        return output, pull_back(cotangent)

    queries, keys = (
        jax.ShapeDtypeStruct(
            (1, call.tokens, heads, call.head_dim), jnp.bfloat16, sharding=NamedSharding(mesh, spec)
        )
        for heads in (call.heads, call.key_heads)
    )
    sharding = NamedSharding(mesh, P(batch, tokens))
    documents = jax.ShapeDtypeStruct((1, call.tokens), jnp.int32, sharding=sharding)
    if call.backward:
        program = jax.jit(gradient).lower(queries, keys, keys, documents, queries)
    else:
        program = jax.jit(attend).lower(queries, keys, keys, documents)
    return program.compile(dict(options))


def compile_decoding(mesh: Mesh, call: Attention) -> Any:
    """The program of attention of one query to `call.tokens` keys, split over the axis `"seq"`."""

    def attend(query: Any, key: Any, value: Any) -> Any:
        return sharded.attention(mesh, sharded.AllReduce("seq"), query, key, value)

    query, key = (
        jax.ShapeDtypeStruct(
            (1, tokens, heads, call.head_dim), jnp.bfloat16, sharding=NamedSharding(mesh, spec)
        )
        for tokens, heads, spec in (
            (1, call.heads, P()),
            (call.tokens, call.key_heads, P(None, "seq")),
        )
    )
    return jax.jit(attend).lower(query, key, key).compile(OPTIONS)


def memory_of(program: Any) -> int:
    """Bytes of arguments, results and temporaries on one device."""
    found = program.memory_analysis()
    return found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
