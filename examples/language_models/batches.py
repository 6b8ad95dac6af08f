"""Sequences of different lengths as one array of tokens with coordinates.

In both forms the segment of a token is the number of its sequence, and padding is not valid.
"""

from collections.abc import Sequence

import numpy as np

from flax_attn import Coords

MULTIPLE = 16  # lengths are padded to a multiple, so that few programs are compiled


def padded(
    sequences: Sequence[Sequence[int]], multiple: int = MULTIPLE
) -> tuple[np.ndarray, Coords]:
    """One sequence per row: tokens and coordinates `[B, T]`."""
    lengths = check("padded", sequences)
    tokens = np.zeros((len(lengths), round_up(max(lengths), multiple)), np.int32)
    for row, sequence in zip(tokens, sequences, strict=True):
        row[: len(sequence)] = sequence
    rows = np.broadcast_to(np.arange(len(lengths))[:, None], tokens.shape)
    coords = Coords.from_lengths(np.array(lengths), tokens.shape[1])
    return tokens, coords.with_features(segment_ids=rows)


def packed(
    sequences: Sequence[Sequence[int]], multiple: int = MULTIPLE
) -> tuple[np.ndarray, Coords]:
    """All sequences in one row: tokens and coordinates `[T]`. Positions start anew in each."""
    lengths = check("packed", sequences)
    count, total = len(lengths), sum(lengths)
    tokens = np.zeros(round_up(total, multiple), np.int32)
    tokens[:total] = np.concatenate(sequences)
    segment_ids = np.full(tokens.shape, count, np.int32)
    segment_ids[:total] = np.repeat(np.arange(count), lengths)
    coords = Coords.from_segments(segment_ids, restart=True)
    return tokens, coords.with_features(valid=segment_ids < count)


def check(function: str, sequences: Sequence[Sequence[int]]) -> list[int]:
    """The lengths of the sequences; raises unless there are sequences and all have tokens."""
    lengths = [len(sequence) for sequence in sequences]
    if not lengths or min(lengths) == 0:
        raise ValueError(
            f"{function}: sequences must be one or more, each with a token, got lengths {lengths}."
        )
    return lengths


def round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
