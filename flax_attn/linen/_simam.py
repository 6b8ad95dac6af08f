"""SimAM as a Linen module."""

import jax
from flax import linen as nn

from flax_attn.linen._module import Module
from flax_attn.vision._simam import simam_and_gate


class SimAM(Module, kw_only=True):
    """SimAM, `flax_attn.vision.simam`.

    No parameters. Sows `gate` `[*B, H, W, C]`.

    Attributes:
      e_lambda: λ, which keeps the quotient finite in a constant channel.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> linen.SimAM().apply({}, jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    e_lambda: float = 1e-4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        y, gate = simam_and_gate(x, self.e_lambda)
        self.sow("intermediates", "gate", gate)
        return y
