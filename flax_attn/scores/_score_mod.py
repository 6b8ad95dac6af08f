"""The base class of score modifiers, their composition, and modifiers made from functions."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flax_attn._functions import (
    by_name,
    call,
    check_function,
    check_parameters,
    from_name,
    kind_of,
    name_of,
)
from flax_attn._pytree import pytree, show_value, static
from flax_attn._record import Record


class ScoreMod:
    """A function of scores that is applied before the mask: `mod(scores, q, k, head_ids)`.

    Scores are scaled, and float32 (float64 for float64 inputs). `q` and `k` are records of
    coordinates, and `head_ids` are the global head ids of the queries. Their arrays have the rank
    of the scores `[..., heads, t, s]` and broadcast against them. Modifiers compose by `>>`, from
    left to right. They are pytrees, and every float leaf has a gradient.

    Attributes:
      per_head: Names of the fields that may hold one number per query head, on their last axis.
    """

    per_head: ClassVar[tuple[str, ...]] = ()

    def __call__(
        self,
        scores: Float[Array, "*B N t s"],
        q: Record,
        k: Record,
        head_ids: Int[Array, "..."],
    ) -> Float[Array, "*B N t s"]:
        """The modified scores."""
        raise NotImplementedError

    def __rshift__(self, other: "ScoreMod") -> "ScoreMod":
        return Pipe(self, other) if isinstance(other, ScoreMod) else _refuse(other)

    def __rrshift__(self, other: Any) -> "ScoreMod":
        return _refuse(other)

    __array_ufunc__ = None  # so that `array >> modifier` calls `__rrshift__` of the modifier

    def __bool__(self) -> bool:
        raise TypeError("a ScoreMod has no truth value. Compose by >>, not by and, or, not.")

    def _only_composes(self, *_: Any) -> "ScoreMod":
        raise TypeError(
            "score modifiers compose by >>, from left to right: first >> second. To add an array "
            "write first >> scores.Bias(array); to multiply, first >> scores.Scale(factor). A mask "
            "is a separate argument of attention: mask=..."
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _only_composes
    __truediv__ = __rtruediv__ = __matmul__ = __neg__ = __lshift__ = __invert__ = _only_composes
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = _only_composes


def _refuse(other: Any) -> Any:
    """Raise `TypeError`: the other operand is not a score modifier."""
    raise TypeError(
        f"a ScoreMod composes with a ScoreMod by >>, got {kind_of(other)}. {how_to_modify(other)}"
    )


def how_to_modify(x: Any) -> str:
    """Advice on how to make a score modifier from an object of another type."""
    if isinstance(x, type) and issubclass(x, ScoreMod):
        return f"Call it: scores.{x.__name__}(...)."
    if callable(x) and hasattr(x, "__name__"):
        return "Wrap a function: scores.score_mod(function)."
    if hasattr(x, "dtype"):
        return "To add an array write scores.Bias(array), or pass it as the argument bias."
    if isinstance(x, list | tuple):
        return "Compose several by >>: first >> second."
    return "Score modifiers are in flax_attn.scores. A mask is the argument mask."


@pytree
class Pipe(ScoreMod):
    """The composition `a >> b`: first a, then b."""

    first: ScoreMod
    second: ScoreMod

    def __call__(
        self, scores: Float[Array, "..."], q: Record, k: Record, head_ids: Int[Array, "..."]
    ) -> Float[Array, "..."]:
        return self.second(self.first(scores, q, k, head_ids), q, k, head_ids)

    def __repr__(self) -> str:
        return f"{self.first!r} >> {self.second!r}"


@pytree
class Modifier(ScoreMod):
    """A score modifier made by `score_mod`."""

    parameters: dict[str, Any]
    function: Callable[..., Float[Array, "..."]] = static()

    def __call__(
        self, scores: Float[Array, "..."], q: Record, k: Record, head_ids: Int[Array, "..."]
    ) -> Float[Array, "..."]:
        inputs = scores, q, k, head_ids
        modified = call(self.function, "score modifier", *inputs, **self.parameters)
        dtype = getattr(modified, "dtype", None)
        if dtype == jnp.bool_ or (dtype is None and type(modified) not in (int, float)):
            raise TypeError(
                f"{name_of(self.function)}: a score modifier must return the new scores, got "
                f"{type(modified).__name__ if dtype is None else dtype}. "
                f"{_RELATION if dtype == jnp.bool_ else 'Return them: return scores + ...'}"
            )
        return modified

    def __reduce__(self) -> Any:
        return _restore, (self.parameters, by_name(self.function))

    def __repr__(self) -> str:
        values = (f"{name}={show_value(x)}" for name, x in self.parameters.items())
        return f"{name_of(self.function)}({', '.join(values)})"


_RELATION = "A function that returns booleans is a mask: masks.relation(function)."


def _restore(parameters: dict[str, Any], named: Any) -> Modifier:
    return Modifier(parameters, from_name(named))


def score_mod(function: Callable[..., Float[Array, "..."]], **parameters: Any) -> ScoreMod:
    """Make a score modifier from a function.

    Args:
      function: Called as `function(scores, q, k, head_ids, **parameters)`; returns the new scores.
        It must work elementwise on tiles of any size. Arrays that it needs must be parameters; it
        must not capture them.
      **parameters: Numbers and arrays. They become leaves, and floats have gradients. The function
        gets each array whole, except for arrays over batch elements, heads, queries or keys. Such
        an array is given as `coords.Aligned(array, axes)` with a letter for each axis, and the
        function gets the part that belongs to its scores as `.values`. Examples are the position
        terms of Transformer-XL (queries and distances, `"bntr"`), the edge features of Graphormer
        (pairs, `"bnts"`) and parameters of each batch element (`"bn"`).

    Returns:
      A `ScoreMod`.

    Raises:
      TypeError: If `function` is not a function of these parameters. When attention calls it: if it
        does not return scores, or branches on the value of an array (`and`, `or`, `not`, `if`,
        `a < b < c`).

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import scores
      >>> def decay(scores, q, k, head_ids, *, rates):
      ...     return scores - rates[head_ids] * abs(q.positions - k.positions)
      >>> scores.score_mod(decay, rates=jnp.ones(8)) >> scores.SoftCap(30.0)
      decay(rates=float32[8]) >> SoftCap(cap=30.0)

      Transformer-XL adds the product of each query with a vector r of the distance,
      (q_i + v) · r_ij / √D. Here the products are computed once for all distances,
      `[B, N, T, R]`, and the modifier looks them up:

      >>> import jax
      >>> from flax_attn import dot_product_attention
      >>> from flax_attn.coords import Aligned
      >>> def position_term(scores, q, k, head_ids, *, table):
      ...     row = jnp.clip(q.positions - k.positions, 0, table.values.shape[-1] - 1)
      ...     return scores + jnp.take_along_axis(table.values, row, axis=-1)
      >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 16, 4, 8))
      >>> r, bias = jax.random.normal(jax.random.key(1), (16, 4, 8)), jnp.zeros((1, 1, 4, 8))
      >>> table = jnp.einsum("btnd,rnd->bntr", q + bias, r) / 8**0.5
      >>> by_distance = scores.score_mod(position_term, table=Aligned(table, "bntr"))
      >>> dot_product_attention(q, k, v, is_causal=True, score_mod=by_distance).shape
      (2, 16, 4, 8)

    References:
      Dai, Yang, Yang, Carbonell, Le, Salakhutdinov, "Transformer-XL: Attentive Language Models
      beyond a Fixed-Length Context", ACL 2019, arXiv:1901.02860, section 3.3; Ying, Cai, Luo,
      Zheng, Ke, He, Shen, Liu, "Do Transformers Really Perform Bad for Graph Representation?",
      NeurIPS 2021, arXiv:2106.05234.
    """
    if isinstance(function, ScoreMod):
        raise TypeError(
            f"score_mod: function must be a function, got {function!r}, which is already a score "
            f"modifier. Use it as it is."
        )
    check_function("score_mod", function, "def decay(scores, q, k, head_ids, *, rates)")
    check_parameters(function, "scores, q, k, head_ids", parameters)
    return Modifier(parameters, function)
