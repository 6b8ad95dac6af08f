"""SimAM as an NNX module."""

import jax

from flax_attn.nnx._module import Module
from flax_attn.nnx._sow import sow
from flax_attn.vision._simam import simam_and_gate


class SimAM(Module):
    """SimAM, `flax_attn.vision.simam`.

    No parameters; sows `gate` `[*B, H, W, C]`.

    Args:
      e_lambda: λ, which keeps the quotient finite in a constant channel.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import nnx
      >>> nnx.SimAM()(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(self, *, e_lambda: float = 1e-4):
        self.e_lambda = e_lambda

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        y, gate = simam_and_gate(x, self.e_lambda)
        sow(self, "gate", gate)
        return y
