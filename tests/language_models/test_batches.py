"""A batch of sequences has two forms, in which a model gives the same."""

import jax
import numpy as np
import pytest
from flax import nnx

from language_models.batches import packed, padded
from language_models.minilm import MiniLM
from tests.tolerances import FORWARD, assert_close

SEQUENCES = [[5, 6, 7], [8], [9, 10, 11, 12]]


def test_padded_sequences_have_a_row_each():
    tokens, coords = padded(SEQUENCES, 6)
    assert tokens.tolist() == [[5, 6, 7, 0, 0, 0], [8, 0, 0, 0, 0, 0], [9, 10, 11, 12, 0, 0]]
    assert coords.positions.tolist() == [list(range(6))] * 3
    assert coords.segment_ids.tolist() == [[0] * 6, [1] * 6, [2] * 6]
    assert np.sum(coords.valid, axis=1).tolist() == [3, 1, 4]


def test_packed_sequences_start_anew_in_one_row():
    tokens, coords = packed(SEQUENCES, 5)
    assert tokens.tolist() == [5, 6, 7, 8, 9, 10, 11, 12, 0, 0]
    assert coords.positions.tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 0, 1]
    assert coords.segment_ids.tolist() == [0, 0, 0, 1, 2, 2, 2, 2, 3, 3]
    assert coords.valid.tolist() == [True] * 8 + [False] * 2


@pytest.mark.parametrize("form", [padded, packed])
def test_a_batch_must_have_tokens(form):
    message = f"{form.__name__}: sequences must be one or more, each with a token, got lengths"
    for sequences in ([], [[1, 2], []]):
        with pytest.raises(ValueError, match=message):
            form(sequences)


def test_sentences_are_embedded_alike_padded_packed_and_alone():
    sizes = {"vocab_size": 20, "features": 16, "mlp_features": 16, "num_heads": 2, "depth": 1}
    model = MiniLM(**sizes, rngs=nnx.Rngs(0))

    @jax.jit
    def embeddings():
        alone = [model.embed(*padded([s], 1), 1)[0] for s in SEQUENCES]
        return (
            jax.numpy.stack(alone),
            model.embed(*padded(SEQUENCES, 6), 3),
            model.embed(*packed(SEQUENCES, 5), 3),
        )

    alone, in_rows, in_one_row = embeddings()
    assert_close(np.linalg.norm(alone, axis=-1), np.ones(3), FORWARD["float32"])
    assert_close(in_rows, alone, FORWARD["float32"])
    assert_close(in_one_row, alone, FORWARD["float32"])
