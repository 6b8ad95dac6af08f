"""The batch axes of a problem as one."""

import math

import jax
import jax.numpy as jnp

from flax_attn.attention._core.problem import Problem, Structure


def merge_batch(values: jax.Array, axes: str, batch: tuple[int, ...]) -> jax.Array:
    """An array with one batch axis, of size 1 where it is the same for the whole batch.

    Args:
      values: The array, with all batch axes, each of full size or of size 1.
      axes: Its letters. Without "b" it is returned as it is.
      batch: The leading shape `*B`.
    """
    if "b" not in axes:
        return values
    own, rest = values.shape[: len(batch)], values.shape[len(batch) :]
    if any(size != 1 for size in own) and own != batch:
        values = jnp.broadcast_to(values, (*batch, *rest))
        own = batch
    return values.reshape(math.prod(own), *rest)


def split_batch(
    values: jax.Array, batch: tuple[int, ...], shape: tuple[int, ...] | None = None
) -> jax.Array:
    """The inverse of `merge_batch`: an array with all batch axes.

    Args:
      values: The array, with one batch axis.
      batch: The leading shape `*B`.
      shape: The shape of the array that was merged, if it may have been broadcast. Then what was
        broadcast is summed. None = nothing was.
    """
    if shape is None:
        return values.reshape(*batch, *values.shape[1:])
    if math.prod(shape) != values.size:
        values = values.reshape(*batch, *values.shape[1:])
        axes = tuple(i for i, size in enumerate(shape) if size != values.shape[i])
        values = jnp.sum(values, axis=axes, keepdims=True)
    return values.reshape(shape)


def with_one_batch_axis(problem: Problem) -> Problem:
    """A problem with its batch axes merged."""
    leaves, structure = Structure.of(problem)
    batch = problem.batch
    merged = [merge_batch(x, a, batch) for x, a in zip(leaves, structure.letters, strict=True)]
    return structure.problem(merged)


def abstract(problem: Problem) -> Problem:
    """A problem with abstract values as leaves."""
    leaves, structure = Structure.of(problem)
    return structure.problem([jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves])


def abstract_with_one_batch_axis(problem: Problem) -> Problem:
    """A problem with its batch axes merged, and abstract values as leaves."""
    leaves, structure = Structure.of(abstract(problem))

    def merge(leaves: list[jax.Array]) -> list[jax.Array]:
        return Structure.of(with_one_batch_axis(structure.problem(leaves)))[0]

    return structure.problem(jax.eval_shape(merge, leaves))
