"""Interpret the jaxpr of a mask by interval arithmetic: what it may be on each block of pairs.

Each number of the jaxpr becomes a `Range` that contains it for every token of a block. Each boolean
becomes a `Truth`: whether it may hold for some pair, and whether it holds for every pair. Every
primitive has a rule that keeps these bounds sound. The result of a primitive without a rule is
unknown. Numbers that are the same for all tokens (parameters, head ids) are computed instead of
bounded, so that a table indexed by heads stays exact.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flax_attn._jax import literal_value, open_jaxpr
from flax_attn._record import Record
from flax_attn.coords import Aligned
from flax_attn.masks._bounds import (
    Range,
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
from flax_attn.masks._rules import BODIES, CALLS, DIVISIONS, MOVES, RULES, TRACED_LENGTHS


class Tiling(NamedTuple):
    """How queries and keys are cut into blocks: (number of tokens, block size) of each side."""

    query: tuple[int, int]
    key: tuple[int, int]


def interpret(mask: Mask, q: Record, k: Record, tiling: Tiling | None = None) -> Truth:
    """The bounds of a mask on every block of pairs.

    Args:
      mask: The mask. Its `Aligned` fields hold a `Range` or `Truth` per block in place of arrays.
        If it has a method `block_truth(q, k, tiling)`, that method gives the result.
      q: Bounds of the queries' fields, `Range` or `Truth` of arrays `[*B | 1, N | 1, nq, 1]`.
      k: Bounds of the keys' fields, `[*B | 1, N | 1, 1, nk]`.
      tiling: Passed to `block_truth`.

    Returns:
      `Truth` of arrays that broadcast to `[*B | 1, N | 1, nq, nk]`.
    """
    if isinstance(mask, And | Or | Xor):
        first = interpret(mask.first, q, k, tiling)
        second = interpret(mask.second, q, k, tiling)
        return {And: both, Or: either, Xor: differ}[type(mask)](first, second)
    if isinstance(mask, Not):
        return negation(interpret(mask.mask, q, k, tiling))
    if hasattr(mask, "block_truth"):
        return mask.block_truth(q, k, tiling)
    jaxpr, values = _trace(mask, q, k)
    (out,) = _interpret_jaxpr(jaxpr, values, without_rule=[])
    (shape,) = [atom.aval.shape for atom in open_jaxpr(jaxpr)[0].outvars]
    rank = max(x[0].ndim for side in (q, k) for x in side._fields.values())
    is_pairs = len(shape) == rank and all(
        n in (1, traced) for n, traced in zip(shape[-2:], TRACED_LENGTHS, strict=True)
    )
    if not isinstance(out, Truth) or not (shape == () or is_pairs):
        return unknown(jnp.dtype(bool))
    return out


def opaque(mask: Mask, q: Record, k: Record) -> tuple[str, ...]:
    """Names of the primitives of a mask that have no rule. The mask is traced, not computed.

    Args:
      mask: The mask.
      q: The record of the queries, with arrays as fields.
      k: The record of the keys.
    """
    without_rule: list[str] = []

    def trace_parts(lo: Any, hi: Any) -> None:
        (mask_lo, *records_lo), (mask_hi, *records_hi) = lo, hi
        q, k = map(_bounded, records_lo, records_hi)
        for part, same in zip(_parts(mask_lo), _parts(mask_hi), strict=True):
            part = jax.tree.map(_bounded, part, same, is_leaf=lambda x: isinstance(x, Aligned))
            jaxpr, values = _trace(part, q, k)
            _interpret_jaxpr(jaxpr, values, without_rule)

    # Each array is passed twice, so that its two ends are different tracers, as those of a range.
    jax.eval_shape(trace_parts, (mask, q, k), (mask, q, k))
    return tuple(dict.fromkeys(without_rule))


def _parts(mask: Mask) -> list[Mask]:
    """The masks that a composition is made of, except those with a method `block_truth`."""
    if isinstance(mask, And | Or | Xor):
        return _parts(mask.first) + _parts(mask.second)
    if isinstance(mask, Not):
        return _parts(mask.mask)
    return [] if hasattr(mask, "block_truth") else [mask]


def _bounded(lo: Any, hi: Any) -> Any:
    """A record, or an `Aligned` of a mask, with bounds in place of its arrays over tokens."""
    if isinstance(lo, Record):
        pairs = {name: (x, hi._fields[name]) for name, x in lo._fields.items()}
        exact = {name: _pair(x, x) for name, (x, _) in pairs.items() if name == "head_ids"}
        return Record(lo._side, {name: _pair(*ends) for name, ends in pairs.items()} | exact)
    if isinstance(lo, Aligned) and {"t", "s"} & set(lo.axes):
        return Aligned(_pair(lo.values, hi.values), lo.axes)
    return lo


def _pair(lo: jax.Array, hi: jax.Array) -> Value:
    return Truth(lo, hi) if lo.dtype == jnp.bool_ else Range(lo, hi)


def reads(part: Any, q: Record, k: Record, *scores: Any) -> set[tuple[str, str]]:
    """The fields that a mask or score modifier reads, such as `("query", "positions")`.

    Args:
      part: The mask or score modifier.
      q: The record of the queries, with arrays or bounds as fields.
      k: The record of the keys.
      *scores: The scores that a score modifier is called with; nothing for a mask.
    """
    seen: set[tuple[str, str]] = set()

    def call(part: Any, scores: Any, *fields: dict[str, Any]) -> Any:
        q, k = (_Recording(side, x, seen) for side, x in zip(("query", "key"), fields, strict=True))
        return part(*scores, q, k, q.head_ids) if scores else part(q, k)

    jax.eval_shape(call, part, scores, q._fields, k._fields)
    return seen


class _Recording(Record):
    """A record that notes which of its fields are read."""

    def __init__(self, side: str, fields: dict[str, Any], seen: set[tuple[str, str]]) -> None:
        super().__init__(side, fields)
        object.__setattr__(self, "_seen", seen)

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        self._seen.add((self._side, name))
        return value


# Tracing and interpreting


def _is_value(x: Any) -> bool:
    return isinstance(x, Range | Truth)


def _trace(mask: Mask, q: Record, k: Record) -> tuple[Any, list[Value]]:
    """The jaxpr of a mask and the bounds of its inputs. Python numbers become constants."""
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
    """The array that a value is traced as: itself if it is known exactly, else one over tokens.

    Tracing with the array itself keeps the mesh axes over which it varies inside `shard_map`.
    """
    if value[0] is value[1]:
        return value[0]
    shape = list(value[0].shape)
    for axis in axes:
        shape[axis] = TRACED_LENGTHS[axis]
    return jax.ShapeDtypeStruct(tuple(shape), value[0].dtype)


def _interpret_jaxpr(
    closed: Any, inputs: Sequence[Value], without_rule: list[str]
) -> list[Value | None]:
    """Interpret a jaxpr. Names of primitives without a rule are appended to `without_rule`."""
    jaxpr, constants = open_jaxpr(closed)
    known: dict[Any, Value | None] = {}
    known.update(zip(jaxpr.constvars, map(point, constants), strict=True))
    known.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Any:
        value = literal_value(atom)
        return known[atom] if value is None else point(jnp.asarray(value, atom.aval.dtype))

    for eqn in jaxpr.eqns:
        values = [read(atom) for atom in eqn.invars]
        outs = _interpret_equation(eqn, values, without_rule)
        if outs is None:
            without_rule.append(eqn.primitive.name)
            outs = [unknown(atom.aval.dtype) for atom in eqn.outvars]
        known.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _interpret_equation(eqn: Any, values: list[Any], without_rule: list[str]) -> list[Any] | None:
    """The results of an equation, or None if nothing is known about them."""
    name = eqn.primitive.name
    if name in CALLS:
        division = DIVISIONS.get(eqn.params.get("name"))
        if division is not None and _is_division(eqn, values, division[0]):
            dtype = eqn.outvars[0].aval.dtype
            same: list[Any] = [x if x[0].dtype == dtype else convert(x, dtype) for x in values]
            return [division[1](*same)]
        body = next((eqn.params[key] for key in BODIES if key in eqn.params), None)
        return None if body is None else _interpret_jaxpr(body, values, without_rule)
    # Arithmetic of floats is bounded, not computed: attention may round it differently, for example
    # in a fused multiplication and addition.
    is_computed = name in MOVES or not any(map(_is_float, eqn.outvars))
    is_exact = all(map(_is_exact, values, eqn.invars)) and all(map(_has_no_tokens, eqn.outvars))
    if is_computed and is_exact:
        out = eqn.primitive.bind(*(x[0] for x in values), **eqn.params)
        return [point(x) for x in (out if eqn.primitive.multiple_results else [out])]
    rule = RULES.get(name)
    if rule is None or not all(_is_bounded(x) for x in values):
        return None
    out = rule(eqn, *values)
    return None if out is None else [out]


def _is_exact(value: Value | None, atom: Any) -> bool:
    """True if a value is a known array that is the same for all tokens."""
    return value is not None and value[0] is value[1] and value[0].shape == atom.aval.shape


def _has_no_tokens(atom: Any) -> bool:
    """True if no axis of an array runs over tokens."""
    return all(size % length for size in atom.aval.shape for length in TRACED_LENGTHS)


def _is_float(atom: Any) -> bool:
    return jnp.issubdtype(atom.aval.dtype, jnp.floating)


def _is_bounded(value: Value | None) -> bool:
    if value is None:
        return False
    kinds = (jnp.bool_, jnp.integer, jnp.floating)
    return any(jnp.issubdtype(value[0].dtype, kind) for kind in kinds)


def _is_division(eqn: Any, values: list[Any], function: Callable[..., Any]) -> bool:
    """True if a call is the integer division of jnp, and not another function of that name."""
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
