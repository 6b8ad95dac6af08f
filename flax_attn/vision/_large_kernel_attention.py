"""Large kernel attention (LKA)."""

from jaxtyping import Array, Float

from flax_attn._checks import Map, check_odd, check_positive
from flax_attn.vision._checks import as_image, check_returned
from flax_attn.vision._gates import apply_gate


def large_kernel_attention(
    x: Float[Array, "*B H W C"], local_conv: Map, dilated_conv: Map, project: Map
) -> Float[Array, "*B H W C"]:
    """Large kernel attention: gate each entry by a convolution over a wide neighbourhood.

    a = project(dilated_conv(local_conv(x))),   y = x ⊙ a

    A large kernel is decomposed into a small depthwise kernel, a dilated depthwise kernel and a
    pointwise map. In the paper they are 5×5, 7×7 with dilation 3, and 1×1: they replace a 21×21
    kernel and reach 23×23 places. a is not bounded: the paper and its released code apply no
    sigmoid and no softmax. They use LKA inside a block, x + out(LKA(GELU(in(x)))).

    Args:
      x: Image `[*B, H, W, C]`.
      local_conv: Map of `[*B, H, W, C]`, a depthwise convolution.
      dilated_conv: Map of `[*B, H, W, C]`, a dilated depthwise convolution.
      project: Map of `[*B, H, W, C]` over the channels.

    Returns:
      The scaled image `[*B, H, W, C]`.

    Raises:
      ValueError: If `x` is not an image, or the maps return another shape.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x = jnp.ones((2, 32, 32, 4))
      >>> local_conv = maps.depthwise_conv(jnp.full((5, 5, 1, 4), 1 / 25))
      >>> dilated_conv = maps.depthwise_conv(jnp.full((7, 7, 1, 4), 1 / 49), dilation=3)
      >>> y = vision.large_kernel_attention(x, local_conv, dilated_conv, maps.dense(jnp.eye(4)))
      >>> round(float(y[0, 16, 16, 0]), 4)
      1.0

    References:
      Guo, Lu, Liu, Cheng, Hu, "Visual Attention Network", Computational Visual Media 2023,
      arXiv:2202.09741, equations 1-2.
    """
    return apply_gate(x, large_kernel_attention_gate(x, local_conv, dilated_conv, project))


def large_kernel_attention_gate(
    x: Float[Array, "*B H W C"], local_conv: Map, dilated_conv: Map, project: Map
) -> Float[Array, "*B H W C"]:
    """The factor a of `large_kernel_attention`, `[*B, H, W, C]` in the dtype of x."""
    x = as_image(
        "large_kernel_attention",
        x,
        local_conv=local_conv,
        dilated_conv=dilated_conv,
        project=project,
    )
    gate = project(dilated_conv(local_conv(x)))
    check_returned("large_kernel_attention", "project", gate, x.shape, "[*B, H, W, C]")
    return gate.astype(x.dtype)


def check_large_kernel_attention(kernel_size: int, dilated_kernel_size: int, dilation: int) -> None:
    """Check the sizes of the modules."""
    check_odd("LargeKernelAttention", kernel_size)
    check_odd("LargeKernelAttention", dilated_kernel_size, "dilated_kernel_size")
    check_positive("LargeKernelAttention", "dilation", dilation)
