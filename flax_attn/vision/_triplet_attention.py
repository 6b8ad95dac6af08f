"""Triplet attention."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_attn._checks import Activation, Map, statistics_dtype
from flax_attn.vision._checks import as_image, check_returned
from flax_attn.vision._gates import apply_gate_sum, gate_sum
from flax_attn.vision._pooling import maximum, mean


def triplet_attention(
    x: Float[Array, "*B H W C"],
    conv_cw: Map,
    norm_cw: Map,
    conv_hc: Map,
    norm_hc: Map,
    conv_hw: Map | None = None,
    norm_hw: Map | None = None,
    *,
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B H W C"]:
    """Triplet attention: each pair of axes of the image gives a gate.

    z_A = [max_A x, mean_A x],   g_A = σ(norm_A(conv_A(z_A))) for A = H, W, C
    y = x ⊙ (g_H + g_W + g_C) / 3

    Pooling over an axis leaves the plane of the two others: (C, W) without H, (H, C) without W,
    (H, W) without C. Two of the kernels slide along the channels, so the order of the channels
    matters. The paper rotates the whole image for each branch; rotating the pooled planes is
    equivalent. Entries that tie for the maximum share its gradient, where the released code gives
    all of it to the first.

    Args:
      x: Image `[*B, H, W, C]`.
      conv_cw: Map from `[*B, C, W, 2]` to `[*B, C, W, 1]`: the maximum and the mean over H.
      norm_cw: Map of `[*B, C, W, 1]`.
      conv_hc: Map from `[*B, H, C, 2]` to `[*B, H, C, 1]`: the maximum and the mean over W.
      norm_hc: Map of `[*B, H, C, 1]`.
      conv_hw: Map from `[*B, H, W, 2]` to `[*B, H, W, 1]`: the maximum and the mean over C. None
        omits this plane and averages two gates.
      norm_hw: Map of `[*B, H, W, 1]`, given with `conv_hw`.
      gate_fn: σ, from the normalised planes to the gates.

    Returns:
      The scaled image `[*B, H, W, C]`.

    Raises:
      ValueError: If `x` is not an image, `conv_hw` and `norm_hw` are not given together, or a map
        returns another shape.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x, identity = jnp.ones((2, 7, 5, 16)), lambda z: z
      >>> conv = maps.conv(jnp.zeros((7, 7, 2, 1)))
      >>> y = vision.triplet_attention(x, conv, identity, conv, identity, conv, identity)
      >>> float(y[0, 0, 0, 0])      # σ(0) · 1
      0.5

    References:
      Misra, Nalamada, Arasanipalai, Hou, "Rotate to Attend: Convolutional Triplet Attention
      Module", WACV 2021, arXiv:2010.03045, section 3.
    """
    gates = _gates(x, conv_cw, norm_cw, conv_hc, norm_hc, conv_hw, norm_hw, gate_fn)
    return apply_gate_sum(x, *gates)


def triplet_attention_gate(
    x: Float[Array, "*B H W C"],
    conv_cw: Map,
    norm_cw: Map,
    conv_hc: Map,
    norm_hc: Map,
    conv_hw: Map | None = None,
    norm_hw: Map | None = None,
    *,
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B H W C"]:
    """The mean of the gates of `triplet_attention`, `[*B, H, W, C]` in the dtype of x."""
    gates = _gates(x, conv_cw, norm_cw, conv_hc, norm_hc, conv_hw, norm_hw, gate_fn)
    return gate_sum(x, *gates)


def triplet_attention_and_gate(x: jax.Array, **layers: Any) -> tuple[jax.Array, jax.Array]:
    """`triplet_attention` and `triplet_attention_gate` of the same gates."""
    gates = _gates(x, **layers)
    return apply_gate_sum(x, *gates), gate_sum(x, *gates)


def _gates(
    x: jax.Array,
    conv_cw: Map,
    norm_cw: Map,
    conv_hc: Map,
    norm_hc: Map,
    conv_hw: Map | None = None,
    norm_hw: Map | None = None,
    gate_fn: Activation = jax.nn.sigmoid,
) -> list[jax.Array]:
    """The gates of the planes, divided by the number of planes."""
    x = as_image(
        "triplet_attention",
        x,
        conv_cw=conv_cw,
        norm_cw=norm_cw,
        conv_hc=conv_hc,
        norm_hc=norm_hc,
        conv_hw=conv_hw,
        norm_hw=norm_hw,
        gate_fn=gate_fn,
    )
    if (conv_hw is None) != (norm_hw is None):
        missing = "conv_hw" if conv_hw is None else "norm_hw"
        raise ValueError(
            f"triplet_attention: conv_hw and norm_hw must be given together, got no {missing}. "
            f"Give both, or neither to omit the plane (H, W)."
        )

    def plane_gate(plane: Array, conv: Map, norm: Map, name: str, letters: str) -> Array:
        convolved = norm(conv(plane))
        shape = (*plane.shape[:-1], 1)
        check_returned("triplet_attention", f"conv_{name}", convolved, shape, letters)
        return gate_fn(convolved)[..., 0].astype(statistics_dtype(x.dtype))

    plane_cw = jnp.swapaxes(_pool(x, axis=-3), -3, -2)
    gate_cw = plane_gate(plane_cw, conv_cw, norm_cw, "cw", "[*B, C, W, 1]")
    gate_hc = plane_gate(_pool(x, axis=-2), conv_hc, norm_hc, "hc", "[*B, H, C, 1]")
    gates = [jnp.swapaxes(gate_cw, -2, -1)[..., None, :, :], gate_hc[..., :, None, :]]
    if conv_hw is not None and norm_hw is not None:
        gate_hw = plane_gate(_pool(x, axis=-1), conv_hw, norm_hw, "hw", "[*B, H, W, 1]")
        gates.append(gate_hw[..., None])
    return [gate / len(gates) for gate in gates]


def _pool(x: Array, axis: int) -> Array:
    """The maximum and the mean over an axis, stacked on a new last axis."""
    top = maximum(x, axis)
    return jnp.stack([top, mean(x, axis, top)], axis=-1)
