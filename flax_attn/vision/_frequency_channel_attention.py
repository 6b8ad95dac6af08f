"""Frequency channel attention (FcaNet)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flax_attn._checks import Activation, Map, as_integer, expand_rank, statistics_dtype
from flax_attn.vision._checks import as_image, check_reduced, check_returned
from flax_attn.vision._gates import apply_gate
from flax_attn.vision._pooling import even_bins
from flax_attn.vision._windows import as_pair

# The frequencies (u, v) of height and width in a 7×7 plane, best accuracy on ImageNet first.
_BEST = (
    *((0, 0), (0, 1), (6, 0), (0, 5), (0, 2), (1, 0), (1, 2), (4, 0)),
    *((5, 0), (1, 6), (3, 0), (0, 4), (0, 6), (0, 3), (3, 5), (2, 2)),
    *((4, 6), (6, 3), (3, 3), (5, 3), (5, 5), (2, 1), (6, 1), (5, 2)),
    *((5, 4), (3, 2), (3, 1), (4, 1), (2, 3), (2, 0), (6, 5), (1, 3)),
)


def frequency_channel_attention(
    x: Float[Array, "*B H W C"],
    reduce: Map,
    expand: Map,
    *,
    frequencies: int | Sequence[tuple[int, int]] = 16,
    dct_size: int | tuple[int, int] = 7,
    activation_fn: Activation = jax.nn.relu,
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B H W C"]:
    """Frequency channel attention: squeeze-and-excitation with cosine pooling.

    z = Σ_{p,q} b_u(p, P) b_v(q, Q) pool(x)_{pq},   (u, v) the frequency of the channel's group
    b_u(p, P) = cos(π u ⌊P / 7⌋ (p + ½) / P) · (1 if u = 0 else √2) / √P
    g = σ(expand(ReLU(reduce(z)))),   y = g ⊙ x

    The channels are split into one group for each frequency, in order. `pool` is the mean over P×Q
    bins, which overlap if P×Q does not divide the image size; an image of size P×Q is unchanged.
    The frequency (0, 0) is the mean times √(P Q).

    In the paper's ResNets P and Q are the size of the stage for images of 224×224 (56, 28, 14, 7),
    and R = C / 16 without biases.

    Args:
      x: Image `[*B, H, W, C]`.
      reduce: Map from `[*B, C]` to `[*B, R]`.
      expand: Map from `[*B, R]` to `[*B, C]`.
      frequencies: How many of the paper's 32 best frequencies, or pairs (u, v), each 0 to 6. C must
        be a multiple of their number.
      dct_size: P and Q, at least 7; one number for both.
      activation_fn: Between the maps.
      gate_fn: σ, from the expanded statistics to the gate.

    Returns:
      The scaled image `[*B, H, W, C]`.

    Raises:
      ValueError: If `x` is not an image, R is 0, a map returns another shape, `frequencies`
        is empty or unknown, their number does not divide C, or `dct_size` is less than 7.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x = jnp.ones((2, 14, 14, 32))
      >>> reduce, expand = maps.dense(jnp.ones((32, 2))), maps.dense(jnp.zeros((2, 32)))
      >>> float(vision.frequency_channel_attention(x, reduce, expand)[0, 0, 0, 0])    # σ(0) · 1
      0.5

    References:
      Qin, Zhang, Wu, Li, "FcaNet: Frequency Channel Attention Networks", ICCV 2021,
      arXiv:2012.11879, section 3.
    """
    gate = frequency_channel_attention_gate(
        x,
        reduce,
        expand,
        frequencies=frequencies,
        dct_size=dct_size,
        activation_fn=activation_fn,
        gate_fn=gate_fn,
    )
    return apply_gate(x, gate)


def frequency_channel_attention_gate(
    x: Float[Array, "*B H W C"],
    reduce: Map,
    expand: Map,
    *,
    frequencies: int | Sequence[tuple[int, int]] = 16,
    dct_size: int | tuple[int, int] = 7,
    activation_fn: Activation = jax.nn.relu,
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B 1 1 C"]:
    """The gate g of `frequency_channel_attention`, `[*B, 1, 1, C]` in the dtype of x."""
    x = as_image(
        "frequency_channel_attention",
        x,
        reduce=reduce,
        expand=expand,
        activation_fn=activation_fn,
        gate_fn=gate_fn,
    )
    pairs = _pairs(frequencies, x.shape[-1])
    # A smaller plane does not have all 7 frequencies.
    sizes = as_pair("frequency_channel_attention", "dct_size", dct_size, 7)
    pooled = _spectrum(x, pairs, sizes)
    hidden = activation_fn(reduce(pooled))
    check_reduced("frequency_channel_attention", hidden)
    gate = gate_fn(expand(hidden))
    check_returned("frequency_channel_attention", "expand", gate, pooled.shape, "[*B, C]")
    return gate[..., None, None, :].astype(x.dtype)


def _pairs(frequencies: int | Sequence[tuple[int, int]], channels: int) -> np.ndarray:
    """The frequencies `[F, 2]`."""
    function = "frequency_channel_attention"
    if isinstance(frequencies, Sequence | np.ndarray):
        if not len(frequencies) or not all(map(_is_frequency, frequencies)):
            raise ValueError(
                f"{function}: frequencies must be pairs (u, v) of whole numbers from 0 to 6, "
                f"got {frequencies}."
            )
        pairs = np.array(frequencies)
    else:
        count = as_integer(function, "frequencies", frequencies)
        if not 1 <= count <= len(_BEST):
            raise ValueError(
                f"{function}: frequencies must be 1 to {len(_BEST)} of the paper's, got {count}. "
                f"Give pairs (u, v) for others."
            )
        pairs = np.array(_BEST[:count])
    if channels % len(pairs):
        raise ValueError(
            f"{function}: C must be a multiple of the number of frequencies, got {channels} and "
            f"{len(pairs)}. Use a number of frequencies that divides C."
        )
    return pairs


def _is_frequency(pair: Any) -> bool:
    return np.shape(pair) == (2,) and all(number in range(7) for number in pair)


def _spectrum(x: Array, pairs: np.ndarray, sizes: tuple[int, int]) -> Array:
    """The coefficient of each channel's frequency, `[*B, C]`, in at least float32."""
    dtype = statistics_dtype(x.dtype)
    repeats = x.shape[-1] // len(pairs)
    rows, columns = (
        jnp.repeat(_pooled_cosines(size, bins, frequency, dtype), repeats, axis=-1)
        for size, bins, frequency in zip(x.shape[-3:-1], sizes, pairs.T, strict=True)
    )
    # Sums instead of matrix products, which round float32 on accelerators.
    by_column = jnp.sum(x.astype(dtype) * expand_rank(rows[:, None, :], x.ndim), axis=-3)
    return jnp.sum(by_column * expand_rank(columns, x.ndim - 1), axis=-2)


def _pooled_cosines(size: int, bins: int, frequency: np.ndarray, dtype: jnp.dtype) -> Array:
    """The weight of each place of one axis in each frequency, through its bins: `[size, F]`."""
    turns = (np.arange(bins)[:, None] + 0.5) * frequency * (bins // 7) / bins
    cosines = np.cos(np.pi * turns) * np.where(frequency == 0, 1, np.sqrt(2)) / np.sqrt(bins)
    pooling = even_bins(size, bins, dtype)
    return jnp.einsum("pl,pf->lf", pooling, cosines.astype(dtype), precision="highest")
