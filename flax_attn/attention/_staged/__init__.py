"""Mask, score modifiers and dropout as programs for one tile of pairs, for kernels.

program    a function of arrays, cut into what XLA computes outside and what a tile computes
pairs      that of a problem: which pairs are visible, the modified scores, the kept weights
distances  biases that depend on the distance of two tokens, without a lookup in a tile
blocks     which blocks of pairs a kernel visits, as lists
"""
