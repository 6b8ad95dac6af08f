"""What each primitive of a jaxpr does to bounds."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flax_attn.masks._bounds import (
    Interval,
    Truth,
    Value,
    at_most,
    bitwise_and,
    convert,
    differ,
    divide,
    either,
    equal,
    floor_divide,
    hull,
    larger,
    less,
    magnitude,
    minus,
    monotone,
    negation,
    negative,
    plus,
    power,
    rem,
    remainder,
    root,
    shift_right,
    smaller,
    times,
)

TOKENS = (1009, 2003)
"""Lengths of queries and keys in a trace: primes, by which an axis of tokens is known."""


def choose(eqn: Any, which: Value, *cases: Value) -> Value:
    """`select_n`: the cases that `which` leaves open."""
    if not isinstance(which, Truth) or len(cases) != 2:
        return hull(cases)
    off, on = cases
    outside, inside = ~which.all, which.any
    if isinstance(off, Truth):
        some = (inside & on[0]) | (outside & off[0])
        return Truth(some, (~inside | on[1]) & (~outside | off[1]))
    union = hull(cases)
    lo = jnp.where(inside, jnp.where(outside, union[0], on[0]), off[0])
    return Interval(lo, jnp.where(inside, jnp.where(outside, union[1], on[1]), off[1]))


# Shapes: an array of bounds has the axes of what it bounds, or none if it is the same everywhere


def place(eqn: Any, x: Value) -> Value:
    """`broadcast_in_dim`: axes go where they are told, and the new ones have size 1."""
    axes = eqn.params["broadcast_dimensions"]
    rank = len(eqn.params["shape"])

    def move(array: jax.Array) -> jax.Array:
        if array.ndim == 0:
            return array
        sizes = [1] * rank
        for axis, size in zip(axes, array.shape, strict=True):
            sizes[axis] = size
        return array.reshape(sizes)

    return type(x)(*map(move, x))


def reshape(eqn: Any, x: Value) -> Value | None:
    """Only where it adds and removes axes of size 1."""
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if x[0].size == 1 and x[1].size == 1:
        return type(x)(*(array.reshape(()) for array in x))
    if [n for n in before if n != 1] != [n for n in after if n != 1]:
        return None

    def move(array: jax.Array) -> jax.Array:
        sizes = iter([m for m, n in zip(array.shape, before, strict=True) if n != 1])
        return array.reshape([1 if n == 1 else next(sizes) for n in after])

    return type(x)(*(array if array.ndim == 0 else move(array) for array in x))


def transpose(eqn: Any, x: Value) -> Value:
    """The same axes in another order."""
    order = eqn.params["permutation"]
    return type(x)(*(array.transpose(order) if array.ndim else array for array in x))


def fold(function: Callable[..., jax.Array]) -> Callable[..., Value | None]:
    """A reduction by "or", "and", max or min over axes that are not tokens."""

    def rule(eqn: Any, x: Value) -> Value | None:
        axes = eqn.params["axes"]
        shape = eqn.invars[0].aval.shape
        if any(shape[axis] == 0 or shape[axis] in TOKENS for axis in axes):
            return None
        return type(x)(*(function(array, axes) if array.ndim else array for array in x))

    return rule


def _of(function: Callable[..., Value | None]) -> Callable[..., Value | None]:
    """A rule that needs only the operands."""
    return lambda eqn, *values: function(*values)


def _itself(eqn: Any, x: Value) -> Value:
    return x


def _monotone_primitive(eqn: Any, x: Interval) -> Interval:
    return monotone(lambda y: eqn.primitive.bind(y, **eqn.params), x)


def _multiply(eqn: Any, a: Interval, b: Interval) -> Interval | None:
    return power(a, 2) if eqn.invars[0] is eqn.invars[1] else times(a, b)


def _complement(eqn: Any, a: Value) -> Value:
    return negation(a) if isinstance(a, Truth) else Interval(~a.hi, ~a.lo)


def _truths_only(function: Callable[[Truth, Truth], Truth]) -> Callable[..., Value | None]:
    return lambda eqn, a, b: function(a, b) if isinstance(a, Truth) else None


RULES: dict[str, Callable[..., Value | None]] = {
    "eq": _of(equal),
    "ne": _of(lambda a, b: negation(equal(a, b))),
    "lt": _of(less),
    "le": _of(at_most),
    "gt": _of(lambda a, b: less(b, a)),
    "ge": _of(lambda a, b: at_most(b, a)),
    "and": _of(bitwise_and),
    "or": _truths_only(either),
    "xor": _truths_only(differ),
    "not": _complement,
    "select_n": choose,
    "clamp": _of(lambda low, x, high: smaller(larger(x, low), high)),
    "max": _of(larger),
    "min": _of(smaller),
    "add": _of(plus),
    "sub": _of(minus),
    "mul": _multiply,
    "neg": _of(negative),
    "abs": _of(magnitude),
    "div": _of(divide),
    "rem": _of(rem),
    "integer_pow": lambda eqn, x: power(x, eqn.params["y"]),
    "square": lambda eqn, x: power(x, 2),
    "sqrt": _of(root),
    "sign": _monotone_primitive,
    "floor": _monotone_primitive,
    "ceil": _monotone_primitive,
    "round": _monotone_primitive,
    "shift_right_arithmetic": _of(shift_right),
    "convert_element_type": lambda eqn, x: convert(x, eqn.params["new_dtype"]),
    "broadcast_in_dim": place,
    "reshape": reshape,
    "squeeze": reshape,
    "expand_dims": reshape,
    "transpose": transpose,
    "reduce_or": fold(jnp.any),
    "reduce_and": fold(jnp.all),
    "reduce_max": fold(jnp.max),
    "reduce_min": fold(jnp.min),
    "copy": _itself,
    "copy_p": _itself,
    "stop_gradient": _itself,
    "pvary": _itself,
    "pcast": _itself,
}
"""What each primitive does to bounds; a rule may answer None for "unknown"."""

CALLS = {
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "eval_jaxpr",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
    "remat",
    "remat2",
    "checkpoint",
}
"""Primitives that stand for a jaxpr, kept in one of `BODIES`."""

BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")

DIVISIONS = {
    "floor_divide": (jnp.floor_divide, floor_divide),
    "remainder": (jnp.remainder, remainder),
}
"""jnp spells them out with signs and selects, which would lose their bounds."""

MOVES = {
    "broadcast_in_dim",
    "concatenate",
    "copy",
    "dynamic_slice",
    "gather",
    "pcast",
    "pvary",
    "reshape",
    "rev",
    "select_n",
    "slice",
    "squeeze",
    "transpose",
}
"""Primitives that leave floats as they are."""
