"""Normalise an attention call: check the arguments, build the problem, trace its parts once."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from flax_attn._checks import broadcasts_to, warn
from flax_attn._jax import varying_axes
from flax_attn._record import MissingFieldError
from flax_attn.attention._core.arguments import Arguments, check_arguments
from flax_attn.attention._core.placement import Placement
from flax_attn.attention._core.problem import Problem, Structure, build_problem
from flax_attn.masks._intervals import reads

POSITIONS = {("query", "positions"), ("key", "positions")}


def normalize(
    function: str, *arrays: Any, placement: Placement | None = None, **options: Any
) -> Problem:
    """Check the arguments of an attention function and build its problem.

    Args:
      function: The public function, for error messages.
      *arrays: Query, key, value (None = the key), bias and mask.
      placement: How the arrays are parts of those of all devices, or None.
      **options: Options of `dot_product_attention`.

    Raises:
      ValueError: If shapes, dtypes or numbers do not fit.
      TypeError: If an argument is of the wrong kind.
    """
    local = placement if placement is not None and placement.is_local else None
    spread = None if local is None else local.spread
    arguments = check_arguments(function, *arrays, spread=spread, **options)
    problem = build_problem(arguments)
    if placement is not None:  # it gives each device a part of them
        problem = dataclasses.replace(problem, in_order=False)
    structure, avals = _abstract(problem, local)
    _trace_parts(function, structure, avals)
    axes = varying_axes(arguments.query)
    if local is None or not axes:
        _check_positions(arguments, structure, avals)
    if axes:
        compares = _compares_positions(structure, avals)
        _check_within_shard_map(arguments, problem.batch, compares, axes, local)
    return problem


def _abstract(problem: Problem, placement: Placement | None) -> tuple[Structure, tuple[Any, ...]]:
    """The problem that is computed, or the first of several, without numbers."""
    leaves, structure = Structure.of(problem)
    if placement is not None:

        def first(leaves: list[jax.Array]) -> list[jax.Array]:
            return Structure.of(placement.first_block(structure.problem(leaves)))[0]

        leaves = jax.eval_shape(first, leaves)
    return structure, tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves)


@functools.lru_cache(maxsize=1024)
def _trace_parts(function: str, structure: Structure, avals: tuple[Any, ...]) -> None:
    """Trace the mask and the score modifier once, so that user errors surface early."""
    shape = structure.problem(avals).scores_shape

    def parts(leaves: Any) -> Any:
        problem = structure.problem(leaves)
        q, k = problem.records()
        visible = problem.visible()
        scores = jnp.zeros(shape, problem.scores_dtype)
        if problem.score_mod is None:
            return visible, scores
        return visible, problem.score_mod(scores, q, k, q.head_ids)

    try:
        closed = jax.make_jaxpr(parts)(avals)
    except MissingFieldError as error:
        raise ValueError(f"{function}: {error}") from None
    for x in closed.consts:
        if isinstance(x, jax.core.Tracer):
            raise TypeError(
                f"{function}: the mask or score modifier captures a traced array {x.dtype}"
                f"{list(x.shape)}, which attention cannot differentiate or batch. "
                f"Make it a parameter: near(radius=radius) of a relation, or "
                f"scores.score_mod(function, table=table)."
            )
    for name, aval in zip(("mask", "score_mod"), closed.out_avals, strict=True):
        if not broadcasts_to(aval.shape, shape):
            raise ValueError(
                f"{function}: what {name} returns must broadcast to the scores [*B, N, T, S] = "
                f"{list(shape)}, got {list(aval.shape)}. Write it elementwise."
            )


def _check_positions(a: Arguments, structure: Structure, avals: tuple[Any, ...]) -> None:
    """Where T ≠ S and no coordinates are given: refuse to guess how positions correspond.

    `is_causal` and `local_window_size` count both sides from 0, as in jax.nn, and warn.
    """
    length_q, length_k = a.query.shape[-3], a.key.shape[-3]
    if (a.query_side.located and a.key_side.located) or length_q == length_k:
        return
    if a.mask_is_relation and _fields_read(structure, avals, modifiers=False) >= POSITIONS:
        raise ValueError(
            f"{a.function}: the mask {a.mask!r} compares positions, but T = {length_q} queries "
            f"and S = {length_k} keys have none. Give the positions of the queries: "
            f"query_coords=Coords.arange({length_q}, offset={length_k - length_q}), "
            f"key_coords=Coords.arange({length_k}) for the last of a longer sequence, or "
            f"Coords.arange({length_q}) for the first."
        )
    if a.is_causal or a.window is not None:
        warn(
            f"{a.function}: is_causal and local_window_size count queries and keys from 0 on both "
            f"sides, as in jax.nn: with T = {length_q} queries and S = {length_k} keys the first "
            f"query stands at the first key. If the queries are the last of a longer sequence, as "
            f"in decoding, give query_coords=Coords.arange({length_q}, "
            f"offset={length_k - length_q}), key_coords=Coords.arange({length_k}); if not, "
            f"query_coords=Coords.arange({length_q})."
        )


def _check_within_shard_map(
    a: Arguments,
    batch: tuple[int, ...],
    compares_positions: bool,
    axes: frozenset[str],
    placement: Placement | None,
) -> None:
    """Refuse what depends on which part of the whole a device of `shard_map` has."""
    length_q, num_heads, _ = a.query.shape[-3:]
    length_k = a.key.shape[-3]
    where = f"within shard_map over {', '.join(sorted(axes))}"
    dropout = a.dropout
    numbered = dropout is not None and a.head_ids_given and dropout.batch_ids is not None
    if dropout is not None and not dropout.broadcast and not numbered:
        count = math.prod(batch)
        raise ValueError(
            f"{a.function}: dropout {where} needs the numbers of heads and batch elements among "
            f"those of all devices. Give head_ids=jnp.arange({num_heads}) if each device has all "
            f"heads, {num_heads} * jax.lax.axis_index(axis_name) + jnp.arange({num_heads}) if it "
            f"has a part; and Dropout(rate, key, batch_ids=...) likewise, of {count} elements."
        )
    if dropout is None and not compares_positions:
        return
    split = [] if placement is None else placement.token_axes
    query_here, key_here = (
        f"Coords.arange({length}, offset={length} * jax.lax.axis_index(axis_name))"
        for length in (length_q, length_k)
    )
    if a.query_side.located and a.key_side.located:
        own = frozenset().union(*(varying_axes(x.values) for x in a.key_side.fields.values()))
        for axis in split:
            if axis not in own:
                raise ValueError(
                    f"{a.function}: key_coords must differ between the devices of {axis!r}, as a "
                    f"mask, score modifier or dropout depends on positions, got the same on all of "
                    f"them. If the devices have the sequence in order, give {key_here}."
                )
        return
    if split:
        raise ValueError(
            f"{a.function}: a mask, score modifier or dropout depends on positions, which {where} "
            f"are counted from 0 on each device. If the devices have the sequence in order, give "
            f"query_coords={query_here}, key_coords={key_here}."
        )
    raise ValueError(
        f"{a.function}: a mask, score modifier or dropout depends on positions, which {where} "
        f"are counted from 0 on each device. If each device has whole sequences, say so: "
        f"query_coords=Coords.arange({length_q}), key_coords=Coords.arange({length_k}). If it "
        f"has a part of them, it would attend to that part only: give the coordinates of that "
        f"part and placement=sharded.Ring(axis_name), or use jit with sharded arguments."
    )


def _compares_positions(structure: Structure, avals: tuple[Any, ...]) -> bool:
    """Whether the mask or the score modifiers read the positions of both sides."""
    return _fields_read(structure, avals, modifiers=True) >= POSITIONS


def _fields_read(
    structure: Structure, avals: tuple[Any, ...], *, modifiers: bool
) -> set[tuple[str, str]]:
    """The fields of queries and keys that the mask reads, and the modifiers if asked for."""
    found: set[tuple[str, str]] = set()

    def trace(leaves: tuple[Any, ...]) -> None:
        problem = structure.problem(leaves)
        q, k = problem.records()
        found.update(reads(problem.mask, q, k))
        if modifiers and problem.score_mod is not None:
            scores = jax.ShapeDtypeStruct(problem.scores_shape, problem.scores_dtype)
            found.update(reads(problem.score_mod, q, k, scores))

    jax.eval_shape(trace, avals)
    return found
