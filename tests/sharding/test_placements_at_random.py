"""Random calls by placements equal those of one device, in values, derivatives and NaN."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from flax_attn import Coords, Sigmoid, dot_product_attention, masks, sharded
from flax_attn.attention import Blockwise
from flax_attn.sharded import AllGather, AllReduce, Ring, Ulysses
from tests.compiled import collectives
from tests.runs import long, some_by_default
from tests.sharding.random_calls import LAYOUTS, draw_call, make_mesh
from tests.tolerances import FORWARD, GRADIENT, assert_close

pytestmark = pytest.mark.filterwarnings("ignore:.*is read as .T, N, D.")
LAYOUT_NAMES = list(LAYOUTS)


def drawn(seed, **options):
    return draw_call(seed, LAYOUT_NAMES[seed % len(LAYOUT_NAMES)], **options)


def attention_of(call, placement, traced):
    """Output and LSE, if there is one, as a function of what has derivatives."""

    def attend(floats):
        arguments = call.build(floats, traced)
        return dot_product_attention(**arguments, placement=placement, return_residual=call.has_lse)

    return attend


def first(attend, floats):
    """Output and LSE, their tangents, and the cotangents of all floats."""
    moving = jax.tree.map(lambda x: jnp.cos(3 * x), floats)
    value, tangent = jax.jvp(attend, (floats,), (moving,))
    ones = jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), jnp.cos(2 * x), 0), value)
    return value, tangent, jax.vjp(attend, floats)[1](ones)[0]


def gradient(attend):
    def loss(floats):
        return jnp.sum(jnp.sin(jax.tree.leaves(attend(floats))[0]))

    return jax.grad(loss)


def second(attend, floats):
    """Hessian-vector products, forward over reverse and reverse over forward."""
    moving = jax.tree.map(lambda x: jnp.cos(3 * x), floats)

    def slope(floats):
        output = jax.jvp(lambda x: jax.tree.leaves(attend(x))[0], (floats,), (moving,))[1]
        return jnp.sum(jnp.cos(output))

    return (*jax.jvp(gradient(attend), (floats,), (moving,)), jax.grad(slope)(floats))


def batched(attend, floats):
    """Values and gradients of several examples."""
    several = jax.tree.map(lambda x: jnp.stack([x, 0.7 * x, -x]), floats)
    return jax.vmap(attend)(several), jax.vmap(gradient(attend))(several)


def rebuilt(attend, floats):
    """Gradients through checkpoints in a scan over layers."""

    @jax.checkpoint
    def layer(query, strength):
        output = jax.tree.leaves(attend(floats | {"query": query}))[0]
        return query + strength * jnp.mean(output, axis=-1, keepdims=True), None

    def loss(query):
        strengths = jnp.arange(1, 3).astype(query.dtype)
        return jnp.sum(jnp.sin(jax.lax.scan(layer, query, strengths)[0]))

    return (jax.grad(loss)(floats["query"]),)


def linearized(attend, floats):
    """The tangent by `linearize`, and without `jit`."""
    return (jax.linearize(attend, floats)[1](floats),)


def check(call, run=first):
    """What `run` computes is the same on all devices and on one."""
    found, wanted = (
        jax.device_get(
            jax.jit(lambda x, y, p=p: run(attention_of(call, p, y), x))(call.floats, call.traced)
        )
        for p in (call.placement, None)
    )
    for i, (x, y) in enumerate(zip(found, wanted, strict=True)):
        tolerance = (FORWARD if i == 0 and run is first else GRADIENT)[call.dtype]
        numbers = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(y)]
        largest = max(np.max(np.abs(n[np.isfinite(n)]), initial=1e-3) for n in numbers)
        paths = jax.tree_util.tree_leaves_with_path(x)
        for (path, leaf), expected in zip(paths, numbers, strict=True):
            np.testing.assert_allclose(
                np.asarray(leaf, np.float64),
                expected,
                rtol=0,
                atol=4 * tolerance * largest,
                err_msg=f"{call.text}\nresult {i}, {jax.tree_util.keystr(path)}",
            )


@pytest.mark.parametrize("seed", some_by_default(range(len(LAYOUTS)), 3, 22))
def test_a_random_call_equals_that_of_one_device(seed):
    check(drawn(seed))


@long
@pytest.mark.parametrize("seed", range(1000, 1003))
def test_a_random_call_in_float64(seed, x64):
    check(drawn(seed, dtype="float64"))


@long
@pytest.mark.parametrize("seed", range(2000, 2026, 5))
def test_a_random_call_on_a_mesh_with_explicit_axes(seed):
    check(drawn(seed, kind=AxisType.Explicit))


@long
@pytest.mark.parametrize("run", [second, batched, rebuilt, linearized])
@pytest.mark.parametrize("seed", [3001, 3004, 3010])
def test_a_random_call_transformed(run, seed):
    check(drawn(seed, dtype="float32", smooth=True), run)


@long
@pytest.mark.parametrize("seed", range(4000, 4026, 4))
def test_a_random_call_has_nan_where_one_device_has_it(seed):
    call = drawn(seed)
    rng = np.random.default_rng(seed)
    for name in ("key", "value", "query"):
        rows = call.floats[name].reshape(-1, *call.floats[name].shape[-2:])
        bad = [np.nan, np.inf][rng.integers(2)]
        rows = rows.at[rng.integers(len(rows))].set(bad)
        call.floats[name] = rows.reshape(call.floats[name].shape)
    check(call)


# ---- what was wrong once


def draw(*shape):
    return jnp.asarray(np.random.default_rng([*shape]).normal(size=shape), jnp.float32)


def four(placement, **options):
    mesh = make_mesh({axis: 4 // len(placement.all_axes) for axis in placement.all_axes})
    return functools.partial(sharded.attention, mesh, placement, **options)


PLACEMENTS = [Ring("a"), AllGather("a"), AllReduce("a"), Ulysses("a")]


@pytest.mark.parametrize("placement", some_by_default(PLACEMENTS, *PLACEMENTS[:1]))
@pytest.mark.parametrize("lengths", [(5, 1), (1, 1), (0, 4), (3, 0)])
def test_few_tokens_are_padded(placement, lengths):
    """Keys that pad a single one, or none, are hidden too."""
    length_q, length_k = lengths
    query, key = draw(1, length_q, 4, 4), draw(1, length_k, 4, 4)
    found, wanted = (f(query, key, key) for f in (four(placement), dot_product_attention))
    assert_close(found, wanted, FORWARD["float32"])


def test_an_array_has_its_heads_in_nested_exchanges():
    placement, bias = Ulysses("a", inner=Ulysses("b")), draw(4, 8, 8)
    x = draw(1, 8, 4, 4)
    found, wanted = (f(x, x, x, bias) for f in (four(placement), dot_product_attention))
    assert_close(found, wanted, FORWARD["float32"])


@pytest.mark.parametrize("placement", some_by_default(PLACEMENTS, PLACEMENTS[3]))
def test_tangents_have_tangents(placement, x64):
    x = draw(1, 8, 4, 4).astype(jnp.float64)

    def twice(attend):
        along = lambda f: lambda x: jax.jvp(f, (x,), (jnp.cos(x),))[1]
        return jax.jit(along(along(lambda x: attend(x, x, x))))(x)

    assert_close(twice(four(placement)), twice(dot_product_attention), GRADIENT["float64"])


@pytest.mark.parametrize(
    "placement", some_by_default([PLACEMENTS[i] for i in (0, 1, 3)], PLACEMENTS[1])
)
def test_it_is_linear_in_the_values(placement):
    x = draw(1, 8, 4, 4)

    def transposed(attend):
        return jax.jit(jax.linear_transpose(lambda value: attend(x, x, value), x))(jnp.cos(x))[0]

    found, wanted = transposed(four(placement)), transposed(dot_product_attention)
    assert_close(found, wanted, GRADIENT["float32"])


def test_a_row_with_nan_has_no_tangent_of_the_lse_after_an_all_reduce():
    x = draw(1, 8, 4, 4)
    value = x.at[:, 5].set(jnp.nan)

    def tangent(attend):
        options = {"is_causal": True, "return_residual": True}
        of = lambda x: attend(x, x, value, **options)[1]
        return jax.jit(lambda x: jax.jvp(of, (x,), (jnp.cos(x),))[1])(x)

    found, wanted = tangent(four(AllReduce("a"))), tangent(dot_product_attention)
    assert_close(found, wanted, GRADIENT["float32"])
    assert not np.any(wanted[:, 5:])


# ---- axes that no placement names, and those of other transformations


@pytest.mark.parametrize("inner", [None, Blockwise(4, 4, 1)])
def test_a_batch_that_is_split_by_another_axis_is_not_gathered(inner):
    mesh = make_mesh({"free": 2, "a": 4})
    x = jax.device_put(draw(4, 16, 2, 4), NamedSharding(mesh, P("free", "a")))

    def loss(x):
        return jnp.sum(sharded.attention(mesh, Ring("a", inner), x, x, x, is_causal=True) ** 2)

    compiled = jax.jit(jax.grad(loss)).lower(x).compile()
    part = x.size // 8
    assert {kind for kind, _ in collectives(compiled)} == {"collective-permute"}
    assert max(size for _, size in collectives(compiled)) == part


def part_of_a_sequence(placement, query, key, value):
    length, axis = query.shape[1], placement.axis
    here = Coords.arange(length, offset=length * jax.lax.axis_index(axis))
    return dot_product_attention(
        query,
        key,
        value,
        mask=masks.Causal() & masks.Window(9),
        placement=placement,
        query_coords=here,
        key_coords=here,
    )


@long
@pytest.mark.parametrize("wrap", ["check_vma", "no check_vma", "pmap"])
@pytest.mark.parametrize("placement", [Ring("a"), Ulysses("a"), AllGather("a")], ids=repr)
def test_within_transformations_of_the_user(placement, wrap):
    x = draw(3, 2, 24, 4, 4)
    part = functools.partial(part_of_a_sequence, placement)

    def by_pmap(*arrays):
        cut = [jnp.moveaxis(a.reshape(2, 4, 6, 4, 4), 1, 0) for a in arrays]
        out = jax.pmap(part, axis_name="a", devices=jax.devices()[:4])(*cut)
        return jnp.moveaxis(out, 0, 1).reshape(arrays[0].shape)

    spec = P(None, "a")
    by_shard_map = jax.shard_map(
        part, mesh=make_mesh({"a": 4}), in_specs=spec, out_specs=spec, check_vma=wrap == "check_vma"
    )
    attend = by_pmap if wrap == "pmap" else by_shard_map
    alone = functools.partial(dot_product_attention, mask=masks.Causal() & masks.Window(9))
    found, wanted = (
        jax.value_and_grad(lambda x, f=f: jnp.sum(jnp.sin(f(*x))))(x) for f in (attend, alone)
    )
    for a, b in zip(found, wanted, strict=True):
        assert_close(a, b, GRADIENT["float32"])


@pytest.mark.parametrize("placement", some_by_default(PLACEMENTS, PLACEMENTS[1]), ids=repr)
def test_a_mesh_may_have_another_explicit_axis(placement):
    mesh = make_mesh({"free": 2, "a": 4}, AxisType.Explicit)
    x = jax.device_put(draw(2, 8, 4, 4), NamedSharding(mesh, P()))
    attend = functools.partial(sharded.attention, mesh, placement)
    found, wanted = (
        jax.jit(jax.grad(lambda x, f=f: jnp.sum(jnp.sin(f(x, x, x)))))(
            np.asarray(x) if f is dot_product_attention else x
        )
        for f in (attend, dot_product_attention)
    )
    assert_close(found, wanted, GRADIENT["float32"])


def test_parameters_of_half_precision_may_be_the_same_on_all_devices():
    """XLA must not abort, and their gradients are summed in float32."""
    mesh = make_mesh({"free": 2, "a": 4})
    x, bias = draw(2, 32, 2, 4).astype(jnp.bfloat16), draw(2, 1, 1).astype(jnp.bfloat16)
    ring = functools.partial(sharded.attention, mesh, Ring("a"))
    ones = jnp.abs(x)

    def gradient(attend, dtype):
        def of(bias):
            arrays = (x.astype(dtype), x.astype(dtype), ones.astype(dtype))
            return attend(*arrays, bias, normalizer=Sigmoid())

        return jax.jit(lambda b: jax.vjp(of, b)[1](ones.astype(dtype))[0])(bias.astype(dtype))

    found, wanted = gradient(ring, jnp.bfloat16), gradient(dot_product_attention, jnp.float32)
    assert_close(found, wanted, GRADIENT["bfloat16"])
