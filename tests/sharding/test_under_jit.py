"""Attention under `jit` with sharded arguments: what is split stays split, in the compiled program.

At sizes that run blockwise, on eight devices.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as flax_nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from flax_attn import (
    Coords,
    Dropout,
    Softmax,
    dot_product_attention,
    explain,
    linen,
    make_plan,
    masks,
    nnx,
    scores,
)
from tests.compiled import collectives, temporaries
from tests.runs import long, some_by_default
from tests.tolerances import FORWARD, GRADIENT, assert_close

B, T, N, K, D = 4, 320, 8, 4, 8
LAYOUTS = {
    "batch": ((4,), P("x")),
    "heads": ((4,), P(None, None, "x")),
    "batch and heads": ((2, 4), P("x", None, "y")),
    "heads over the slow axis": ((4, 2), P("y", None, "x")),
    "sequence": ((8,), P(None, "x")),
    "batch and sequence": ((2, 4), P("x", "y")),
    "sequence and heads": ((4, 2), P(None, "x", "y")),
    "batch over two axes": ((2, 2), P(("x", "y"))),
    "three parts of the sequence": ((2, 3), P("x", "y")),
}


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def arguments(length=T, kv_heads=K):
    return {
        "query": draw(0, B, length, N, D),
        "key": draw(1, B, length, kv_heads, D),
        "value": draw(2, B, length, kv_heads, D),
        "bias": draw(3, 1, N, length, length),
        "slopes": (2.0 ** -np.arange(1, N + 1)).astype(np.float32),
        "sink": draw(4, N),
    }


def segments(length):
    return np.sort(np.random.default_rng(5).integers(0, 4, (B, length)), axis=-1)


def plain(query, key, value, bias, slopes, sink):
    del bias, slopes, sink
    return dot_product_attention(query, key, value, is_causal=True)


def everything(query, key, value, bias, slopes, sink):
    coords = Coords.from_segments(segments(query.shape[1]))
    return dot_product_attention(
        query,
        key,
        value,
        bias,
        masks.Causal() & masks.SameSegment(),
        score_mod=scores.ALiBi(slopes) >> scores.SoftCap(8.0),
        normalizer=Softmax(sink),
        dropout=Dropout(0.3, jax.random.key(9)),
        query_coords=coords,
        key_coords=coords,
    )


def planned(query, key, value, bias, slopes, sink):
    del bias, slopes, sink
    coords = Coords.arange(query.shape[1])
    plan = make_plan(masks.Causal(), coords, block=(64, 64))
    return dot_product_attention(
        query, key, value, mask=masks.Causal(), query_coords=coords, key_coords=coords, plan=plan
    )


def hidden_pairs(query, key, value, bias, slopes, sink):
    del slopes, sink
    return dot_product_attention(query, key, value, mask=masks.Dense(bias > -1))


PROBLEMS = [plain, everything, planned, hidden_pairs]


def make_mesh(sizes, kind=AxisType.Auto):
    names = "xy"[: len(sizes)]
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(sizes, tuple(names), axis_types=(kind,) * len(sizes), devices=devices)


def place(mesh, spec, values, key_spec=None):
    key_spec = spec if key_spec is None else key_spec
    specs = {"query": spec, "key": key_spec, "value": key_spec}
    return {n: jax.device_put(x, NamedSharding(mesh, specs.get(n, P()))) for n, x in values.items()}


def values_and_gradients(problem):
    def loss(values):
        output = problem(**values)
        return jnp.sum(jnp.sin(output)), output

    def run(values):
        (_, output), gradients = jax.value_and_grad(loss, has_aux=True)(values)
        return output, gradients

    return jax.jit(run)


@functools.cache
def expected(problem, length=T, kv_heads=K):
    return values_and_gradients(problem)(arguments(length, kv_heads))


def check(actual, reference):
    actual, reference = jax.device_get((actual, reference))
    chex.assert_tree_all_finite(actual)
    assert_close(actual[0], reference[0], FORWARD["float32"])
    largest = max(np.max(np.abs(x)) for x in reference[1].values())
    tolerance = GRADIENT["float32"] * largest
    chex.assert_trees_all_close(actual[1], reference[1], rtol=0, atol=tolerance)


def splits(spec, letter):
    return len(spec) > "btn".index(letter) and spec["btn".index(letter)] is not None


def test_these_sizes_run_blockwise(capsys):
    x = jnp.zeros((B, T, N, D))
    assert explain(x, x, x, platform="cpu").implementation == "blockwise"
    part = x[:, : T // 8]
    assert explain(part, x, x, platform="cpu").implementation == "dense"  # a device's part may not
    capsys.readouterr()


SOME = {
    (everything, "sequence and heads"),
    (planned, "batch and heads"),
}


BATCHED_OR_NOT = some_by_default(
    ["sequence and heads", "batch and heads", "batch and sequence"], "sequence and heads"
)


def make_cases():
    for problem in PROBLEMS:
        for layout in LAYOUTS:
            marks = () if (problem, layout) in SOME else long
            yield pytest.param(problem, layout, marks=marks, id=f"{problem.__name__}-{layout}")


@pytest.mark.parametrize(("problem", "layout"), list(make_cases()))
def test_only_keys_and_the_gradients_of_shared_parameters_travel(problem, layout):
    sizes, spec = LAYOUTS[layout]
    length = 3 * 112 if 3 in sizes else T
    values = place(make_mesh(sizes), spec, arguments(length))
    forward = jax.jit(lambda values: problem(**values)).lower(values).compile()
    assert forward.output_shardings.is_equivalent_to(values["query"].sharding, 4)
    coordinates = B * length if splits(spec, "t") else 0  # these may travel with the keys
    travelling = [kind for kind, size in collectives(forward) if size > coordinates]
    assert travelling == ["all-gather", "all-gather"] * splits(spec, "t")

    both = values_and_gradients(problem).lower(values).compile()
    check(both(values), expected(problem, length))
    found = [(kind, size) for kind, size in collectives(both) if size > coordinates]
    kinds = {kind for kind, _ in found}
    if splits(spec, "t"):
        assert kinds <= {"all-gather", "reduce-scatter", "all-reduce"}
        assert sum(kind == "all-gather" for kind, _ in found) == 2
        assert sum(kind == "reduce-scatter" for kind, _ in found) == 2
    else:
        assert kinds <= {"all-reduce"}
    shared = 0 if problem is not everything else 3  # bias, slopes, sink
    assert sum(kind == "all-reduce" for kind, _ in found) <= shared
    for name in ("query", "key", "value"):
        sharding = both.output_shardings[1][name]
        assert sharding.is_equivalent_to(values[name].sharding, 4), name


@pytest.mark.parametrize("layout", BATCHED_OR_NOT)
def test_explicit_axes(layout):
    sizes, spec = LAYOUTS[layout]
    mesh = make_mesh(sizes, AxisType.Explicit)
    values = place(mesh, spec, arguments())
    with jax.set_mesh(mesh):
        compiled = values_and_gradients(everything).lower(values).compile()
        output, gradients = compiled(values)
    assert output.sharding.is_equivalent_to(values["query"].sharding, 4)
    assert gradients["key"].sharding.is_equivalent_to(values["key"].sharding, 4)
    check((output, gradients), expected(everything))
    allowed = {"all-reduce"} | ({"all-gather", "reduce-scatter"} if splits(spec, "t") else set())
    # A bias or sink that is not split has such a gradient: the parts of the heads are gathered.
    found = {kind for kind, size in collectives(compiled) if size not in (N, N * T * T)}
    assert found <= allowed


@long
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_fewer_key_heads_than_devices(kv_heads):
    values = place(make_mesh((8,)), P(None, None, "x"), arguments(kv_heads=kv_heads), P())
    forward = jax.jit(lambda values: everything(**values)).lower(values).compile()
    assert not collectives(forward)
    compiled = values_and_gradients(everything).lower(values).compile()
    check(compiled(values), expected(everything, T, kv_heads))
    assert {kind for kind, _ in collectives(compiled)} == {"all-reduce"}  # keys, values, slopes


def test_keys_that_every_device_has_are_not_gathered():
    """Their gradients are summed where they are: one all-reduce each."""
    values = place(make_mesh((4,)), P(None, "x"), arguments(), P())
    forward = jax.jit(lambda values: plain(**values)).lower(values).compile()
    assert not [size for _, size in collectives(forward) if size > T]  # coordinates may travel
    compiled = values_and_gradients(plain).lower(values).compile()
    check(compiled(values), expected(plain))
    travelling = [kind for kind, size in collectives(compiled) if size > T]
    assert travelling == ["all-reduce", "all-reduce"]


def test_query_heads_that_share_key_heads_unevenly():
    """Twelve heads on six devices: two each, of groups of three."""

    def attend(query, key, value):
        return dot_product_attention(query, key, value, is_causal=True)

    mesh = make_mesh((6,))
    values = {
        "query": draw(0, 2, T, 12, D),
        "key": draw(1, 2, T, 4, D),
        "value": draw(2, 2, T, 4, D),
    }
    placed = place(mesh, P(None, None, "x"), values, P())
    compiled = values_and_gradients(attend).lower(placed).compile()
    check(compiled(placed), values_and_gradients(attend)(values))
    assert {kind for kind, _ in collectives(compiled)} == {"all-reduce"}


@pytest.mark.parametrize("layout", BATCHED_OR_NOT)
def test_forward_mode(layout):
    sizes, spec = LAYOUTS[layout]

    def run(values, tangents):
        return jax.jvp(lambda x: everything(**x), (values,), (tangents,))

    values = arguments()
    tangents = jax.tree.map(np.cos, values)
    mesh = make_mesh(sizes)
    placed = [place(mesh, spec, x) for x in (values, tangents)]
    compiled = jax.jit(run).lower(*placed).compile()
    for a, b in zip(compiled(*placed), jax.jit(run)(values, tangents), strict=True):
        assert_close(np.asarray(a), b, GRADIENT["float32"])
    assert {kind for kind, _ in collectives(compiled)} <= {"all-gather"}
    assert compiled.output_shardings[1].is_equivalent_to(placed[0]["query"].sharding, 4)


@pytest.mark.parametrize(
    "layout",
    some_by_default(["batch", "heads", "batch and heads"], "batch and heads"),
)
def test_a_device_takes_the_memory_of_its_part(layout):
    """Within 5 % of a program for one device that is given only that part."""
    sizes, spec = LAYOUTS[layout]

    def gradient(values):
        return jax.grad(lambda x: jnp.sum(jnp.sin(plain(**x, bias=0, slopes=0, sink=0))))(values)

    values = {n: arguments()[n] for n in ("query", "key", "value")}
    batch = B // (sizes[0] if splits(spec, "b") else 1)
    parts = sizes[-1] if splits(spec, "n") else 1
    own = {n: x[:batch, :, : x.shape[2] // parts] for n, x in values.items()}
    whole = jax.jit(gradient).lower(place(make_mesh(sizes), spec, values)).compile()
    alone = jax.jit(gradient).lower(own).compile()
    assert temporaries(whole) <= 1.05 * temporaries(alone)


def test_manual_over_some_axes_only():
    """Within a shard_map over the batch, heads are left to XLA."""
    mesh = make_mesh((2, 4))
    values = place(mesh, P("x", None, "y"), {n: arguments()[n] for n in ("query", "key", "value")})

    def attend(query, key, value):
        return dot_product_attention(query, key, value, is_causal=True)

    split = jax.shard_map(
        attend, mesh=mesh, in_specs=P("x"), out_specs=P("x"), axis_names={"x"}, check_vma=False
    )
    compiled = jax.jit(lambda x: split(x["query"], x["key"], x["value"])).lower(values).compile()
    assert not collectives(compiled)
    assert_close(np.asarray(compiled(values)), expected(plain)[0], FORWARD["float32"])


def test_vmap_of_sharded_arguments():
    values = {n: arguments()[n] for n in ("query", "key", "value")}
    placed = place(make_mesh((4,)), P("x"), values)

    def attend(query, key, value):
        return dot_product_attention(query, key, value, is_causal=True)

    each = jax.jit(lambda x: jax.vmap(attend)(x["query"], x["key"], x["value"]))
    compiled = each.lower(placed).compile()
    assert not collectives(compiled)
    assert_close(np.asarray(compiled(placed)), expected(plain)[0], FORWARD["float32"])


@pytest.mark.parametrize("api", some_by_default(["linen", "nnx"], "linen"))
def test_modules_with_batch_and_heads_split(api):
    features = 32
    mesh = make_mesh((2, 4))
    whole = draw(0, B, T, features)
    x = jax.device_put(whole, NamedSharding(mesh, P("x")))
    options = {"num_kv_heads": K, "head_dim": D}
    if api == "linen":
        layer = linen.MultiHeadAttention(num_heads=N, **options)
        weights = jax.jit(layer.init)(jax.random.key(0), whole)["params"]

        def run(weights, x):
            return layer.apply({"params": weights}, x, is_causal=True)
    else:
        graph, state = flax_nnx.split(
            nnx.MultiHeadAttention(N, features, **options, decode=False, rngs=flax_nnx.Rngs(0))
        )
        weights = flax_nnx.to_pure_dict(state)

        def run(weights, x):
            flax_nnx.replace_by_pure_dict(state, weights)
            return flax_nnx.merge(graph, state)(x, is_causal=True)

    def spec(path, leaf):
        kernel, out = path[-1].key == "kernel", path[0].key == "out"
        if out:
            return P("y") if kernel else P()
        return P(None, "y") if kernel else P("y")

    placed = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.device_put(leaf, NamedSharding(mesh, spec(path, leaf))), weights
    )
    forward = jax.jit(run).lower(placed, x).compile()
    # The parts of the output projection are summed, and nothing else travels.
    assert [kind for kind, _ in collectives(forward)] == ["all-reduce"]
    expected = jax.jit(run)(weights, whole)
    assert_close(np.asarray(forward(placed, x)), expected, FORWARD["float32"])
    gradient = (
        jax.jit(jax.grad(lambda w, x: jnp.sum(jnp.sin(run(w, x))))).lower(placed, x).compile()
    )
    assert {kind for kind, _ in collectives(gradient)} == {"all-reduce"}
