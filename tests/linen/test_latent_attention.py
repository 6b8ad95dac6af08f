"""The modules of latent attention, in Linen and NNX."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as flax_linen
from flax import nnx as flax_nnx

from flax_attn import Dropout, caches, linen, masks, nnx, positions, scores
from tests.oracles import latent as oracle
from tests.oracles.rotary import plain
from tests.tolerances import FORWARD, assert_close

RNG = np.random.default_rng(0)
B, T, M = 2, 5, 12
X = RNG.normal(size=(B, T, M)).astype(np.float32)
SIZES = {
    "num_heads": 3,
    "query_rank": 6,
    "kv_rank": 8,
    "nope_head_dim": 4,
    "rope_head_dim": 2,
    "value_head_dim": 5,
    "out_features": 7,
}
SHAPES = {
    "query_down": {"kernel": (12, 6)},
    "query_norm": {"scale": (6,)},
    "query": {"kernel": (6, 3, 6)},
    "kv_down": {"kernel": (12, 10)},
    "kv_norm": {"scale": (8,)},
    "key_up": {"kernel": (8, 3, 4)},
    "value_up": {"kernel": (8, 3, 5)},
    "out": {"kernel": (3, 5, 7)},
}


def random_parameters(shapes=SHAPES):
    is_shape = lambda x: isinstance(x, tuple)
    make = lambda shape: RNG.normal(0.1, 0.5, size=shape).astype(np.float32)
    return jax.tree.map(make, shapes, is_leaf=is_shape)


PARAMS = random_parameters()


def made_of_nnx(params=PARAMS, **options):
    module = nnx.LatentAttention(M, **SIZES | options, rngs=flax_nnx.Rngs(0))
    state = flax_nnx.state(module, flax_nnx.Param)
    flax_nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, params))
    flax_nnx.update(module, state)
    return module


def made_of_linen(params=PARAMS, **options):
    return functools.partial(linen.LatentAttention(**SIZES | options).apply, {"params": params})


BOTH = [made_of_linen, made_of_nnx]


def as_weights(params):
    return {name: next(iter(leaf.values())) for name, leaf in params.items()}


@pytest.mark.parametrize("make", BOTH)
def test_modules_are_the_function_of_their_parameters(make):
    expected = oracle.latent_attention(
        X, as_weights(PARAMS), frequencies=plain(2), seen=np.tri(T, dtype=bool)
    )
    actual = jax.jit(functools.partial(make(), is_causal=True))(X)
    assert_close(actual, expected, 2 * FORWARD["float32"])


@pytest.mark.parametrize("options", [{}, {"use_bias": True, "query_rank": None}])
def test_linen_and_nnx_have_the_same_parameters(options):
    made = flax_nnx.eval_shape(
        lambda: nnx.LatentAttention(M, **SIZES | options, rngs=flax_nnx.Rngs(0))
    )
    state = flax_nnx.to_pure_dict(flax_nnx.state(made, flax_nnx.Param))
    module = linen.LatentAttention(**SIZES | options)
    params = jax.eval_shape(module.init, jax.random.key(0), X)["params"]
    chex.assert_trees_all_equal_shapes_and_dtypes(params, state)
    if not options:
        assert jax.tree.map(lambda x: x.shape, params) == SHAPES
    biased = {name for name, leaf in params.items() if "bias" in leaf}
    assert biased == ({"kv_down", "out"} if options else set())


def test_kernels_start_with_the_variance_of_dense_layers():
    module = linen.LatentAttention(**SIZES | {"kv_rank": 400, "nope_head_dim": 40})
    params = jax.jit(module.init)(jax.random.key(0), X)["params"]
    made = nnx.LatentAttention(
        M, **SIZES | {"kv_rank": 400, "nope_head_dim": 40}, rngs=flax_nnx.Rngs(0)
    )
    for kernel in (params["key_up"]["kernel"], made.key_up.kernel[...]):
        assert_close(np.std(kernel), 400**-0.5, 2e-2)


def test_partitioning_metadata_survives():
    init = flax_linen.with_partitioning(
        flax_linen.initializers.lecun_normal(), (None, "heads", None)
    )
    module = linen.LatentAttention(**SIZES | {"query_rank": None}, kernel_init=init)
    specs = flax_linen.get_partition_spec(
        jax.eval_shape(module.init, jax.random.key(0), X)["params"]
    )
    expected = jax.sharding.PartitionSpec(None, "heads", None)
    assert specs["key_up"]["kernel"] == specs["query"]["kernel"] == expected


@pytest.mark.parametrize("make", BOTH)
def test_settings_of_the_module_are_joined_with_those_of_the_call(make):
    slopes = jnp.asarray([0.5, 0.25, 0.125])
    settings = {
        "mask": masks.Causal(),
        "score_mod": scores.ALiBi(slopes),
        "rotary": positions.Rotary(2, base=100.0, layout="interleaved"),
        "scale": 0.3,
        "implementation": "dense",
        "precision": "highest",
    }
    array = jnp.asarray(np.eye(T, dtype=bool) | (np.arange(T) % 2 == 0))
    call = {"mask": array, "score_mod": scores.SoftCap(2.0)}
    actual = jax.jit(functools.partial(make(**settings), **call))(X)
    plain_settings = {name: x for name, x in settings.items() if name not in ("mask", "score_mod")}
    joined = functools.partial(
        make(**plain_settings),
        mask=masks.Causal() & masks.Dense(array),
        score_mod=scores.ALiBi(slopes) >> scores.SoftCap(2.0),
    )
    assert_close(actual, jax.jit(joined)(X), FORWARD["float32"])
    only = jax.jit(functools.partial(make(**settings), form="absorbed"))(X)
    assert np.abs(only - actual).max() > 0.01


@pytest.mark.parametrize("make", BOTH)
def test_steps_are_the_rows_of_the_full_pass_and_trace_once(make):
    module = make(mask=masks.Causal())
    owner = linen.LatentAttention(**SIZES) if make is made_of_linen else module
    cache = owner.create_cache(T, batch=B)
    assert (cache.stored_keys.size, cache.stored_values.size) == (B * T * (8 + 2), 0)
    traces = []

    @jax.jit
    def step(x, cache):
        traces.append(x.shape)
        return module(x, cache=cache)

    rows = []
    for t in range(T):
        row, cache = step(X[:, t : t + 1], cache)
        rows.append(row)
    assert_close(np.concatenate(rows, axis=1), jax.jit(module)(X), 2 * FORWARD["float32"])
    assert len(traces) == 1


def test_dropout_is_that_of_the_function_in_both_forms():
    call = functools.partial(made_of_nnx(), dropout=Dropout(0.4, jax.random.key(0)))
    naive, absorbed = (jax.jit(functools.partial(call, form=f))(X) for f in ("naive", "absorbed"))
    assert_close(absorbed, naive, 2 * FORWARD["float32"])
    assert np.abs(naive - jax.jit(made_of_nnx())(X)).max() > 0.1


def test_sown_weights_are_those_of_either_form():
    @jax.jit
    def sown(x):
        weights = []
        for form in ("naive", "absorbed"):
            call = {"form": form, "is_causal": True, "sow_weights": True}
            run = functools.partial(made_of_linen(), mutable=["intermediates"], **call)
            weights += jax.tree.leaves(run(x)[1])
        run = lambda module, x: module(x, is_causal=True, sow_weights=True)
        captured = flax_nnx.capture(run, flax_nnx.Intermediate)(made_of_nnx(), x)[1]
        return [*weights, *jax.tree.leaves(flax_nnx.to_pure_dict(captured))]

    naive, absorbed, of_nnx = sown(X)
    chex.assert_shape(naive, (B, 3, T, T))
    assert_close(absorbed, naive, 2 * FORWARD["float32"])
    assert_close(of_nnx, naive, 2 * FORWARD["float32"])


@pytest.mark.parametrize("options", [{"dtype": jnp.bfloat16}, {"param_dtype": jnp.bfloat16}])
def test_half_precision_stays_with_and_without_a_cache(options):
    x = X.astype(jnp.bfloat16)
    module = linen.LatentAttention(**SIZES, **options)
    cache = module.create_cache(T, batch=B, dtype=jnp.bfloat16)

    @jax.jit
    def both(params, x, cache):
        call = functools.partial(module.apply, {"params": params}, x, is_causal=True)
        return call(), call(cache=cache)[0]

    expected = oracle.latent_attention(
        X, as_weights(PARAMS), frequencies=plain(2), seen=np.tri(T, dtype=bool)
    )
    params = jax.tree.map(lambda a: jnp.asarray(a, module.param_dtype), PARAMS)
    with jax.numpy_dtype_promotion("standard"):
        for actual in both(params, x, cache):
            chex.assert_type(actual, jnp.bfloat16)
            assert_close(actual, expected, 3 * FORWARD["bfloat16"])


ERRORS = [
    ({"num_heads": 0}, ValueError, "num_heads must be at least 1, got 0."),
    ({"kv_rank": 0}, ValueError, "kv_rank must be at least 1, got 0."),
    ({"query_rank": 0}, ValueError, "query_rank must be at least 1, got 0."),
    ({"nope_head_dim": 2.5}, TypeError, "nope_head_dim must be one whole number, got 2.5."),
    ({"value_head_dim": 0}, ValueError, "value_head_dim must be at least 1, got 0."),
    ({"out_features": 0}, ValueError, "out_features must be at least 1, got 0."),
    ({"rope_head_dim": 0}, ValueError, "rope_head_dim must be at least 2, got 0."),
    (
        {"rope_head_dim": 3},
        ValueError,
        "rope_head_dim must be even, as features are rotated in pairs, got 3.",
    ),
    (
        {"rotary": positions.Rotary(4)},
        ValueError,
        "rotary must be made for rope_head_dim = 2 features, got Rotary(4, ...). "
        "Write Rotary(2, ...).",
    ),
]


@pytest.mark.parametrize(("options", "kind", "message"), ERRORS)
def test_both_modules_refuse_what_cannot_be_made_in_the_same_words(options, kind, message):
    for make in (
        lambda: nnx.LatentAttention(M, **SIZES | options, rngs=flax_nnx.Rngs(0)),
        lambda: linen.LatentAttention(**SIZES | options).init(jax.random.key(0), X),
    ):
        with pytest.raises(kind) as caught:
            make()
        assert str(caught.value) == f"LatentAttention: {message}"


@pytest.mark.parametrize("make", BOTH)
def test_wrong_inputs_masks_and_caches_are_refused_with_the_fix(make):
    module = make()
    with pytest.raises(TypeError, match=r"LatentAttention: inputs must be an array, got list"):
        module([1.0])
    with pytest.raises(
        ValueError, match=r"LatentAttention: mask must be boolean, .* got -1000000000"
    ):
        module(X, mask=np.float32([[-1e9, 0]]))
    with pytest.raises(TypeError, match=r"cache of flax_attn\.caches, got dict\. Make one: create"):
        module(X, cache={})
    with pytest.raises(ValueError, match=r"key must be bfloat16, as the cache is, got float32"):
        module(
            X, cache=caches.KVCache.create(T, 1, 10, batch=B, value_head_dim=0, dtype="bfloat16")
        )
    if make is made_of_nnx:
        with pytest.raises(
            ValueError, match=r"inputs must have the 12 channels .* got \[2, 5, 6\]"
        ):
            module(X[..., :6])
