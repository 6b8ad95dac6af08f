"""`multi_head_attention` as a composition of maps, whoever made them."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as flax_linen
from flax import nnx as flax_nnx

from flax_attn import Dropout, dot_product_attention, maps, multi_head_attention
from tests.oracles import attention as oracles
from tests.tolerances import FORWARD, assert_close

RNG = np.random.default_rng(0)
B, T, S, MQ, MK, MV, N, D, DV, MO = 2, 4, 6, 10, 7, 5, 3, 4, 2, 9
X, Y, Z = (RNG.normal(size=s) for s in ((B, T, MQ), (B, S, MK), (B, S, MV)))
WQ, WK, WV, WO = (
    RNG.normal(size=s) / 3 for s in ((MQ, N, D), (MK, N, D), (MV, N, DV), (N, DV, MO))
)


def oracle(**options):
    q, k, v = (
        np.einsum("btm,mnd->btnd", a, w) for a, w in zip((X, Y, Z), (WQ, WK, WV), strict=True)
    )
    heads, _, _ = oracles.dot_product_attention(q, k, v, **options)
    return np.einsum("btnd,ndm->btm", heads, WO)


def test_every_width_is_free(x64):
    mask = RNG.random((B, 1, T, S)) < 0.7
    project = [maps.dense(jnp.asarray(w)) for w in (WQ, WK, WV)]
    actual = multi_head_attention(
        *map(jnp.asarray, (X, Y)),
        *project,
        maps.dense(jnp.asarray(WO), axes=2),
        inputs_v=jnp.asarray(Z),
        mask=jnp.asarray(mask),
        scale=0.4,
    )
    assert_close(actual, oracle(mask=mask, scale=0.4), FORWARD["float64"])


def test_projections_without_a_head_axis_are_split(x64):
    flat = [maps.dense(jnp.asarray(w.reshape(w.shape[0], -1))) for w in (WQ, WK, WV)]
    actual = multi_head_attention(
        *map(jnp.asarray, (X, Y)),
        *flat,
        maps.dense(jnp.asarray(WO.reshape(-1, MO))),
        inputs_v=jnp.asarray(Z),
        num_heads=N,
    )
    assert_close(actual, oracle(), FORWARD["float64"])


def test_linen_nnx_and_equinox_layers_are_maps():
    x = jnp.asarray(X, jnp.float32)
    w = [jnp.asarray(RNG.normal(size=s), jnp.float32) for s in ((MQ, 12), (MQ, 12), (MQ, 12))]
    wo = jnp.asarray(RNG.normal(size=(12, MO)), jnp.float32)
    expected = multi_head_attention(x, x, *map(maps.dense, w), maps.dense(wo), num_heads=3)

    class Block(flax_linen.Module):
        @flax_linen.compact
        def __call__(self, x):
            layers = [flax_linen.Dense(12, use_bias=False, name=n) for n in "qkv"]
            out = flax_linen.Dense(MO, use_bias=False, name="o")
            return multi_head_attention(x, x, *layers, out, num_heads=3)

    kernels = dict(zip("qkvo", [*w, wo], strict=True))
    params = {name: {"kernel": kernel} for name, kernel in kernels.items()}
    assert_close(Block().apply({"params": params}, x), expected, FORWARD["float32"])

    def nnx_layer(kernel):
        layer = flax_nnx.Linear(*kernel.shape, use_bias=False, rngs=flax_nnx.Rngs(0))
        layer.kernel[...] = kernel
        return layer

    actual = multi_head_attention(x, x, *map(nnx_layer, w), nnx_layer(wo), num_heads=3)
    assert_close(actual, expected, FORWARD["float32"])

    def equinox_layer(kernel):
        layer = eqx.nn.Linear(*kernel.shape, use_bias=False, key=jax.random.key(0))
        layer = eqx.tree_at(lambda m: m.weight, layer, kernel.T)
        return jax.vmap(jax.vmap(layer))

    actual = multi_head_attention(x, x, *map(equinox_layer, w), equinox_layer(wo), num_heads=3)
    assert_close(actual, expected, FORWARD["float32"])


def test_norms_and_an_attention_of_ones_own():
    x = jnp.asarray(X, jnp.float32)
    project = [maps.dense(jnp.asarray(RNG.normal(size=(MQ, N, D)), jnp.float32)) for _ in range(3)]
    out = maps.dense(jnp.asarray(RNG.normal(size=(N, D, MO)), jnp.float32), axes=2)
    norm = maps.layer_norm()
    q, k, v = (f(x) for f in project)
    expected = out(dot_product_attention(norm(q), norm(k), v, is_causal=True))
    actual = multi_head_attention(
        x, x, *project, out, query_norm=norm, key_norm=norm, is_causal=True
    )
    assert_close(actual, expected, FORWARD["float32"])

    def values(q, k, v, *, factor):
        return factor * v

    actual = multi_head_attention(x, x, *project, out, attention=values, factor=2.0)
    assert_close(actual, out(2 * v), FORWARD["float32"])


def test_masked_tokens_that_are_not_finite_leave_all_gradients_alone():
    x, y = jnp.asarray(X, jnp.float32), jnp.asarray(RNG.normal(size=(B, S, MQ)), jnp.float32)
    project = [maps.dense(jnp.asarray(RNG.normal(size=(MQ, N, D)), jnp.float32)) for _ in range(3)]
    out = maps.dense(jnp.asarray(RNG.normal(size=(N, D, MO)), jnp.float32), axes=2)
    mask = jnp.arange(S) < 4

    def loss(bound, x, y):
        return jnp.sum(multi_head_attention(x, y, *bound, mask=mask) ** 2)

    gradients = jax.jit(jax.grad(loss, (0, 1, 2)))
    expected = gradients((*project, out), x, y)
    actual = gradients((*project, out), x, y.at[:, 4:].set(jnp.nan))
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert_close(a, e, FORWARD["float32"])
    visible = multi_head_attention(x, y.at[:, 2:].set(jnp.nan), *project, out, mask=mask)
    assert np.isnan(visible).all()


def test_maps_are_arguments_of_jit_and_grad():
    x = jnp.asarray(X, jnp.float32)
    project = [maps.dense(jnp.asarray(RNG.normal(size=(MQ, N, D)), jnp.float32)) for _ in range(3)]
    out = maps.dense(jnp.asarray(RNG.normal(size=(N, D, MO)), jnp.float32), axes=2)

    def loss(bound, x, dropout):
        return jnp.sum(multi_head_attention(x, x, *bound, dropout=dropout) ** 2)

    bound = (*project, out)
    gradients = jax.jit(jax.grad(loss))(bound, x, Dropout(0.2, jax.random.key(0)))
    chex.assert_trees_all_equal_shapes(gradients, bound)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(gradients))
