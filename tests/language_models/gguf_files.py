"""A small GGUF file of the Llama architecture, with random weights and a vocabulary of bytes."""

import gguf
import numpy as np

from language_models.gguf_tokenizer import BYTES

SIZES = {
    "block_count": 2,
    "context_length": 64,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
}
CONTROL_TOKENS = ["<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "1 2", "12 3", "ð Ł"]
TOKENS = [*CONTROL_TOKENS, "<think>", *sorted(BYTES), *(m.replace(" ", "") for m in MERGES)]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}\n"
    "    {% if message.role == 'system' %}{{ raise_exception('no system prompt') }}{% endif %}\n"
    "[{{ message.role }}] {{ message.content | tojson }}{{ eos_token }}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}[assistant] {% endif %}\n"
)


def random_tensors(seed=0):
    """Tensors by GGUF's names; kernels are `[out, in]`. The embedding is not tied."""
    width, inner, keys, vocab = 64, 96, 32, len(TOKENS)
    shapes = {"token_embd": (vocab, width), "output_norm": (width,), "output": (vocab, width)}
    for i in range(SIZES["block_count"]):
        shapes |= {
            f"blk.{i}.attn_norm": (width,),
            f"blk.{i}.attn_q": (width, width),
            f"blk.{i}.attn_k": (keys, width),
            f"blk.{i}.attn_v": (keys, width),
            f"blk.{i}.attn_output": (width, width),
            f"blk.{i}.ffn_norm": (width,),
            f"blk.{i}.ffn_gate": (inner, width),
            f"blk.{i}.ffn_up": (inner, width),
            f"blk.{i}.ffn_down": (width, inner),
        }
    rng = np.random.default_rng(seed)
    return {
        f"{name}.weight": rng.standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def write_llama(
    path, tensors=None, *, quantized=(), architecture="llama", sizes=SIZES, pre="llama-bpe", **texts
):
    """Write a file; `quantized` tensors are stored in Q8_0, and the others in float32."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, size in sizes.items():
        add = writer.add_string if isinstance(size, str) else writer.add_uint32
        add = writer.add_float32 if isinstance(size, float) else add
        add = writer.add_array if isinstance(size, list) else add
        add(f"{architecture}.{name}", size)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(5000.0)
    writer.add_tokenizer_model(texts.get("model", "gpt2"))
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    kinds = [3] * len(CONTROL_TOKENS) + [4] + [1] * (len(TOKENS) - len(CONTROL_TOKENS) - 1)
    writer.add_token_types(kinds)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)
    if template := texts.get("template", TEMPLATE):
        writer.add_chat_template(template)
    for name, tensor in (random_tensors() if tensors is None else tensors).items():
        if name in quantized:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
