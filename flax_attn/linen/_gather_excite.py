"""Gather-excite as a Linen module."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, reduced_features
from flax_attn.linen._layers import Conv, Dense
from flax_attn.linen._module import Module
from flax_attn.linen._norm import BatchNorm, with_phase
from flax_attn.vision import gather_excite_gate
from flax_attn.vision._checks import as_image
from flax_attn.vision._gates import apply_gate
from flax_attn.vision._gather_excite import (
    Extent,
    as_extent,
    check_gather,
    gathering_convs,
    mean_extent,
)


class GatherExcite(Module, kw_only=True):
    """Gather-excite, `flax_attn.vision.gather_excite`.

    The defaults are GE-θ⁻ over the whole image; GE-θ is `gather="conv"`, and GE-θ⁺ is
    `gather="conv", reduction=16`. Parameters `conv_0 ...`, `norm_0 ...`, `reduce`, `expand`, as far
    as they are asked for; sows `gate`, `[*B, H, W, C]` or of the whole image `[*B, 1, 1, C]`.

    Attributes:
      extent: e, a power of 2; the (height, width) of the images, which are then gathered whole and
        must have it; None for whole images of any size, which the mean alone can gather.
      gather: By the mean, or by depthwise convolutions.
      reduction: The perceptron that excites has R = C // reduction; None for no perceptron.
      use_bias: Whether the perceptron has biases; the convolutions have none.
      norm: Makes the normalisation after each convolution; by default batch normalisation with
        PyTorch's momentum and an exact variance. One of your own may know its phase:
        `functools.partial(nn.BatchNorm, use_running_average=not train)`.
      use_running_average: Whether the statistics are the running ones (`not train`); required by
        the default `norm` if it is used, and passed to others if given.
      activation_fn: Between the convolutions, between them and the perceptron, and inside it.
      gate_fn: From what is gathered and excited to the gate.
      dtype: dtype of the maps, as in Flax; means are float32, and
        `norm` has a dtype of its own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> x = jnp.ones((2, 7, 7, 16))
      >>> linen.GatherExcite().init_with_output(jax.random.key(0), x)[0].shape
      (2, 7, 7, 16)
      >>> gate = linen.GatherExcite(
      ...     gather="conv", extent=4, reduction=4, use_running_average=True
      ... )
      >>> sorted(gate.init(jax.random.key(0), x)["params"])
      ['conv_0', 'conv_1', 'expand', 'norm_0', 'norm_1', 'reduce']
    """

    extent: Extent = None
    gather: Literal["mean", "conv"] = "mean"
    reduction: int | None = None
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
        """Scale an image `[*B, H, W, C]`. The phase, if it matters, is given here or before."""
        x = as_image("GatherExcite", x)
        features = x.shape[-1]
        check_gather("GatherExcite", self.gather)
        settings: dict[str, Any] = {
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
            "kernel_init": self.kernel_init,
        }
        given = as_extent("GatherExcite", self.extent)
        extent = mean_extent("GatherExcite", x, given)
        layers: dict[str, Any] = {}
        if self.gather == "conv":
            norm = with_phase(
                "GatherExcite", self.norm, self.use_running_average, use_running_average
            )
            conv = functools.partial(
                Conv, features, feature_group_count=features, use_bias=False, **settings
            )
            extent, shapes = None, gathering_convs("GatherExcite", given)
            layers["convs"] = [conv(name=f"conv_{i}", **s) for i, s in enumerate(shapes)]
            layers["norms"] = [norm(name=f"norm_{i}") for i in range(len(shapes))]
        if self.reduction is not None:
            hidden = reduced_features("GatherExcite", features, self.reduction, None)
            dense = functools.partial(
                Dense, use_bias=self.use_bias, bias_init=self.bias_init, **settings
            )
            layers["reduce"] = dense(features=hidden, name="reduce")
            layers["expand"] = dense(features=features, name="expand")
        gate = gather_excite_gate(
            x,
            **layers,
            extent=extent,
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        self.sow("intermediates", "gate", gate)
        return apply_gate(x, gate)
