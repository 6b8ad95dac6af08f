"""Attention rollout in float64, as the paper tells it: a sum over all paths through the layers."""

import itertools

import numpy as np


def rollout(weights, residual=0.5, fuse=np.mean):
    """The sum over paths of the product of their edges.

    Args:
      weights: `[N, T, T]` of each layer, the first layer first.
      residual: The share of the residual connection.
      fuse: From the weights of all heads `[N]` to one number.

    Returns:
      `[T, T]`: entry (t, s) is the sum over all paths from token t of the last layer to token s of
      the input.
    """
    length = weights[0].shape[-1]
    edges = []
    for layer in weights:
        edge = np.zeros((length, length))
        for t, s in np.ndindex(edge.shape):
            edge[t, s] = (1 - residual) * fuse(layer[:, t, s].astype(np.float64))
            edge[t, s] += residual * (t == s)
        for t in range(length):
            edge[t] /= sum(edge[t]) or 1
        edges.append(edge)
    rolled = np.zeros((length, length))
    for path in itertools.product(range(length), repeat=len(weights) + 1):
        steps = zip(reversed(edges), path[:-1], path[1:], strict=True)
        rolled[path[0], path[-1]] += np.prod([edge[t, s] for edge, t, s in steps])
    return rolled
