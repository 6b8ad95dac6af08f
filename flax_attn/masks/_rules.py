"""The rule of each primitive of a jaxpr: from the bounds of its operands to those of its result."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flax_attn.masks._bounds import (
    Range,
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

TRACED_LENGTHS = (1009, 2003)
"""Numbers of queries and keys in a trace. They are primes, so an axis over tokens is recognised by
its size: other sizes are unlikely to be multiples of them."""


def select(eqn: Any, which: Value, *cases: Value) -> Value:
    """`select_n`: the bounds of all cases that `which` may select."""
    if not isinstance(which, Truth) or len(cases) != 2:
        return hull(cases)
    off, on = cases
    outside, inside = ~which.all, which.any
    if isinstance(off, Truth):
        some = (inside & on[0]) | (outside & off[0])
        return Truth(some, (~inside | on[1]) & (~outside | off[1]))
    union = hull(cases)
    lo = jnp.where(inside, jnp.where(outside, union[0], on[0]), off[0])
    return Range(lo, jnp.where(inside, jnp.where(outside, union[1], on[1]), off[1]))


# Shapes. Bounds have the axes of the array that they bound, or no axes if they are all the same.


def broadcast_in_dim(eqn: Any, x: Value) -> Value:
    """`broadcast_in_dim`; a new axis of the bounds has size 1."""
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
    """`reshape`, if it only adds and removes axes of size 1."""
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
    """`transpose`."""
    order = eqn.params["permutation"]
    return type(x)(*(array.transpose(order) if array.ndim else array for array in x))


def reduction(function: Callable[..., jax.Array]) -> Callable[..., Value | None]:
    """The rule of a reduction by or, and, max or min over axes that are not tokens."""

    def rule(eqn: Any, x: Value) -> Value | None:
        axes = eqn.params["axes"]
        shape = eqn.invars[0].aval.shape
        if any(shape[axis] == 0 or shape[axis] in TRACED_LENGTHS for axis in axes):
            return None
        return type(x)(*(function(array, axes) if array.ndim else array for array in x))

    return rule


def _elementwise(function: Callable[..., Value | None]) -> Callable[..., Value | None]:
    """The rule of a primitive without parameters."""
    return lambda eqn, *values: function(*values)


def _identity(eqn: Any, x: Value) -> Value:
    return x


def _monotone_primitive(eqn: Any, x: Range) -> Range:
    return monotone(lambda y: eqn.primitive.bind(y, **eqn.params), x)


def _multiply(eqn: Any, a: Range, b: Range) -> Range | None:
    return power(a, 2) if eqn.invars[0] is eqn.invars[1] else times(a, b)


def _complement(eqn: Any, a: Value) -> Value:
    return negation(a) if isinstance(a, Truth) else Range(~a.hi, ~a.lo)


def _boolean(function: Callable[[Truth, Truth], Truth]) -> Callable[..., Value | None]:
    """The rule of a primitive that is known for booleans only."""
    return lambda eqn, a, b: function(a, b) if isinstance(a, Truth) else None


RULES: dict[str, Callable[..., Value | None]] = {
    "eq": _elementwise(equal),
    "ne": _elementwise(lambda a, b: negation(equal(a, b))),
    "lt": _elementwise(less),
    "le": _elementwise(at_most),
    "gt": _elementwise(lambda a, b: less(b, a)),
    "ge": _elementwise(lambda a, b: at_most(b, a)),
    "and": _elementwise(bitwise_and),
    "or": _boolean(either),
    "xor": _boolean(differ),
    "not": _complement,
    "select_n": select,
    "clamp": _elementwise(lambda low, x, high: smaller(larger(x, low), high)),
    "max": _elementwise(larger),
    "min": _elementwise(smaller),
    "add": _elementwise(plus),
    "sub": _elementwise(minus),
    "mul": _multiply,
    "neg": _elementwise(negative),
    "abs": _elementwise(magnitude),
    "div": _elementwise(divide),
    "rem": _elementwise(rem),
    "integer_pow": lambda eqn, x: power(x, eqn.params["y"]),
    "square": lambda eqn, x: power(x, 2),
    "sqrt": _elementwise(root),
    "sign": _monotone_primitive,
    "floor": _monotone_primitive,
    "ceil": _monotone_primitive,
    "round": _monotone_primitive,
    "shift_right_arithmetic": _elementwise(shift_right),
    "convert_element_type": lambda eqn, x: convert(x, eqn.params["new_dtype"]),
    "broadcast_in_dim": broadcast_in_dim,
    "reshape": reshape,
    "squeeze": reshape,
    "expand_dims": reshape,
    "transpose": transpose,
    "reduce_or": reduction(jnp.any),
    "reduce_and": reduction(jnp.all),
    "reduce_max": reduction(jnp.max),
    "reduce_min": reduction(jnp.min),
    "copy": _identity,
    "copy_p": _identity,
    "stop_gradient": _identity,
    "pvary": _identity,
    "pcast": _identity,
}
"""The rule of each primitive. A rule returns None if nothing is known about the result."""

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
"""Primitives that call a jaxpr, which is one of their parameters `BODIES`."""

BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")

DIVISIONS = {
    "floor_divide": (jnp.floor_divide, floor_divide),
    "remainder": (jnp.remainder, remainder),
}
"""Functions of jnp made of many primitives, whose rules would widen the bounds too much."""

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
"""Primitives that move numbers and do not compute any."""
