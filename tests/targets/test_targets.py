"""Programs compile for TPUs and GPUs, on a machine that has neither; attention stays O(T + S).

Needs `libtpu`, and `jax-cuda12-plugin` with `jax-cuda12-pjrt` of the same version as JAX.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from flax_attn import Coords, Dropout, Sigmoid, Softmax, dot_product_attention, maps, masks, scores
from tests.compiled import every_collective, temporaries
from tests.targets.topologies import topology

pytestmark = pytest.mark.targets

B, T, N, K, D = 8, 4096, 8, 2, 64


def coords(segment_ids):
    return {name: Coords.from_segments(segment_ids) for name in ("query_coords", "key_coords")}


def plain(q, k, v, segment_ids):
    del segment_ids
    return dot_product_attention(q, k, v, is_causal=True)


def packed(q, k, v, segment_ids):
    mask = masks.Causal() & masks.SameSegment()
    return dot_product_attention(q, k, v, mask=mask, **coords(segment_ids))


def rich(q, k, v, segment_ids):
    return dot_product_attention(
        q,
        k,
        v,
        mask=masks.SameSegment() & masks.Window(1000, 0) | masks.Prefix(16),
        score_mod=scores.ALiBi.for_heads(N) >> scores.SoftCap(30.0),
        normalizer=Softmax(sink=jnp.zeros(N)),
        dropout=Dropout(0.1, jax.random.key(0), batch_ids=jnp.arange(q.shape[0])),
        head_ids=jnp.arange(N),
        **coords(segment_ids),
    )


def sigmoid(q, k, v, segment_ids):
    del segment_ids
    return dot_product_attention(q, k, v, normalizer=Sigmoid(bias=-8.0), is_causal=True)


def forward(function):
    return function


def backward(function):
    def pulled_back(q, k, v, segment_ids):
        return jax.vjp(lambda *qkv: function(*qkv, segment_ids), q, k, v)[1](q)

    return pulled_back


def forward_mode(function):
    def pushed_forward(q, k, v, segment_ids):
        return jax.jvp(lambda *qkv: function(*qkv, segment_ids), (q, k, v), (q, k, v))

    return pushed_forward


def mesh_of(platform, devices):
    return Mesh(np.array(topology(platform).devices[:devices]), ("data",), (AxisType.Auto,))


def compiled(function, platform, dtype, devices=1):
    """The program, with the batch over the devices."""
    sharding = NamedSharding(mesh_of(platform, devices), P("data"))
    queries, keys = (
        jax.ShapeDtypeStruct((B, T, heads, D), dtype, sharding=sharding) for heads in (N, K)
    )
    segment_ids = jax.ShapeDtypeStruct((B, T), jnp.int32, sharding=sharding)
    return jax.jit(function).lower(queries, keys, keys, segment_ids).compile()


@pytest.mark.parametrize("work", [forward, backward, forward_mode])
@pytest.mark.parametrize("case", [plain, packed, rich, sigmoid])
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_it_compiles_and_holds_no_matrix_of_scores(platform, case, work):
    program = compiled(work(case), platform, jnp.bfloat16)
    scores_bytes = B * N * T * T * 4
    assert program.memory_analysis().temp_size_in_bytes < scores_bytes / 4


@pytest.mark.parametrize("work", [forward, backward])
@pytest.mark.parametrize("case", [rich, packed])
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_a_sharded_batch_needs_no_communication(platform, case, work):
    """By `shard_map`; without it XLA joins the block maps of all sequences, which is small."""
    mesh = mesh_of(platform, 8)
    sharded = jax.shard_map(work(case), mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    text = compiled(sharded, platform, jnp.bfloat16, devices=8).as_text()
    for collective in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
        assert f" {collective}" not in text


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_a_convolution_of_groups_is_laxs_on_one_device_and_gathers_nothing_on_eight(platform):
    def gradients(x, kernel):
        y, pull_back = jax.vjp(lambda x, k: maps.conv(k, groups=32)(x), x, kernel)
        return y, pull_back(y)

    def text(devices):
        mesh = mesh_of(platform, devices)
        shapes = ((8, 14, 14, 256), P("data")), ((3, 3, 8, 256), P())
        arrays = (
            jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
            for shape, spec in shapes
        )
        lowered = jax.jit(gradients).lower(*arrays)
        return lowered.as_text(), lowered.compile().as_text()

    assert "feature_group_count = 32" in text(1)[0]
    assert "feature_group_count = 32" not in text(8)[0]
    assert "all-gather" not in text(8)[1]


LAYOUTS = {
    "batch": P("data"),
    "heads": P(None, None, "model"),
    "batch and heads": P("data", None, "model"),
}


@pytest.mark.parametrize("work", [forward, backward])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_under_jit_on_sixteen_chips_only_scalars_travel(layout, work):
    """XLA splits the loops itself there; one device computes as much as its part alone."""
    chips = np.array(topology("tpu", "4x4").devices).reshape(4, 4)
    mesh = Mesh(chips, ("data", "model"), (AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, LAYOUTS[layout])

    def program(shape, sharding):
        x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)
        return jax.jit(work(plain)).lower(x, x, x, None).compile()

    whole = program((B, T, N, D), sharding)
    assert all(size == 1 for _, size in every_collective(whole))
    outputs = jax.tree.leaves(whole.output_shardings)
    assert all(x.is_equivalent_to(sharding, 4) for x in outputs)
    alone = program(sharding.shard_shape((B, T, N, D)), NamedSharding(mesh, P()))
    assert temporaries(whole) <= 1.05 * temporaries(alone)
