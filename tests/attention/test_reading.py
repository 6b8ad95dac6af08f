"""How far a reader follows the query: from the primitive's lowering to the first matrix product."""

import itertools
import pathlib
import sys

import jax
import jax.numpy as jnp
from jax import lax

import flax_attn

ROOT = str(pathlib.Path(flax_attn.__file__).parent)
MOST_FRAMES, MOST_CHANGES = 11, 5


def our_frames():
    """The files of the package that are on the stack, innermost first."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.startswith(ROOT):
            yield frame.f_code.co_filename
        frame = frame.f_back


def test_few_frames_and_changes_of_file_lead_to_the_first_matrix_product(monkeypatch):
    stacks = []
    bind = lax.dot_general_p.bind

    def hooked(*args, **params):
        stacks.append(list(our_frames()))
        return bind(*args, **params)

    x = jnp.zeros((1, 1024, 2, 8))
    monkeypatch.setattr(lax.dot_general_p, "bind", hooked)
    jax.jit(lambda x: flax_attn.dot_product_attention(x, x, x, is_causal=True)).lower(x)
    files = stacks[0]
    changes = sum(a != b for a, b in itertools.pairwise(files))
    assert "blockwise" in files[0]
    assert len(files) <= MOST_FRAMES
    assert changes <= MOST_CHANGES
    assert len(set(files)) == changes + 1  # no file is entered again
