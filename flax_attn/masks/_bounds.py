"""Range arithmetic: bounds of integers, floats and booleans over the pairs of a block.

An integer that may wrap around becomes unknown in that block. A float that may be NaN or infinite
gets NaN bounds, and every rule treats NaN bounds as unknown. A function returns None if it knows
nothing about its result.

References:
  Cousot, Cousot, "Abstract Interpretation: A Unified Lattice Model for Static Analysis of Programs
  by Construction or Approximation of Fixpoints", POPL 1977; Kleene, "Introduction to
  Metamathematics", 1952, §64 (three truth values).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Range(NamedTuple):
    """Bounds of a number in each block: lo ≤ x ≤ hi.

    A number that is known exactly has the same object as lo and hi.
    """

    lo: jax.Array
    hi: jax.Array


class Truth(NamedTuple):
    """Bounds of a boolean in each block.

    `any` is False only if no pair of the block is true, `all` is True only if every pair is true.
    """

    any: jax.Array
    all: jax.Array


Value = Range | Truth


def point(x: Any) -> Value:
    """Bounds of an array that is known exactly and is the same for all tokens."""
    x = jnp.asarray(x)
    return Truth(x, x) if x.dtype == jnp.bool_ else Range(x, x)


def unknown(dtype: Any) -> Any:
    """Bounds that say nothing: a boolean may be either, a number may be any of its dtype."""
    if dtype == jnp.bool_:
        return Truth(jnp.asarray(True), jnp.asarray(False))
    if jnp.issubdtype(dtype, jnp.integer):
        limits = jnp.iinfo(dtype)
        return Range(jnp.asarray(limits.min, dtype), jnp.asarray(limits.max, dtype))
    if jnp.issubdtype(dtype, jnp.floating):
        return Range(jnp.asarray(jnp.nan, dtype), jnp.asarray(jnp.nan, dtype))
    return None


def _unless(bad: jax.Array, lo: jax.Array, hi: jax.Array) -> Range:
    """The range from lo to hi; unknown in the blocks where `bad` is True."""
    lowest, highest = unknown(lo.dtype)
    return Range(jnp.where(bad, lowest, lo), jnp.where(bad, highest, hi))


# Booleans


def negation(a: Truth) -> Truth:
    """The bounds of ¬a."""
    return Truth(~a.all, ~a.any)


def both(a: Truth, b: Truth) -> Truth:
    """The bounds of a ∧ b."""
    return Truth(a.any & b.any, a.all & b.all)


def either(a: Truth, b: Truth) -> Truth:
    """The bounds of a ∨ b."""
    return Truth(a.any | b.any, a.all | b.all)


def differ(a: Truth, b: Truth) -> Truth:
    """The bounds of a ⊕ b."""
    some = (a.any & ~b.all) | (~a.all & b.any)
    return Truth(some, (a.all & ~b.any) | (~a.any & b.all))


def equal(a: Value, b: Value) -> Truth:
    """The bounds of a = b: possible if the ranges overlap, certain if both are the same point."""
    if isinstance(a, Truth) and isinstance(b, Truth):
        return negation(differ(a, b))
    same = (a[0] == a[1]) & (b[0] == b[1]) & (a[0] == b[0])
    return Truth(~((a[1] < b[0]) | (b[1] < a[0])), same)


def less(a: Value, b: Value) -> Truth:
    """The bounds of a < b."""
    if isinstance(a, Truth) and isinstance(b, Truth):
        return both(negation(a), b)
    return Truth(~(a[0] >= b[1]), a[1] < b[0])


def at_most(a: Value, b: Value) -> Truth:
    """The bounds of a ≤ b. This is not ¬(b < a), which is true for NaN."""
    if isinstance(a, Truth) and isinstance(b, Truth):
        return either(negation(a), b)
    return Truth(~(a[0] > b[1]), a[1] <= b[0])


def hull(values: Sequence[Value]) -> Value:
    """The smallest bounds that contain all of the values."""
    first, *rest = values
    for x in rest:
        if isinstance(first, Truth):
            first = Truth(first.any | x[0], first.all & x[1])
        else:
            first = Range(jnp.minimum(first[0], x[0]), jnp.maximum(first[1], x[1]))
    return first


# Numbers


def _is_integer(x: Value) -> bool:
    return jnp.issubdtype(x[0].dtype, jnp.integer)


def _has_arithmetic(x: Value) -> bool:
    """True for signed integers and for floats of at least 32 bits, whose arithmetic has rules.

    XLA may compute narrower floats in a wider dtype, so their rounding is not known.
    """
    dtype = x[0].dtype
    if jnp.issubdtype(dtype, jnp.signedinteger):
        return True
    return jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize >= 4


def monotone(function: Callable[[jax.Array], jax.Array], x: Range) -> Range:
    """The bounds of a function that does not decrease."""
    lo = function(x.lo)
    return Range(lo, lo if x.lo is x.hi else function(x.hi))


def _corners(function: Callable[..., jax.Array], a: Range, b: Range) -> Range:
    """The bounds of a function that is monotone in each argument: its extremes are at the ends."""
    ends = ((a.lo, b.lo), (a.hi, b.lo)) + (() if b.lo is b.hi else ((a.lo, b.hi), (a.hi, b.hi)))
    corners = [function(x, y) for x, y in ends]
    lo = hi = corners[0]
    for x in corners[1:]:
        lo, hi = jnp.minimum(lo, x), jnp.maximum(hi, x)
    return Range(lo, hi)


def _finite(x: Range) -> Range:
    return _unless(~(jnp.isfinite(x.lo) & jnp.isfinite(x.hi)), x.lo, x.hi)


def _rounded(x: Range) -> Range:
    """Bounds widened by a few units in the last place, as devices and fusions round differently."""
    info = jnp.finfo(x.lo.dtype)
    eps, tiny = 4 * float(info.eps), float(info.tiny)
    return _finite(Range(x.lo - abs(x.lo) * eps - tiny, x.hi + abs(x.hi) * eps + tiny))


def plus(a: Range, b: Range) -> Range | None:
    """The bounds of a + b."""
    if not _has_arithmetic(a):
        return None
    out = Range(a.lo + b.lo, a.hi + b.hi)
    if not _is_integer(a):
        return _finite(out)
    # A sum has wrapped if its sign differs from the signs of both terms.
    wraps = ((a.lo ^ out.lo) & (b.lo ^ out.lo)) | ((a.hi ^ out.hi) & (b.hi ^ out.hi))
    return _unless(wraps < 0, *out)


def minus(a: Range, b: Range) -> Range | None:
    """The bounds of a − b."""
    if not _has_arithmetic(a):
        return None
    out = Range(a.lo - b.hi, a.hi - b.lo)
    if not _is_integer(a):
        return _finite(out)
    wraps = ((a.lo ^ b.hi) & (a.lo ^ out.lo)) | ((a.hi ^ b.lo) & (a.hi ^ out.hi))
    return _unless(wraps < 0, *out)


def negative(a: Range) -> Range | None:
    """The bounds of −a."""
    if not _has_arithmetic(a):
        return None
    out = Range(-a.hi, -a.lo)
    return _unless(a.lo == jnp.iinfo(a.lo.dtype).min, *out) if _is_integer(a) else out


def magnitude(a: Range) -> Range | None:
    """The bounds of |a|."""
    if not _has_arithmetic(a):
        return None
    lo = jnp.maximum(jnp.maximum(a.lo, -a.hi), 0)
    hi = jnp.maximum(-a.lo, a.hi)
    if _is_integer(a):
        return _unless(a.lo == jnp.iinfo(a.lo.dtype).min, lo, hi)
    return Range(lo, hi)


def times(a: Range, b: Range) -> Range | None:
    """The bounds of a · b."""
    if not _has_arithmetic(a):
        return None
    out = _corners(jnp.multiply, a, b)
    if not _is_integer(a):
        return _rounded(out)
    limits = jnp.iinfo(a.lo.dtype)
    size_a, size_b = (jnp.maximum(abs(x.lo), abs(x.hi)) for x in (a, b))
    most = lax.div(jnp.full_like(size_b, limits.max), jnp.maximum(size_b, 1))
    return _unless((a.lo == limits.min) | (b.lo == limits.min) | (size_a > most), *out)


def power(a: Range, exponent: int) -> Range | None:
    """The bounds of a ** exponent."""
    if exponent < 1 or not _has_arithmetic(a):
        return None
    if exponent == 1:
        return a
    if exponent % 2:
        rest = power(a, exponent - 1)
        return None if rest is None else times(a, rest)
    base = out = magnitude(a)
    for _ in range(exponent - 1):
        out = None if base is None or out is None else times(out, base)
    return out


def _positive(b: Range) -> tuple[jax.Array, Range]:
    """Where a divisor may be below 1, and its bounds raised to at least 1."""
    return b.lo < 1, monotone(lambda x: jnp.maximum(x, 1), b)


def _broadcasting(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A function of `lax` on arguments that are broadcast first."""
    return lambda a, b: function(*jnp.broadcast_arrays(a, b))


def floor_divide(a: Range, b: Range) -> Range:
    """The bounds of ⌊a / b⌋ of integers."""
    bad, b = _positive(b)
    return _unless(bad, *_corners(jnp.floor_divide, a, b))


def remainder(a: Range, b: Range) -> Range:
    """The bounds of a − b ⌊a / b⌋ of integers; tight if b is known and a crosses no multiple."""
    bad, b = _positive(b)
    same = (b.lo == b.hi) & (jnp.floor_divide(a.lo, b.lo) == jnp.floor_divide(a.hi, b.lo))
    lo = jnp.where(same, jnp.remainder(a.lo, b.lo), 0)
    return _unless(bad, lo, jnp.where(same, jnp.remainder(a.hi, b.lo), b.hi - 1))


def divide(a: Range, b: Range) -> Range | None:
    """The bounds of `lax.div`, which rounds integers towards zero."""
    if not _has_arithmetic(a):
        return None
    if _is_integer(a):
        bad, b = _positive(b)
        return _unless(bad, *_corners(_broadcasting(lax.div), a, b))
    out = _rounded(_corners(jnp.true_divide, a, b))
    return _unless(~((b.lo > 0) | (b.hi < 0)), *out)


def rem(a: Range, b: Range) -> Range | None:
    """The bounds of `lax.rem` of integers, which has the sign of a."""
    if not _has_arithmetic(a) or not _is_integer(a):
        return None
    bad, b = _positive(b)
    floor = remainder(a, b)
    lo = jnp.where(a.lo >= 0, floor.lo, jnp.maximum(1 - b.hi, jnp.minimum(a.lo, 0)))
    hi = jnp.where(a.lo >= 0, floor.hi, jnp.minimum(b.hi - 1, jnp.maximum(a.hi, 0)))
    return _unless(bad, lo, hi)


def larger(a: Value, b: Value) -> Value:
    """The bounds of max(a, b)."""
    if isinstance(a, Truth) and isinstance(b, Truth):
        return either(a, b)
    return Range(jnp.maximum(a[0], b[0]), jnp.maximum(a[1], b[1]))


def smaller(a: Value, b: Value) -> Value:
    """The bounds of min(a, b)."""
    if isinstance(a, Truth) and isinstance(b, Truth):
        return both(a, b)
    return Range(jnp.minimum(a[0], b[0]), jnp.minimum(a[1], b[1]))


def bitwise_and(a: Value, b: Value) -> Value:
    """The bounds of a & b.

    If one integer is not negative, the result lies between 0 and that integer.
    """
    if isinstance(a, Truth) and isinstance(b, Truth):
        return both(a, b)
    lowest, highest = unknown(a[0].dtype)
    caps = [jnp.where(x[0] >= 0, x[1], highest) for x in (a, b)]
    lo = jnp.where((a[0] >= 0) | (b[0] >= 0), 0, lowest)
    return Range(lo, jnp.minimum(*caps))


def shift_right(a: Range, b: Range) -> Range:
    """The bounds of a >> b."""
    bits = 8 * a.lo.dtype.itemsize
    bad = (b.lo < 0) | (b.hi >= bits)
    b = monotone(lambda x: jnp.clip(x, 0, bits - 1), b)
    return _unless(bad, *_corners(_broadcasting(lax.shift_right_arithmetic), a, b))


def convert(x: Value, dtype: Any) -> Value | None:
    """The bounds of a conversion that neither wraps nor rounds to fewer than 32 bits."""
    if isinstance(x, Truth):
        return x if dtype == jnp.bool_ else Range(x.all.astype(dtype), x.any.astype(dtype))
    if dtype == jnp.bool_:
        return negation(equal(x, point(jnp.zeros((), x.lo.dtype))))
    cast = monotone(lambda y: y.astype(dtype), x)
    if jnp.issubdtype(dtype, jnp.floating):  # rounding to the nearest is monotone
        wide = dtype.itemsize >= 4 and (_is_integer(x) or dtype.itemsize >= x.lo.dtype.itemsize)
        return cast if wide or dtype == x.lo.dtype else None
    if not jnp.issubdtype(dtype, jnp.integer):
        return None
    limits = jnp.iinfo(dtype)
    if _is_integer(x):
        own = jnp.iinfo(x.lo.dtype)
        low, high = max(limits.min, own.min), min(limits.max, own.max)
        return _unless((x.lo < low) | (x.hi > high), *cast)
    inside = (x.lo >= float(limits.min)) & (x.hi < float(limits.max))
    return _unless(~inside, *cast)


def root(x: Range) -> Range | None:
    """The bounds of √x."""
    return _rounded(monotone(jnp.sqrt, x)) if _has_arithmetic(x) else None
