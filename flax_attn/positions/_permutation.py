"""The two layouts of rotary features, and weights that move from one to the other."""

import jax
import numpy as np
from jaxtyping import Array, Shaped

from flax_attn._checks import as_integer, check_array, check_positive


def to_half(
    kernel: Shaped[Array, "*M ND"], head_dim: int, *, rotated: int | None = None
) -> Shaped[Array, "*M ND"]:
    """Reorder the weights of queries or keys, from the interleaved layout to the half layout.

    W'[..., i] = W[..., 2i],  W'[..., i + R/2] = W[..., 2i + 1],  in each head

    With both reordered, `rotary(..., layout="half")` gives the scores that `layout="interleaved"`
    gave before. Values and the output projection stay as they are. A checkpoint of Llama's own code
    or GGUF is interleaved; one of Hugging Face's Llama is in halves.

    Args:
      kernel: Kernel `[M, N, D]` or `[M, N · D]`, or bias `[N, D]` or `[N · D]`. Features come last:
        transpose a weight of PyTorch first. Scales of a normalisation over a head are reordered,
        too.
      head_dim: D, the size of a head.
      rotated: R, the number of rotated features, the first of each head. Default: D.

    Returns:
      The reordered array, in the shape of `kernel`.

    Raises:
      ValueError: If the last axis is not a multiple of D, or R is odd or above D.
      TypeError: If an argument has the wrong type.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import positions
      >>> positions.to_half(jnp.arange(6), 6)
      Array([0, 2, 4, 1, 3, 5], dtype=int32)

    References:
      Su, Lu, Pan, Murtadha, Wen, Liu, "RoFormer: Enhanced Transformer with Rotary Position
      Embedding", 2021, arXiv:2104.09864, equation 34 has the interleaved layout.
    """
    size, rotated = _sizes("to_half", kernel, head_dim, rotated)
    order = np.arange(size)
    order[:rotated] = order[:rotated].reshape(-1, 2).T.ravel()
    return _reorder(kernel, order)


def to_interleaved(
    kernel: Shaped[Array, "*M ND"], head_dim: int, *, rotated: int | None = None
) -> Shaped[Array, "*M ND"]:
    """Reorder the weights of queries or keys, from the half layout to the interleaved layout.

    W'[..., 2i] = W[..., i],  W'[..., 2i + 1] = W[..., i + R/2],  in each head

    The inverse of `to_half`, which says what else must be reordered.

    Args:
      kernel: Kernel `[M, N, D]` or `[M, N · D]`, or bias `[N, D]` or `[N · D]`. Features come last.
      head_dim: D, the size of a head.
      rotated: R, the number of rotated features, the first of each head. Default: D.

    Returns:
      The reordered array, in the shape of `kernel`.

    Raises:
      ValueError: If the last axis is not a multiple of D, or R is odd or above D.
      TypeError: If an argument has the wrong type.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import positions
      >>> positions.to_interleaved(jnp.arange(6), 6)
      Array([0, 3, 1, 4, 2, 5], dtype=int32)

    References:
      Those of `to_half`.
    """
    size, rotated = _sizes("to_interleaved", kernel, head_dim, rotated)
    order = np.arange(size)
    order[:rotated] = order[:rotated].reshape(2, -1).T.ravel()
    return _reorder(kernel, order)


def _sizes(function: str, kernel: jax.Array, head_dim: int, rotated: int | None) -> tuple[int, int]:
    check_array(function, "kernel", kernel)
    size = check_positive(function, "head_dim", head_dim)
    rotated = size if rotated is None else as_integer(function, "rotated", rotated)
    if rotated < 2 or rotated % 2 or rotated > size:
        raise ValueError(
            f"{function}: rotated must be even, in 2 ... head_dim = {size}, got {rotated}."
        )
    if kernel.ndim == 0 or kernel.shape[-1] % size:
        raise ValueError(
            f"{function}: the last axis of kernel must be D = {size} or N · D, got "
            f"{list(kernel.shape)}. Transpose a weight of PyTorch: weight.T."
        )
    return size, rotated


def _reorder(kernel: jax.Array, order: np.ndarray) -> jax.Array:
    return kernel.reshape(*kernel.shape[:-1], -1, len(order))[..., order].reshape(kernel.shape)
