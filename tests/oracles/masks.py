"""Masks in plain Python: one query and one key at a time, each a dict of numbers."""

import numpy as np


def evaluate(predicate, query, key, num_heads):
    """A predicate of single tokens for all pairs.

    Args:
      predicate: Called as `predicate(q, k, head)` with dicts of numbers.
      query: Fields `[B, T]` by name; of ndim 3, `[B, T, N]`.
      key: Fields `[B, S]` by name.
      num_heads: Number of query heads N.

    Returns:
      `[B, N, T, S]`.
    """
    batch, length_q = query["positions"].shape
    length_k = key["positions"].shape[1]
    seen = np.zeros((batch, num_heads, length_q, length_k), bool)
    for b, n, t, s in np.ndindex(seen.shape):
        q = {name: x[b, t].item() for name, x in query.items()}
        k = {name: x[b, s].item() for name, x in key.items()}
        seen[b, n, t, s] = predicate(q, k, n)
    return seen


def full(q, k, head):
    return True


def empty(q, k, head):
    return False


def causal(q, k, head):
    return k["positions"] in range(q["positions"] + 1)


def window(left, right):
    def sees(q, k, head):
        back = q["positions"] - k["positions"]
        if left is not None and back > (left if np.ndim(left) == 0 else left[head]):
            return False
        return right is None or -back <= (right if np.ndim(right) == 0 else right[head])

    return sees


def dilated(window, dilation):
    def sees(q, k, head):
        i = q["positions"]
        reach = {i + sign * step for sign in (-1, 1) for step in range(0, window + 1, dilation)}
        return k["positions"] in reach

    return sees


def chunked(size):
    def sees(q, k, head):
        first = q["positions"] - q["positions"] % size
        return first <= k["positions"] < first + size

    return sees


def prefix(length=None):
    def sees(q, k, head):
        limit = q["prefix"] if length is None else length
        if k["positions"] < limit:
            return True
        return k["positions"] <= q["positions"]

    return sees


def strided(stride):
    def sees(q, k, head):
        i = q["positions"]
        recent = set(range(max(0, i - stride), i + 1))  # Child et al., section 4.3, A(1)
        periodic = set(range(i, -1, -stride))  # A(2)
        return k["positions"] in recent | periodic

    return sees


def fixed(stride, summary):
    def sees(q, k, head):
        i = q["positions"]
        block = {j for j in range(i + 1) if j // stride == i // stride}
        summaries = {j for j in range(i + 1) if j % stride in range(stride - summary, stride)}
        return k["positions"] in block | summaries

    return sees


def same_segment(q, k, head):
    return q["segment_ids"] == k["segment_ids"]


def padding(q, k, head):
    return q["valid"] and k["valid"]


def global_tokens(q, k, head):
    return q["is_global"] or k["is_global"]


def tree(parents):
    """Ancestor or self, by following parents; positions are ignored, `node` counts."""

    def sees(q, k, head):
        node = q["node"]
        while node != -1:
            if node == k["node"]:
                return True
            node = parents[node]
        return False

    return sees


def overlay(q, k, head):
    return q["image"] != -1 and q["image"] == k["image"]


def interval(q, k, head):
    return q["positions"] in range(k["lower"], k["upper"])


def selected(blocks, block_size, query_block_size):
    """`blocks` is `[B, N, nq, topk]`; the query's field `b` is its batch element."""

    def sees(q, k, head):
        rows = blocks[q["b"], head % blocks.shape[1]]
        row = q["positions"] // query_block_size
        if not 0 <= row < len(rows) or k["positions"] < 0:
            return False
        return k["positions"] // block_size in list(rows[row])

    return sees


def neighbors(i, size, kernel, stride, dilation, is_causal):
    """The keys of query i along one axis, by moving the window until it is on the canvas."""
    group = [x for x in range(size) if x % dilation == i % dilation]
    place = group.index(i)
    sharing = [x for x in range(len(group)) if x // stride == place // stride]
    if is_causal:
        leader = min(sharing[0] + stride - 1, len(group) - 1)
        return [group[x] for x in range(max(leader - kernel + 1, 0), place + 1)]
    leader = min(sharing[0] + stride // 2, len(group) - 1)
    start = leader - kernel // 2
    while start < 0:
        start += 1
    while start + kernel > len(group):
        start -= 1
    return [group[x] for x in range(start, start + kernel)]
