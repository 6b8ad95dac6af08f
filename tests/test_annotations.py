"""Shape annotations hold at run time: jaxtyping and beartype check them in a process of its own."""

import subprocess
import sys

SCRIPT = """
import warnings
warnings.simplefilter("ignore")  # beartype has an opinion on PEP 585 names inside jaxtyping
from jaxtyping import install_import_hook
with install_import_hook(
    ["flax_attn." + part for part in (
        "vision", "attention", "positions", "normalizers", "coords", "masks", "scores"
    )],
    "beartype.beartype",
):
    import flax_attn
import jax, jax.numpy as jnp
from jaxtyping import TypeCheckError
from flax_attn import maps, vision, positions
from tests.mechanisms import facts, maps_of, mechanisms, random_variables
import numpy as np

for name in mechanisms():
    image = jnp.ones(facts(name).shape)
    others = facts(name).others(image)
    bound = maps_of(name, random_variables(name, image.shape[-1], dtype=np.float32))
    for function in (name, name + "_gate"):
        if hasattr(vision, function):  # tracing checks the shapes, too
            jax.eval_shape(lambda x: getattr(vision, function)(x, *others, **bound), image)
q, kv = jnp.ones((2, 3, 5, 4, 8)), jnp.ones((2, 3, 7, 2, 8))
lengths = jnp.ones((2, 3), int)
dropout = flax_attn.Dropout(0.1, jax.random.key(0))
out, lse = flax_attn.dot_product_attention(
    q, kv, kv[..., :6], jnp.ones((5, 7)), jnp.ones((4, 5, 7), bool), query_seq_lengths=lengths,
    local_window_size=3, dropout=dropout, normalizer=flax_attn.Softmax(jnp.ones(4)),
    head_ids=jnp.arange(4), scale=0.3, return_residual=True, implementation=("dense",),
)
coords = flax_attn.Coords.arange(5)
flax_attn.dot_product_attention(
    q, kv[:, :, :5], kv[:, :, :5], mask=flax_attn.masks.Causal(),
    score_mod=flax_attn.scores.ALiBi.for_heads(4), query_coords=coords, key_coords=coords,
    plan=flax_attn.make_plan(flax_attn.masks.Causal(), coords), implementation="blockwise",
)
flax_attn.attention_weights(q, kv, lse=lse, rows=slice(2), cols=jnp.arange(3))
flax_attn.scaled_dot_product_attention(q[..., 0, :], kv[..., 0, :], kv[..., 0, :])
heads = maps.dense(jnp.ones((9, 2, 4)))
flax_attn.multi_head_attention(
    jnp.ones((2, 5, 9)), jnp.ones((2, 6, 9)), heads, heads, heads,
    maps.dense(jnp.ones((2, 4, 3)), axes=2), is_causal=True,
)
flax_attn.additive_attention(
    jnp.ones((2, 5, 9)), jnp.ones((2, 6, 9)), jnp.ones((2, 6, 4)),
    maps.dense(jnp.ones((9, 3))), maps.dense(jnp.ones((9, 3))), maps.dense(jnp.ones((3, 1))),
)
positions.sinusoidal(jnp.arange(3), 4)
positions.learned(jnp.arange(3), jnp.ones((4, 2)))
try:
    flax_attn.dot_product_attention(q, kv, kv[:, :, :3])
except TypeCheckError:
    print("checked")
"""


def test_annotations_hold():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "checked"
