"""Bounds of numbers and of truths over a block of pairs, and their arithmetic.

Integers that may wrap around become unknown for those blocks. Floats that may be NaN or infinite
get NaN bounds, and every rule is written so that a NaN decides nothing. A function that answers
None knows nothing of its result.

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


class Interval(NamedTuple):
    """Numbers from lo to hi, both included, per block; the same object twice for a known number."""

    lo: jax.Array
    hi: jax.Array


class Truth(NamedTuple):
    """False in `any`: false for every pair of the block. True in `all`: true for every pair."""

    any: jax.Array
    all: jax.Array


Value = Interval | Truth


def point(x: Any) -> Value:
    """A known array, the same for all tokens."""
    x = jnp.asarray(x)
    return Truth(x, x) if x.dtype == jnp.bool_ else Interval(x, x)


def unknown(dtype: Any) -> Any:
    """Anything: true somewhere and not everywhere; every integer; every float and NaN."""
    if dtype == jnp.bool_:
        return Truth(jnp.asarray(True), jnp.asarray(False))
    if jnp.issubdtype(dtype, jnp.integer):
        limits = jnp.iinfo(dtype)
        return Interval(jnp.asarray(limits.min, dtype), jnp.asarray(limits.max, dtype))
    if jnp.issubdtype(dtype, jnp.floating):
        return Interval(jnp.asarray(jnp.nan, dtype), jnp.asarray(jnp.nan, dtype))
    return None


def _unless(bad: jax.Array, lo: jax.Array, hi: jax.Array) -> Interval:
    """The interval; unknown in the blocks marked bad."""
    lowest, highest = unknown(lo.dtype)
    return Interval(jnp.where(bad, lowest, lo), jnp.where(bad, highest, hi))


# Truths


def negation(a: Truth) -> Truth:
    """Not a."""
    return Truth(~a.all, ~a.any)


def both(a: Truth, b: Truth) -> Truth:
    """The truth of a and b."""
    return Truth(a.any & b.any, a.all & b.all)


def either(a: Truth, b: Truth) -> Truth:
    """The truth of a or b."""
    return Truth(a.any | b.any, a.all | b.all)


def differ(a: Truth, b: Truth) -> Truth:
    """Exactly one of a and b."""
    some = (a.any & ~b.all) | (~a.all & b.any)
    return Truth(some, (a.all & ~b.any) | (~a.any & b.all))


def equal(a: Value, b: Value) -> Truth:
    """The truth of a = b: the intervals meet; both are the same point."""
    if isinstance(a, Truth) and isinstance(b, Truth):
        return negation(differ(a, b))
    same = (a[0] == a[1]) & (b[0] == b[1]) & (a[0] == b[0])
    return Truth(~((a[1] < b[0]) | (b[1] < a[0])), same)


def less(a: Value, b: Value) -> Truth:
    """The truth of a < b."""
    if isinstance(a, Truth) and isinstance(b, Truth):
        return both(negation(a), b)
    return Truth(~(a[0] >= b[1]), a[1] < b[0])


def at_most(a: Value, b: Value) -> Truth:
    """The truth of a ≤ b. For floats not `not b < a`, which a NaN makes true."""
    if isinstance(a, Truth) and isinstance(b, Truth):
        return either(negation(a), b)
    return Truth(~(a[0] > b[1]), a[1] <= b[0])


def hull(values: Sequence[Value]) -> Value:
    """What contains all of the values."""
    first, *rest = values
    for x in rest:
        if isinstance(first, Truth):
            first = Truth(first.any | x[0], first.all & x[1])
        else:
            first = Interval(jnp.minimum(first[0], x[0]), jnp.maximum(first[1], x[1]))
    return first


# Numbers


def _whole(x: Value) -> bool:
    return jnp.issubdtype(x[0].dtype, jnp.integer)


def _computes(x: Value) -> bool:
    """Whether arithmetic of this dtype has rules: signed integers; floats of 32 bits or more.

    XLA may compute with narrower floats in a wider type.
    """
    dtype = x[0].dtype
    if jnp.issubdtype(dtype, jnp.signedinteger):
        return True
    return jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize >= 4


def monotone(function: Callable[[jax.Array], jax.Array], x: Interval) -> Interval:
    """The bounds of a function that never decreases."""
    lo = function(x.lo)
    return Interval(lo, lo if x.lo is x.hi else function(x.hi))


def _corners(function: Callable[..., jax.Array], a: Interval, b: Interval) -> Interval:
    """A function whose extremes are at the corners: monotone in each argument."""
    ends = ((a.lo, b.lo), (a.hi, b.lo)) + (() if b.lo is b.hi else ((a.lo, b.hi), (a.hi, b.hi)))
    corners = [function(x, y) for x, y in ends]
    lo = hi = corners[0]
    for x in corners[1:]:
        lo, hi = jnp.minimum(lo, x), jnp.maximum(hi, x)
    return Interval(lo, hi)


def _finite(x: Interval) -> Interval:
    return _unless(~(jnp.isfinite(x.lo) & jnp.isfinite(x.hi)), x.lo, x.hi)


def _rounded(x: Interval) -> Interval:
    """Outwards by a few units in the last place: devices and fusions round differently."""
    info = jnp.finfo(x.lo.dtype)
    eps, tiny = 4 * float(info.eps), float(info.tiny)
    return _finite(Interval(x.lo - abs(x.lo) * eps - tiny, x.hi + abs(x.hi) * eps + tiny))


def plus(a: Interval, b: Interval) -> Interval | None:
    """The bounds of a + b."""
    if not _computes(a):
        return None
    out = Interval(a.lo + b.lo, a.hi + b.hi)
    if not _whole(a):
        return _finite(out)
    # A sum wraps where its sign is neither term's.
    wraps = ((a.lo ^ out.lo) & (b.lo ^ out.lo)) | ((a.hi ^ out.hi) & (b.hi ^ out.hi))
    return _unless(wraps < 0, *out)


def minus(a: Interval, b: Interval) -> Interval | None:
    """The bounds of a − b."""
    if not _computes(a):
        return None
    out = Interval(a.lo - b.hi, a.hi - b.lo)
    if not _whole(a):
        return _finite(out)
    wraps = ((a.lo ^ b.hi) & (a.lo ^ out.lo)) | ((a.hi ^ b.lo) & (a.hi ^ out.hi))
    return _unless(wraps < 0, *out)


def negative(a: Interval) -> Interval | None:
    """The bounds of −a."""
    if not _computes(a):
        return None
    out = Interval(-a.hi, -a.lo)
    return _unless(a.lo == jnp.iinfo(a.lo.dtype).min, *out) if _whole(a) else out


def magnitude(a: Interval) -> Interval | None:
    """The bounds of |a|."""
    if not _computes(a):
        return None
    lo = jnp.maximum(jnp.maximum(a.lo, -a.hi), 0)
    hi = jnp.maximum(-a.lo, a.hi)
    if _whole(a):
        return _unless(a.lo == jnp.iinfo(a.lo.dtype).min, lo, hi)
    return Interval(lo, hi)


def times(a: Interval, b: Interval) -> Interval | None:
    """The bounds of a · b."""
    if not _computes(a):
        return None
    out = _corners(jnp.multiply, a, b)
    if not _whole(a):
        return _rounded(out)
    limits = jnp.iinfo(a.lo.dtype)
    size_a, size_b = (jnp.maximum(abs(x.lo), abs(x.hi)) for x in (a, b))
    most = lax.div(jnp.full_like(size_b, limits.max), jnp.maximum(size_b, 1))
    return _unless((a.lo == limits.min) | (b.lo == limits.min) | (size_a > most), *out)


def power(a: Interval, exponent: int) -> Interval | None:
    """The bounds of a ** exponent."""
    if exponent < 1 or not _computes(a):
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


def _positive(b: Interval) -> tuple[jax.Array, Interval]:
    """Where a divisor may be below 1, and the divisor elsewhere."""
    return b.lo < 1, monotone(lambda x: jnp.maximum(x, 1), b)


def _truncated(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    return lambda a, b: function(*jnp.broadcast_arrays(a, b))


def floor_divide(a: Interval, b: Interval) -> Interval:
    """The bounds of ⌊a / b⌋ of integers."""
    bad, b = _positive(b)
    return _unless(bad, *_corners(jnp.floor_divide, a, b))


def remainder(a: Interval, b: Interval) -> Interval:
    """The bounds of a − b ⌊a / b⌋ of integers; exact where a crosses no multiple of a known b."""
    bad, b = _positive(b)
    same = (b.lo == b.hi) & (jnp.floor_divide(a.lo, b.lo) == jnp.floor_divide(a.hi, b.lo))
    lo = jnp.where(same, jnp.remainder(a.lo, b.lo), 0)
    return _unless(bad, lo, jnp.where(same, jnp.remainder(a.hi, b.lo), b.hi - 1))


def divide(a: Interval, b: Interval) -> Interval | None:
    """`lax.div`: of integers towards zero."""
    if not _computes(a):
        return None
    if _whole(a):
        bad, b = _positive(b)
        return _unless(bad, *_corners(_truncated(lax.div), a, b))
    out = _rounded(_corners(jnp.true_divide, a, b))
    return _unless(~((b.lo > 0) | (b.hi < 0)), *out)


def rem(a: Interval, b: Interval) -> Interval | None:
    """`lax.rem`: of integers, with the sign of a."""
    if not _computes(a) or not _whole(a):
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
    return Interval(jnp.maximum(a[0], b[0]), jnp.maximum(a[1], b[1]))


def smaller(a: Value, b: Value) -> Value:
    """The bounds of min(a, b)."""
    if isinstance(a, Truth) and isinstance(b, Truth):
        return both(a, b)
    return Interval(jnp.minimum(a[0], b[0]), jnp.minimum(a[1], b[1]))


def bitwise_and(a: Value, b: Value) -> Value:
    """Of integers: no larger than a term that is not negative, and not negative either."""
    if isinstance(a, Truth) and isinstance(b, Truth):
        return both(a, b)
    lowest, highest = unknown(a[0].dtype)
    caps = [jnp.where(x[0] >= 0, x[1], highest) for x in (a, b)]
    lo = jnp.where((a[0] >= 0) | (b[0] >= 0), 0, lowest)
    return Interval(lo, jnp.minimum(*caps))


def shift_right(a: Interval, b: Interval) -> Interval:
    """The bounds of a >> b."""
    bits = 8 * a.lo.dtype.itemsize
    bad = (b.lo < 0) | (b.hi >= bits)
    b = monotone(lambda x: jnp.clip(x, 0, bits - 1), b)
    return _unless(bad, *_corners(_truncated(lax.shift_right_arithmetic), a, b))


def convert(x: Value, dtype: Any) -> Value | None:
    """`convert_element_type`, where it neither wraps nor rounds to fewer bits than float32."""
    if isinstance(x, Truth):
        return x if dtype == jnp.bool_ else Interval(x.all.astype(dtype), x.any.astype(dtype))
    if dtype == jnp.bool_:
        return negation(equal(x, point(jnp.zeros((), x.lo.dtype))))
    cast = monotone(lambda y: y.astype(dtype), x)
    if jnp.issubdtype(dtype, jnp.floating):  # rounding to nearest is monotone
        wide = dtype.itemsize >= 4 and (_whole(x) or dtype.itemsize >= x.lo.dtype.itemsize)
        return cast if wide or dtype == x.lo.dtype else None
    if not jnp.issubdtype(dtype, jnp.integer):
        return None
    limits = jnp.iinfo(dtype)
    if _whole(x):
        own = jnp.iinfo(x.lo.dtype)
        low, high = max(limits.min, own.min), min(limits.max, own.max)
        return _unless((x.lo < low) | (x.hi > high), *cast)
    inside = (x.lo >= float(limits.min)) & (x.hi < float(limits.max))
    return _unless(~inside, *cast)


def root(x: Interval) -> Interval | None:
    """The bounds of √x."""
    return _rounded(monotone(jnp.sqrt, x)) if _computes(x) else None
