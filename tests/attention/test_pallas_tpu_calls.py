"""The Pallas TPU kernel within transformations and unusual calls, interpreted, against `dense`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from flax_attn import Coords, Softmax, dot_product_attention, explain, masks, scores, sharded
from flax_attn.attention import PallasTPU
from tests.runs import long
from tests.tolerances import GRADIENT, assert_close

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:jax")  # of Pallas

KERNEL = PallasTPU(block_query=128, block_key=128, interpret=True)
T, S, N, K, D = 130, 150, 4, 2, 8


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def arrays(*batch, t=T, s=S, k=K):
    return draw(*batch, t, N, D), draw(*batch, s, k, D, seed=1), draw(*batch, s, k, D, seed=2)


def call(implementation, q, k, v, slopes, **options):
    given = {
        "mask": masks.Causal(),
        "query_coords": Coords.arange(q.shape[-3], k.shape[-3] - q.shape[-3]),
        "key_coords": Coords.arange(k.shape[-3]),
    }
    mod = scores.ALiBi(slopes) >> scores.SoftCap(3.0)
    given |= {"score_mod": mod, "return_residual": True, "implementation": implementation}
    return dot_product_attention(q, k, v, **(given | options))


def loss(implementation, *operands, **options):
    return sum(jnp.sum(jnp.sin(x)) for x in call(implementation, *operands, **options))


SLOPES = np.array([0.1, 0.2, 0.3, 0.4], np.float32)


def value_and_gradients(function, *operands):
    numbers = tuple(range(len(operands)))
    return jax.value_and_grad(function, argnums=numbers)(*operands)


def assert_like_dense(function, *operands, tolerance=GRADIENT["float32"]):
    """A function of an implementation and arrays is that of `dense`, which rounds as well."""
    found, expected = (
        jax.jit(functools.partial(function, implementation))(*operands)
        for implementation in (KERNEL, "dense")
    )
    for a, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        rows = T * N if a.ndim <= 1 else 1  # the sums of rows may cancel to the size of one
        assert_close(a, e, 2 * tolerance * rows**0.5)


@pytest.mark.parametrize("batch", [(), (2,), (2, 1, 2)], ids=str)
def test_any_number_of_batch_axes(batch):
    def f(implementation, *operands):
        tangents = tuple(map(jnp.cos, operands))
        along = jax.jvp(functools.partial(call, implementation), operands, tangents)
        return along, value_and_gradients(functools.partial(loss, implementation), *operands)

    assert_like_dense(f, *arrays(*batch), SLOPES)


def test_vmap_over_everything():
    def f(implementation, *operands):
        alone = functools.partial(loss, implementation)
        return jax.vmap(functools.partial(value_and_gradients, alone))(*operands)

    assert_like_dense(f, *arrays(2, 1), np.stack([SLOPES, SLOPES / 2]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_traced_scale_of_any_dtype(dtype):
    def f(implementation, q, k, v, scale):
        given = functools.partial(loss, implementation, slopes=SLOPES)
        return value_and_gradients(lambda q, scale: given(q, k, v, scale=scale), q, scale)

    tolerance = GRADIENT[dtype]
    assert_like_dense(f, *arrays(1), jnp.asarray(-0.3, dtype), tolerance=tolerance)


def test_only_the_lse_has_a_cotangent():
    def f(implementation, *operands):
        of_lse = lambda *x: jnp.sum(jnp.sin(call(implementation, *x)[1]))
        return value_and_gradients(of_lse, *operands)

    assert_like_dense(f, *arrays(1), SLOPES)


def test_second_derivatives_and_checkpoints():
    def f(implementation, q, k, v, slopes):
        given = jax.checkpoint(functools.partial(loss, implementation, q, k, v))
        return jax.jvp(jax.grad(given), (slopes,), (jnp.ones_like(slopes),))

    assert_like_dense(f, *arrays(1), SLOPES)


def test_in_64_bit_mode(x64):
    """Slopes are float64, queries float32: the kernel computes in 32 bits."""

    def f(implementation, *operands):
        sink = Softmax(operands[-1])
        return value_and_gradients(
            functools.partial(loss, implementation, normalizer=sink), *operands
        )

    assert_like_dense(f, *map(jnp.asarray, arrays(1)), jnp.asarray(SLOPES, jnp.float64))


@pytest.mark.parametrize("dtype", ["int64", "float64"])
def test_what_is_computed_in_64_bits_is_declined(dtype, x64):
    def wide(s, q, k, head_ids):
        return s + (q.positions.astype(dtype) - k.positions.astype(dtype)).astype(s.dtype)

    with pytest.raises(NotImplementedError, match=f"computes in {dtype}, which TPUs do not have"):
        call(KERNEL, *map(jnp.asarray, arrays(1)), SLOPES, score_mod=scores.score_mod(wide))


@jax.custom_jvp
def powers(s, exponent):
    return s ** exponent.astype(s.dtype)


@powers.defjvp
def _(primals, tangents):
    (s, exponent), (ds, _) = primals, tangents
    return powers(s, exponent), 5 * exponent.astype(s.dtype) * ds


def test_a_rule_of_the_user_with_whole_numbers():
    by_rule = scores.score_mod(lambda s, q, k, head_ids, *, n: powers(s, n), n=jnp.int32(2))

    def f(implementation, *operands):
        given = functools.partial(loss, implementation, slopes=SLOPES, score_mod=by_rule)
        return value_and_gradients(given, *operands)

    assert_like_dense(f, *arrays(1))


def mesh_of(*shape, names):
    devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
    return Mesh(devices, names)


def test_within_shard_map():
    """Each device has a batch element and some heads."""

    def f(implementation, q, k, v, slopes):
        spec = PartitionSpec("batch", None, "heads")
        heads = jnp.arange(N, dtype=jnp.int32)

        def part(q, k, v, slopes, heads):
            return call(implementation, q, k, v, slopes, head_ids=heads)

        attend = jax.shard_map(
            part,
            mesh=mesh_of(2, 2, names=("batch", "heads")),
            in_specs=(*(spec,) * 3, PartitionSpec(), PartitionSpec("heads")),
            out_specs=(spec, spec),
        )
        loss = lambda *x: sum(jnp.sum(jnp.sin(x)) for x in attend(*x, heads))
        return value_and_gradients(loss, q, k, v, slopes)

    assert_like_dense(f, *arrays(2), SLOPES)


@long
def test_within_a_ring():
    def f(implementation, q, k, v, slopes):
        tokens, spec = PartitionSpec("ring"), PartitionSpec(None, "ring")

        def part(q, k, v, coords, slopes):
            placement = sharded.Ring("ring", inner=implementation)
            given = {"query_coords": coords, "key_coords": coords, "placement": placement}
            return call(None, q, k, v, slopes, **given)

        attend = jax.shard_map(
            part,
            mesh=mesh_of(2, names=("ring",)),
            in_specs=(spec, spec, spec, tokens, PartitionSpec()),
            out_specs=(spec, spec),
        )
        coords = Coords.arange(q.shape[1])
        loss = lambda q, k, v, slopes: sum(
            jnp.sum(jnp.sin(x)) for x in attend(q, k, v, coords, slopes)
        )
        return value_and_gradients(loss, q, k, v, slopes)

    assert_like_dense(f, *arrays(1, t=280, s=280), SLOPES)


@pytest.mark.parametrize("side", ["query", "key", "value"])
def test_what_is_not_finite_reaches_those_who_see_it_and_no_others(side):
    """A query that sees nothing is 0, also if it is not finite."""
    given = dict(zip(("query", "key", "value"), arrays(1), strict=True))
    given[side][:, 3], given[side][:, 100, :, 0] = np.nan, np.inf
    mask = masks.Window(30, 0) & masks.relation(lambda q, k: q.positions != 3)()

    def attend(implementation):
        return dot_product_attention(
            **given,
            mask=mask,
            query_coords=Coords.arange(T),
            key_coords=Coords.arange(S),
            return_residual=True,
            implementation=implementation,
        )

    for found, expected in zip(attend(KERNEL), attend("dense"), strict=True):
        assert np.isnan(expected).any() == (found.ndim == 4 or side != "value")
        np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_table_takes_square_blocks_and_says_so():
    q, k, v = arrays(1, s=T)
    table = scores.RelativeBias(jnp.zeros((5, N)))
    kernel = PallasTPU(block_query=128, block_key=256, interpret=True)
    with pytest.raises(NotImplementedError, match=r"block_query=128 and block_key=256\. Give one"):
        dot_product_attention(q, k, v, score_mod=table, implementation=kernel)
    one = PallasTPU(block_key=256, interpret=True)
    assert dot_product_attention(q, k, v, score_mod=table, implementation=one).shape == q.shape


@pytest.mark.parametrize(("block", "is_used"), [((64, 128), True), ((50, 50), False)])
def test_explain_says_where_a_plan_is_not_used(block, is_used):
    q, k, v = arrays(1, s=T)
    coords = Coords.arange(T)
    found = explain(
        q,
        k,
        v,
        mask=masks.Causal(),
        query_coords=coords,
        key_coords=coords,
        plan=masks.make_plan(masks.Causal(), coords, block=block),
        implementation=KERNEL,
    )
    assert ("a block map of its own" in found.text) != is_used
