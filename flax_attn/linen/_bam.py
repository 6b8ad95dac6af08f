"""BAM as a Linen module."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import (
    Activation,
    check_at_least,
    check_odd,
    check_positive,
    reduced_features,
)
from flax_attn.linen._layers import Conv, Dense
from flax_attn.linen._module import Module
from flax_attn.linen._norm import BatchNorm, with_phase
from flax_attn.vision import bam_gate
from flax_attn.vision._checks import as_image
from flax_attn.vision._gates import apply_gate


class BAM(Module, kw_only=True):
    """The bottleneck attention module, `flax_attn.vision.bam`.

    Parameters `reduce`, `reduce_norm`, `expand`, `conv_0 ...`, `conv_norm_0 ...`, `project`; sows
    `gate` `[*B, H, W, C]`, the factor 1 + σ(M_c + M_s).

    Attributes:
      reduction: R = C // reduction.
      hidden_features: R, if not by the reduction.
      kernel_size: Width of the dilated kernels, odd.
      dilation: Spacing of their taps.
      num_convs: Number of dilated convolutions, after the pointwise one.
      combine: `"add"` as in the paper, `"multiply"` as in its released code.
      use_bias: Whether the maps have biases.
      norm: Makes each normalisation; by default batch normalisation with PyTorch's momentum and an
        exact variance. One of your own may know its phase:
        `functools.partial(nn.BatchNorm, use_running_average=not train)`.
      use_running_average: Whether the statistics are the running ones (`not train`); required by
        the default `norm`, and passed to others if given.
      activation_fn: After each normalisation.
      gate_fn: From the joined branches to the gate.
      dtype: dtype of the maps, as in Flax; the pooled statistics are float32, and
        `norm` has a dtype of its own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> gate = linen.BAM(use_running_average=True)
      >>> gate.init_with_output(jax.random.key(0), jnp.ones((2, 7, 7, 16)))[0].shape
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
    use_running_average: bool | None = None
    activation_fn: Activation = jax.nn.relu
    gate_fn: Activation = jax.nn.sigmoid
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Scale an image `[*B, H, W, C]`. The phase is given here or before."""
        x = as_image("BAM", x)
        features = x.shape[-1]
        hidden = reduced_features("BAM", features, self.reduction, self.hidden_features)
        size = check_odd("BAM", self.kernel_size)
        check_positive("BAM", "dilation", self.dilation)
        check_at_least("BAM", "num_convs", self.num_convs, 0)
        norm = with_phase("BAM", self.norm, self.use_running_average, use_running_average)
        settings: dict[str, Any] = {
            "use_bias": self.use_bias,
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
            "kernel_init": self.kernel_init,
            "bias_init": self.bias_init,
        }
        dense = functools.partial(Dense, **settings)
        conv = functools.partial(
            Conv,
            hidden,
            (size, size),
            kernel_dilation=self.dilation,
            padding=self.dilation * (size // 2),
            **settings,
        )
        gate = bam_gate(
            x,
            dense(features=hidden, name="reduce"),
            norm(name="reduce_norm"),
            dense(features=features, name="expand"),
            [
                dense(features=hidden, name="conv_0"),
                *(conv(name=f"conv_{i + 1}") for i in range(self.num_convs)),
            ],
            [norm(name=f"conv_norm_{i}") for i in range(self.num_convs + 1)],
            dense(features=1, name="project"),
            combine=self.combine,
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        self.sow("intermediates", "gate", gate)
        return apply_gate(x, gate)
