"""Language models in Flax NNX with the attention of `flax_attn`, and the files that they need."""
