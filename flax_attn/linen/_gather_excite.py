"""Gather-excite as a Linen module."""

from typing import Any, Literal

import jax
from flax import linen as nn

from flax_attn._checks import Activation, reduced_features
from flax_attn.linen._module import NormModule
from flax_attn.linen._norm import BatchNorm
from flax_attn.vision import gather_excite_gate
from flax_attn.vision._gather_excite import Extent, as_extent, gathering_convs, mean_extent


class GatherExcite(NormModule, kw_only=True):
    """Gather-excite, `flax_attn.vision.gather_excite`.

    The defaults are GE-θ⁻ over the whole image. GE-θ is `gather="conv"`, and GE-θ⁺ is
    `gather="conv", reduction=16`. Parameters `conv_0 ...`, `norm_0 ...` of `gather="conv"`, and
    `reduce`, `expand` of a reduction. Sows `gate` `[*B, H, W, C]`, or `[*B, 1, 1, C]` of the whole
    image.

    Attributes:
      extent: e, a power of 2; or the (height, width) of the images, which are gathered whole and
        must have that size; or None for whole images of any size, for the mean only.
      gather: `"mean"`, or `"conv"` for depthwise convolutions.
      reduction: R = C // reduction in the perceptron that excites; None for no perceptron.
      use_bias: If True, the perceptron has biases; the convolutions have none.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> x = jnp.ones((2, 7, 7, 16))
      >>> linen.GatherExcite().init_with_output(jax.random.key(0), x)[0].shape
      (2, 7, 7, 16)
    """

    extent: Extent = None
    gather: Literal["mean", "conv"] = "mean"
    reduction: int | None = None
    use_bias: bool = True
    norm: Any = BatchNorm
    activation_fn: Activation = jax.nn.relu
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        x = self._image(x)
        features = x.shape[-1]
        convs = gathering_convs(self.gather, self.extent)
        extent = mean_extent(x, as_extent(self.extent))
        layers: dict[str, Any] = {}
        if convs:
            norm = self._norm(use_running_average)
            layers["convs"] = [
                self._conv(features, name=f"conv_{i}", use_bias=False, groups=features, **shape)
                for i, shape in enumerate(convs)
            ]
            layers["norms"] = [norm(name=f"norm_{i}") for i in range(len(convs))]
        if self.reduction is not None:
            hidden = reduced_features("GatherExcite", features, self.reduction, None)
            layers["reduce"] = self._dense(hidden, "reduce", use_bias=self.use_bias)
            layers["expand"] = self._dense(features, "expand", use_bias=self.use_bias)
        gate = gather_excite_gate(
            x,
            **layers,
            extent=None if convs else extent,
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)
