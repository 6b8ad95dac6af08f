"""What is known of a mask on a block of pairs, read off its own jaxpr by interval arithmetic.

A number becomes an `Interval` that contains it for every token of a block, a boolean a `Truth` that
says whether it holds for some pair (may be too large) and for every pair (may be too small). Each
primitive has a rule that keeps these promises; what has no rule is unknown: any number, or true
somewhere and not everywhere. Numbers that are the same for all tokens (parameters, head numbers)
are computed, not bounded, so a table indexed by heads costs nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flax_attn._jax import literal_value, open_jaxpr
from flax_attn._record import Record
from flax_attn.coords import Aligned
from flax_attn.masks._bounds import (
    Interval,
    Truth,
    Value,
    both,
    convert,
    differ,
    either,
    negation,
    point,
    unknown,
)
from flax_attn.masks._mask import And, Mask, Not, Or, Xor
from flax_attn.masks._rules import BODIES, CALLS, DIVISIONS, MOVES, RULES, TOKENS


class Blocks(NamedTuple):
    """What `block_truth` of a mask is told of the blocks: (length, size of a block) per side."""

    query: tuple[int, int]
    key: tuple[int, int]


def interpret(mask: Mask, q: Record, k: Record, blocks: Blocks | None = None) -> Truth:
    """What is known of a mask on every pair of blocks.

    Args:
      mask: The mask. Its `Aligned` fields hold an `Interval` or `Truth` per block in place of
        arrays. If it has a method `block_truth(q, k, blocks)`, that answers.
      q: Bounds of the queries' fields, `Interval` or `Truth` of arrays `[*B | 1, N | 1, nq, 1]`.
      k: Bounds of the keys' fields, `[*B | 1, N | 1, 1, nk]`.
      blocks: Passed to `block_truth`.

    Returns:
      `Truth` of arrays that broadcast to `[*B | 1, N | 1, nq, nk]`.
    """
    if isinstance(mask, And | Or | Xor):
        first = interpret(mask.first, q, k, blocks)
        second = interpret(mask.second, q, k, blocks)
        return {And: both, Or: either, Xor: differ}[type(mask)](first, second)
    if isinstance(mask, Not):
        return negation(interpret(mask.mask, q, k, blocks))
    if hasattr(mask, "block_truth"):
        return mask.block_truth(q, k, blocks)
    jaxpr, values = _trace(mask, q, k)
    (out,) = _walk(jaxpr, values, met=[])
    (shape,) = [atom.aval.shape for atom in open_jaxpr(jaxpr)[0].outvars]
    rank = max(x[0].ndim for side in (q, k) for x in side._fields.values())
    pairs = len(shape) == rank and all(n in (1, m) for n, m in zip(shape[-2:], TOKENS, strict=True))
    if not isinstance(out, Truth) or not (shape == () or pairs):
        return unknown(jnp.dtype(bool))
    return out


def opaque(mask: Mask, q: Record, k: Record) -> tuple[str, ...]:
    """Names of the primitives of a mask without a rule, whose results are unknown. No computation.

    Args:
      mask: The mask.
      q: The queries' record, of arrays.
      k: The keys' record.
    """
    met: list[str] = []

    def walk(lo: Any, hi: Any) -> None:
        (mask_lo, *records_lo), (mask_hi, *records_hi) = lo, hi
        q, k = map(_bounded, records_lo, records_hi)
        for part, same in zip(_parts(mask_lo), _parts(mask_hi), strict=True):
            part = jax.tree.map(_bounded, part, same, is_leaf=lambda x: isinstance(x, Aligned))
            jaxpr, values = _trace(part, q, k)
            _walk(jaxpr, values, met)

    # Two tracers of each array: they look like the ends of an interval, which are not known equal.
    jax.eval_shape(walk, (mask, q, k), (mask, q, k))
    return tuple(dict.fromkeys(met))


def _parts(mask: Mask) -> list[Mask]:
    """The masks that a composition is made of, without those that answer for blocks themselves."""
    if isinstance(mask, And | Or | Xor):
        return _parts(mask.first) + _parts(mask.second)
    if isinstance(mask, Not):
        return _parts(mask.mask)
    return [] if hasattr(mask, "block_truth") else [mask]


def _bounded(lo: Any, hi: Any) -> Any:
    """Bounds in place of the arrays of tokens in a record, or in a mask's `Aligned`."""
    if isinstance(lo, Record):
        pairs = {name: (x, hi._fields[name]) for name, x in lo._fields.items()}
        exact = {name: _pair(x, x) for name, (x, _) in pairs.items() if name == "head_ids"}
        return Record(lo._side, {name: _pair(*ends) for name, ends in pairs.items()} | exact)
    if isinstance(lo, Aligned) and {"t", "s"} & set(lo.axes):
        return Aligned(_pair(lo.values, hi.values), lo.axes)
    return lo


def _pair(lo: jax.Array, hi: jax.Array) -> Value:
    return Truth(lo, hi) if lo.dtype == jnp.bool_ else Interval(lo, hi)


def reads(part: Any, q: Record, k: Record, *scores: Any) -> set[tuple[str, str]]:
    """Which fields a mask or score modifier reads, as `("query", "positions")`.

    Args:
      part: The mask or score modifier.
      q: The queries' record, of arrays or bounds.
      k: The keys' record.
      *scores: For a score modifier, the scores that it is given.
    """
    seen: set[tuple[str, str]] = set()

    def call(part: Any, scores: Any, *fields: dict[str, Any]) -> Any:
        q, k = (_Recording(side, x, seen) for side, x in zip(("query", "key"), fields, strict=True))
        return part(*scores, q, k, q.head_ids) if scores else part(q, k)

    jax.eval_shape(call, part, scores, q._fields, k._fields)
    return seen


class _Recording(Record):
    """A record that notes what is read of it."""

    def __init__(self, side: str, fields: dict[str, Any], seen: set[tuple[str, str]]) -> None:
        super().__init__(side, fields)
        self._seen = seen

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        self._seen.add((self._side, name))
        return value


# Traces


def _is_value(x: Any) -> bool:
    return isinstance(x, Interval | Truth)


def _trace(mask: Mask, q: Record, k: Record) -> tuple[Any, list[Value]]:
    """The jaxpr of a mask and the values of its inputs; Python numbers are constants of it."""
    trees = [jax.tree.flatten(x, is_leaf=_is_value) for x in (mask, q._fields, k._fields)]
    leaves = [x for tree, _ in trees for x in tree]
    axes = [
        axes for axes, (tree, _) in zip(((-2, -1), (-2,), (-1,)), trees, strict=True) for _ in tree
    ]
    inputs = [i for i, x in enumerate(leaves) if not isinstance(x, bool | int | float)]
    values = [leaves[i] if _is_value(leaves[i]) else point(leaves[i]) for i in inputs]

    def call(arguments: Sequence[Any]) -> Any:
        every = list(leaves)
        for i, x in zip(inputs, arguments, strict=True):
            every[i] = x
        rest = iter(every)
        mask, query, key = (
            jax.tree.unflatten(structure, [next(rest) for _ in tree]) for tree, structure in trees
        )
        return mask(Record("query", query), Record("key", key))

    stand_ins = [_stand_in(x, axes[i]) for x, i in zip(values, inputs, strict=True)]
    return jax.make_jaxpr(call)(stand_ins), values


def _stand_in(value: Value, axes: tuple[int, ...]) -> Any:
    """For bounds of tokens an array of tokens; for what is known exactly the array itself.

    (In `shard_map` arrays also know over which devices they vary, and so does the jaxpr then.)
    """
    if value[0] is value[1]:
        return value[0]
    shape = list(value[0].shape)
    for axis in axes:
        shape[axis] = TOKENS[axis]
    return jax.ShapeDtypeStruct(tuple(shape), value[0].dtype)


def _walk(closed: Any, inputs: Sequence[Value], met: list[str]) -> list[Value | None]:
    """Interpret the equations of a jaxpr; `met` gets the names of primitives without a rule."""
    jaxpr, constants = open_jaxpr(closed)
    known: dict[Any, Value | None] = {}
    known.update(zip(jaxpr.constvars, map(point, constants), strict=True))
    known.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Any:
        value = literal_value(atom)
        return known[atom] if value is None else point(jnp.asarray(value, atom.aval.dtype))

    for eqn in jaxpr.eqns:
        values = [read(atom) for atom in eqn.invars]
        outs = _equation(eqn, values, met)
        if outs is None:
            met.append(eqn.primitive.name)
            outs = [unknown(atom.aval.dtype) for atom in eqn.outvars]
        known.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _equation(eqn: Any, values: list[Any], met: list[str]) -> list[Any] | None:
    """The results of an equation, or None if nothing is known of them."""
    name = eqn.primitive.name
    if name in CALLS:
        division = DIVISIONS.get(eqn.params.get("name"))
        if division is not None and _is_division(eqn, values, division[0]):
            dtype = eqn.outvars[0].aval.dtype
            same: list[Any] = [x if x[0].dtype == dtype else convert(x, dtype) for x in values]
            return [division[1](*same)]
        body = next((eqn.params[key] for key in BODIES if key in eqn.params), None)
        return None if body is None else _walk(body, values, met)
    if all(map(_is_exact, values, eqn.invars)) and all(map(_may_compute, eqn.outvars)):
        moves = name in MOVES or not any(map(_is_float, eqn.outvars))
        if moves:  # floats are bounded instead: a fused multiplication and addition rounds once
            out = eqn.primitive.bind(*(x[0] for x in values), **eqn.params)
            return [point(x) for x in (out if eqn.primitive.multiple_results else [out])]
    rule = RULES.get(name)
    if rule is None or not all(_is_bounded(x) for x in values):
        return None
    out = rule(eqn, *values)
    return None if out is None else [out]


def _is_exact(value: Value | None, atom: Any) -> bool:
    """Whether a value is one known array, the same for all tokens."""
    return value is not None and value[0] is value[1] and value[0].shape == atom.aval.shape


def _may_compute(atom: Any) -> bool:
    return all(size % tokens for size in atom.aval.shape for tokens in TOKENS)


def _is_float(atom: Any) -> bool:
    return jnp.issubdtype(atom.aval.dtype, jnp.floating)


def _is_bounded(value: Value | None) -> bool:
    if value is None:
        return False
    kinds = (jnp.bool_, jnp.integer, jnp.floating)
    return any(jnp.issubdtype(value[0].dtype, kind) for kind in kinds)


def _is_division(eqn: Any, values: list[Any], function: Callable[..., Any]) -> bool:
    """Whether a call is jnp's own integer division, and not something of the same name."""
    avals = [atom.aval for atom in eqn.invars]
    if len(avals) != 2 or not all(jnp.issubdtype(x.dtype, jnp.signedinteger) for x in avals):
        return False
    stand_ins = [
        value[0]
        if _is_exact(value, atom) and not atom.aval.weak_type
        else jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype, weak_type=atom.aval.weak_type)
        for value, atom in zip(values, eqn.invars, strict=True)
    ]
    reference = open_jaxpr(jax.make_jaxpr(function)(*stand_ins))[0].eqns
    return len(reference) == 1 and str(reference[0].params["jaxpr"]) == str(eqn.params["jaxpr"])
