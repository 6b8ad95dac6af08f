"""Outlook attention, from VOLO."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from flax_attn._checks import Map, check_odd, check_positive, head_features, statistics_dtype
from flax_attn.vision._checks import as_image, check_returned


def outlook_attention(
    x: Float[Array, "*B H W C"],
    score: Map,
    value: Map,
    out: Map,
    *,
    num_heads: int = 8,
    kernel_size: int = 3,
    stride: int = 1,
    return_weights: bool = False,
) -> Any:
    """Outlook attention: each place predicts how its k×k neighbours attend to each other.

    A_i = softmax(score(x̄_i) / √D)   `[k², k²]`,   u_i = A_i V_i
    y = out(Σ_i u_i, each of its k² rows added where it belongs)

    V_i are the values `value(x)` in the window around place i, zeros outside the image. There are
    no queries and keys: the scores are a linear map of the place itself, or with a stride s, of the
    mean x̄ of s×s places.

    The paper has heads of 32 channels and a stride of 2. (With a stride of 1, one commit of its
    code sums the rows of A_i V_i at place i, instead of adding each to its own place.)

    Args:
      x: Image `[*B, H, W, C]`.
      score: Map from `[*B, H', W', C]` to `[*B, H', W', N · k⁴]`, H' = ⌈H / s⌉, W' = ⌈W / s⌉; k²
        rows of k² scores for each head.
      value: Map from `[*B, H, W, C]` to `[*B, H, W, N · D]`.
      out: Map from `[*B, H, W, N · D]` to `[*B, H, W, C]`.
      num_heads: N.
      kernel_size: k, odd.
      stride: s, the stride of the windows.
      return_weights: If True, also return A.

    Returns:
      The output `[*B, H, W, C]`. With `return_weights` also A `[*B, H', W', N, k², k²]` in float32
      (float64 for float64 input), whose rows sum to 1.

    Raises:
      ValueError: If `x` is not an image, the kernel is even, the channels of the values are not
        a multiple of N, or a map returns another shape.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x, identity = jnp.ones((1, 4, 4, 2)), lambda u: u
      >>> even = maps.dense(jnp.zeros((2, 2 * 3**4)))
      >>> y = vision.outlook_attention(x, even, identity, identity, num_heads=2)
      >>> (9 * y)[0, :, :, 0].round()            # means of windows, each at 9 places
      Array([[25., 40., 40., 25.],
             [40., 64., 64., 40.],
             [40., 64., 64., 40.],
             [25., 40., 40., 25.]], dtype=float32)

    References:
      Yuan, Hou, Jiang, Feng, Yan, "VOLO: Vision Outlooker for Visual Recognition", TPAMI 2022,
      arXiv:2106.13112, section 3.1.
    """
    function = "outlook_attention"
    x = as_image(function, x, score=score, value=value, out=out)
    size, stride = check_odd(function, kernel_size), check_positive(function, "stride", stride)
    v = value(x)
    check_returned(function, "value", v, (*x.shape[:-1], v.shape[-1]), "[*B, H, W, N · D]")
    head_dim = head_features(function, v.shape[-1], num_heads)

    pooled = x if stride == 1 else _window_mean(x, stride)
    scores = score(pooled)
    check_returned(
        function,
        "score",
        scores,
        (*pooled.shape[:-1], num_heads * size**4),
        "[*B, H', W', N · k⁴]",
    )
    dtype = statistics_dtype(scores.dtype)
    scores_NKK = scores.astype(dtype).reshape(*pooled.shape[:-1], num_heads, size**2, size**2)
    weights_NKK = jax.nn.softmax(scores_NKK * head_dim**-0.5, axis=-1)

    windows = _unfold(v, size, stride, pooled.shape[-3:-1])
    values_KND = windows.reshape(*windows.shape[:-1], num_heads, head_dim)
    mixed_KND = jnp.einsum(
        "...nts,...snd->...tnd",
        weights_NKK.astype(v.dtype),
        values_KND,
        preferred_element_type=dtype,
    )
    y = out(_fold(mixed_KND.reshape(windows.shape), size, stride, v.shape[-3:-1]).astype(v.dtype))
    check_returned(function, "out", y, x.shape, "[*B, H, W, C]")
    y = y.astype(x.dtype)
    return (y, weights_NKK) if return_weights else y


def _window_mean(x: jax.Array, size: int) -> jax.Array:
    """Means of size × size windows; the last ones average the places inside the image."""
    *batch, height, width, features = x.shape
    rows, columns = -(-height // size), -(-width // size)
    dtype = statistics_dtype(x.dtype)
    ends = [(0, 0)] * len(batch) + [(0, rows * size - height), (0, columns * size - width), (0, 0)]
    padded = jnp.pad(x.astype(dtype), ends)
    sums = padded.reshape(*batch, rows, size, columns, size, features).sum(axis=(-4, -2))
    heights = np.minimum(size, height - size * np.arange(rows))
    widths = np.minimum(size, width - size * np.arange(columns))
    counts = jnp.asarray(np.outer(heights, widths)[..., None], dtype)
    return (sums / jnp.broadcast_to(counts, sums.shape)).astype(x.dtype)


def _unfold(v: jax.Array, size: int, stride: int, places: tuple[int, ...]) -> jax.Array:
    """The k² values around each place, zeros outside the image: `[*B, H', W', k², M]`."""
    reach = size // 2
    padded = jnp.pad(v, [(0, 0)] * (v.ndim - 3) + [(reach, reach), (reach, reach), (0, 0)])
    rows, columns = (stride * (length - 1) + 1 for length in places)
    taps = [
        padded[..., a : a + rows : stride, b : b + columns : stride, :]
        for a in range(size)
        for b in range(size)
    ]
    return jnp.stack(taps, axis=-2)


def _fold(windows: jax.Array, size: int, stride: int, shape: tuple[int, ...]) -> jax.Array:
    """The transpose of `_unfold`: the sum over windows of their values at each place."""
    reach = size // 2
    *batch, height, width, _, _ = windows.shape

    def placed(tap: int) -> jax.Array:
        ends = [(0, 0, 0)] * len(batch)
        for start, length, whole in zip(divmod(tap, size), (height, width), shape, strict=True):
            after = whole + 2 * reach - start - (stride * (length - 1) + 1)
            ends.append((start, after, stride - 1))
        zero = jnp.zeros((), windows.dtype)
        return lax.pad(windows[..., tap, :], zero, [*ends, (0, 0, 0)])

    padded = sum(map(placed, range(1, size**2)), placed(0))
    return padded[..., reach : reach + shape[0], reach : reach + shape[1], :]


def num_scores(features: int, num_heads: int, kernel_size: int) -> int:
    """N k⁴, the channels of the scores in the modules."""
    head_features("OutlookAttention", features, num_heads)
    return num_heads * check_odd("OutlookAttention", kernel_size) ** 4
