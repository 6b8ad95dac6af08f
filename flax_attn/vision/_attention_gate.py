"""The attention gate of Attention U-Net."""

import jax
from jaxtyping import Array, Float

from flax_attn._checks import (
    Activation,
    Map,
    as_floating,
    check_positive,
    reduced_features,
    statistics_dtype,
)
from flax_attn.vision._checks import as_image, check_returned
from flax_attn.vision._gates import apply_gate
from flax_attn.vision._resize import resize_bilinear


def attention_gate(
    x: Float[Array, "*B H W C"],
    gating: Float[Array, "*B h w G"],
    theta: Map,
    phi: Map,
    psi: Map,
    *,
    activation_fn: Activation = jax.nn.relu,
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B H W C"]:
    """The attention gate: a coarser signal weighs the places of a skip connection.

    q = ψ(ReLU(θ(x) + resize(φ(g)))),   α = resize(σ(q)),   y = α ⊙ x

    θ halves the grid of x (a 2×2 convolution of stride 2 without bias), φ and ψ are pointwise, and
    both resizings are bilinear. The released code applies another pointwise convolution and a batch
    normalisation to y. They are not in the paper's equations and not in this function. Most U-Nets
    on the web keep the grid (a pointwise θ) and normalise the output of each map: compose the
    normalisation into the maps.

    Args:
      x: Image `[*B, H, W, C]`, the features of the skip connection.
      gating: The gating signal g, `[*B, h, w, G]`, of any height, width and number of channels.
      theta: Map from `[*B, H, W, C]` to `[*B, H', W', R]`.
      phi: Map from `[*B, h, w, G]` to `[*B, h, w, R]`.
      psi: Map from `[*B, H', W', R]` to `[*B, H', W', 1]`.
      activation_fn: After the sum.
      gate_fn: From q to the gate.

    Returns:
      The scaled image `[*B, H, W, C]`.

    Raises:
      ValueError: If `x` or `gating` is not an image, their leading axes differ, R is 0, θ returns
        an empty grid, or a map returns another shape.
      TypeError: If an input is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x, gating = jnp.ones((2, 8, 8, 4)), jnp.ones((2, 2, 2, 6))
      >>> theta = maps.conv(jnp.ones((2, 2, 4, 3)), strides=2, padding=0)
      >>> phi, psi = maps.dense(jnp.ones((6, 3))), maps.dense(jnp.zeros((3, 1)))
      >>> float(vision.attention_gate(x, gating, theta, phi, psi)[0, 0, 0, 0])     # σ(0) · 1
      0.5

    References:
      Oktay, Schlemper, Le Folgoc, Lee, Heinrich, Misawa, Mori, McDonagh, Hammerla, Kainz, Glocker,
      Rueckert, "Attention U-Net: Learning Where to Look for the Pancreas", MIDL 2018,
      arXiv:1804.03999, equations 1 and 2.
    """
    gate = attention_gate_gate(
        x, gating, theta, phi, psi, activation_fn=activation_fn, gate_fn=gate_fn
    )
    return apply_gate(x, gate)


def attention_gate_gate(
    x: Float[Array, "*B H W C"],
    gating: Float[Array, "*B h w G"],
    theta: Map,
    phi: Map,
    psi: Map,
    *,
    activation_fn: Activation = jax.nn.relu,
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B H W 1"]:
    """The gate α of `attention_gate`, `[*B, H, W, 1]` in the dtype of x."""
    x = as_image(
        "attention_gate",
        x,
        theta=theta,
        phi=phi,
        psi=psi,
        activation_fn=activation_fn,
        gate_fn=gate_fn,
    )
    gating = _as_gating(x, gating)
    grid = theta(x)
    _check_grid(x, grid)
    signal = phi(gating)
    check_returned(
        "attention_gate", "phi", signal, (*gating.shape[:-1], grid.shape[-1]), "[*B, h, w, R]"
    )
    signal = resize_bilinear(signal, grid.shape[-3:-1]).astype(grid.dtype)
    coefficients = psi(activation_fn(grid + signal))
    check_returned("attention_gate", "psi", coefficients, (*grid.shape[:-1], 1), "[*B, H', W', 1]")
    gate = gate_fn(coefficients.astype(statistics_dtype(x.dtype)))
    return resize_bilinear(gate, x.shape[-3:-1]).astype(x.dtype)


def _as_gating(x: jax.Array, gating: jax.Array) -> jax.Array:
    gating = as_floating("attention_gate", "gating", gating)
    if gating.ndim < 3 or any(size == 0 for size in gating.shape[-3:]):
        raise ValueError(
            f"attention_gate: gating must be [*B, h, w, G] with h, w, G at least 1, "
            f"got {list(gating.shape)}."
        )
    if gating.shape[:-3] != x.shape[:-3]:
        raise ValueError(
            f"attention_gate: gating must have the leading axes of x, *B = {list(x.shape[:-3])}, "
            f"got {list(gating.shape)}."
        )
    return gating


def _check_grid(x: jax.Array, grid: jax.Array) -> None:
    if grid.shape[:-3] != x.shape[:-3] or grid.ndim != x.ndim:
        raise ValueError(
            f"attention_gate: theta must return [*B, H', W', R] with *B = {list(x.shape[:-3])}, "
            f"got {list(grid.shape)}."
        )
    if grid.shape[-1] == 0:
        raise ValueError(
            "attention_gate: theta must keep at least 1 channel, got 0. Use a smaller reduction."
        )
    if grid.shape[-3] == 0 or grid.shape[-2] == 0:
        raise ValueError(
            f"attention_gate: theta must leave at least one place of [H, W] = "
            f"{list(x.shape[-3:-1])}, got [H', W'] = {list(grid.shape[-3:-1])}. "
            f"Use a smaller stride."
        )


def attention_gate_features(
    features: int, reduction: int, hidden_features: int | None, strides: int
) -> int:
    """R of the modules."""
    check_positive("AttentionGate", "strides", strides)
    return reduced_features("AttentionGate", features, reduction, hidden_features)
