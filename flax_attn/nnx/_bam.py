"""BAM as an NNX module."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import (
    Activation,
    check_at_least,
    check_features,
    check_odd,
    check_positive,
    reduced_features,
)
from flax_attn.nnx._layers import Conv, Linear
from flax_attn.nnx._module import Module
from flax_attn.nnx._norm import BatchNorm
from flax_attn.nnx._sow import sow
from flax_attn.vision import bam_gate
from flax_attn.vision._gates import apply_gate


class BAM(Module):
    """The bottleneck attention module, `flax_attn.vision.bam`.

    Parameters `reduce`, `reduce_norm`, `expand`, `conv_0 ...`, `conv_norm_0 ...`, `project`; sows
    `gate` `[*B, H, W, C]`, the factor 1 + σ(M_c + M_s).

    Args:
      in_features: C.
      reduction: R = C // reduction.
      hidden_features: R, if not by the reduction.
      kernel_size: Width of the dilated kernels, odd.
      dilation: Spacing of their taps.
      num_convs: Number of dilated convolutions, after the pointwise one.
      combine: `"add"` as in the paper, `"multiply"` as in its released code.
      use_bias: Whether the maps have biases.
      norm: Makes each normalisation, called as `norm(R, rngs=rngs)`.
      activation_fn: After each normalisation.
      gate_fn: From the joined branches to the gate.
      dtype: dtype of the maps, as in Flax; the pooled statistics are float32, and
        `norm` has a dtype of its own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.
      rngs: Keys for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.BAM(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        reduction: int = 16,
        hidden_features: int | None = None,
        kernel_size: int = 3,
        dilation: int = 4,
        num_convs: int = 2,
        combine: Literal["add", "multiply"] = "add",
        use_bias: bool = True,
        norm: Callable[..., Any] = BatchNorm,
        activation_fn: Activation = jax.nn.relu,
        gate_fn: Activation = jax.nn.sigmoid,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
    ):
        hidden = reduced_features("BAM", in_features, reduction, hidden_features)
        size = check_odd("BAM", kernel_size)
        check_positive("BAM", "dilation", dilation)
        check_at_least("BAM", "num_convs", num_convs, 0)
        settings: dict[str, Any] = {
            "use_bias": use_bias,
            "dtype": dtype,
            "param_dtype": param_dtype,
            "kernel_init": kernel_init,
            "bias_init": bias_init,
            "rngs": rngs,
        }
        self.reduce = Linear(in_features, hidden, **settings)
        self.reduce_norm = norm(hidden, rngs=rngs)
        self.expand = Linear(hidden, in_features, **settings)
        self.conv_0 = Linear(in_features, hidden, **settings)
        for i in range(num_convs):
            conv = Conv(
                hidden,
                hidden,
                (size, size),
                kernel_dilation=dilation,
                padding=dilation * (size // 2),
                **settings,
            )
            setattr(self, f"conv_{i + 1}", conv)
        for i in range(num_convs + 1):
            setattr(self, f"conv_norm_{i}", norm(hidden, rngs=rngs))
        self.project = Linear(hidden, 1, **settings)
        self.num_convs = num_convs
        self.combine = combine
        self.activation_fn = activation_fn
        self.in_features = in_features
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]` and add it."""
        check_features("BAM", x, self.in_features)
        gate = bam_gate(
            x,
            self.reduce,
            self.reduce_norm,
            self.expand,
            [getattr(self, f"conv_{i}") for i in range(self.num_convs + 1)],
            [getattr(self, f"conv_norm_{i}") for i in range(self.num_convs + 1)],
            self.project,
            combine=self.combine,
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        sow(self, "gate", gate)
        return apply_gate(x, gate)
