"""What newcomers write: each mistake is named, with the fix."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import flax_attn
from flax_attn import Coords, Dropout, Softmax, dot_product_attention, masks, nnx, scores
from tests.tolerances import FORWARD, assert_close

X = np.random.default_rng(0).normal(size=(2, 6, 4, 8)).astype(np.float32)


@masks.relation
def near(q, k, *, radius):
    return abs(q.positions - k.positions) <= radius


MISTAKES = {
    "a class of masks": ({"mask": masks.Causal}, "got the class Causal. Call it: masks.Causal()."),
    "a relation": ({"mask": near}, "Call it with its parameters: near(*, radius)."),
    "a lambda": ({"mask": lambda q, k: True}, "from it: masks.relation(function)()"),
    "a string": ({"mask": "causal"}, "Masks are objects: masks.Causal()"),
    "a list": ({"mask": [[True]]}, "Wrap it: jnp.asarray(mask); join masks by"),
    "a float mask": ({"mask": jnp.zeros((6, 6))}, "pass an additive mask as bias"),
    "a boolean bias": ({"bias": jnp.ones((6, 6), bool)}, "True = attend: mask=bias."),
    "a mask as bias": ({"bias": masks.Causal()}, "got the mask Causal(). Pass it by name: mask="),
    "a list as bias": ({"bias": [[0.0]]}, "Wrap it: jnp.asarray(bias)."),
    "too many slopes": (
        {"score_mod": scores.ALiBi.for_heads(8)},
        "must be [N] for N = 4 query heads, got 8. Give ALiBi.for_heads(4); or head_ids",
    ),
    "too few slopes": ({"score_mod": scores.ALiBi.for_heads(2)}, "for N = 4 query heads, got 2"),
    "a function as modifier": ({"score_mod": lambda s, q, k, h: s}, "scores.score_mod(function)"),
    "a class of modifiers": ({"score_mod": scores.SoftCap}, "Call it: scores.SoftCap(...)."),
    "a class of normalisers": ({"normalizer": Softmax}, "Call it: Softmax()."),
    "an array as coordinates": ({"query_coords": jnp.arange(6)}, "Wrap positions: Coords("),
    "a number as dropout": ({"dropout": 0.1}, "must be a Dropout(rate, key)"),
    "a number as switch": ({"is_causal": 1}, "is_causal must be True or False, got 1."),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_message_says_what_to_write(name):
    arguments, message = MISTAKES[name]
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        dot_product_attention(X, X, X, **arguments)


def test_conditions_within_a_relation():
    @masks.relation
    def both(q, k):
        return (q.positions >= k.positions) and (k.positions > 2)

    with pytest.raises(TypeError, match=re.escape("Write (a) & (b), (a) | (b), ~(a) for and")):
        dot_product_attention(X, X, X, mask=both())


@pytest.mark.parametrize("name", ["is_causal", "return_residual"])
def test_a_traced_switch(name):
    with pytest.raises(TypeError, match=re.escape(f"jax.jit(function, static_argnames='{name}')")):
        jax.jit(dot_product_attention)(X, X, X, **{name: True})


@pytest.mark.parametrize("options", [{"is_causal": True}, {"local_window_size": 2}])
def test_queries_of_another_number_than_keys_are_counted_from_the_first_with_a_warning(options):
    with pytest.warns(UserWarning, match=re.escape("query_coords=Coords.arange(1, offset=5)")) as w:
        found = dot_product_attention(X[:, :1], X, X, **options)
    assert w[0].filename == __file__
    expected = jax.nn.dot_product_attention(X[:, :1], X, X, **options)
    assert_close(found, expected, FORWARD["float32"])
    coords = {"query_coords": Coords.arange(1, offset=5), "key_coords": Coords.arange(6)}
    whole = dot_product_attention(X, X, X, **options)
    last = dot_product_attention(X[:, 5:], X, X, **options, **coords)  # and does not warn
    assert_close(last, whole[:, 5:], FORWARD["float32"])


def test_queries_without_a_head_axis_warn():
    x = X[..., 0]  # [B, T, D]
    with pytest.warns(UserWarning, match="If it is \\[B, T, D\\], one head, use scaled_dot"):
        dot_product_attention(x, x, x)
    dot_product_attention(x[None], x[None], x[None])
    dot_product_attention(X[0], X[0], X[0])


def mesh():
    return jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))


def within_shard_map(function, spec):
    return jax.jit(jax.shard_map(function, mesh=mesh(), in_specs=spec, out_specs=spec))


HEADS, BATCH, SEQUENCE = P(None, None, "x"), P("x"), P(None, "x")


@pytest.mark.parametrize("spec", [BATCH, SEQUENCE, HEADS])
@pytest.mark.parametrize(
    "options",
    [
        {"is_causal": True},
        {"mask": masks.Window(2)},
        {"score_mod": scores.ALiBi(jnp.float32(0.5))},
        {"mask": near(radius=2), "query_coords": Coords.arange(6)},
    ],
)
def test_positions_that_a_device_counts_by_itself_are_refused(options, spec):
    def attend(x):
        some = options
        if "query_coords" in options:
            some = options | {"query_coords": Coords.arange(x.shape[1])}
        return dot_product_attention(x, x, x, **some)

    with pytest.raises(ValueError, match=r"within shard_map over x are counted from 0 on each"):
        within_shard_map(attend, spec)(X)


def test_positions_that_are_given_are_taken():
    def attend(x):
        coords = Coords.arange(x.shape[1])
        return dot_product_attention(
            x, x, x, is_causal=True, query_coords=coords, key_coords=coords
        )

    expected = dot_product_attention(X, X, X, is_causal=True)
    for spec in (BATCH, HEADS):
        assert_close(within_shard_map(attend, spec)(X), expected, FORWARD["float32"])

    def gathered(x):
        keys = jax.lax.all_gather(x, "x", axis=1, tiled=True)
        first = jax.lax.axis_index("x") * x.shape[1]
        coords = Coords.arange(x.shape[1], offset=first), Coords.arange(keys.shape[1])
        return dot_product_attention(
            x, keys, keys, is_causal=True, query_coords=coords[0], key_coords=coords[1]
        )

    assert_close(within_shard_map(gathered, SEQUENCE)(X), expected, FORWARD["float32"])


def test_what_depends_on_no_position_needs_no_coordinates():
    def attend(x):
        return dot_product_attention(x, x, x, score_mod=scores.SoftCap(5.0))

    expected = attend(X)
    for spec in (BATCH, HEADS):
        assert_close(within_shard_map(attend, spec)(X), expected, FORWARD["float32"])


@pytest.mark.parametrize("given", ["nothing", "head_ids", "batch_ids"])
def test_dropout_needs_the_numbers_of_heads_and_batch_elements(given):
    def attend(x):
        heads = jnp.arange(x.shape[2]) if given == "head_ids" else None
        batch = jnp.arange(x.shape[0]) if given == "batch_ids" else None
        dropout = Dropout(0.5, jax.random.key(0), batch_ids=batch)
        return dot_product_attention(x, x, x, dropout=dropout, head_ids=heads)

    with pytest.raises(ValueError, match=r"needs the numbers of heads and batch elements among"):
        within_shard_map(attend, BATCH)(X)


def test_a_table_of_more_heads_than_a_device_has_needs_their_numbers():
    def attend(x):
        coords = Coords.arange(x.shape[1])
        return dot_product_attention(
            x,
            x,
            x,
            score_mod=scores.ALiBi.for_heads(4),
            query_coords=coords,
            key_coords=coords,
        )

    with pytest.raises(ValueError, match=r"N = 2 query heads, got 4. .* or head_ids"):
        within_shard_map(attend, HEADS)(X)


def test_explain_and_weights_make_the_same_checks(capsys):
    for function in (flax_attn.explain, flax_attn.attention_weights):
        arguments = (X, X, X) if function is flax_attn.explain else (X, X)
        with pytest.raises(TypeError, match=r"Call it: masks.Causal"):
            function(*arguments, mask=masks.Causal)
    capsys.readouterr()


def test_modules_under_shard_map_without_names_of_axes_are_refused_too():
    from flax import nnx as flax_nnx

    layer = nnx.MultiHeadAttention(4, 8, rngs=flax_nnx.Rngs(0))

    def attend(x):
        return layer(x, is_causal=True)

    x = np.asarray(X[:, :, 0])
    with pytest.raises(ValueError, match="within shard_map over x are counted from 0"):
        within_shard_map(attend, BATCH)(x)
