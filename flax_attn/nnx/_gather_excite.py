"""Gather-excite as an NNX module."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_features, reduced_features
from flax_attn.nnx._layers import Conv, Linear
from flax_attn.nnx._module import Module
from flax_attn.nnx._norm import BatchNorm
from flax_attn.nnx._sow import sow
from flax_attn.vision import gather_excite_gate
from flax_attn.vision._gates import apply_gate
from flax_attn.vision._gather_excite import (
    Extent,
    as_extent,
    check_gather,
    gathering_convs,
    mean_extent,
)


class GatherExcite(Module):
    """Gather-excite, `flax_attn.vision.gather_excite`.

    The defaults are GE-θ⁻ over the whole image; GE-θ is `gather="conv"`, and GE-θ⁺ is
    `gather="conv", reduction=16`. Parameters `conv_0 ...`, `norm_0 ...`, `reduce`, `expand`, as far
    as they are asked for; sows `gate`, `[*B, H, W, C]` or of the whole image `[*B, 1, 1, C]`.

    Args:
      in_features: C.
      extent: e, a power of 2; the (height, width) of the images, which are then gathered whole and
        must have it; None for whole images of any size, which the mean alone can gather.
      gather: By the mean, or by depthwise convolutions.
      reduction: The perceptron that excites has R = C // reduction; None for no perceptron.
      use_bias: Whether the perceptron has biases; the convolutions have none.
      norm: Makes the normalisation after each convolution, called as `norm(C, rngs=rngs)`.
      activation_fn: Between the convolutions, between them and the perceptron, and inside it.
      gate_fn: From what is gathered and excited to the gate.
      dtype: dtype of the maps, as in Flax; means are float32, and
        `norm` has a dtype of its own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.
      rngs: Keys for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.GatherExcite(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        extent: Extent = None,
        gather: Literal["mean", "conv"] = "mean",
        reduction: int | None = None,
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
        check_gather("GatherExcite", gather)
        extent = as_extent("GatherExcite", extent)
        settings: dict[str, Any] = {
            "dtype": dtype,
            "param_dtype": param_dtype,
            "kernel_init": kernel_init,
            "rngs": rngs,
        }
        shapes = gathering_convs("GatherExcite", extent) if gather == "conv" else []
        for i, shape in enumerate(shapes):
            conv = Conv(
                in_features,
                in_features,
                feature_group_count=in_features,
                use_bias=False,
                **shape,
                **settings,
            )
            setattr(self, f"conv_{i}", conv)
            setattr(self, f"norm_{i}", norm(in_features, rngs=rngs))
        self.reduce, self.expand = nnx.data(None), nnx.data(None)
        if reduction is not None:
            hidden = reduced_features("GatherExcite", in_features, reduction, None)
            settings |= {"use_bias": use_bias, "bias_init": bias_init}
            self.reduce = Linear(in_features, hidden, **settings)
            self.expand = Linear(hidden, in_features, **settings)
        self.in_features = in_features
        self.extent = extent
        self.num_convs = len(shapes)
        self.activation_fn = activation_fn
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        check_features("GatherExcite", x, self.in_features)
        extent = mean_extent("GatherExcite", x, self.extent)
        gate = gather_excite_gate(
            x,
            [getattr(self, f"conv_{i}") for i in range(self.num_convs)],
            [getattr(self, f"norm_{i}") for i in range(self.num_convs)],
            self.reduce,
            self.expand,
            extent=None if self.num_convs else extent,
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        sow(self, "gate", gate)
        return apply_gate(x, gate)
