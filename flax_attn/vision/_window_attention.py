"""Window attention (Swin's W-MSA and SW-MSA)."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_attn._checks import Map
from flax_attn.attention import dot_product_attention, multi_head_attention
from flax_attn.coords import Coords
from flax_attn.masks import SameSegment
from flax_attn.vision._checks import as_image, check_returned
from flax_attn.vision._windows import (
    Size,
    as_pair,
    check_divides,
    from_windows,
    to_windows,
    with_relative_bias,
)


def window_attention(
    x: Float[Array, "*B H W C"],
    query: Map,
    key: Map,
    value: Map,
    out: Map,
    *,
    relative_bias: Float[Array, "R N"] | None = None,
    window_size: Size = 7,
    shift_size: Size = 0,
    pad: bool = False,
    attention: Callable[..., Array] = dot_product_attention,
) -> Float[Array, "*B H W C"]:
    """Window attention: each place attends to the places of its window.

    A = softmax(q·kᵀ / √D + t[Δy, Δx]),   y = out(A v)   in each window of M × M places

    With a shift s > 0 the windows are moved down and right by s, and cut off at the borders of the
    image. This is computed by rolling the image by −s; places from opposite borders do not attend
    to each other (they have different segment ids, nothing is added to the scores). Swin alternates
    s = 0 and s = ⌊M / 2⌋, with M = 7 and heads of 32 channels. s = 0 is also MaxViT's block
    attention. To load its released table, `[N, 2 M − 1, 2 M − 1]` of key minus query, pass
    `table[:, ::-1, ::-1].reshape(N, -1).T`.

    `pad` fills the last windows with masked places. Swin's code for detection pads the same places
    but attends to them: to get its numbers, pad and crop outside this function.

    A shift along an axis that one window covers raises. Swin's code for detection keeps such a
    shift, which splits the window in two. Swin's code for classification drops the shift along both
    axes, and uses windows of min(H, W) if that is less than M. timm drops it along that axis only.

    Args:
      x: Image `[*B, H, W, C]`.
      query: Map from `[*B, windows, M², C]` to `[*B, windows, M², N, D]`.
      key: Map from `[*B, windows, M², C]` to `[*B, windows, M², N, D]`.
      value: Map from `[*B, windows, M², C]` to `[*B, windows, M², N, Dv]`.
      out: Map from `[*B, windows, M², N, Dv]` to `[*B, windows, M², C]`.
      relative_bias: t, a number for each offset (query minus key) and head,
        `[(2 Mh − 1) · (2 Mw − 1), N]`, column offsets varying fastest, or None. It is not scaled.
      window_size: M, one number or (Mh, Mw).
      shift_size: s, one number or (height, width), less than M.
      pad: If True, sizes that are not multiples of M are padded; otherwise they raise.
      attention: Attention on heads, called with `query, key, value` and the keywords `mask`,
        `score_mod`, `query_coords`, `key_coords` of `dot_product_attention`.

    Returns:
      The output `[*B, H, W, C]`.

    Raises:
      ValueError: If `x` is not an image, M does not divide H or W and `pad` is not set, s is not
        less than M, a shifted axis is not longer than M, or a map or table has another shape.
      TypeError: If `x` is not a floating-point array, or a size is not a whole number.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x = jnp.ones((2, 14, 7, 64))
      >>> split = maps.dense(jax.random.normal(jax.random.key(0), (64, 2, 32)))
      >>> join = maps.dense(jax.random.normal(jax.random.key(1), (2, 32, 64)), axes=2)
      >>> table = jnp.zeros((13 * 13, 2))
      >>> y = vision.window_attention(
      ...     x, split, split, split, join, relative_bias=table, shift_size=(3, 0)
      ... )
      >>> y.shape
      (2, 14, 7, 64)

    References:
      Liu, Lin, Cao, Hu, Wei, Zhang, Lin, Guo, "Swin Transformer: Hierarchical Vision Transformer
      using Shifted Windows", ICCV 2021, arXiv:2103.14030, section 3.2, equation 4.
    """
    function = "window_attention"
    x = as_image(function, x, query=query, key=key, value=value, out=out, attention=attention)
    window = as_pair(function, "window_size", window_size, 1)
    shift = as_pair(function, "shift_size", shift_size, 0)
    if not pad:
        check_divides(function, "window_size", window, x, "Set pad=True to fill the last windows.")
    height, width = x.shape[-3:-1]
    padding = (-height % window[0], -width % window[1])
    padded = (height + padding[0], width + padding[1])
    _check_shift(shift, window, (height, width))

    coords = Coords.grid(*window)
    if any(padding):
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(0, padding[0]), (0, padding[1]), (0, 0)])
        rows, cols = jnp.arange(padded[0]) < height, jnp.arange(padded[1]) < width
        valid = jnp.roll(rows[:, None] & cols[None], (-shift[0], -shift[1]), (0, 1))
        coords = coords.with_features(valid=to_windows(valid[..., None], window)[..., 0])
    if any(shift):
        x = jnp.roll(x, (-shift[0], -shift[1]), (-3, -2))
        rows, cols = (jnp.arange(n) >= n - s for n, s in zip(padded, shift, strict=True))
        regions = 2 * rows[:, None].astype(jnp.int32) + cols[None].astype(jnp.int32)
        coords = coords.with_features(segment_ids=to_windows(regions[..., None], window)[..., 0])

    tokens = to_windows(x, window)
    attended = multi_head_attention(
        tokens,
        tokens,
        query,
        key,
        value,
        out,
        attention=with_relative_bias(function, attention, relative_bias, window),
        mask=SameSegment() if any(shift) else None,
        query_coords=coords,
        key_coords=coords,
    )
    check_returned(function, "out", attended, tokens.shape, "[*B, windows, M², C]")
    y = from_windows(attended, window, *padded)
    if any(shift):
        y = jnp.roll(y, shift, (-3, -2))
    return y[..., :height, :width, :].astype(x.dtype)


def _check_shift(shift: tuple[int, int], window: tuple[int, int], sizes: tuple[int, int]) -> None:
    for letter, s, m, size in zip("HW", shift, window, sizes, strict=True):
        if s >= m:
            raise ValueError(
                f"window_attention: shift_size must be less than window_size = {window}, "
                f"got {shift}. Swin shifts by half a window."
            )
        if s and size <= m:
            raise ValueError(
                f"window_attention: shift_size must be 0 along an axis that one window covers, "
                f"got {s} for {letter} = {size} and window_size = {m}. Set that shift to 0."
            )
