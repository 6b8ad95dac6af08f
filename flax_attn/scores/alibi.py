"""Attention with linear biases."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flax_attn._checks import check_positive
from flax_attn._pytree import pytree
from flax_attn._record import Record
from flax_attn.scores._leaves import as_leaf, of_heads
from flax_attn.scores._score_mod import ScoreMod


@pytree
class ALiBi(ScoreMod):
    """Attention with linear biases (ALiBi): a penalty that grows with the distance.

    s ← s − m_h · |i − j|

    The paper uses causal attention, where |i − j| = i − j. For bidirectional attention this is the
    symmetric form.

    Attributes:
      slopes: m, one per head of the whole model `[N]`, or one number for all heads.
        `ALiBi.for_heads(N)` makes the slopes of the paper. They have gradients.

    Raises:
      ValueError: If the slopes have another shape.
      TypeError: If the slopes are not floating point.

    Example:
      >>> from flax_attn import scores
      >>> scores.ALiBi.for_heads(4).slopes
      Array([0.25      , 0.0625    , 0.015625  , 0.00390625], dtype=float32)

    References:
      Press, Smith, Lewis, "Train Short, Test Long: Attention with Linear Biases Enables Input
      Length Extrapolation", ICLR 2022, arXiv:2108.12409, section 3.
    """

    slopes: float | int | Float[Array, ""] | Float[Array, "N"]

    per_head: ClassVar = ("slopes",)

    def __post_init__(self) -> None:
        slopes = as_leaf("ALiBi: slopes", self.slopes, {1: "one per head [N]", 0: "a number"})
        object.__setattr__(self, "slopes", slopes)

    @classmethod
    def for_heads(cls, num_heads: int) -> "ALiBi":
        """The slopes of the paper: m_h = 2^(−8 (h + 1) / N) if N is a power of two.

        For other N, as in the paper's code: the slopes of P heads, where P is the largest power of
        two below N, then every other slope of 2 P heads.

        Args:
          num_heads: N, the number of heads of the whole model.

        Returns:
          A modifier whose `slopes` are float32 `[N]`.

        Raises:
          ValueError: If `num_heads` is below 1.
          TypeError: If `num_heads` is not an integer.
        """
        num_heads = check_positive("ALiBi.for_heads", "num_heads", num_heads)
        power = 2 ** (num_heads.bit_length() - 1)
        exponents = [8 * (h + 1) / power for h in range(power)]
        exponents += [4 * (2 * h + 1) / power for h in range(num_heads - power)]
        return cls(jnp.asarray([2.0**-x for x in exponents], jnp.float32))

    def __call__(
        self, scores: Float[Array, "..."], q: Record, k: Record, head_ids: Int[Array, "..."]
    ) -> Float[Array, "..."]:
        """See `ScoreMod`."""
        slopes = of_heads("ALiBi: slopes", self.slopes, head_ids, scores.dtype)
        return scores - slopes * abs(q.positions - k.positions).astype(scores.dtype)
