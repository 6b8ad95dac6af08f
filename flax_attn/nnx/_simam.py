"""SimAM as an NNX module."""

import jax
from flax import nnx

from flax_attn.nnx._module import Module
from flax_attn.vision._simam import simam_and_gate


class SimAM(Module):
    """SimAM, `flax_attn.vision.simam`.

    No parameters. Sows `gate` `[*B, H, W, C]`.

    Args:
      in_features: C; any number of channels if it is left out.
      e_lambda: λ, which keeps the quotient finite in a constant channel.
      rngs: Not needed: there are no parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import nnx
      >>> nnx.SimAM(16)(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int | None = None,
        *,
        e_lambda: float = 1e-4,
        rngs: nnx.Rngs | None = None,
    ):
        super().__init__(in_features)
        self.e_lambda = e_lambda

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        self._check(x)
        y, gate = simam_and_gate(x, self.e_lambda)
        self._sow("gate", gate)
        return y
