"""Orders of tokens, as NumPy indices: over the shards of a sequence, and in a tree."""

from collections.abc import Callable

import numpy as np

from flax_attn._checks import as_integer

Order = Callable[[int], np.ndarray]


def zigzag_order(function: str, shards: int) -> Order:
    """From a number of tokens to the tokens of each shard in turn, as `coords.zigzag` has them."""
    shards = as_integer(function, "shards", shards)

    def order(length: int) -> np.ndarray:
        _check_length(function, length, "2 · shards", 2 * shards)
        parts = np.arange(length).reshape(2 * shards, -1)
        chosen = [part for i in range(shards) for part in (i, 2 * shards - 1 - i)]
        return parts[chosen].reshape(-1)

    return order


def striped_order(function: str, shards: int) -> Order:
    """From a number of tokens to the tokens of each shard in turn, as `coords.striped` has them."""
    shards = as_integer(function, "shards", shards)

    def order(length: int) -> np.ndarray:
        _check_length(function, length, "shards", shards)
        return np.arange(length).reshape(-1, shards).T.reshape(-1)

    return order


def inverse(order: Order) -> Order:
    """The order that undoes another."""
    return lambda length: np.argsort(order(length))


def _check_length(function: str, length: int, of: str, divisor: int) -> None:
    if divisor < 1 or length % divisor:
        raise ValueError(
            f"{function}: the number of tokens must be a multiple of {of} = {divisor}, got "
            f"{length}. Pad the sequence, and mark padding in Coords.valid."
        )


def preorder(parents: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """The depth of each node, and when a preorder walk enters and leaves it; None for a cycle."""
    count = parents.size
    children: list[list[int]] = [[] for _ in range(count)]
    for node, parent in enumerate(parents):
        if parent >= 0:
            children[parent].append(node)
    depth, enter, leave = (np.zeros(count, np.int32) for _ in range(3))
    num_visited = 0
    stack = [(node, False) for node in np.flatnonzero(parents == -1)[::-1]]
    while stack:  # without recursion, as the tree may be deep
        node, is_done = stack.pop()
        if is_done:
            leave[node] = num_visited
            continue
        parent = parents[node]
        depth[node] = 0 if parent == -1 else depth[parent] + 1
        enter[node] = num_visited
        num_visited += 1
        stack.append((node, True))
        stack.extend((child, False) for child in reversed(children[node]))
    return (depth, enter, leave) if num_visited == count else None
