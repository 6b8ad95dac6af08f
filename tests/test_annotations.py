"""Shape annotations hold at run time, by jaxtyping's pytest option and beartype.

`.ci/run` has the command, which runs these tests and the doctests of the packages. The doctests
call every public function; these tests call attention and the vision mechanisms with more
arguments. It needs `-n 0`: workers of pytest-xdist do not see the option.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

import flax_attn
from flax_attn import Coords, Dropout, Softmax, masks, scores, vision
from tests.mechanisms import facts, maps_of, mechanisms, random_variables

pytestmark = pytest.mark.annotations

Q, KV = jnp.ones((2, 3, 5, 4, 8)), jnp.ones((2, 3, 7, 2, 8))


def test_a_wrong_shape_is_found_which_shows_that_annotations_are_checked():
    with pytest.raises(TypeCheckError):
        flax_attn.dot_product_attention(Q, KV, KV[:, :, :3])


@pytest.mark.parametrize("name", mechanisms())
def test_mechanisms(name):
    image = jnp.ones(facts(name).shape)
    others = facts(name).others(image)
    bound = maps_of(name, random_variables(name, image.shape[-1], dtype=np.float32))
    for function in (name, name + "_gate"):
        if hasattr(vision, function):  # tracing checks shapes, too
            jax.eval_shape(lambda x, f=function: getattr(vision, f)(x, *others, **bound), image)


def test_dense_attention():
    _, lse = flax_attn.dot_product_attention(
        Q,
        KV,
        KV[..., :6],
        jnp.ones((5, 7)),
        jnp.ones((4, 5, 7), bool),
        query_seq_lengths=jnp.ones((2, 3), int),
        local_window_size=3,
        dropout=Dropout(0.1, jax.random.key(0)),
        normalizer=Softmax(jnp.ones(4)),
        head_ids=jnp.arange(4),
        scale=0.3,
        return_residual=True,
        implementation=("dense",),
    )
    flax_attn.attention_weights(Q, KV, lse=lse, rows=slice(2), cols=jnp.arange(3))


def test_blockwise_attention():
    coords, mask = Coords.arange(5), masks.Causal()
    flax_attn.dot_product_attention(
        Q,
        KV[:, :, :5],
        KV[:, :, :5],
        mask=mask,
        score_mod=scores.ALiBi.for_heads(4),
        query_coords=coords,
        key_coords=coords,
        plan=flax_attn.make_plan(mask, coords),
        implementation="blockwise",
    )
