"""Efficient multi-scale attention with cross-spatial learning (EMA)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_attn._checks import Activation, Map, expand_rank, statistics_dtype
from flax_attn.vision._checks import as_image, check_returned
from flax_attn.vision._gates import apply_gate
from flax_attn.vision._groups import split_groups, standardize_places


def efficient_multi_scale_attention(
    x: Float[Array, "*B H W C"],
    pointwise: Map,
    norm_scale: Float[Array, "P"],
    norm_bias: Float[Array, "P"],
    conv: Map,
    *,
    epsilon: float = 1e-5,
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B H W C"]:
    """Efficient multi-scale attention: two branches of each channel group gate each other.

    For each group x_g of P consecutive channels:
    [h; w] = pointwise([mean_W x_g; mean_H x_g])
    u = γ norm(x_g ⊙ σ(h) ⊙ σ(w)) + β,   v = conv(x_g)
    y_g = x_g ⊙ σ(⟨softmax(mean_{H,W} u), v⟩ + ⟨softmax(mean_{H,W} v), u⟩)

    norm standardises each channel to mean 0 and variance 1 over H and W. The softmax and the
    products ⟨⟩ run over the P channels. All groups share their weights. In the released code there
    are C / P = 32 groups. The mean of u is β, so only the second softmax depends on the image.

    Args:
      x: Image `[*B, H, W, C]` of at least two places.
      pointwise: Map of `[*B, H + W, C / P, P]`, a 1×1 convolution of the rows and columns of each
        group.
      norm_scale: γ, `[P]`.
      norm_bias: β, `[P]`.
      conv: Map of `[*B, C / P, H, W, P]`, a 3×3 convolution of each group.
      epsilon: ε of the normalisation, added to the variance.
      gate_fn: σ.

    Returns:
      The scaled image `[*B, H, W, C]`.

    Raises:
      ValueError: If `x` is not an image or has only one place (whose normalised value is always
        β), C is not a multiple of P, γ and β are not both `[P]`, or a map returns another shape.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x = jnp.ones((2, 7, 5, 16))     # 4 groups of 4
      >>> pointwise = maps.dense(jnp.zeros((4, 4)))
      >>> conv = maps.conv(jnp.zeros((3, 3, 4, 4)))
      >>> y = vision.efficient_multi_scale_attention(x, pointwise, jnp.ones(4), jnp.zeros(4), conv)
      >>> float(y[0, 0, 0, 0])      # u = v = 0: σ(0) · 1
      0.5

    References:
      Ouyang, He, Zhang, Luo, Guo, Zhan, Huang, "Efficient Multi-Scale Attention Module with
      Cross-Spatial Learning", ICASSP 2023, arXiv:2305.13563, section 3.
    """
    gate = efficient_multi_scale_attention_gate(
        x, pointwise, norm_scale, norm_bias, conv, epsilon=epsilon, gate_fn=gate_fn
    )
    return apply_gate(x, gate)


def efficient_multi_scale_attention_gate(
    x: Float[Array, "*B H W C"],
    pointwise: Map,
    norm_scale: Float[Array, "P"],
    norm_bias: Float[Array, "P"],
    conv: Map,
    *,
    epsilon: float = 1e-5,
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B H W C"]:
    """The gate of `efficient_multi_scale_attention`, `[*B, H, W, C]`."""
    name = "efficient_multi_scale_attention"
    x = as_image(name, x, pointwise=pointwise, conv=conv, gate_fn=gate_fn)
    if norm_scale.ndim != 1 or norm_bias.shape != norm_scale.shape:
        raise ValueError(
            f"{name}: norm_scale and norm_bias must both be [P], got {list(norm_scale.shape)} and "
            f"{list(norm_bias.shape)}. Each needs one number for each channel of a group."
        )
    (part,) = norm_scale.shape
    height, width, channels = x.shape[-3:]
    if part == 0 or channels % part:
        raise ValueError(
            f"{name}: C must be a multiple of P = {part}, got C = {channels}. "
            f"norm_scale and norm_bias have one entry for each channel of a group."
        )
    if height * width == 1:
        raise ValueError(f"{name}: x must have at least two places, got H · W = 1 · 1.")

    dtype = statistics_dtype(x.dtype)
    grouped = split_groups(x, channels // part, part)
    rows = jnp.mean(grouped, axis=-3, dtype=dtype)
    columns = jnp.mean(grouped, axis=-4, dtype=dtype)
    strips = jnp.concatenate([rows, columns], axis=-3)
    mixed = pointwise(strips)
    check_returned(name, "pointwise", mixed, strips.shape, "[*B, H + W, C / P, P]")
    row_gate, column_gate = jnp.split(gate_fn(mixed).astype(dtype), [height], axis=-3)
    gates = row_gate[..., :, None, :, :] * column_gate[..., None, :, :, :]
    gamma, beta = (expand_rank(a.astype(dtype), grouped.ndim) for a in (norm_scale, norm_bias))
    u = gamma * standardize_places(grouped.astype(dtype) * gates, epsilon) + beta

    # All groups share one kernel, so they become part of the batch for this convolution. (A 3-D
    # convolution, or a grouped one with a repeated kernel, needs no transposition but took 2 to 4
    # times as long forward on a CPU.)
    folded = jnp.moveaxis(grouped, -2, -4)
    convolved = conv(folded)
    check_returned(name, "conv", convolved, folded.shape, "[*B, C / P, H, W, P]")
    v = jnp.moveaxis(convolved, -4, -2).astype(dtype)

    # Sums of products instead of `einsum`, which rounds float32 on accelerators.
    mean_v = jnp.mean(v, axis=(-4, -3), keepdims=True)
    joint = jnp.sum(jax.nn.softmax(beta) * v + jax.nn.softmax(mean_v) * u, axis=-1)
    return jnp.repeat(gate_fn(joint).astype(x.dtype), part, axis=-1)
