"""A mask and a score modifier tried out, so that an error comes at once and says what to do."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from flax_attn._checks import broadcasts_to
from flax_attn._record import MissingFieldError
from flax_attn.attention._problem import Problem, freeze, thaw


def try_out(function: str, problem: Problem) -> None:
    """Trace the mask and the score modifier, without computing anything.

    Raises:
      ValueError: If a field is missing, or a shape does not broadcast.
      TypeError: If one of them captures a traced array.
    """
    leaves, tree = jax.tree.flatten(freeze(problem))
    avals = tuple(jax.typeof(leaf) for leaf in leaves)
    _try_out(function, tree, avals)


@functools.lru_cache(maxsize=1024)
def _try_out(function: str, tree: Any, avals: tuple[Any, ...]) -> None:
    unflatten: Any = tree.unflatten
    problem = thaw(unflatten(avals))
    shape = (*problem.batch, problem.sizes[2], *problem.sizes[:2])

    def run(leaves: Any) -> Any:
        trial = thaw(unflatten(leaves))
        q, k = trial.records()
        seen = trial.visible()
        scores = jnp.zeros(shape, trial.scores_dtype)
        if trial.score_mod is None:
            return seen, scores
        return seen, trial.score_mod(scores, q, k, q.head_ids)

    try:
        closed = jax.make_jaxpr(run)(avals)
    except MissingFieldError as error:
        raise ValueError(f"{function}: {error}") from None
    for x in closed.consts:
        if isinstance(x, jax.core.Tracer):
            raise TypeError(
                f"{function}: the mask or score modifier captures an array {x.dtype}"
                f"{list(x.shape)} of a surrounding transformation, which cannot follow it there. "
                f"Make it a parameter: near(radius=radius) of a relation, or "
                f"scores.score_mod(function, table=table)."
            )
    for name, aval in zip(("mask", "score_mod"), closed.out_avals, strict=True):
        if not broadcasts_to(aval.shape, shape):
            raise ValueError(
                f"{function}: what {name} returns must broadcast to the scores [*B, N, T, S] = "
                f"{list(shape)}, got {list(aval.shape)}. Write it elementwise."
            )
