"""Random calls by placements: value, LSE and first derivatives equal those of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import dot_product_attention
from tests.runs import some_by_default
from tests.sharding.random_calls import LAYOUTS, draw_call
from tests.tolerances import FORWARD, GRADIENT

SEEDS = range(2 * len(LAYOUTS))


def results(call, placement):
    """Output and LSE, tangents along all floats, and cotangents of all floats."""

    def attend(floats, traced):
        arguments = call.build(floats, traced)
        return dot_product_attention(**arguments, placement=placement, return_residual=call.has_lse)

    def run(floats, traced):
        moving = jax.tree.map(lambda x: jnp.cos(3 * x), floats)
        of = lambda floats: attend(floats, traced)
        value, tangent = jax.jvp(of, (floats,), (moving,))
        ones = jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), jnp.cos(2 * x), 0), value)
        (cotangent,) = jax.vjp(of, floats)[1](ones)
        return value, tangent, cotangent

    return jax.device_get(jax.jit(run)(call.floats, call.traced))


def assert_equal(found, wanted, dtype, text):
    for tolerance, x, y in zip((FORWARD, GRADIENT, GRADIENT), found, wanted, strict=True):
        paths = jax.tree_util.tree_leaves_with_path(y)
        largest = max(
            [
                1e-3,
                *(
                    float(np.max(np.abs(np.where(np.isfinite(b), b, 0)), initial=0))
                    for _, b in paths
                ),
            ]
        )
        for (path, b), a in zip(paths, jax.tree.leaves(x), strict=True):
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            message = f"{text}\n{path}"
            np.testing.assert_allclose(
                a, b, rtol=0, atol=4 * tolerance[dtype] * largest, err_msg=message
            )


@pytest.mark.parametrize("seed", some_by_default(SEEDS, 3, 17))
def test_a_random_call_equals_that_of_one_device(seed):
    layouts = list(LAYOUTS)
    call = draw_call(seed, layouts[seed % len(layouts)])
    wanted = results(call, None)
    assert_equal(results(call, call.placement), wanted, call.dtype, call.text)
