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

    def normalize(
        self, scores: Float[Array, "*B N T S"]
    ) -> tuple[Float[Array, "*B N T S"], Float[Array, "*B N T"]]:
        """Weights and LSE of rows of scores.

        Args:
          scores: Scores `[*B, N, T, S]` in float32 or float64, −∞ where masked.

        Returns:
          The weights p `[*B, N, T, S]` and LSE = log(Σ exp(s) + exp(sink)) `[*B, N, T]`.
        """
        peak = jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf)
        sink = None
        if self.sink is not None:
            sink = jnp.asarray(self.sink, scores.dtype).reshape(-1, 1, 1)  # [N | 1, 1, 1]
            sink = sink.reshape((1,) * (scores.ndim - 3) + sink.shape)
            peak = jnp.maximum(peak, sink)
        # Shifting a row changes neither its weights nor its LSE: the shift has no gradient. A row
        # without keys has neither peak nor sum; finite numbers below all others stand in for them
        # (a sum is at least the peak's 1). Two maxima, and not two selects: XLA then keeps the
        # softmax and both dot products around it in one loop on a CPU.
        peak = jax.lax.stop_gradient(peak)
        shift = jnp.maximum(peak, jnp.finfo(scores.dtype).min)
        weights = jnp.exp(scores - shift)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        if sink is not None:
            total = total + jnp.exp(sink - shift)
        total = jnp.maximum(total, 0.5)
        lse = jnp.where(jnp.isneginf(peak), -jnp.inf, shift + jnp.log(total))
        return weights / total, lse[..., 0]
