"""Latent attention: its two forms, against the paper's equations and each other."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import Coords, Dropout, caches, maps, masks, positions, scores
from flax_attn.attention import latent_attention
from tests.oracles import latent as oracle
from tests.oracles.rotary import plain
from tests.tolerances import FORWARD, GRADIENT, assert_close

RNG = np.random.default_rng(0)
B, T, M, N, R, RQ, DN, DR, DV, MO = 2, 6, 10, 3, 7, 5, 4, 6, 3, 8
X = RNG.normal(size=(B, T, M))
WEIGHTS = {
    "query": RNG.normal(size=(RQ, N, DN + DR)) / 2,
    "kv_down": RNG.normal(size=(M, R + DR)) / 2,
    "key_up": RNG.normal(size=(R, N, DN)) / 2,
    "value_up": RNG.normal(size=(R, N, DV)) / 2,
    "out": RNG.normal(size=(N, DV, MO)) / 2,
    "query_down": RNG.normal(size=(M, RQ)) / 2,
    "query_norm": RNG.uniform(0.5, 1.5, RQ),
    "kv_norm": RNG.uniform(0.5, 1.5, R),
}
FORMS = ("naive", "absorbed")
ROTARY = positions.Rotary(DR, layout="interleaved")


def weights(dtype=jnp.float32):
    return {name: jnp.asarray(w, dtype) for name, w in WEIGHTS.items()}


def rms_norm(scale):
    def norm(x):
        wide = x if x.dtype == jnp.float64 else x.astype(jnp.float32)
        mean = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        factor = scale.astype(wide.dtype).reshape((1,) * (x.ndim - 1) + scale.shape)
        return (wide * jax.lax.rsqrt(mean + 1e-6) * factor).astype(x.dtype)

    return norm


def attend(w, x, **options):
    norms = {name: rms_norm(w[name]) for name in ("query_norm", "kv_norm") if name in w}
    if "query_down" in w:
        norms["query_down"] = maps.dense(w["query_down"])
    return latent_attention(
        x,
        maps.dense(w["query"]),
        maps.dense(w["kv_down"]),
        w["key_up"],
        w["value_up"],
        maps.dense(w["out"], axes=2),
        **{"rotary": ROTARY} | norms | options,
    )


def both(w, x, **options):
    return [attend(w, x, form=form, **options) for form in FORMS]


def test_both_forms_are_the_equations_of_the_paper(x64):
    run = functools.partial(both, is_causal=True, coords=Coords(jnp.arange(3, T + 3)), scale=0.2)
    expected = oracle.latent_attention(
        X,
        WEIGHTS,
        positions=np.arange(3, T + 3),
        frequencies=plain(DR),
        seen=np.tri(T, dtype=bool),
        scale=0.2,
    )
    for actual in jax.jit(run)(weights(jnp.float64), jnp.asarray(X)):
        assert_close(actual, expected, FORWARD["float64"])


def test_queries_need_no_latent_and_the_scale_counts_both_parts_of_a_head(x64):
    given = {name: w for name, w in WEIGHTS.items() if "norm" not in name and name != "query_down"}
    given["query"] = RNG.normal(size=(M, N, DN + DR)) / 2
    expected = oracle.latent_attention(X, given, frequencies=plain(DR))
    for actual in jax.jit(both)(jax.tree.map(jnp.asarray, given), jnp.asarray(X)):
        assert_close(actual, expected, FORWARD["float64"])


def test_both_forms_have_the_same_gradients(x64):
    def loss(w, x, form):
        return jnp.sum(jnp.sin(attend(w, x, form=form, mask=masks.Window(2, 1))))

    def gradients(w, x):
        return [jax.grad(loss, (0, 1))(w, x, form) for form in FORMS]

    expected, actual = jax.jit(gradients)(weights(jnp.float64), jnp.asarray(X))
    chex.assert_trees_all_close(actual, expected, rtol=0, atol=GRADIENT["float64"])
    assert all(np.abs(g).max() > 1e-3 for g in jax.tree.leaves(expected))


def test_both_forms_pass_every_option_on():
    options = {
        "mask": masks.Causal() & masks.SameSegment(),
        "score_mod": scores.ALiBi(jnp.asarray([0.5, 0.25, 0.125])) >> scores.SoftCap(3.0),
        "bias": jnp.asarray(RNG.normal(size=(N, T, T)), jnp.float32),
        "dropout": Dropout(0.3, jax.random.key(0)),
        "coords": Coords(jnp.arange(T), segment_ids=jnp.asarray([0, 0, 0, 1, 1, 1])),
        "implementation": "dense",
        "precision": "highest",
    }
    run = jax.jit(lambda w, x: (*both(w, x, **options), *both(w, x, is_causal=True)))
    naive, absorbed, plain_naive, _ = run(weights(), jnp.asarray(X, jnp.float32))
    assert_close(absorbed, naive, 2 * FORWARD["float32"])
    assert np.abs(naive - plain_naive).max() > 0.1

    def values(q, k, v, *, scale, factor):
        return factor * v

    x = jnp.asarray(X, jnp.float32)
    actual = attend(weights(), x, attention=values, factor=2.0)
    latent = rms_norm(weights()["kv_norm"])((x @ weights()["kv_down"])[..., :R])
    expected = 2 * jnp.einsum("btr,rnd,ndm->btm", latent, weights()["value_up"], weights()["out"])
    assert_close(actual, expected, 2 * FORWARD["float32"])


CACHES = {
    "contiguous": lambda: caches.KVCache.create(T, 1, R + DR, batch=B, value_head_dim=0),
    "paged": lambda: caches.PagedCache.create(
        6, 2, 1, R + DR, capacity=T, batch=B, value_head_dim=0
    ),
    "rolling": lambda: caches.RollingCache.create(T, 1, R + DR, batch=B, value_head_dim=0),
    "int8": lambda: caches.QuantizedCache.create(T, 1, R + DR, batch=B, value_head_dim=0),
}


@pytest.mark.parametrize(
    ("kind", "form"),
    [("contiguous", None), ("contiguous", "naive"), *((k, None) for k in [*CACHES][1:])],
)
def test_steps_with_a_cache_are_the_rows_of_the_full_pass(kind, form):
    traces = []

    @jax.jit
    def step(w, x, cache):
        traces.append(x.shape)
        return attend(w, x, mask=masks.Causal(), cache=cache, form=form)

    w, x = weights(), jnp.asarray(X, jnp.float32)
    cache, rows = CACHES[kind](), []
    for piece in (x[:, :3], x[:, 3:4], x[:, 4:5], x[:, 5:]):
        row, cache = step(w, piece, cache)
        rows.append(row)
    expected = jax.jit(functools.partial(attend, mask=masks.Causal()))(w, x)
    tolerance = 3e-2 if kind == "int8" else 2 * FORWARD["float32"]
    assert_close(np.concatenate(rows, axis=1), expected, tolerance)
    assert len(traces) == 2
    assert np.all(cache.lengths == T)


def test_a_cache_holds_one_compressed_vector_per_token():
    cache = CACHES["contiguous"]()
    _, cache = attend(weights(), jnp.asarray(X[:, :2], jnp.float32), cache=cache)
    numbers = sum(x.size for x in (cache.stored_keys, cache.stored_values))
    assert numbers == B * T * (R + DR)
    latent = np.asarray(X[0, 1] @ WEIGHTS["kv_down"])[:R]
    expected = oracle.rms_norm(latent, WEIGHTS["kv_norm"])
    assert_close(cache.keys[0, 1, 0, :R], expected, FORWARD["float32"])


def test_hidden_tokens_that_are_not_finite_reach_no_output_and_no_gradient():
    x = jnp.asarray(X, jnp.float32)
    bad = x.at[:, 4:].set(jnp.nan).at[0, 5].set(jnp.inf)
    mask = jnp.zeros((T, T), bool).at[:4, :4].set(True)

    def loss(w, x, form):
        # The rows of the hidden tokens see nothing, so they are 0.
        return jnp.sum(attend(w, x, form=form, mask=mask) ** 2)

    @jax.jit
    def gradients(w, x):
        return [jax.value_and_grad(loss, (0, 1))(w, x, form) for form in FORMS]

    expected, actual = (gradients(weights(), a) for a in (x, bad))
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-5)
    naive, absorbed = jax.jit(functools.partial(both, mask=jnp.ones((T, T), bool)))(weights(), bad)
    assert np.isnan([naive, absorbed]).all()


def test_half_precision_stays():
    expected = oracle.latent_attention(X, WEIGHTS, frequencies=plain(DR))
    for actual in jax.jit(both)(weights(jnp.bfloat16), jnp.asarray(X, jnp.bfloat16)):
        chex.assert_type(actual, jnp.bfloat16)
        assert_close(actual, expected, 3 * FORWARD["bfloat16"])


def given(**changes):
    w = weights() | {name: changes.pop(name) for name in [*changes] if name in WEIGHTS}
    w = {name: array for name, array in w.items() if array is not None}
    return lambda: attend(w, jnp.asarray(X, jnp.float32), **changes)


ERRORS = {
    "form": (
        given(form="expanded"),
        ValueError,
        r'form must be "naive" or "absorbed", got \'expanded\'',
    ),
    "a norm of nothing": (
        given(query_down=None),
        ValueError,
        r"query_norm must come with query_down, .* got query_down=None",
    ),
    "rank": (
        given(key_up=jnp.ones((R, N * DN))),
        ValueError,
        r"key_up must be \[R, N, Dn\], got \[7, 12\]\. Split a kernel .*: key_up\.reshape",
    ),
    "up-projections": (
        given(value_up=jnp.ones((R, 4, DV))),
        ValueError,
        r"the same R and N, got \[7, 3, 4\] and \[7, 4, 3\]",
    ),
    "a map": (
        given(key_up=maps.dense(jnp.ones((R, N, DN)))),
        TypeError,
        r"key_up must be an array \[R, N, Dn\].*got the map Partial.*key_up\.kernel",
    ),
    "query": (
        given(query=jnp.ones((RQ, 4, DN + DR))),
        ValueError,
        r"query must return .* \[2, 6, 3\] \+ \[Dn = 4 and more\].* got \[2, 6, 4, 10\]",
    ),
    "kv_down": (
        given(kv_down=jnp.ones((M, R))),
        ValueError,
        r"kv_down must return \[\*B, T, R \+ Dr\] = \[2, 6, 13\], with R = 7 .* got \[2, 6, 7\]",
    ),
    "rotary": (
        given(rotary=positions.Rotary(4)),
        ValueError,
        r"heads of the size D = 4 that it was made for, got \[2, 6, 3, 6\]",
    ),
    "a residual": (given(return_residual=True), TypeError, "Leave out return_residual"),
    "an option": (given(windw=2), TypeError, "unexpected keyword argument 'windw'"),
    "a cache of heads": (
        given(cache=caches.KVCache.create(8, 3, 8, batch=B)),
        ValueError,
        r"latent_attention: cache must have one key head of R \+ Dr = 7 \+ 6 features and no "
        r"values, got num_kv_heads=3, head_dim=8, value_head_dim=8\. Create it with "
        r"num_kv_heads=1, head_dim=R \+ Dr = 13, value_head_dim=0",
    ),
    "a cache with values": (
        given(cache=caches.QuantizedCache.create(8, 1, R + DR, batch=B)),
        ValueError,
        "got num_kv_heads=1, head_dim=13, value_head_dim=13. Create it with",
    ),
    "a number as the cache": (
        given(cache=5),
        TypeError,
        "latent_attention: cache must be a cache of flax_attn.caches, got int",
    ),
    "a cache in a list": (given(cache=[None]), TypeError, "cache of flax_attn.caches, got list"),
    "a cache of another batch": (
        given(cache=caches.KVCache.create(8, 1, R + DR, batch=B + 1, value_head_dim=0)),
        ValueError,
        r"inputs must have the batch axes of the cache, \*B = \[3\], got \[2, 6, 10\]",
    ),
    "a short cache": (
        given(cache=caches.KVCache.create(4, 1, R + DR, batch=B, value_head_dim=0)),
        ValueError,
        r"6 tokens do not fit: the cache holds 0 tokens of at most capacity = 4",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_gets_an_error_with_the_numbers_and_the_fix(case):
    call, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message):
        call()
