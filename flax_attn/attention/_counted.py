"""Numbers of tokens, heads and batch elements that are counted from 0, where none are given.

They are refused, or warned of, where they may not be the numbers that are meant.
"""

import math

import jax

from flax_attn._checks import warn
from flax_attn.attention._problem import Problem
from flax_attn.attention.dropout import Dropout
from flax_attn.masks import Mask
from flax_attn.masks._intervals import reads

POSITIONS = {("query", "positions"), ("key", "positions")}


def refuse_to_guess(function: str, mask: Mask, problem: Problem) -> None:
    """Raise if a mask compares positions that nobody has given."""
    length_q, length_k, _, _ = problem.sizes
    if reads(mask, *problem.records()) >= POSITIONS:
        raise ValueError(
            f"{function}: the mask {mask!r} compares positions, but T = {length_q} queries and "
            f"S = {length_k} keys have none. Say where the queries stand: "
            f"query_coords=Coords.arange({length_q}, offset={length_k - length_q}), "
            f"key_coords=Coords.arange({length_k}) for the last of a longer sequence, or "
            f"Coords.arange({length_q}) for the first."
        )


def _compares_positions(problem: Problem) -> bool:
    """Whether the mask or the score modifiers read the positions of both sides."""
    q, k = problem.records()
    found = reads(problem.mask, q, k)
    if problem.score_mod is not None:
        shape = (*problem.batch, problem.sizes[2], *problem.sizes[:2])
        found |= reads(problem.score_mod, q, k, jax.ShapeDtypeStruct(shape, problem.scores_dtype))
    return found >= POSITIONS


def warn_of_corner(function: str, problem: Problem) -> None:
    """Warn that is_causal and local_window_size align the first query with the first key."""
    length_q, length_k, _, _ = problem.sizes
    warn(
        f"{function}: is_causal and local_window_size count queries and keys from 0 on both sides, "
        f"as in jax.nn: with T = {length_q} queries and S = {length_k} keys the first query stands "
        f"at the first key. If the queries are the last of a longer sequence, as in "
        f"decoding, give query_coords=Coords.arange({length_q}, offset={length_k - length_q}), "
        f"key_coords=Coords.arange({length_k}); if not, query_coords=Coords.arange({length_q})."
    )


def check_within_shard_map(
    function: str,
    problem: Problem,
    axes: frozenset[str],
    dropout: Dropout | None,
    head_ids_given: bool,
    counted: bool,
) -> None:
    """Raise where a device of `shard_map` would need to know which part of the whole it has."""
    length_q, length_k, num_heads, _ = problem.sizes
    where = f"within shard_map over {', '.join(sorted(axes))}"
    numbered = head_ids_given and dropout is not None and dropout.batch_ids is not None
    if dropout is not None and not dropout.broadcast and not numbered:
        count = math.prod(problem.batch)
        raise ValueError(
            f"{function}: dropout {where} needs the numbers of heads and batch elements among "
            f"those of all devices. Give head_ids=jnp.arange({num_heads}) if each device has all "
            f"heads, {num_heads} * jax.lax.axis_index(axis_name) + jnp.arange({num_heads}) if it "
            f"has a part; and Dropout(rate, key, batch_ids=...) likewise, of {count} elements."
        )
    if counted and (dropout is not None or _compares_positions(problem)):
        raise ValueError(
            f"{function}: a mask, score modifier or dropout depends on positions, which {where} "
            f"are counted from 0 on each device. If each device has whole sequences, say so: "
            f"query_coords=Coords.arange({length_q}), key_coords=Coords.arange({length_k}). If it "
            f"has a part of them, it would attend to that part only: use jit with sharded "
            f"arguments, or gather the keys and give the coordinates of both."
        )
