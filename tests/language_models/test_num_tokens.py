"""The tokens of a sentence that were cut off are counted."""

import pytest

tokenizers = pytest.importorskip("tokenizers")
minilm = pytest.importorskip("language_models.pretrained_minilm", exc_type=ImportError)


@pytest.mark.parametrize("length", [1, 3, 4, 10])
def test_tokens_that_were_cut_off_are_counted(length):
    words = tokenizers.models.WordLevel({"a": 0, "[CLS]": 1, "[SEP]": 2}, unk_token="a")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_truncation(5)  # three words
    encoding = tokenizer.encode("a " * length)
    assert len(encoding.ids) == min(length, 3) + 2
    assert minilm.num_tokens(encoding) == length + 2
