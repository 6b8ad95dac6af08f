"""Where the scale of the scores is multiplied."""

import math

import jax

from flax_attn.attention._core.problem import Problem


def split_scale(problem: Problem) -> tuple[float, float | jax.Array | None]:
    """The scale as two factors: of the queries before the dot product, of the scores after it.

    A traced scale comes after, for its gradient. A known one is multiplied with the queries, where
    it costs least; half-precision queries only take a power of two, which rounds nothing.
    """
    scale = problem.scale
    if not isinstance(scale, int | float):
        return 1.0, scale
    is_exact = problem.dtype == problem.scores_dtype or scale == 0
    if is_exact or abs(math.frexp(scale)[0]) == 0.5:
        return float(scale), None
    return 1.0, scale
