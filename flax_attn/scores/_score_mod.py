"""Score modifiers and their composition."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float, Int

from flax_attn._pytree import pytree, show_value, static
from flax_attn._record import Record


class ScoreMod:
    """What is done to a score before masking: `mod(scores, q, k, head_ids) -> scores`.

    Scores are float32 (float64 for float64 inputs) and already scaled; `q` and `k` are records of
    coordinates, and `head_ids` the global numbers of the query heads, all of one rank and broadcast
    against the scores `[..., heads, t, s]`. Modifiers compose by `>>`, from left to right. They are
    pytrees; every float leaf is differentiable.
    """

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
        if not isinstance(other, ScoreMod):
            raise TypeError(
                f"a ScoreMod composes with a ScoreMod by >>, got {type(other).__name__}. Wrap a "
                f"function: scores.score_mod(function)."
            )
        return Pipe(self, other)


@pytree
class Pipe(ScoreMod):
    """One after the other: `a >> b`."""

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
        return self.function(scores, q, k, head_ids, **self.parameters)

    def __repr__(self) -> str:
        values = (f"{name}={show_value(x)}" for name, x in self.parameters.items())
        return f"{self.function.__name__}({', '.join(values)})"


def score_mod(function: Callable[..., Float[Array, "..."]], **parameters: Any) -> ScoreMod:
    """Make a score modifier of a function.

    Args:
      function: Called as `function(scores, q, k, head_ids, **parameters)`; returns the new scores.
        It must work elementwise on tiles of any size. Arrays that it needs are parameters, not
        captured.
      **parameters: Numbers and arrays; they become leaves, and the float ones get gradients.

    Returns:
      A `ScoreMod`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import scores
      >>> def decay(scores, q, k, head_ids, *, rates):
      ...     return scores - rates[head_ids] * abs(q.positions - k.positions)
      >>> scores.score_mod(decay, rates=jnp.ones(8)) >> scores.SoftCap(30.0)
      decay(rates=float32[8]) >> SoftCap(cap=30.0)
    """
    return Modifier(parameters, function)
