"""The two dot products of attention, at once or a block of keys at a time."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn.attention._core.problem import Problem


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How products read the keys: the first `num_keys`, `size` at a time.

    XLA for CPUs copies an operand of a dot product that is a part of an array, or of half
    precision. The copy of a block stays in the caches of the CPU, so memory is read only once. (One
    step over 2,000 of 16,384 keys: 4.6 ms by one copy, 0.8 ms by blocks; jaxlib 0.12.0.)

    Attributes:
      num_keys: How many keys are read.
      size: How many at a time.
      by_element: Whether batch elements are read one at a time too.
    """

    num_keys: int
    size: int
    by_element: bool


def key_product(
    problem: Problem, query_BKRD: jax.Array, key_BKSD: jax.Array, blocks: Blocks | None
) -> jax.Array:
    """Q Kᵀ, `[*B, K, R, S]`."""

    def product(query: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.einsum(
            "...krd,...ksd->...krs",
            query,
            key,
            precision=problem.precision,
            preferred_element_type=problem.scores_dtype,
        )

    if blocks is None:
        return product(query_BKRD, key_BKSD)
    query, key = _with_one_batch_axis(query_BKRD), _with_one_batch_axis(key_BKSD)

    def add(
        scores: jax.Array, element: jax.Array, elements: int, first: jax.Array, size: int
    ) -> jax.Array:
        rows = lax.dynamic_slice_in_dim(query, element, elements)
        part = product(rows, _block(key, element, elements, first, size))
        return lax.dynamic_update_slice(scores, part, (element, 0, 0, first))

    scores = jnp.zeros((*query.shape[:-1], blocks.num_keys), problem.scores_dtype)
    scores = _for_each_block(blocks, add, scores)
    return scores.reshape(*query_BKRD.shape[:-1], blocks.num_keys)


def value_product(
    problem: Problem, weights_BKRS: jax.Array, value_BKSD: jax.Array, blocks: Blocks | None
) -> jax.Array:
    """P V, `[*B, K, R, Dv]`."""

    def product(weights: jax.Array, value: jax.Array) -> jax.Array:
        return jnp.einsum(
            "...krs,...ksd->...krd",
            weights,
            value,
            precision=problem.precision,
            preferred_element_type=problem.scores_dtype,
        )

    if blocks is None:
        return product(weights_BKRS, value_BKSD)
    weights, value = _with_one_batch_axis(weights_BKRS), _with_one_batch_axis(value_BKSD)
    heads, rows = weights.shape[1:3]

    def add(
        output: jax.Array, element: jax.Array, elements: int, first: jax.Array, size: int
    ) -> jax.Array:
        columns = lax.dynamic_slice(weights, (element, 0, 0, first), (elements, heads, rows, size))
        part = product(columns, _block(value, element, elements, first, size))
        total = lax.dynamic_slice_in_dim(output, element, elements) + part
        return lax.dynamic_update_slice_in_dim(output, total, element, 0)

    output = jnp.zeros((*weights.shape[:-1], value.shape[-1]), problem.scores_dtype)
    output = _for_each_block(blocks, add, output)
    return output.reshape(*weights_BKRS.shape[:-1], value.shape[-1])


Add = Callable[[jax.Array, jax.Array, int, jax.Array, int], jax.Array]
"""`add(result, element, elements, first, size)`: add what a block contributes to the result.

The block has `elements` batch elements from `element` on, and `size` keys from `first` on.
"""


def _for_each_block(blocks: Blocks, add: Add, result: jax.Array) -> jax.Array:
    batch = result.shape[0]
    elements = 1 if blocks.by_element else batch
    whole, rest = divmod(blocks.num_keys, blocks.size)

    def of_elements(i: jax.Array, result: jax.Array) -> jax.Array:
        def of_keys(j: jax.Array, result: jax.Array) -> jax.Array:
            return add(result, i * elements, elements, j * blocks.size, blocks.size)

        result = lax.fori_loop(0, whole, of_keys, result)
        if rest:
            result = add(result, i * elements, elements, jnp.int32(blocks.num_keys - rest), rest)
        return result

    if not blocks.by_element:
        return of_elements(jnp.int32(0), result)
    return lax.fori_loop(0, batch, of_elements, result)


def _block(
    array_BKSD: jax.Array, element: jax.Array, elements: int, first: jax.Array, size: int
) -> jax.Array:
    _, heads, _, features = array_BKSD.shape
    return lax.dynamic_slice(array_BKSD, (element, 0, first, 0), (elements, heads, size, features))


def _with_one_batch_axis(array: jax.Array) -> jax.Array:
    return array.reshape(math.prod(array.shape[:-3]), *array.shape[-3:])
