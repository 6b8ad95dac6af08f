"""The bottleneck attention module (BAM)."""

from collections.abc import Sequence
from typing import Literal

import jax
from jaxtyping import Array, Float

from flax_attn._checks import (
    Activation,
    Map,
    check_at_least,
    check_odd,
    check_positive,
    statistics_dtype,
)
from flax_attn.vision._checks import as_image, check_reduced, check_returned
from flax_attn.vision._gates import apply_gate
from flax_attn.vision._pooling import spatial_mean


def bam(
    x: Float[Array, "*B H W C"],
    reduce: Map,
    reduce_norm: Map,
    expand: Map,
    convs: Sequence[Map],
    conv_norms: Sequence[Map],
    project: Map,
    *,
    combine: Literal["add", "multiply"] = "add",
    activation_fn: Activation = jax.nn.relu,
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B H W C"]:
    """Bottleneck attention: a channel branch and a spatial branch form one residual gate.

    M_c = expand(ReLU(norm(reduce(mean_{H,W} x))))
    M_s = project(u_n),   u_i = ReLU(norm_i(conv_i(u_{i−1}))),   u_0 = x
    y = x ⊙ (1 + σ(M_c + M_s))

    In the paper R = C / 16, conv_1 is pointwise and two dilated 3×3 convolutions (dilation 4)
    follow. Equations 3 and 4 also normalise the end of each branch. The released code does not, and
    neither do we: compose a normalisation into `expand` and `project` to get it. The released code
    multiplies M_c by M_s (`combine="multiply"`).

    Args:
      x: Image `[*B, H, W, C]`.
      reduce: Map from `[*B, C]` to `[*B, R]`.
      reduce_norm: Map of `[*B, R]`. In training with a batch of 1, batch normalisation of the
        single pooled vector returns its bias and shrinks its running variance. (PyTorch raises.)
      expand: Map from `[*B, R]` to `[*B, C]`.
      convs: Maps, the first from `[*B, H, W, C]` to `[*B, H, W, R]`, the others of `[*B, H, W, R]`.
      conv_norms: Maps of `[*B, H, W, R]`, one for each of `convs`.
      project: Map from `[*B, H, W, R]` to `[*B, H, W, 1]`.
      combine: How the branches are combined.
      activation_fn: After each normalisation.
      gate_fn: σ, from the combined branches to the gate.

    Returns:
      The scaled image `[*B, H, W, C]`.

    Raises:
      ValueError: If `x` is not an image, R is 0, a map returns another shape, or `convs` and
        `conv_norms` do not pair up.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x, identity = jnp.ones((2, 7, 7, 16)), lambda u: u
      >>> vision.bam(
      ...     x,
      ...     maps.dense(jnp.ones((16, 4))), identity, maps.dense(jnp.zeros((4, 16))),
      ...     [maps.dense(jnp.ones((16, 4)))], [identity], maps.dense(jnp.zeros((4, 1))),
      ... )[0, 0, 0, :2]
      Array([1.5, 1.5], dtype=float32)

    References:
      Park, Woo, Lee, Kweon, "BAM: Bottleneck Attention Module", BMVC 2018, arXiv:1807.06514,
      equations 1-4.
    """
    gate = bam_gate(
        x,
        reduce,
        reduce_norm,
        expand,
        convs,
        conv_norms,
        project,
        combine=combine,
        activation_fn=activation_fn,
        gate_fn=gate_fn,
    )
    return apply_gate(x, gate)


def bam_gate(
    x: Float[Array, "*B H W C"],
    reduce: Map,
    reduce_norm: Map,
    expand: Map,
    convs: Sequence[Map],
    conv_norms: Sequence[Map],
    project: Map,
    *,
    combine: Literal["add", "multiply"] = "add",
    activation_fn: Activation = jax.nn.relu,
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B H W C"]:
    """The factor 1 + σ(M_c + M_s) of `bam`, `[*B, H, W, C]` in the dtype of x."""
    x = as_image(
        "bam",
        x,
        reduce=reduce,
        reduce_norm=reduce_norm,
        expand=expand,
        convs=convs,
        conv_norms=conv_norms,
        project=project,
        activation_fn=activation_fn,
        gate_fn=gate_fn,
    )
    if combine not in ("add", "multiply"):
        raise ValueError(f'bam: combine must be "add" or "multiply", got {combine!r}.')
    if len(convs) != len(conv_norms):
        raise ValueError(
            f"bam: convs and conv_norms must pair up, got {len(convs)} and {len(conv_norms)}."
        )
    pooled = spatial_mean(x)
    hidden = activation_fn(reduce_norm(reduce(pooled)))
    check_reduced("bam", hidden)
    channel = expand(hidden)
    check_returned("bam", "expand", channel, pooled.shape, "[*B, C]")

    places = x
    for conv, norm in zip(convs, conv_norms, strict=True):
        places = activation_fn(norm(conv(places)))
    spatial = project(places)
    check_returned("bam", "project", spatial, (*x.shape[:-1], 1), "[*B, H, W, 1]")

    channel = channel[..., None, None, :].astype(statistics_dtype(x.dtype))
    spatial = spatial.astype(channel.dtype)
    gate = gate_fn(channel + spatial if combine == "add" else channel * spatial)
    return (1 + gate).astype(x.dtype)


def check_bam(kernel_size: int, dilation: int, num_convs: int) -> None:
    """Check the sizes of the convolutions of the modules."""
    check_odd("BAM", kernel_size)
    check_positive("BAM", "dilation", dilation)
    check_at_least("BAM", "num_convs", num_convs, 0)
