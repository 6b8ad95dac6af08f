"""Multi-head attention with everything that a layer of a transformer may have, to test it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx as flax_nnx

from flax_attn import masks, nnx, positions, scores
from tests.oracles import multi_head as oracle

B, T, M, N, K, D = 2, 7, 24, 4, 2, 6
WINDOW, SOFT_CAP, BASE = 3, 2.0, 100.0
X = np.random.default_rng(0).normal(size=(B, T, M)).astype(np.float32)
BEFORE = np.tril(np.ones((T, T), bool)) & ~np.tril(np.ones((T, T), bool), -WINDOW)
"""Which keys a query sees: the last WINDOW tokens, itself included."""

OPTIONS = {
    "num_kv_heads": K,
    "rotary": positions.Rotary(D, BASE),
    "mask": masks.Window(WINDOW - 1),
    "score_mod": scores.SoftCap(SOFT_CAP),
    "sink": True,
    "output_gate": True,
    "normalize_qk": "rms",
}
NOT_ZERO = {"bias_init": flax_nnx.initializers.normal(), "sink_init": flax_nnx.initializers.ones}


def make(seed=0, **options):
    """An NNX module none of whose parameters is 0 or 1 everywhere, but the sinks."""
    options = {**NOT_ZERO, **options}
    module = nnx.MultiHeadAttention(N, M, **options, rngs=flax_nnx.Rngs(seed))
    for norm in (module.query_ln, module.key_ln):
        if norm is not None:
            norm.scale[...] = jnp.linspace(0.5, 1.5, D, dtype=norm.scale.dtype)
    return module


def parameters_of(module):
    return flax_nnx.to_pure_dict(flax_nnx.state(module, flax_nnx.Param))


def expected(module, x, **changes):
    """The output of a module with all OPTIONS, by the oracle."""
    options = {"rotary_base": BASE, "soft_cap": SOFT_CAP, "seen": BEFORE, **changes}
    parameters = jax.device_get(parameters_of(module))
    return oracle.multi_head_attention(parameters, x, **options)[0]


def in_pieces(step, state, x, lengths):
    """The outputs `[*B, T, M]` of `step(state, piece) -> (output, state)`, and the last state."""
    starts = np.cumsum([0, *lengths])
    outputs = []
    for start, length in zip(starts, lengths, strict=False):
        output, state = step(state, x[..., start : start + length, :])
        outputs.append(output)
    return np.concatenate(outputs, axis=-2), state


def compiled(module, **call):
    """`step(cache, x) -> (output, cache)` with a cache, as a compiled function."""
    return jax.jit(functools.partial(_step, module, call))


def _step(module, call, cache, x):
    return module(x, cache=cache, **call)
