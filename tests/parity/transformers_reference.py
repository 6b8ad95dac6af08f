"""Hugging Face's transformers beside a CPU build of PyTorch, and the files of examples."""

import pytest
import torchvision_operators  # noqa: F401  before transformers, which imports torchvision

transformers = pytest.importorskip(
    "transformers", reason="transformers is the reference of these parity tests"
)


def fetched(fetch, *args):
    """The result of a function that downloads, or a skipped test without a network."""
    try:
        return fetch(*args)
    except ConnectionError as error:
        pytest.skip(f"offline: {error}")
