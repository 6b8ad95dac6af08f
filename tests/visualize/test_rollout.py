"""Attention rollout: the sum over paths, the laws, and clear errors."""

import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import visualize
from tests.oracles import rollout as oracle
from tests.tolerances import FORWARD, assert_close

FUSIONS = {"mean": np.mean, "max": np.max, "min": np.min}


def random_weights(*shape, seed=0):
    """Weights of which a half is masked, and one whole row in each matrix."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(shape[-1]), shape[:-1]) * rng.integers(0, 2, shape)
    weights[..., 1, :] = 0
    return weights


LAYERS = [random_weights(heads, 4, 4, seed=heads) for heads in (3, 1, 2)]


@pytest.mark.parametrize("residual", [0.5, 0, 0.9])
@pytest.mark.parametrize("head_fusion", FUSIONS)
def test_it_is_the_sum_over_all_paths(x64, residual, head_fusion):
    rolled = visualize.rollout(LAYERS, residual=residual, head_fusion=head_fusion)
    expected = oracle.rollout(LAYERS, residual, FUSIONS[head_fusion])
    chex.assert_type(rolled, jnp.float64)
    assert_close(rolled, expected, FORWARD["float64"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_product_is_computed_in_float32(dtype):
    layers = [jnp.asarray(x, dtype) for x in LAYERS]
    rolled = visualize.rollout(layers)
    chex.assert_type(rolled, jnp.float32)
    expected = oracle.rollout([np.asarray(x, np.float64) for x in layers])
    assert_close(rolled, expected, FORWARD["float32"])


def test_two_layers_by_hand():
    """Token 1 attends to token 0; with the residual connection it stays with probability 1/4."""
    layer = jnp.array([[[1.0, 0.0], [1.0, 0.0]]])
    rolled = visualize.rollout([layer, layer])
    chex.assert_trees_all_equal(rolled, jnp.array([[1, 0], [0.75, 0.25]]))


def test_the_last_layer_is_applied_last():
    to_first = jnp.array([[[1.0, 0, 0], [1, 0, 0], [1, 0, 0]]])
    to_last = jnp.array([[[0.0, 0, 1], [0, 0, 1], [0, 0, 1]]])
    chex.assert_trees_all_equal(visualize.rollout([to_first, to_last], residual=0), to_first[0])


def test_rows_sum_to_one_and_causal_layers_stay_causal():
    weights = np.tril(np.random.default_rng(0).random((5, 4, 8, 8))).astype(np.float32)
    rolled = np.asarray(visualize.rollout([*(weights / weights.sum(-1, keepdims=True))]))
    chex.assert_trees_all_close(rolled.sum(-1), np.ones(8, np.float32), rtol=1e-6)
    assert not np.triu(rolled, 1).any()


def test_each_batch_element_is_rolled_out_by_itself_under_jit_too():
    layers = [jnp.asarray(random_weights(2, 3, 5, 5, seed=i), jnp.float32) for i in range(3)]
    rolled = jax.jit(visualize.rollout)(layers)
    for b in range(2):
        assert_close(rolled[b], visualize.rollout([x[b] for x in layers]), FORWARD["float32"])


def test_it_needs_no_matplotlib():
    script = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import numpy as np, flax_attn\n"
        "print(flax_attn.visualize.rollout([np.eye(2)[None]]).shape)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "(2, 2)", done.stderr


LAYER = np.ones((2, 3, 3), np.float32) / 3
ERRORS = {
    "one layer": (LAYER, {}, ValueError, r"got one array \[2, 3, 3\]\. Write \[weights\]"),
    "stacked": (LAYER[None], {}, ValueError, r"got one array .*list\(weights\) if the first axis"),
    "nothing": (None, {}, TypeError, "must be a list of arrays, got NoneType"),
    "one head": (LAYER[0], {}, ValueError, r"got one array \[3, 3\]\. Write \[weights\[None\]\]"),
    "no layer": ([], {}, ValueError, "at least one layer, got none"),
    "cross-attention": (
        [LAYER, LAYER[:, :2]],
        {},
        ValueError,
        r"weights\[1\] must be \[\*B, N, T, T\], got \[2, 2, 3\]\. Only self-attention",
    ),
    "no heads": ([LAYER[0]], {}, ValueError, r"weights\[0\] must be .*got \[3, 3\]"),
    "lengths": (
        [LAYER, LAYER[:, :2, :2]],
        {},
        ValueError,
        r"the same \[\*B, T, T\] = \[3, 3\], got \[2, 2\] in weights\[1\]",
    ),
    "integers": ([LAYER.astype(int)], {}, TypeError, r"weights\[0\] must be floating point"),
    "residual": ([LAYER], {"residual": 1}, ValueError, r"must lie in \[0, 1\), got 1\."),
    "residual as a switch": ([LAYER], {"residual": True}, TypeError, "Write residual=0.5"),
    "fusions": ([LAYER], {"head_fusion": ["max"]}, ValueError, r"one of .* got \['max'\]"),
    "fusion": (
        [LAYER],
        {"head_fusion": "sum"},
        ValueError,
        "must be one of 'mean', 'max', 'min', got 'sum'",
    ),
}


@pytest.mark.parametrize(("weights", "options", "kind", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_say_what_to_do(weights, options, kind, message):
    with pytest.raises(kind, match=r"^visualize\.rollout: .*" + message):
        visualize.rollout(weights, **options)
