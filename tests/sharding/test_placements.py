"""Placements: attention over eight devices equals that of one, and sends no more than it should."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as flax_nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import flax_attn
from flax_attn import (
    Coords,
    Dropout,
    Sigmoid,
    Softmax,
    dot_product_attention,
    linen,
    masks,
    nnx,
    scores,
    sharded,
)
from flax_attn.attention import Blockwise
from flax_attn.coords import unzigzag, zigzag
from flax_attn.sharded import AllGather, AllReduce, Heads, Ring, Ulysses
from tests.compiled import every_collective, temporaries
from tests.runs import long, some_by_default
from tests.tolerances import FORWARD, GRADIENT, assert_close

B, T, N, K, D = 2, 48, 8, 4, 8
BLOCKWISE = Blockwise(block_query=4, block_key=4, blocks_per_tile=1)


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def arguments(length=T, dtype=np.float32):
    arrays = {
        "query": draw(0, B, length, N, D),
        "key": draw(1, B, length, K, D),
        "value": draw(2, B, length, K, D),
        "bias": draw(3, 1, N, length, length),
        "slopes": (2.0 ** -np.arange(1, N + 1)).astype(np.float32),
        "sink": draw(4, N),
    }
    return {name: jnp.asarray(x, dtype) for name, x in arrays.items()}


def packed(length=T):
    segments = np.sort(np.random.default_rng(5).integers(0, 4, (B, length)), axis=-1)
    coords = Coords.from_segments(segments)
    return {"query_coords": coords, "key_coords": coords}


def everything(attend, query, key, value, bias, slopes, sink):
    return attend(
        query,
        key,
        value,
        bias,
        masks.SameSegment() & masks.Window(20, 0) | masks.Prefix(3),
        score_mod=scores.ALiBi(slopes) >> scores.SoftCap(8.0),
        normalizer=Softmax(sink),
        dropout=Dropout(0.3, jax.random.key(9)),
        **packed(query.shape[1]),
    )


def sigmoid(attend, query, key, value, bias, slopes, sink):
    del bias, slopes, sink
    return attend(query, key, value, normalizer=Sigmoid(bias=-1.0), is_causal=True)


def window(attend, query, key, value, bias, slopes, sink):
    del bias, slopes, sink
    return attend(query, key, value, mask=masks.Window(5, 2))


def make_mesh(kind=AxisType.Auto, **sizes):
    count = int(np.prod(list(sizes.values())))
    kinds = (kind,) * len(sizes)
    shape = tuple(sizes.values())
    return jax.make_mesh(shape, tuple(sizes), axis_types=kinds, devices=jax.devices()[:count])


PLACEMENTS = {
    "ring": (Ring("seq"), {"seq": 8}, {}),
    "ring in blocks": (Ring("seq", inner=BLOCKWISE), {"seq": 4}, {}),
    "ring of five": (Ring("seq"), {"seq": 5}, {}),  # which do not divide 48 tokens
    "Ulysses": (Ulysses("seq"), {"seq": 4}, {}),
    "Ulysses with few key heads": (Ulysses("seq"), {"seq": 8}, {}),
    "all-gather": (AllGather("seq"), {"seq": 8}, {}),
    "all-reduce": (AllReduce("seq"), {"seq": 8}, {}),
    "heads": (Heads("heads"), {"heads": 8}, {}),
    "batch, heads, ring": (
        Ring("seq"),
        {"data": 2, "heads": 2, "seq": 2},
        {"batch": "data", "heads": "heads"},
    ),
    "Ulysses within, ring across": (
        Ulysses("near", inner=Ring("far")),
        {"far": 4, "near": 2},
        {},
    ),
    "ring of rings": (Ring("far", inner=Ring("near")), {"far": 2, "near": 4}, {}),
    "heads, all-reduce": (Heads("heads", inner=AllReduce("seq")), {"heads": 2, "seq": 4}, {}),
}
DEFAULT = ("ring in blocks", "ring of five", "Ulysses with few key heads", "all-reduce")


def sharded_by(name):
    placement, sizes, options = PLACEMENTS[name]
    return functools.partial(sharded.attention, make_mesh(**sizes), placement, **options)


def derivatives(problem, attend, second=False):
    """Output, cotangents and tangents along all floats; also second derivatives if asked for."""

    def of(values):
        return problem(attend, **values)

    def gradient(values):
        return jax.grad(lambda values: jnp.sum(jnp.sin(of(values))))(values)

    def run(values):
        moving = {name: jnp.cos(3 * x) for name, x in values.items()}
        output, tangent = jax.jvp(of, (values,), (moving,))
        if not second:
            return output, tangent, gradient(values)
        return output, *jax.jvp(gradient, (values,), (moving,))

    return jax.jit(run)


@functools.cache
def expected(problem, second=False):
    return jax.device_get(derivatives(problem, dot_product_attention, second)(arguments()))


def check(actual, reference):
    assert_close(actual[0], reference[0], FORWARD["float32"])
    for found, wanted in zip(actual[1:], reference[1:], strict=True):
        wanted = jax.tree.leaves(wanted)
        largest = max(np.max(np.abs(x)) for x in wanted)
        for x, y in zip(jax.tree.leaves(found), wanted, strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=GRADIENT["float32"] * largest)


@pytest.mark.parametrize("name", some_by_default(PLACEMENTS, *DEFAULT))
def test_values_and_first_derivatives_are_those_of_one_device(name):
    run = derivatives(everything, sharded_by(name))
    check(jax.device_get(run(arguments())), expected(everything))


@pytest.mark.parametrize("problem", [sigmoid, window])
@pytest.mark.parametrize("name", some_by_default(["ring", "all-reduce", "Ulysses"], "ring"))
def test_other_normalizers_and_left_out_steps(problem, name):
    run = derivatives(problem, sharded_by(name))
    check(jax.device_get(run(arguments())), expected(problem))


TWICE = ("ring", "Ulysses with few key heads", "all-gather", "all-reduce", "ring of rings")


@pytest.mark.parametrize("name", some_by_default(TWICE, "ring"))
def test_second_derivatives_are_those_of_one_device(name):
    run = derivatives(everything, sharded_by(name), second=True)
    check(jax.device_get(run(arguments())), expected(everything, second=True))


def test_gradients_in_half_precision_are_rounded_once():
    """They are as near to those of float32 as one device's, though eight blocks are summed."""
    half = {n: x for n, x in arguments(128, jnp.bfloat16).items() if n in ("query", "key", "value")}

    def gradients(attend, values):
        def of(values):
            return attend(**values, is_causal=True)

        return jax.jit(lambda values: jax.vjp(of, values)[1](values["query"])[0])(values)

    exact = gradients(dot_product_attention, {n: x.astype(jnp.float32) for n, x in half.items()})
    for name in ("ring", "ring in blocks", "all-gather"):
        found = gradients(sharded_by(name), half)
        alone = gradients(dot_product_attention, half)
        for n, x in exact.items():
            errors = [np.linalg.norm(np.asarray(g[n], np.float32) - x) for g in (found, alone)]
            assert errors[0] <= 1.1 * errors[1], (name, n)


# ---- within a user's shard_map


def within(mesh, placement, **specs):
    """Causal attention with a bias, in zig-zag order, by a placement within `shard_map`."""

    def part(query, key, value, bias, positions):
        coords = Coords(positions)
        return dot_product_attention(
            query,
            key,
            value,
            bias,
            is_causal=True,
            placement=placement,
            query_coords=coords,
            key_coords=coords,
        )

    tokens = specs["tokens"]
    return jax.shard_map(
        part,
        mesh=mesh,
        in_specs=(tokens, tokens, tokens, specs["bias"], P(tokens[1])),
        out_specs=tokens,
    )


@pytest.mark.parametrize("name", some_by_default(["ring", "Ulysses", "product"], "product"))
def test_within_shard_map_tokens_may_be_in_any_order(name):
    tokens = P(None, "seq")
    placement, mesh, specs = {
        "ring": (Ring("seq"), make_mesh(seq=8), {"tokens": tokens, "bias": P(None, None, "seq")}),
        "Ulysses": (Ulysses("seq"), make_mesh(seq=8), {"tokens": tokens, "bias": P(None, "seq")}),
        "product": (
            Ulysses("near", inner=Ring("far")),
            make_mesh(far=2, near=4),
            {"tokens": P(None, ("far", "near")), "bias": P(None, "near", "far")},
        ),
    }[name]
    run = within(mesh, placement, **specs)

    def reordered(query, key, value, bias):
        query, key, value = zigzag((query, key, value), 8)
        bias = zigzag(zigzag(bias, 8, axis=2), 8, axis=3)
        positions = zigzag(jnp.arange(T), 8, axis=0)
        return unzigzag(run(query, key, value, bias, positions), 8)

    x = arguments()
    given = [x[name] for name in ("query", "key", "value", "bias")]
    causal = functools.partial(dot_product_attention, is_causal=True)
    assert_close(jax.jit(reordered)(*given), causal(*given), FORWARD["float32"])
    found, wanted = (
        jax.jit(jax.grad(lambda *a, f=f: jnp.sum(jnp.sin(f(*a))), (0, 1, 2, 3)))(*given)
        for f in (reordered, causal)
    )
    for a, b in zip(found, wanted, strict=True):
        assert_close(a, b, GRADIENT["float32"])


@long
@pytest.mark.parametrize("kind", list(AxisType)[:2])
def test_axes_may_be_auto_or_explicit(kind):
    mesh = make_mesh(kind, seq=8)
    x = arguments()
    given = [jax.device_put(x[n], NamedSharding(mesh, P(None, "seq"))) for n in ("query", "key")]
    with jax.set_mesh(mesh):
        run = functools.partial(sharded.attention, mesh, Ring("seq"), is_causal=True)
        output = jax.jit(run)(given[0], given[1], given[1])
    assert output.sharding.is_equivalent_to(given[0].sharding, 4)
    alone = dot_product_attention(x["query"], x["key"], x["key"], is_causal=True)
    assert_close(output, alone, FORWARD["float32"])


# ---- compiled programs


def compiled(attend, mesh, spec, length=1024, gradients=False):
    """The compiled program of attention whose tokens are split."""
    sharding = NamedSharding(mesh, spec)
    query, key = (
        jax.ShapeDtypeStruct((B, length, heads, D), jnp.float32, sharding=sharding)
        for heads in (N, K)
    )

    def pulled_back(q, k, v):
        return jax.vjp(attend, q, k, v)[1](q)

    return jax.jit(pulled_back if gradients else attend).lower(query, key, key).compile()


def kinds(program, at_least=0):
    return collections.Counter(k for k, size in every_collective(program) if size > at_least)


def test_a_ring_sends_what_moves_and_gathers_nothing():
    """Forward: keys, values and two coordinates. Backward: again, and two gradients that return."""
    mesh = make_mesh(seq=8)
    attend = functools.partial(
        sharded.attention,
        mesh,
        Ring("seq"),
        mask=masks.Causal() & masks.SameSegment(),
        **packed(1024),
    )
    assert kinds(compiled(attend, mesh, P(None, "seq"))) == {"collective-permute": 4}
    both = compiled(attend, mesh, P(None, "seq"), gradients=True)
    assert kinds(both) == {"collective-permute": 4 + 4 + 2 * 3}
    scores_of_a_device = B * N * (1024 // 8) * 1024 * 4
    assert temporaries(both) < scores_of_a_device / 2


@pytest.mark.parametrize(
    ("mask", "steps"),
    [
        (masks.Window(60, 0), (0, 1)),
        (masks.Window(60, 60), (0, 1, 7)),
        (masks.Chunked(128), (0,)),
        (masks.Causal(), None),
    ],
    ids=repr,
)
def test_a_ring_leaves_out_the_steps_that_nobody_needs(mask, steps):
    """Each step but the first passes on keys, values and positions."""
    mesh = make_mesh(seq=8)
    coords = Coords.arange(1024)
    assert sharded.needed_shifts(mask, coords, shards=8) == (steps or tuple(range(8)))
    attend = functools.partial(sharded.attention, mesh, Ring("seq"), mask=mask)
    program = compiled(attend, mesh, P(None, "seq"))
    assert kinds(program)["collective-permute"] == (3 if steps is None else 3 * (len(steps) - 1))
    assert ("while" in program.as_text()) or steps is not None


def test_traced_coordinates_leave_nothing_out():
    """Which steps are needed cannot be known: here positions are shuffled between the devices."""
    x = arguments(64)
    mask = masks.Window(6, 0)

    def attend(attention, positions):
        coords = Coords(positions)
        return attention(
            x["query"],
            x["key"],
            x["value"],
            mask=mask,
            query_coords=coords,
            key_coords=coords,
        )

    ring = functools.partial(sharded.attention, make_mesh(seq=8), Ring("seq"))
    positions = jnp.asarray(np.random.default_rng(6).permutation(64))
    found = jax.jit(functools.partial(attend, ring))(positions)
    assert_close(found, attend(dot_product_attention, positions), FORWARD["float32"])


def test_an_axis_that_is_not_named_is_left_to_xla():
    """A batch that is split over it stays split."""
    mesh = make_mesh(data=2, seq=4)
    attend = functools.partial(sharded.attention, mesh, Ring("seq"), is_causal=True)
    program = compiled(attend, mesh, P("data", "seq"), gradients=True)
    assert set(kinds(program)) == {"collective-permute"}
    assert all(size <= B // 2 * 1024 // 4 * N * D for _, size in every_collective(program))


def test_ulysses_exchanges_heads_and_all_gather_gathers_keys():
    mesh = make_mesh(seq=4)
    for placement, kind in ((Ulysses("seq"), "all-to-all"), (AllGather("seq"), "all-gather")):
        attend = functools.partial(sharded.attention, mesh, placement, is_causal=True)
        program = compiled(attend, mesh, P(None, "seq"))
        large = kinds(program, at_least=1024)
        assert set(large) == {kind}


def test_explain_tells_what_each_device_does(capsys):
    x = jax.ShapeDtypeStruct((1, 8192, N, 64), jnp.float32)
    placement = Ring("seq").on(make_mesh(seq=8))
    explain = functools.partial(flax_attn.explain, mask=masks.Window(512, 0), platform="cpu")
    jax.eval_shape(lambda x: explain(x, x, x, placement=placement) and None, x)
    text = capsys.readouterr().out
    assert "Ring('seq').on(Mesh(seq=8))" in text
    assert "each device: batch [1], 1024 queries × 8 heads, 1024 keys" in text
    assert "by blockwise\n  ring over 'seq': 2 of 8 steps, (0, 1)" in text


# ---- modules


@pytest.mark.parametrize("package", some_by_default([nnx, linen], nnx))
def test_modules_attend_over_devices(package):
    """Outside `shard_map` on a mesh, inside by the name of the axis."""
    mesh = make_mesh(seq=8)
    options = {"num_heads": 4, "num_kv_heads": 2, "mask": masks.Causal()}
    x = jnp.asarray(draw(7, B, T, 32))

    def make(placement):
        if package is nnx:
            module = nnx.MultiHeadAttention(
                in_features=32, placement=placement, rngs=flax_nnx.Rngs(0), **options
            )
            return lambda x, **coords: module(x, **coords)
        module = linen.MultiHeadAttention(placement=placement, **options)
        weights = linen.MultiHeadAttention(**options).init(jax.random.key(0), x)
        return lambda x, **coords: module.apply(weights, x, **coords)

    def part(x):
        length = x.shape[1]
        coords = Coords.arange(length, offset=length * jax.lax.axis_index("seq"))
        return make(Ring("seq"))(x, query_coords=coords, key_coords=coords)

    spec = P(None, "seq")
    inside = jax.shard_map(part, mesh=mesh, in_specs=spec, out_specs=spec)
    wanted = make(None)(x)
    for run in (inside, make(Ring("seq").on(mesh))):
        program = jax.jit(run).lower(jax.device_put(x, NamedSharding(mesh, spec))).compile()
        assert_close(program(jax.device_put(x, NamedSharding(mesh, spec))), wanted, 2e-6)
        assert set(kinds(program, at_least=T)) == {"collective-permute"}
