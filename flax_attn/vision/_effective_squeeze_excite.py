"""Effective squeeze-and-excitation (eSE)."""

import jax
from jaxtyping import Array, Float

from flax_attn._checks import Activation, Map
from flax_attn.vision._checks import as_image, check_returned
from flax_attn.vision._gates import apply_gate
from flax_attn.vision._pooling import spatial_mean


def effective_squeeze_excite(
    x: Float[Array, "*B H W C"], project: Map, *, gate_fn: Activation = jax.nn.hard_sigmoid
) -> Float[Array, "*B H W C"]:
    """Effective squeeze-and-excitation: one full-rank map from the pooled image to the gate.

    z = mean_{H,W} x,   g = σ(project(z)),   y = g ⊙ x

    There is no reduction, which would lose information, at the cost of C² weights. The paper writes
    a sigmoid. Its released code uses the hard sigmoid ReLU6(z + 3) / 6, and so do we.

    Args:
      x: Image `[*B, H, W, C]`.
      project: Map from `[*B, C]` to `[*B, C]`.
      gate_fn: σ, from the projected statistics to the gate.

    Returns:
      The scaled image `[*B, H, W, C]`.

    Raises:
      ValueError: If `x` is not an image, or the map returns another shape.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x = jnp.ones((2, 7, 7, 16))
      >>> y = vision.effective_squeeze_excite(x, maps.dense(jnp.eye(16)))
      >>> round(float(y[0, 0, 0, 0]), 4)                                  # (1 + 3) / 6
      0.6667

    References:
      Lee, Park, "CenterMask: Real-Time Anchor-Free Instance Segmentation", CVPR 2020,
      arXiv:1911.06667, the section on VoVNetV2.
    """
    return apply_gate(x, effective_squeeze_excite_gate(x, project, gate_fn=gate_fn))


def effective_squeeze_excite_gate(
    x: Float[Array, "*B H W C"], project: Map, *, gate_fn: Activation = jax.nn.hard_sigmoid
) -> Float[Array, "*B 1 1 C"]:
    """The gate g of `effective_squeeze_excite`, `[*B, 1, 1, C]` in the dtype of x."""
    x = as_image("effective_squeeze_excite", x, project=project, gate_fn=gate_fn)
    pooled = spatial_mean(x)
    gate = gate_fn(project(pooled))
    check_returned("effective_squeeze_excite", "project", gate, pooled.shape, "[*B, C]")
    return gate[..., None, None, :].astype(x.dtype)
