"""Channel attention, the first half of CBAM."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_attn._checks import Activation, Map
from flax_attn.vision._checks import as_image, check_reduced, check_returned
from flax_attn.vision._gates import apply_gate
from flax_attn.vision._pooling import spatial_max, spatial_mean


def channel_attention(
    x: Float[Array, "*B H W C"],
    reduce: Map,
    expand: Map,
    *,
    activation_fn: Activation = jax.nn.relu,
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B H W C"]:
    """CBAM's channel attention: gate each channel by its mean and maximum.

    g = σ(f(mean_{H,W} x) + f(max_{H,W} x)),   f = expand ∘ ReLU ∘ reduce,   y = g ⊙ x

    In the paper R = C / 16; its released code has biases. Places that tie for the maximum share its
    gradient.

    Args:
      x: Image `[*B, H, W, C]`.
      reduce: Map from `[2, *B, C]`, the means and the maxima, to `[2, *B, R]`.
      expand: Map from `[2, *B, R]` to `[2, *B, C]`.
      activation_fn: Between the two.
      gate_fn: σ, from the sum to the gate.

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
      >>> vision.channel_attention(x, reduce, expand).shape
      (2, 7, 7, 16)

    References:
      Woo, Park, Lee, Kweon, "CBAM: Convolutional Block Attention Module", ECCV 2018,
      arXiv:1807.06521, equation 2.
    """
    gate = channel_attention_gate(x, reduce, expand, activation_fn=activation_fn, gate_fn=gate_fn)
    return apply_gate(x, gate)


def channel_attention_gate(
    x: Float[Array, "*B H W C"],
    reduce: Map,
    expand: Map,
    *,
    activation_fn: Activation = jax.nn.relu,
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B 1 1 C"]:
    """The gate g of `channel_attention`, `[*B, 1, 1, C]` in the dtype of x."""
    x = as_image(
        "channel_attention",
        x,
        reduce=reduce,
        expand=expand,
        activation_fn=activation_fn,
        gate_fn=gate_fn,
    )

    pooled = jnp.stack([spatial_mean(x), spatial_max(x)])
    hidden = activation_fn(reduce(pooled))
    check_reduced("channel_attention", hidden)
    expanded = expand(hidden)
    check_returned("channel_attention", "expand", expanded, pooled.shape, "[2, *B, C]")
    gate = gate_fn(jnp.sum(expanded, axis=0))
    return gate[..., None, None, :].astype(x.dtype)
