"""Squeeze-and-excitation (SE)."""

import jax
from jaxtyping import Array, Float

from flax_attn._checks import Activation, Map
from flax_attn.vision._checks import as_image, check_reduced, check_returned
from flax_attn.vision._gates import apply_gate
from flax_attn.vision._pooling import spatial_mean


def squeeze_excite(
    x: Float[Array, "*B H W C"],
    reduce: Map,
    expand: Map,
    *,
    activation_fn: Activation = jax.nn.relu,
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B H W C"]:
    """Squeeze-and-excitation: gate each channel by a perceptron of the pooled image.

    z = mean_{H,W} x,   g = σ(expand(ReLU(reduce(z)))),   y = g ⊙ x

    In the paper R = C / 16, and the released models have biases. In ResNets it stands before the
    residual sum.

    Args:
      x: Image `[*B, H, W, C]`.
      reduce: Map from `[*B, C]` to `[*B, R]`.
      expand: Map from `[*B, R]` to `[*B, C]`.
      activation_fn: Between the two (SiLU in EfficientNet).
      gate_fn: σ, from the expanded statistics to the gate (hard sigmoid in MobileNetV3).

    Returns:
      The scaled image `[*B, H, W, C]`.

    Raises:
      ValueError: If `x` is not an image, R is 0, or a map returns another shape.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x = jnp.ones((2, 7, 7, 16))
      >>> reduce, expand = maps.dense(jnp.ones((16, 4))), maps.dense(jnp.zeros((4, 16)))
      >>> float(vision.squeeze_excite(x, reduce, expand)[0, 0, 0, 0])      # σ(0) · 1
      0.5

    References:
      Hu, Shen, Sun, "Squeeze-and-Excitation Networks", CVPR 2018, arXiv:1709.01507, equations 2-4.
    """
    gate = squeeze_excite_gate(x, reduce, expand, activation_fn=activation_fn, gate_fn=gate_fn)
    return apply_gate(x, gate)


def squeeze_excite_gate(
    x: Float[Array, "*B H W C"],
    reduce: Map,
    expand: Map,
    *,
    activation_fn: Activation = jax.nn.relu,
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B 1 1 C"]:
    """The gate g of `squeeze_excite`, `[*B, 1, 1, C]` in the dtype of x."""
    x = as_image(
        "squeeze_excite",
        x,
        reduce=reduce,
        expand=expand,
        activation_fn=activation_fn,
        gate_fn=gate_fn,
    )
    pooled = spatial_mean(x)
    hidden = activation_fn(reduce(pooled))
    check_reduced("squeeze_excite", hidden)
    gate = gate_fn(expand(hidden))
    check_returned("squeeze_excite", "expand", gate, pooled.shape, "[*B, C]")
    return gate[..., None, None, :].astype(x.dtype)
