"""Attention over parts of the keys, and merging of the parts."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flax_attn._pytree import pytree
from flax_attn.attention._core.arguments import check_options
from flax_attn.attention._core.normalize import normalize
from flax_attn.attention._core.primitive import attend
from flax_attn.attention._core.selection import as_candidates, refuse_early
from flax_attn.attention.dropout import with_rate
from flax_attn.masks import Mask
from flax_attn.normalizers import Normalizer, Softmax, check_normalizer, log_add, with_sink


@pytree
class Partial:
    """Attention over some of the keys.

    Attributes:
      output: The output of these keys alone `[*B, T, N, Dv]`, in float32 (float64).
      lse: Their LSE `[*B, T, N]`; None for a normaliser without one, such as `Sigmoid`.

    Example:
      >>> import jax
      >>> from flax_attn import attention
      >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 16, 4, 8))
      >>> attention.partial(q, k, v)
      Partial(output=float32[2, 16, 4, 8], lse=float32[2, 16, 4])
    """

    output: Float[Array, "*B T N Dv"]
    lse: Float[Array, "*B T N"] | None


def partial(
    query: Float[Array, "*B T N D"],
    key: Float[Array, "*B S K D"],
    value: Float[Array, "*B S K Dv"],
    bias: Float[Array, "..."] | None = None,
    mask: Mask | Bool[Array, "..."] | None = None,
    **options: Any,
) -> Partial:
    """Attention over some of the keys. `merge` joins several parts.

    Args:
      query: As in `dot_product_attention`.
      key: Some of the keys.
      value: Their values.
      bias: As in `dot_product_attention`, for these keys.
      mask: As in `dot_product_attention`; `key_coords` says which keys these are.
      **options: As in `dot_product_attention`. A sink is applied by `finalize`, not here.

    Returns:
      A `Partial`.

    Raises:
      ValueError: As `dot_product_attention`.
      TypeError: As `dot_product_attention`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import attention, dot_product_attention
      >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 16, 4, 8))
      >>> parts = [attention.partial(q, k[:, s], v[:, s]) for s in (slice(0, 5), slice(5, 16))]
      >>> out, lse = attention.finalize(attention.merge(parts))
      >>> bool(jnp.allclose(out, dot_product_attention(q, k, v), atol=1e-6))
      True
    """
    implementation = options.pop("implementation", None)
    check_options("partial", options)
    problem = normalize("partial", query, key, value, bias, mask, **options)
    problem = problem.with_output(problem.scores_dtype)
    candidates = as_candidates("partial", implementation)
    refuse_early("partial", problem, candidates)
    if not problem.normalizer.folds:
        name = type(problem.normalizer).__name__
        raise ValueError(f"partial: rows of the normaliser {name} cannot be cut into parts.")
    output, lse = attend(problem, candidates)
    output = with_rate(output, options.get("dropout"))
    return Partial(output, lse if problem.normalizer.coupled else None)


def merge(partials: Sequence[Partial]) -> Partial:
    """Join attention over disjoint sets of keys.

    LSE = log Σ_i exp(LSE_i),  O = Σ_i exp(LSE_i − LSE) O_i;  without LSE: O = Σ_i O_i

    It is associative and commutative; a part without keys (0, −∞) changes nothing.

    Args:
      partials: One or more parts, of the same queries.

    Returns:
      Attention over all keys.

    Raises:
      ValueError: If there is no part, or their shapes or kinds differ.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import attention
      >>> q = jnp.zeros((1, 1, 2))
      >>> one = attention.partial(q, q, jnp.ones((1, 1, 2)))
      >>> three = attention.partial(q, q, 3 * jnp.ones((1, 1, 2)))
      >>> attention.merge([one, three]).output
      Array([[[2., 2.]]], dtype=float32)

    References:
      Dao, Haziza, Massa, Sizov, "Flash-Decoding for long-context inference", 2023.
    """
    if isinstance(partials, Partial):
        raise TypeError("merge: the parts must be a list, got one Partial. Write merge([part]).")
    partials = list(partials)
    if not partials:
        raise ValueError("merge: there must be at least one part, got none.")
    for part in partials:
        if not isinstance(part, Partial):
            raise TypeError(
                f"merge: the parts must be Partial, got {type(part).__name__}. Make them by "
                f"partial(query, key, value)."
            )
        if part.output.shape != partials[0].output.shape:
            raise ValueError(
                f"merge: the parts must have the same queries, got outputs "
                f"{list(partials[0].output.shape)} and {list(part.output.shape)}."
            )
        if (part.lse is None) != (partials[0].lse is None):
            raise ValueError("merge: the parts must all have an LSE, or none of them.")
    return functools.reduce(_join, partials)


def _join(a: Partial, b: Partial) -> Partial:
    if a.lse is None or b.lse is None:
        return Partial(a.output + b.output, None)
    # No gradient passes through rows that are undefined: 0 · NaN would reach the other part.
    no_lse = jnp.isnan(a.lse) | jnp.isnan(b.lse)
    lse_a, lse_b = (jnp.where(no_lse, 0, part) for part in (a.lse, b.lse))
    lse = log_add(lse_a, lse_b)
    no_output = jnp.isnan(a.output) | jnp.isnan(b.output)
    output = sum(
        _weight(part_lse, lse)[..., None] * jnp.where(no_output, 0, part_output)
        for part_lse, part_output in ((lse_a, a.output), (lse_b, b.output))
    )
    return Partial(jnp.where(no_output, jnp.nan, output), jnp.where(no_lse, jnp.nan, lse))


def _weight(part_lse: jax.Array, lse: jax.Array) -> jax.Array:
    """exp(LSE_i − LSE), 0 for a part without keys."""
    empty = jnp.isneginf(part_lse)
    return jnp.where(empty, 0, jnp.exp(jnp.where(empty, 0, part_lse) - jnp.where(empty, 0, lse)))


def finalize(
    partial: Partial, normalizer: Normalizer = Softmax(), *, dtype: Any = None
) -> tuple[Float[Array, "*B T N Dv"], Float[Array, "*B T N"] | None]:
    """The output and the LSE, after all parts are merged.

    Args:
      partial: Attention over all keys.
      normalizer: That of the parts. A sink is applied here.
      dtype: The dtype of the output, default that of the partial (float32).

    Returns:
      The output `[*B, T, N, Dv]`, and the LSE `[*B, T, N]` or None.

    Raises:
      ValueError: If the sink is neither one number nor one per head, or the parts have no LSE.
      TypeError: If an argument is of the wrong kind.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import Softmax, attention
      >>> q = jnp.zeros((1, 1, 2))
      >>> part = attention.partial(q, q, jnp.ones((1, 1, 2)))
      >>> attention.finalize(part, Softmax(sink=jnp.zeros(())))[0]   # half goes to the sink
      Array([[[0.5, 0.5]]], dtype=float32)
    """
    if not isinstance(partial, Partial):
        raise TypeError(
            f"finalize: partial must be a Partial, got {type(partial).__name__}. Join parts first: "
            f"finalize(merge(parts))."
        )
    output, lse = partial.output, partial.lse
    check_normalizer("finalize", normalizer, output.shape[-2])
    if lse is None and getattr(normalizer, "sink", None) is not None:
        raise ValueError(
            "finalize: a sink needs the LSE, which these parts do not have. Make them by "
            "partial(..., normalizer=Softmax())."
        )
    if lse is not None:
        output, lse = with_sink(normalizer, output, lse)
    return output if dtype is None else output.astype(dtype), lse
