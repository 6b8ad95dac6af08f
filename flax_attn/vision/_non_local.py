"""The non-local block."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_attn._checks import Map, check_positive
from flax_attn.attention import attention_weights, dot_product_attention
from flax_attn.vision._checks import as_image, check_returned
from flax_attn.vision._tokens import as_places, as_tokens, check_projected


def non_local(
    x: Float[Array, "*B H W C"],
    query: Map,
    key: Map,
    value: Map,
    out: Map,
    *,
    norm: Map | None = None,
    subsample: int = 1,
    scale: float | None = None,
    return_weights: bool = False,
) -> Float[Array, "*B H W C"] | Any:
    """The non-local block (embedded Gaussian): each place attends to all, with a residual.

    q = query(x),   k = key(x′),   v = value(x′),   x′ = x, or x max-pooled in 2×2 windows
    A_ij = softmax_j(scale · q_i · k_j),   y_i = norm(out(Σ_j A_ij v_j)) + x_i

    In the paper R = C / 2. The released code also scales by 1/√R, has biases, and pools the image
    for keys and values (`subsample=2`; widespread copies pool the keys and values). In both, the
    gain of the batch normalisation starts at 0: the identity. With identity maps as query and key,
    this is the paper's Gaussian.

    Args:
      x: Image `[*B, H, W, C]`.
      query: Map from `[*B, H, W, C]` to `[*B, H, W, R]`; θ in the paper.
      key: Map from `[*B, H', W', C]` to `[*B, H', W', R]`; φ in the paper.
      value: Map from `[*B, H', W', C]` to `[*B, H', W', V]`; g in the paper.
      out: Map from `[*B, H, W, V]` to `[*B, H, W, C]`.
      norm: Map of `[*B, H, W, C]`, or None.
      subsample: Size and stride of the max-pooling before keys and values: H' = H // subsample,
        W' = W // subsample. Places that tie share the gradient.
      scale: Factor of the scores, by default 1/√R; 1 in the paper.
      return_weights: If True, also return A, which takes memory for H · W · H' · W' numbers.

    Returns:
      The output `[*B, H, W, C]`. With `return_weights` also A `[*B, H·W, H'·W']` in float32
      (float64 for float64 input).

    Raises:
      ValueError: If `x` is not an image, R or V is 0, a map returns another shape, or the image is
        smaller than a window.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x = jnp.array([[[[1.0], [5.0]]]])                    # two places of one channel
      >>> zero, identity = maps.dense(jnp.zeros((1, 1))), lambda u: u
      >>> vision.non_local(x, zero, zero, identity, maps.dense(jnp.ones((1, 1))))[0, 0, :, 0]
      Array([4., 8.], dtype=float32)

    References:
      Wang, Girshick, Gupta, He, "Non-local Neural Networks", CVPR 2018, arXiv:1711.07971,
      equations 1-6.
    """
    function = "non_local"
    x = as_image(function, x, query=query, key=key, value=value, out=out, norm=norm)
    seen = _pooled(x, subsample)
    q, k, v = query(x), key(seen), value(seen)
    check_projected(function, "query", q, x, "[*B, H, W, R]")
    check_returned(function, "key", k, (*seen.shape[:-1], q.shape[-1]), "[*B, H', W', R]")
    check_projected(function, "value", v, seen, "[*B, H', W', V]")
    q, k, v = as_tokens(q), as_tokens(k), as_tokens(v)
    attended = dot_product_attention(q, k, v, scale=scale)
    branch = out(as_places(attended, x))
    check_returned(function, "out", branch, x.shape, "[*B, H, W, C]")
    if norm is not None:
        branch = norm(branch)
        check_returned(function, "norm", branch, x.shape, "[*B, H, W, C]")
    y = branch.astype(x.dtype) + x
    return (y, attention_weights(q, k, scale=scale)[..., 0, :, :]) if return_weights else y


def _pooled(x: jax.Array, size: int) -> jax.Array:
    """Max-pooling without overlap; rows and columns beyond the last window are dropped."""
    size = check_positive("non_local", "subsample", size)
    if size == 1:
        return x
    *batch, height, width, channels = x.shape
    if min(height, width) < size:
        raise ValueError(
            f"non_local: H and W must be at least subsample = {size}, got H, W = {height}, {width}."
            f" Use subsample=1 for so small an image."
        )
    rows, columns = height // size, width // size
    windows = x[..., : rows * size, : columns * size, :].reshape(
        *batch, rows, size, columns, size, channels
    )
    return jnp.max(windows, axis=(-4, -2))
