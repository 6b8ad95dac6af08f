"""Gather-excite as an NNX module."""

from collections.abc import Callable
from typing import Any, Literal, Unpack

import jax
from flax import nnx

from flax_attn._checks import Activation, reduced_features
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.nnx._norm import BatchNorm
from flax_attn.vision import gather_excite_gate
from flax_attn.vision._gather_excite import Extent, as_extent, gathering_convs, mean_extent


class GatherExcite(Module):
    """Gather-excite, `flax_attn.vision.gather_excite`.

    The defaults are GE-θ⁻ over the whole image. GE-θ is `gather="conv"`, and GE-θ⁺ is
    `gather="conv", reduction=16`. Parameters `conv_0 ...`, `norm_0 ...` of `gather="conv"`, and
    `reduce`, `expand` of a reduction. Sows `gate` `[*B, H, W, C]`, or `[*B, 1, 1, C]` of the whole
    image.

    Args:
      in_features: C.
      extent: e, a power of 2; or the (height, width) of the images, which are gathered whole and
        must have that size; or None for whole images of any size, for the mean only.
      gather: `"mean"`, or `"conv"` for depthwise convolutions.
      reduction: R = C // reduction in the perceptron that excites; None for no perceptron.
      use_bias: If True, the perceptron has biases; the convolutions have none.

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
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        convs = gathering_convs(gather, extent)
        layers = self._layers(rngs, **layer_options)
        for i, shape in enumerate(convs):
            conv = layers.conv(
                in_features, in_features, use_bias=False, groups=in_features, **shape
            )
            setattr(self, f"conv_{i}", conv)
            setattr(self, f"norm_{i}", layers.norm(norm, in_features))
        self.reduce = self.expand = nnx.data(None)
        if reduction is not None:
            hidden = reduced_features("GatherExcite", in_features, reduction, None)
            self.reduce = layers.linear(in_features, hidden, use_bias=use_bias)
            self.expand = layers.linear(hidden, in_features, use_bias=use_bias)
        self.extent = as_extent(extent)
        self.num_convs = len(convs)
        self.activation_fn = activation_fn
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        self._check(x)
        extent = mean_extent(x, self.extent)
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
        return self._scale(x, gate)
