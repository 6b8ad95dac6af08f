"""Coordinate attention."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_attn._checks import Activation, Map
from flax_attn.vision._checks import as_image, check_reduced, check_returned
from flax_attn.vision._gates import apply_gate
from flax_attn.vision._pooling import mean


def coordinate_attention(
    x: Float[Array, "*B H W C"],
    reduce: Map,
    norm: Map,
    expand_height: Map,
    expand_width: Map,
    *,
    activation_fn: Activation = jax.nn.hard_swish,
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B H W C"]:
    """Coordinate attention: gate each row and each column.

    z_h = mean_W x,   z_w = mean_H x,   f = δ(norm(reduce([z_h; z_w])))
    y = x ⊙ σ(expand_h(f_h)) ⊙ σ(expand_w(f_w))

    Rows and columns are reduced and normalised as one sequence of length H + W, so the statistics
    of a batch normalisation depend on the resolution. In the released code R = max(8, C / 32) and δ
    is hard swish.

    Args:
      x: Image `[*B, H, W, C]`.
      reduce: Map from `[*B, H + W, C]` to `[*B, H + W, R]`.
      norm: Map of `[*B, H + W, R]`.
      expand_height: Map from `[*B, H, R]` to `[*B, H, C]`.
      expand_width: Map from `[*B, W, R]` to `[*B, W, C]`.
      activation_fn: δ.
      gate_fn: σ, from the expanded statistics to the gates.

    Returns:
      The scaled image `[*B, H, W, C]`.

    Raises:
      ValueError: If `x` is not an image, R is 0, or a map returns another shape.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x = jnp.ones((2, 7, 5, 16))
      >>> reduce, expand = maps.dense(jnp.ones((16, 8))), maps.dense(jnp.zeros((8, 16)))
      >>> vision.coordinate_attention(x, reduce, lambda f: f, expand, expand)[0, 0, 0, :2]
      Array([0.25, 0.25], dtype=float32)

    References:
      Hou, Zhou, Feng, "Coordinate Attention for Efficient Mobile Network Design", CVPR 2021,
      arXiv:2103.02907, equations 4-9.
    """
    height, width = coordinate_attention_gate(
        x,
        reduce,
        norm,
        expand_height,
        expand_width,
        activation_fn=activation_fn,
        gate_fn=gate_fn,
    )
    return apply_gate(x, height, width)


def coordinate_attention_gate(
    x: Float[Array, "*B H W C"],
    reduce: Map,
    norm: Map,
    expand_height: Map,
    expand_width: Map,
    *,
    activation_fn: Activation = jax.nn.hard_swish,
    gate_fn: Activation = jax.nn.sigmoid,
) -> tuple[Float[Array, "*B H 1 C"], Float[Array, "*B 1 W C"]]:
    """The two gates of `coordinate_attention`, `[*B, H, 1, C]` and `[*B, 1, W, C]`."""
    x = as_image(
        "coordinate_attention",
        x,
        reduce=reduce,
        norm=norm,
        expand_height=expand_height,
        expand_width=expand_width,
        activation_fn=activation_fn,
        gate_fn=gate_fn,
    )
    rows = mean(x, -2)
    columns = mean(x, -3, rows)
    joint = activation_fn(norm(reduce(jnp.concatenate([rows, columns], axis=-2))))
    check_reduced("coordinate_attention", joint)
    height, width = jnp.split(joint, [rows.shape[-2]], axis=-2)
    height, width = gate_fn(expand_height(height)), gate_fn(expand_width(width))
    check_returned("coordinate_attention", "expand_height", height, rows.shape, "[*B, H, C]")
    check_returned("coordinate_attention", "expand_width", width, columns.shape, "[*B, W, C]")
    return height[..., :, None, :].astype(x.dtype), width[..., None, :, :].astype(x.dtype)
