"""A cache as plain lists of tokens, and attention over them in float64, one head at a time."""

import dataclasses

import numpy as np


@dataclasses.dataclass
class Token:
    """Key `[K, D]`, value `[K, Dv]`, coordinates, and the number in its sequence."""

    key: np.ndarray
    value: np.ndarray
    fields: dict
    number: int


class Sequences:
    """The tokens of each sequence of a batch, in flat order."""

    def __init__(self, count):
        self.tokens = [[] for _ in range(count)]

    @property
    def lengths(self):
        return [len(tokens) for tokens in self.tokens]

    def append(self, b, key, value, fields):
        self.tokens[b].append(Token(key, value, fields, len(self.tokens[b])))

    def truncate(self, b, length):
        del self.tokens[b][length:]

    def output(self, b, query, fields, number, sees, modify=None, sink=None):
        """Attention of one query `[N, D]` to the tokens of its sequence: `[N, Dv]`.

        Args:
          b: Which sequence.
          query: The query of each head.
          fields: Its coordinates.
          number: Its number in the sequence.
          sees: `sees(q, k, i, j)` of fields and numbers of query and key.
          modify: `modify(score, q, k, head)`.
          sink: One number per head.
        """
        tokens = [t for t in self.tokens[b] if sees(fields, t.fields, number, t.number)]
        num_heads, head_dim = query.shape
        size = self.tokens[b][0].value.shape[-1] if self.tokens[b] else 0
        output = np.zeros((num_heads, size))
        for n in range(num_heads):
            if not tokens:
                continue
            k = n // (num_heads // tokens[0].key.shape[0])
            scores = np.array([query[n] @ t.key[k] for t in tokens], np.float64) / head_dim**0.5
            if modify is not None:
                pairs = zip(scores, tokens, strict=True)
                scores = np.array([modify(s, fields, t.fields, n) for s, t in pairs])
            extra = [] if sink is None else [sink[n]]
            weights = np.exp(scores - max([*scores, *extra]))
            total = weights.sum() + sum(np.exp(np.array(extra) - max([*scores, *extra])))
            output[n] = weights / total @ np.array([t.value[k] for t in tokens])
        return output


def rounded(x):
    """Vectors as multiples of max |x| / 127, rounded to the nearest."""
    scale = np.max(np.abs(x), axis=-1, keepdims=True) / 127
    return np.round(x / np.where(scale > 0, scale, 1)) * scale
