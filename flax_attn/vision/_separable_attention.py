"""Separable self-attention, from MobileViT v2."""

from typing import Any

import jax
from jaxtyping import Array, Float

from flax_attn._checks import Activation, Map, check_positive, statistics_dtype
from flax_attn.vision._checks import as_image, check_returned
from flax_attn.vision._gates import apply_gate
from flax_attn.vision._pooling import weighted_sum


def separable_attention(
    x: Float[Array, "*B H W C"],
    score: Map,
    key: Map,
    value: Map,
    out: Map,
    *,
    patch_size: int = 1,
    activation_fn: Activation = jax.nn.relu,
    return_weights: bool = False,
) -> Any:
    """Separable self-attention: one score for each place, one context for all places.

    p = softmax(score(x)),   c = Σ_j p_j key(x)_j,   y_i = out(ReLU(value(x)_i) ⊙ c)

    The sum and the softmax run over all places. MobileViT v2 cuts the image into 2×2 patches
    (`patch_size=2`). Then they run over the places with the same position in their patch, which
    gives four contexts.

    Args:
      x: Image `[*B, H, W, C]`.
      score: Map from `[*B, H, W, C]` to `[*B, H, W, 1]`; the paper's input branch I.
      key: Map from `[*B, H, W, C]` to `[*B, H, W, D]`.
      value: Map like `key`.
      out: Map from `[*B, H, W, D]` to `[*B, H, W, C]`.
      patch_size: Size P of the patches, which divides H and W.
      activation_fn: Applied to the values.
      return_weights: If True, also return p.

    Returns:
      The output `[*B, H, W, C]`. With `return_weights` also p `[*B, H, W, 1]` in float32 (float64
      for float64 input).

    Raises:
      ValueError: If `x` is not an image, H or W is not a multiple of the patch size, or a map
        returns another shape.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x = jnp.array([[[[1.0], [3.0]]]])                    # two places of one channel
      >>> same, identity = maps.dense(jnp.zeros((1, 1))), lambda u: u
      >>> vision.separable_attention(x, same, identity, identity, identity)[0, 0, :, 0]  # x · mean
      Array([2., 6.], dtype=float32)

    References:
      Mehta, Rastegari, "Separable Self-attention for Mobile Vision Transformers", TMLR 2023,
      arXiv:2206.02680, section 3.2.
    """
    function = "separable_attention"
    x = as_image(
        function, x, score=score, key=key, value=value, out=out, activation_fn=activation_fn
    )
    *batch, height, width, _ = x.shape
    patch_size = check_positive(function, "patch_size", patch_size)
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"{function}: H and W must be multiples of patch_size = {patch_size}, "
            f"got H, W = {height}, {width}. Resize or pad the image."
        )
    scores, k, v = score(x), key(x), value(x)
    check_returned(function, "score", scores, (*x.shape[:-1], 1), "[*B, H, W, 1]")
    check_returned(function, "key", k, (*x.shape[:-1], k.shape[-1]), "[*B, H, W, D]")
    check_returned(function, "value", v, k.shape, "[*B, H, W, D]")

    rows, columns = height // patch_size, width // patch_size

    def in_patches(a: jax.Array) -> jax.Array:
        return a.reshape(*batch, rows, patch_size, columns, patch_size, a.shape[-1])

    dtype = statistics_dtype(scores.dtype)
    weights_hPwP1 = jax.nn.softmax(in_patches(scores).astype(dtype), axis=(-5, -3))
    context_1P1PD = weighted_sum(in_patches(k), weights_hPwP1, (-5, -3))
    mixed = apply_gate(in_patches(activation_fn(v)), context_1P1PD)
    y = out(mixed.reshape(v.shape))
    check_returned(function, "out", y, x.shape, "[*B, H, W, C]")
    y = y.astype(x.dtype)
    return (y, weights_hPwP1.reshape(scores.shape)) if return_weights else y
