"""Counter-based dropout of attention weights: the same weights are dropped on every path."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from flax_attn._functions import kind_of
from flax_attn._pytree import pytree, static


@pytree
class Dropout:
    """Drop each attention weight with probability `rate`; scale the others by 1 / (1 − rate).

    Whether a weight is dropped depends only on the random key and on the global numbers of its
    batch element, head, query and key. It does not depend on shapes, blocks or devices, so every
    device and every implementation drops the same weights. The number of a token is its index in
    its sequence, `Coords.numbers`, not its position: packed documents whose positions restart, and
    the siblings of a tree, are dropped independently.

    Attributes:
      rate: Probability of dropping a weight, in [0, 1]. At 1 the output is 0, with zero gradients.
        The gradient with respect to a rate is that of 1 / (1 − rate); the pattern has none.
      key: A JAX random key.
      broadcast: If True, all batch elements and heads share one pattern (Flax's
        `broadcast_dropout`).
      batch_ids: Global number of each batch element, in row-major order. A device that holds a part
        of the batch needs it; None counts from 0.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import Dropout, dot_product_attention
      >>> x = jnp.ones((2, 5, 4, 8))
      >>> dot_product_attention(x, x, x, dropout=Dropout(0.1, jax.random.key(0))).shape
      (2, 5, 4, 8)

    References:
      Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011 (Threefry).
    """

    rate: float | Float[Array, ""]
    key: Key[Array, ""] | UInt32[Array, "2"]
    broadcast: bool = static(default=False)
    batch_ids: Int[Array, "B"] | None = None

    def keep(
        self,
        batch: tuple[int, ...],
        head_ids: Int[Array, "N"],
        query_ids: Int[Array, "T"],
        key_ids: Int[Array, "S"],
    ) -> Bool[Array, "*B N T S"]:
        """Which weights are kept.

        Args:
          batch: The leading shape `*B`.
          head_ids: Global number of each head `[N]`.
          query_ids: Number of each query in its sequence `[T]`, as in `Coords.numbers`.
          key_ids: Number of each key `[S]`.

        Returns:
          True where a weight is kept, `[*B, N, T, S]`; `[*1, 1, T, S]` if the pattern is shared.
        """
        if self.broadcast:
            batch, batch_ids, head_ids = (1,) * len(batch), jnp.zeros(1, int), jnp.zeros(1, int)
        elif self.batch_ids is not None:
            batch_ids = self.batch_ids
        else:
            batch_ids = jnp.arange(math.prod(batch))

        rank = (1,) * len(batch)
        return keep_weights(
            (self.rate, self.seed()),
            batch_ids.reshape(*batch, 1, 1, 1),
            head_ids.reshape(*rank, -1, 1, 1),
            query_ids.reshape(*rank, 1, -1, 1),
            key_ids.reshape(*rank, 1, 1, -1),
        )

    def seed(self) -> UInt32[Array, "2"]:
        """The key of any of JAX's generators, as a key of the cipher."""
        return jnp.stack(_two_words(self.key))


def keep_weights(
    drop: tuple[float | Float[Array, ""], UInt32[Array, "2"]],
    batch_ids: Int[Array, "..."],
    head_ids: Int[Array, "..."],
    query_ids: Int[Array, "..."],
    key_ids: Int[Array, "..."],
) -> Bool[Array, "..."]:
    """Which weights are kept, for a rate and a seed, and numbers that broadcast."""
    rate, seed = drop
    # One cipher key for each batch element and head, one counter for each query and key. This is
    # not jax.random, whose bits depend on the shape.
    batch_ids, head_ids, query_ids, key_ids = (
        ids.astype(jnp.uint32) for ids in (batch_ids, head_ids, query_ids, key_ids)
    )
    key = threefry2x32(seed[0], seed[1], batch_ids, head_ids)
    bits, _ = threefry2x32(*key, query_ids, key_ids)
    uniform = (bits >> 8).astype(jnp.float32) * 2.0**-24
    return uniform >= jnp.asarray(rate, jnp.float32)


def check_dropout(function: str, dropout: Dropout | None, batch: tuple[int, ...]) -> None:
    """Raise unless `dropout` is None, or fits the batch."""
    if dropout is None:
        return
    if not isinstance(dropout, Dropout):
        raise TypeError(
            f"{function}: dropout must be a Dropout(rate, key), got {kind_of(dropout)}."
        )
    check_rate(function, dropout.rate)
    if not hasattr(dropout.key, "dtype") or not (
        (jnp.issubdtype(dropout.key.dtype, jax.dtypes.prng_key) and dropout.key.ndim == 0)
        or (dropout.key.dtype == jnp.uint32 and dropout.key.ndim == 1)
    ):
        raise TypeError(
            f"{function}: dropout.key must be one JAX key, got "
            f"{getattr(dropout.key, 'shape', dropout.key)}. Write jax.random.key(seed)."
        )
    count = math.prod(batch)
    if dropout.batch_ids is not None and np.shape(dropout.batch_ids) != (count,):
        raise ValueError(
            f"{function}: dropout.batch_ids must be one number for each batch element, "
            f"[{count}], got {list(np.shape(dropout.batch_ids))}."
        )


def check_rate(function: str, rate: float | Float[Array, ""]) -> None:
    """Raise unless a rate is one real number in [0, 1]. The value of a traced one is unknown."""
    is_number = isinstance(rate, int | float) or (
        hasattr(rate, "dtype") and jnp.issubdtype(rate.dtype, jnp.floating)
    )
    if not is_number or isinstance(rate, bool):
        kind = getattr(rate, "dtype", type(rate).__name__)
        raise TypeError(
            f"{function}: the dropout rate must be a number, got {kind}. Write Dropout(rate, key)."
        )
    if jnp.ndim(rate):
        raise ValueError(
            f"{function}: the dropout rate must be one number, got {list(jnp.shape(rate))}."
        )
    if not isinstance(rate, jax.core.Tracer) and not 0 <= rate <= 1:
        raise ValueError(f"{function}: the dropout rate must lie in [0, 1], got {rate}.")


def kept_share(rate: float | Float[Array, ""], dtype: jnp.dtype) -> Float[Array, ""]:
    """1 − rate, by which the kept weights are divided; 1 where nothing is kept."""
    share = jnp.asarray(1 - rate, dtype)
    return jnp.where(share > 0, share, 1)


def with_rate(output: Float[Array, "..."], dropout: Dropout | None) -> Float[Array, "..."]:
    """The same output, with the derivative of 1 / (1 − rate) with respect to an array `rate`.

    Inside the attention primitives the rate is a constant.
    """
    if dropout is None or not isinstance(dropout.rate, jax.Array):
        return output
    share = kept_share(dropout.rate, jnp.dtype(jnp.float32))
    return output * (lax.stop_gradient(share) / share).astype(output.dtype)


def _two_words(key: Array) -> tuple[Array, Array]:
    """A JAX key of any generator, as a key of the cipher."""
    words = (jax.random.key_data(key) if _is_typed(key) else key).reshape(-1)
    if words.size % 2:
        words = jnp.pad(words, (0, 1))
    words = words.reshape(-1, 2)
    first, second = words[0, 0], words[0, 1]
    for row in range(1, words.shape[0]):
        first, second = threefry2x32(first, second, words[row, 0], words[row, 1])
    return first, second


def _is_typed(key: Array) -> bool:
    return jnp.issubdtype(key.dtype, jax.dtypes.prng_key)


def threefry2x32(
    key0: UInt32[Array, "..."],
    key1: UInt32[Array, "..."],
    counter0: UInt32[Array, "..."],
    counter1: UInt32[Array, "..."],
) -> tuple[UInt32[Array, "..."], UInt32[Array, "..."]]:
    """The 20-round Threefry-2x32 block cipher of a counter under a key: two words.

    It consists of additions, rotations and exclusive-ors, so it runs inside any kernel and fuses
    with what surrounds it. JAX's own `threefry2x32_p` gives the same bits; for CPUs it is lowered
    to a loop over whole arrays, 25 to 50 times slower here (jaxlib 0.12.0.1). (Salmon et al. 2011.)
    """
    keys = (key0, key1, key0 ^ key1 ^ jnp.uint32(0x1BD11BDA))
    x, y = counter0 + keys[0], counter1 + keys[1]
    for group in range(5):
        for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x = x + y
            y = ((y << rotation) | (y >> (32 - rotation))) ^ x
        x = x + keys[(group + 1) % 3]
        y = y + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return x, y
