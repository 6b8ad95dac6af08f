"""Rotary position embedding."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flax_attn._checks import as_floating, expand_rank
from flax_attn._cpu.rotation import stored
from flax_attn.positions._frequencies import Frequencies
from flax_attn.positions._rotary_checks import (
    Layout,
    Positions,
    as_positions,
    check_heads,
    check_layout,
    check_sections,
)


def rotary(
    x: Float[Array, "*B T N D"],
    positions: Positions,
    frequencies: Frequencies | Float[Array, "F"],
    *,
    layout: Layout = "half",
    sections: Sequence[int] | None = None,
) -> Float[Array, "*B T N D"]:
    """Rotate pairs of features by angles proportional to the position of their token.

    (u_i, v_i) ← a · (u_i cos φ_i − v_i sin φ_i,  v_i cos φ_i + u_i sin φ_i),  φ_i = p · θ_i

    Queries and keys are both rotated; then scores depend on differences of positions only. A
    token's rotation depends on its own position only, so keys can be cached after rotation.

    Angles, sines and cosines are float32, or float64 for float64 `x`. An angle of φ radians has an
    error of up to φ · 2⁻²⁴; integer positions beyond 2²⁴ are rounded to float32. Features are
    rotated in that dtype, and rounded to the dtype of `x` once.

    Args:
      x: Queries or keys `[*B, T, N, D]`.
      positions: Positions p in tokens `[*#B, T]`, integer or floating, in any order: packed,
        shifted, or different for each batch element. With `sections`: `[*#B, T, A]`.
      frequencies: θ in radians per token `[R/2]`, as `Frequencies`, which hold the attention factor
        a, or as an array. The first R features of each head are rotated, R ≤ D.
      layout: Which features are pairs (u_i, v_i). `"half"`: i and i + R/2, as in GPT-NeoX, and in
        Hugging Face's Llama. `"interleaved"`: 2i and 2i + 1, as in the paper, in GPT-J, and in
        Llama's own and GGUF checkpoints. `to_half` and `to_interleaved` convert weights.
      sections: Numbers of frequencies s_1 ... s_A, with sum R/2. The first s_1 frequencies read
        `positions[..., 0]`, the next s_2 read `positions[..., 1]`, and so on: rows and columns of
        an image, or time, rows and columns in Qwen2-VL (`mrope_section`). For any other order, as
        in Qwen3-VL, give each frequency a section: `sections=(1,) * (R // 2)` and
        `positions[..., axes]`, where `axes` `[R/2]` has the axis of each frequency.

    Returns:
      The rotated array, in the shape and dtype of `x`.

    Raises:
      ValueError: If shapes do not agree, R is above D, the layout is unknown, or the sections do
        not sum to R/2.
      TypeError: If an argument has the wrong type.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import positions
      >>> x = jnp.ones((2, 5, 3, 8))
      >>> positions.rotary(x, jnp.arange(5), positions.frequencies(8)).shape
      (2, 5, 3, 8)

    References:
      Su, Lu, Pan, Murtadha, Wen, Liu, "RoFormer: Enhanced Transformer with Rotary Position
      Embedding", 2021, arXiv:2104.09864, equations 15 and 34; Wang et al., "Qwen2-VL", 2024,
      arXiv:2409.12191, section 2.1 (sections).
    """
    x = check_heads("rotary", x)
    check_layout("rotary", layout)
    table = _check_frequencies(frequencies, x)
    if sections is not None:
        sections = check_sections("rotary", sections, len(table.values))
    places = as_positions("rotary", positions, x, sections)
    factor = None if _is_one(table.attention_factor) else table.attention_factor
    cos, sin = stored(*_cos_and_sin(places, table.values, factor, sections=sections, ndim=x.ndim))
    return _rotate(x, cos, sin, layout=layout)


@functools.partial(jax.jit, static_argnames=("sections", "ndim"), inline=True)
def _cos_and_sin(
    positions: jax.Array,
    values: jax.Array,
    factor: float | jax.Array | None,
    *,
    sections: tuple[int, ...] | None,
    ndim: int,
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines `[*#B, T, 1, R/2]` with `ndim` axes, times the attention factor."""
    values = values.astype(positions.dtype)
    if sections is None:
        angles = positions[..., None] * expand_rank(values, positions.ndim + 1)
    else:
        columns = jnp.split(positions, len(sections), axis=-1)
        parts = jnp.split(expand_rank(values, positions.ndim), np.cumsum(sections)[:-1], axis=-1)
        angles = jnp.concatenate([p * part for p, part in zip(columns, parts, strict=True)], -1)
    angles = expand_rank(angles[..., None, :], ndim)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if factor is None:
        return cos, sin
    factor = jnp.asarray(factor, angles.dtype)
    return cos * factor, sin * factor


@functools.partial(jax.jit, static_argnames="layout", inline=True)
def _rotate(x: jax.Array, cos: jax.Array, sin: jax.Array, *, layout: Layout) -> jax.Array:
    """Rotate the first R features, given the cosines and sines of R/2 pairs."""
    rotated = 2 * cos.shape[-1]
    kept = [x[..., rotated:]] if rotated < x.shape[-1] else []
    if layout == "half":
        u, v = x[..., : rotated // 2], x[..., rotated // 2 : rotated]
    else:
        u, v = x[..., 0:rotated:2], x[..., 1:rotated:2]
    u, v = u.astype(cos.dtype), v.astype(cos.dtype)
    pair = (u * cos - v * sin).astype(x.dtype), (v * cos + u * sin).astype(x.dtype)
    if layout == "half":
        return jnp.concatenate([*pair, *kept], axis=-1)
    turned = jnp.stack(pair, axis=-1).reshape(*x.shape[:-1], rotated)
    return jnp.concatenate([turned, *kept], axis=-1) if kept else turned


def _is_one(factor: float | jax.Array) -> bool:
    return not isinstance(factor, jax.Array) and factor == 1


def _check_frequencies(frequencies: Frequencies | jax.Array, x: jax.Array) -> Frequencies:
    if not isinstance(frequencies, Frequencies):
        if not hasattr(frequencies, "dtype"):
            raise TypeError(
                f"rotary: frequencies must be Frequencies or an array [R/2], got "
                f"{type(frequencies).__name__}. Write positions.frequencies(head_dim)."
            )
        frequencies = Frequencies(frequencies)
    values = as_floating("rotary", "frequencies", frequencies.values)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(
            f"rotary: frequencies must be [R/2], one for each pair of features, got "
            f"{list(values.shape)}."
        )
    if 2 * values.size > x.shape[-1]:
        raise ValueError(
            f"rotary: R = 2 · {values.size} rotated features must be at most D = {x.shape[-1]}, "
            f"got x {list(x.shape)}. Write positions.frequencies({x.shape[-1] // 2 * 2})."
        )
    return Frequencies(values, frequencies.attention_factor)
