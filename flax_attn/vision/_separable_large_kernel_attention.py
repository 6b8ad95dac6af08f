"""Large separable kernel attention (LSKA)."""

from jaxtyping import Array, Float

from flax_attn._checks import Map
from flax_attn.vision._checks import as_image, check_returned
from flax_attn.vision._gates import apply_gate


def separable_large_kernel_attention(
    x: Float[Array, "*B H W C"],
    local_row: Map,
    local_column: Map,
    dilated_row: Map,
    dilated_column: Map,
    project: Map,
) -> Float[Array, "*B H W C"]:
    """Large kernel attention with separable kernels: a row, then a column.

    a = project(dilated_column(dilated_row(local_column(local_row(x))))),   y = x ⊙ a

    It is `large_kernel_attention` with each k×k kernel replaced by a 1×k and a k×1 kernel, so the
    cost grows with k instead of k². As there, a is not bounded.

    Args:
      x: Image `[*B, H, W, C]`.
      local_row: Map of `[*B, H, W, C]`, a 1×k depthwise convolution (along the width).
      local_column: Map of `[*B, H, W, C]`, a k×1 depthwise convolution (along the height).
      dilated_row: Like `local_row`, dilated.
      dilated_column: Like `local_column`, dilated.
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
      >>> row, column = jnp.full((1, 5, 1, 4), 0.2), jnp.full((5, 1, 1, 4), 0.2)
      >>> convs = [maps.depthwise_conv(k, dilation=d) for d in (1, 3) for k in (row, column)]
      >>> y = vision.separable_large_kernel_attention(x, *convs, maps.dense(jnp.eye(4)))
      >>> round(float(y[0, 16, 16, 0]), 4)
      1.0

    References:
      Lau, Po, Rehman, "Large Separable Kernel Attention: Rethinking the Large Kernel Attention
      Design in CNN", Expert Systems with Applications 2024, arXiv:2309.01439, section 3.
    """
    gate = separable_large_kernel_attention_gate(
        x, local_row, local_column, dilated_row, dilated_column, project
    )
    return apply_gate(x, gate)


def separable_large_kernel_attention_gate(
    x: Float[Array, "*B H W C"],
    local_row: Map,
    local_column: Map,
    dilated_row: Map,
    dilated_column: Map,
    project: Map,
) -> Float[Array, "*B H W C"]:
    """The factor a of `separable_large_kernel_attention`, `[*B, H, W, C]` in the dtype of x."""
    x = as_image(
        "separable_large_kernel_attention",
        x,
        local_row=local_row,
        local_column=local_column,
        dilated_row=dilated_row,
        dilated_column=dilated_column,
        project=project,
    )
    local = local_column(local_row(x))
    gate = project(dilated_column(dilated_row(local)))
    check_returned("separable_large_kernel_attention", "project", gate, x.shape, "[*B, H, W, C]")
    return gate.astype(x.dtype)


def separable_kernel_sizes(kernel_size: int) -> tuple[int, int, int]:
    """The sizes of the strips that replace a k×k kernel in the paper.

    k = k₀ + d (k₁ − 1)

    Args:
      kernel_size: k: 7, 11, 23, 35, 41 or 53.

    Returns:
      k₀ of the local strips, k₁ of the dilated strips, and their dilation d.

    Raises:
      ValueError: If the paper does not have such a kernel.

    Example:
      >>> from flax_attn import vision
      >>> vision.separable_kernel_sizes(23)
      (5, 7, 3)

    References:
      Lau, Po, Rehman, 2024, arXiv:2309.01439, section 3.
    """
    if kernel_size not in _SIZES:
        raise ValueError(
            f"separable_kernel_sizes: kernel_size must be one of {list(_SIZES)}, got {kernel_size}."
        )
    return _SIZES[kernel_size]


_SIZES = {
    7: (3, 3, 2),
    11: (3, 5, 2),
    23: (5, 7, 3),
    35: (5, 11, 3),
    41: (5, 13, 3),
    53: (5, 17, 3),
}
