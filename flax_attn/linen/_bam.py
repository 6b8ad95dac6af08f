"""The bottleneck attention module as a Linen module."""

from typing import Any, Literal

import jax
from flax import linen as nn

from flax_attn._checks import Activation
from flax_attn.linen._module import NormModule
from flax_attn.linen._norm import BatchNorm
from flax_attn.vision import bam_gate
from flax_attn.vision._bam import bam_features


class BAM(NormModule, kw_only=True):
    """The bottleneck attention module, `flax_attn.vision.bam`.

    Parameters `reduce`, `reduce_norm`, `expand`, `conv_0 ...`, `conv_norm_0 ...`, `project`. Sows
    `gate` `[*B, H, W, C]`, the factor 1 + σ(M_c + M_s).

    Attributes:
      reduction: R = C // reduction.
      hidden_features: Explicit R; overrides `reduction`.
      kernel_size: Size of the dilated kernels, odd.
      dilation: Their dilation.
      num_convs: Number of dilated convolutions; they follow a pointwise one.
      use_bias: If True, the layers have biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> bam = linen.BAM(use_running_average=True)
      >>> bam.init_with_output(jax.random.key(0), jnp.ones((2, 7, 7, 16)))[0].shape
      (2, 7, 7, 16)
    """

    reduction: int = 16
    hidden_features: int | None = None
    kernel_size: int = 3
    dilation: int = 4
    num_convs: int = 2
    combine: Literal["add", "multiply"] = "add"
    use_bias: bool = True
    norm: Any = BatchNorm
    activation_fn: Activation = jax.nn.relu
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        x = self._image(x)
        features = x.shape[-1]
        hidden = bam_features(
            features,
            self.reduction,
            self.hidden_features,
            self.kernel_size,
            self.dilation,
            self.num_convs,
        )
        norm = self._norm(use_running_average)
        convs: list[nn.Module] = [self._dense(hidden, "conv_0", use_bias=self.use_bias)]
        for i in range(1, self.num_convs + 1):
            conv = self._conv(
                hidden,
                self.kernel_size,
                f"conv_{i}",
                use_bias=self.use_bias,
                dilation=self.dilation,
            )
            convs.append(conv)
        gate = bam_gate(
            x,
            self._dense(hidden, "reduce", use_bias=self.use_bias),
            norm(name="reduce_norm"),
            self._dense(features, "expand", use_bias=self.use_bias),
            convs,
            [norm(name=f"conv_norm_{i}") for i in range(self.num_convs + 1)],
            self._dense(1, "project", use_bias=self.use_bias),
            combine=self.combine,
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)
