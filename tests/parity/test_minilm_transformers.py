"""MiniLM's embeddings are those of transformers, in each form of the batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from torch_reference import torch
from transformers_reference import fetched, transformers

from flax_attn import attention
from language_models.batches import packed, padded
from language_models.minilm import MiniLM
from language_models.pretrained_minilm import (
    fetch_minilm,
    load_minilm,
    load_tokenizer,
    load_weights,
)
from tests.tolerances import FORWARD, assert_close

pytestmark = pytest.mark.parity

TOLERANCE = 1e-6  # absolute; embeddings have norm 1
SMALL = {"vocab_size": 50, "features": 24, "mlp_features": 40, "num_heads": 3, "depth": 2}
BLOCKWISE = attention.Blockwise(block_query=16, block_key=16)
SENTENCES = [
    "What is attention in a neural network?",
    "Attention weighs the values by how well their keys match the query.",
    "猫が好きです。",
    "🙂 1,234.56 + x² = ∞",
    "Hello",
    "def f(x):\n    return x[::-1]",
    "Every token looks at every other token of its sentence, and at none of another one. " * 6,
]


@functools.partial(nnx.jit, static_argnames="num_sentences")
def embed(model, tokens, coords, num_sentences):
    return model.embed(tokens, coords, num_sentences)


def reference(model, sequences):
    """Transformers' features, averaged over the tokens that are no padding, with norm 1."""
    tokens, coords = padded(sequences, 1)
    is_valid = torch.tensor(np.array(coords.valid))
    with torch.inference_mode():
        x = model(input_ids=torch.tensor(tokens), attention_mask=is_valid.long()).last_hidden_state
    mean = (x * is_valid[..., None]).sum(1) / is_valid.sum(1, keepdim=True)
    return torch.nn.functional.normalize(mean).numpy()


@pytest.fixture(scope="module")
def pretrained():
    """The tokens of the sentences, and their embeddings by transformers."""
    folder = fetched(fetch_minilm, "model.safetensors").parent
    fetch_minilm("config.json")
    theirs, report = transformers.BertModel.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    sequences = [encoding.ids for encoding in load_tokenizer().encode_batch(SENTENCES)]
    return sequences, reference(theirs.eval(), sequences)


@pytest.mark.parametrize("implementation", [None, BLOCKWISE], ids=["default", "small blocks"])
def test_padded_packed_and_single_sentences_are_embedded_as_by_transformers(
    pretrained, implementation, record_property
):
    sequences, expected = pretrained
    model = load_minilm(implementation=implementation)
    found = {
        "padded": embed(model, *padded(sequences), len(sequences)),
        "packed": embed(model, *packed(sequences), len(sequences)),
    }
    if implementation is None:
        alone = [embed(model, *padded([sequence], 32), 1)[0] for sequence in sequences]
        found["one by one"] = np.stack(alone)
    for form, actual in found.items():
        difference = float(np.max(np.abs(np.asarray(actual) - expected)))
        record_property(form, difference)
        assert difference <= TOLERANCE, form


def test_the_tokenizer_is_that_of_transformers():
    folder = fetched(fetch_minilm, "tokenizer.json").parent
    theirs = transformers.BertTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    expected = theirs(SENTENCES, truncation=True, max_length=256, padding=False)["input_ids"]
    assert [encoding.ids for encoding in load_tokenizer().encode_batch(SENTENCES)] == expected


def test_random_weights_give_transformers_features_and_all_of_them_matter():
    config = transformers.BertConfig(
        vocab_size=SMALL["vocab_size"],
        hidden_size=SMALL["features"],
        intermediate_size=SMALL["mlp_features"],
        num_attention_heads=SMALL["num_heads"],
        num_hidden_layers=SMALL["depth"],
        layer_norm_eps=1e-12,
    )
    theirs = transformers.BertModel(config).eval()
    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(name.endswith("LayerNorm.weight"), 0.3, weight.shape).astype(np.float32)
        for name, weight in theirs.state_dict().items()
        if weight.is_floating_point()
    }
    theirs.load_state_dict({name: torch.tensor(x) for name, x in weights.items()}, strict=False)
    model = nnx.eval_shape(lambda: MiniLM(**SMALL, rngs=nnx.Rngs(0)))
    load_weights(model, weights)

    sequences = [rng.integers(0, 50, length).tolist() for length in (9, 1, 14)]
    expected = reference(theirs, sequences)
    direction = jnp.asarray(rng.normal(size=expected.shape).astype(np.float32))
    graph, params = nnx.split(model)

    def along(params):
        embeddings = nnx.merge(graph, params).embed(*packed(sequences), len(sequences))
        return jnp.sum(embeddings * direction), embeddings

    gradients, embeddings = jax.jit(jax.grad(along, has_aux=True))(params)
    assert_close(embeddings, expected, 2 * FORWARD["float32"])
    for path, gradient in nnx.to_flat_state(gradients):
        is_inert = path[-2:] == ("key", "bias")  # it adds the same to all scores of a query
        assert is_inert or np.max(np.abs(gradient[...])) > 1e-4, path
