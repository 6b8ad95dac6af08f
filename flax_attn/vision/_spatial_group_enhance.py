"""Spatial group-wise enhancement (SGE)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_attn._checks import Activation, expand_rank, group_features, statistics_dtype
from flax_attn.vision._checks import as_image
from flax_attn.vision._gates import apply_gate
from flax_attn.vision._groups import split_groups
from flax_attn.vision._pooling import spatial_mean


def spatial_group_enhance(
    x: Float[Array, "*B H W C"],
    scale: Float[Array, "G"],
    bias: Float[Array, "G"],
    *,
    epsilon: float = 1e-5,
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B H W C"]:
    """Spatial group-wise enhancement: gate places by similarity to the mean of their group.

    Of each group of C / G consecutive channels, x_g:
    t = ⟨x_g, mean_{H,W} x_g⟩,   t̂ = (t − mean_{H,W} t) / (std_{H,W} t + ε)
    y_g = x_g ⊙ σ(scale_g t̂ + bias_g)

    As in the released code, std divides by H W − 1, G = 64, scale starts at 0 and bias at 1, so
    that every gate starts at σ(1). (Widespread copies start both at 0.)

    Args:
      x: Image `[*B, H, W, C]` of at least two places.
      scale: Gain of the normalised similarity t̂ in each group, `[G]`.
      bias: Added to the scaled similarity, `[G]`.
      epsilon: ε, added to the standard deviation.
      gate_fn: σ, from the similarity to the gate.

    Returns:
      The scaled image `[*B, H, W, C]`.

    Raises:
      ValueError: If `x` is not an image or has only one place (its deviation is undefined), C is
        not a multiple of G, or `scale` and `bias` are not both `[G]`.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import vision
      >>> x = jnp.arange(4.0).reshape(1, 2, 2, 1)     # t̂ = (−1.5, −0.5, 0.5, 1.5) / 1.291
      >>> y = vision.spatial_group_enhance(x, jnp.ones(1), jnp.zeros(1))
      >>> [round(float(place), 3) for place in y[0, 1, :, 0]]     # 2 σ(0.387), 3 σ(1.162)
      [1.191, 2.285]

    References:
      Li, Hu, Yang, "Spatial Group-wise Enhance: Improving Semantic Feature Learning in
      Convolutional Networks", arXiv 2019, arXiv:1905.09646, section 3.
    """
    gate = spatial_group_enhance_gate(x, scale, bias, epsilon=epsilon, gate_fn=gate_fn)
    return apply_gate(x, gate)


def spatial_group_enhance_gate(
    x: Float[Array, "*B H W C"],
    scale: Float[Array, "G"],
    bias: Float[Array, "G"],
    *,
    epsilon: float = 1e-5,
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B H W C"]:
    """The gate of `spatial_group_enhance`, `[*B, H, W, C]` in the dtype of x."""
    x = as_image("spatial_group_enhance", x, gate_fn=gate_fn)
    if scale.ndim != 1 or bias.shape != scale.shape:
        raise ValueError(
            f"spatial_group_enhance: scale and bias must both be [G], got {list(scale.shape)} and "
            f"{list(bias.shape)}. Each needs one number for each group."
        )
    groups = scale.shape[0]
    size = group_features("spatial_group_enhance", x.shape[-1], groups)
    places = x.shape[-3] * x.shape[-2]
    if places == 1:
        raise ValueError(
            "spatial_group_enhance: x must have at least two places, got H · W = 1 · 1."
        )
    dtype = statistics_dtype(x.dtype)
    # t − mean t = ⟨x − mean x, mean x⟩, which does not cancel where the mean is large.
    mean = spatial_mean(x)[..., None, None, :]
    products = (x.astype(dtype) - mean) * mean
    centred = jnp.sum(split_groups(products, groups, size), axis=-1)
    variance = jnp.sum(jnp.square(centred), axis=(-3, -2), keepdims=True) / (places - 1)
    normalized = centred / (_root(variance) + epsilon)
    scale, bias = (expand_rank(a.astype(dtype), x.ndim) for a in (scale, bias))
    gate = gate_fn(scale * normalized + bias).astype(x.dtype)
    return jnp.repeat(gate, size, axis=-1)


def _root(variance: Array) -> Array:
    """√ with derivative 0 at 0, so that the gradient of a constant map is 0 and not NaN."""
    constant = variance == 0
    return jnp.where(constant, 0.0, jnp.sqrt(jnp.where(constant, 1.0, variance)))
