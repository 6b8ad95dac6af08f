"""Normalisers: from a row of scores to a row of weights."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Softmax:
    """The softmax over the keys, optionally with a sink.

    p_ts = exp(s_ts) / (Σ_s' exp(s_ts') + exp(sink))

    A row whose scores are all −∞ (every key masked) has the weights 0 and the LSE −∞ (with a sink:
    the sink), with zero gradients.

    Attributes:
      sink: A logit per head `[N]`, or one for all `[]`, that takes part in the sum but has no
        value: the row's weights then add up to less than one. `None` is the plain softmax; a
        sink of 0 is "softmax one".

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import Softmax
      >>> Softmax(sink=jnp.zeros(())).sink.shape
      ()

    References:
      Xiao, Tian, Chen, Han, Lewis, "Efficient Streaming Language Models with Attention Sinks",
      ICLR 2024, arXiv:2309.17453 (sinks as tokens); OpenAI, "gpt-oss-120b & gpt-oss-20b Model
      Card", 2025, arXiv:2508.10925 (sinks as logits).
    """

    sink: Float[Array, "#N"] | Float[Array, ""] | None = None

    def unnormalized(
        self, scores: Float[Array, "*B N T S"]
    ) -> tuple[Float[Array, "*B N T S"], Float[Array, "*B N T"], Float[Array, "*B N T"]]:
        """Weights before the division, what they are divided by, and the LSE.

        Args:
          scores: Scores `[*B, N, T, S]` in float32 or float64, −∞ where masked.

        Returns:
          exp(s − m) `[*B, N, T, S]`, its row sums with the sink, never 0, `[*B, N, T]`, and
          LSE = log(Σ exp(s) + exp(sink)) `[*B, N, T]`. A row with a score of NaN or +∞ has no
          softmax: its LSE is NaN and its weights are 0, so that nothing of it enters a gradient.
        """
        peak = jnp.max(scores, axis=-1, initial=-jnp.inf)
        sink = None
        if self.sink is not None:
            sink = jnp.asarray(self.sink, scores.dtype).reshape(-1, 1)  # [N | 1, 1]
            sink = sink.reshape((1,) * (peak.ndim - 2) + sink.shape)
            peak = jnp.maximum(peak, sink)
        # Shifting a row changes neither its weights nor its LSE: the shift has no gradient.
        peak = jax.lax.stop_gradient(peak)
        undefined = ~(peak < jnp.inf)  # +inf or NaN
        shift = jnp.where(undefined | jnp.isneginf(peak), 0, peak)
        weights = jnp.exp(jnp.where(undefined[..., None], -jnp.inf, scores) - shift[..., None])
        total = jnp.sum(weights, axis=-1)
        if sink is not None:
            total = total + jnp.exp(jnp.where(undefined, -jnp.inf, sink) - shift)
        empty = total == 0
        total = jnp.where(empty, 1, total)
        lse = jnp.where(empty, -jnp.inf, shift + jnp.log(total))
        return weights, total, jnp.where(undefined, jnp.nan, lse)
