"""Triplet attention as a Linen module."""

from typing import Any

import jax
from flax import linen as nn

from flax_attn._checks import Activation, check_odd
from flax_attn.linen._module import NormModule
from flax_attn.linen._norm import SlowBatchNorm
from flax_attn.vision._triplet_attention import triplet_attention_and_gate


class TripletAttention(NormModule, kw_only=True):
    """Triplet attention, `flax_attn.vision.triplet_attention`.

    Parameters `conv_cw`, `norm_cw`, `conv_hc`, `norm_hc`, `conv_hw`, `norm_hw`. Sows `gate`
    `[*B, H, W, C]`, the mean of the gates of all planes.

    Attributes:
      kernel_size: Size of the kernels, odd.
      use_spatial: If True, the plane (H, W) has a gate, too.
      use_bias: If True, the convolutions have biases.
      norm: As in all modules that normalise; by default with the momentum of the released code: an
        update has weight 0.01.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> attention = linen.TripletAttention(use_running_average=True)
      >>> attention.init_with_output(jax.random.key(0), jnp.ones((2, 7, 7, 16)))[0].shape
      (2, 7, 7, 16)
    """

    kernel_size: int = 7
    use_spatial: bool = True
    use_bias: bool = False
    norm: Any = SlowBatchNorm
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        size = check_odd("TripletAttention", self.kernel_size)
        norm = self._norm(use_running_average)
        layers: dict[str, Any] = {}
        for plane in ("cw", "hc", "hw") if self.use_spatial else ("cw", "hc"):
            layers[f"conv_{plane}"] = self._conv(1, size, f"conv_{plane}", use_bias=self.use_bias)
            layers[f"norm_{plane}"] = norm(name=f"norm_{plane}")
        y, gate = triplet_attention_and_gate(x, **layers, gate_fn=self.gate_fn)
        self.sow("intermediates", "gate", gate)
        return y
