"""Context anchor attention (CAA)."""

import jax
from jaxtyping import Array, Float

from flax_attn._checks import Activation, Map, check_odd, statistics_dtype
from flax_attn.vision._checks import as_image, check_returned
from flax_attn.vision._gates import apply_gate
from flax_attn.vision._pooling import window_sum


def context_anchor_attention(
    x: Float[Array, "*B H W C"],
    project_in: Map,
    norm_in: Map | None,
    row: Map,
    column: Map,
    project_out: Map,
    norm_out: Map | None,
    *,
    pool_size: int = 7,
    activation_fn: Activation = jax.nn.silu,
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B H W C"]:
    """Context anchor attention: gate each place by long strips around it.

    u = SiLU(norm_in(project_in(mean_{7×7} x)))
    g = σ(SiLU(norm_out(project_out(column(row(u)))))),   y = x ⊙ g

    As in the released code, the mean counts the zeros around the image, so it is smaller near the
    edges, and the strips are 1×11 and 11×1 depthwise convolutions. The released module returns g;
    its caller multiplies. The formula above is that module, with biases in the strips only. SiLU is
    at least −0.28, so the argument of σ is too, and no gate is below 0.43. The paper's equation and
    the released networks have no normalisation and no SiLU, and biases in all four maps.

    Args:
      x: Image `[*B, H, W, C]`.
      project_in: Map of `[*B, H, W, C]` over the channels.
      norm_in: Map of `[*B, H, W, C]`, or None.
      row: Map of `[*B, H, W, C]`, a depthwise convolution along the width.
      column: Map of `[*B, H, W, C]`, a depthwise convolution along the height.
      project_out: Map of `[*B, H, W, C]` over the channels.
      norm_out: Map of `[*B, H, W, C]`, or None.
      pool_size: Odd size of the window of the mean.
      activation_fn: After each normalisation; pass `lambda u: u` for none.
      gate_fn: σ, from the context to the gate.

    Returns:
      The scaled image `[*B, H, W, C]`.

    Raises:
      ValueError: If `x` is not an image, the pool size is even, or the maps return another shape.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x, identity = jnp.ones((2, 8, 8, 4)), lambda u: u
      >>> row, column = jnp.ones((1, 11, 1, 4)), jnp.ones((11, 1, 1, 4))
      >>> strips = maps.depthwise_conv(row), maps.depthwise_conv(column)
      >>> mix, close = maps.dense(jnp.eye(4)), maps.dense(jnp.zeros((4, 4)))
      >>> vision.context_anchor_attention(x, mix, identity, *strips, close, identity)[0, 0, 0, :2]
      Array([0.5, 0.5], dtype=float32)

    References:
      Cai, Lai, Wang, Wang, Sun, Yao, "Poly Kernel Inception Network for Remote Sensing Detection",
      CVPR 2024, arXiv:2403.06258, section 3.
    """
    gate = context_anchor_attention_gate(
        x,
        project_in,
        norm_in,
        row,
        column,
        project_out,
        norm_out,
        pool_size=pool_size,
        activation_fn=activation_fn,
        gate_fn=gate_fn,
    )
    return apply_gate(x, gate)


def context_anchor_attention_gate(
    x: Float[Array, "*B H W C"],
    project_in: Map,
    norm_in: Map | None,
    row: Map,
    column: Map,
    project_out: Map,
    norm_out: Map | None,
    *,
    pool_size: int = 7,
    activation_fn: Activation = jax.nn.silu,
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B H W C"]:
    """The gate g of `context_anchor_attention`, `[*B, H, W, C]` in the dtype of x."""
    x = as_image(
        "context_anchor_attention",
        x,
        project_in=project_in,
        norm_in=norm_in,
        row=row,
        column=column,
        project_out=project_out,
        norm_out=norm_out,
        activation_fn=activation_fn,
        gate_fn=gate_fn,
    )
    context = project_in(_window_mean(x, pool_size))
    context = activation_fn(context if norm_in is None else norm_in(context))
    out = project_out(column(row(context)))
    gate = gate_fn(activation_fn(out if norm_out is None else norm_out(out)))
    check_returned("context_anchor_attention", "project_out", gate, x.shape, "[*B, H, W, C]")
    return gate.astype(x.dtype)


def _window_mean(x: Array, size: int) -> Array:
    """Mean of the size × size places around each place; zeros outside the image count."""
    size = check_odd("context_anchor_attention", size, "pool_size")
    wide = x.astype(statistics_dtype(x.dtype))
    return (window_sum(wide, size) / size**2).astype(x.dtype)
