"""Attention rollout: attention of several layers in one matrix."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from flax_attn._checks import as_floating, statistics_dtype

FUSIONS: dict[str, Callable[..., jax.Array]] = {"mean": jnp.mean, "max": jnp.max, "min": jnp.min}


def rollout(
    weights: Sequence[Float[Array, "*B N T T"]],
    *,
    residual: float = 0.5,
    head_fusion: str = "mean",
) -> Float[Array, "*B T T"]:
    """Attention of the last layer's tokens to the tokens of the input, through all layers.

    R = Â_L ⋯ Â_2 Â_1,  Â_l = residual · I + (1 − residual) · A_l

    A_l is the mean over the heads of layer l. The identity stands for the residual connection. Rows
    of Â_l are divided by their sum, and a row of zeros stays 0. So the rows of R sum to 1: R_ts is
    the probability of a random walk from token t of the last layer to token s of the input.

    It takes L products of `[T, T]` matrices, and needs no matplotlib. `visualize.heat_map` draws R.
    For an image with a class token, `visualize.where(image, R[0, 1:].reshape(h, w))` draws what the
    class token attends to. In a causal model the walk can only go back, so deep rollouts pile up on
    the first tokens.

    Args:
      weights: Attention weights of each layer `[*B, N, T, T]`, the first layer first. N may differ.
      residual: The share of the residual connection, at least 0 and below 1. 0 leaves it out.
      head_fusion: `"mean"`, `"max"` or `"min"` over heads. The paper's is the mean.

    Returns:
      R `[*B, T, T]`, in float32 (float64 for float64 weights).

    Raises:
      ValueError: If there is no layer, shapes do not fit, `residual` is not in [0, 1), or
        `head_fusion` has another name.
      TypeError: If the weights are not arrays of floating point, or `residual` is not a number.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import visualize
      >>> first = jnp.array([[[1.0, 0.0], [1.0, 0.0]]])  # one head: both tokens attend to token 0
      >>> visualize.rollout([first, first])
      Array([[1.  , 0.  ],
             [0.75, 0.25]], dtype=float32)

    References:
      Abnar, Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, arXiv:2005.00928,
      section 3. The other fusions of heads are Gildenblat's, "Exploring Explainability for Vision
      Transformers", 2020.
    """
    function = "visualize.rollout"
    if isinstance(weights, jax.Array | np.ndarray):
        fix = {2: "[weights[None]]", 3: "[weights]"}.get(
            weights.ndim, "list(weights) if the first axis is layers"
        )
        raise ValueError(
            f"{function}: weights must be a list with [*B, N, T, T] for each layer, got one array "
            f"{list(weights.shape)}. Write {fix}."
        )
    if not isinstance(weights, Sequence) or isinstance(weights, str):
        raise TypeError(
            f"{function}: weights must be a list of arrays, got {type(weights).__name__}."
        )
    layers = [as_floating(function, f"weights[{i}]", x) for i, x in enumerate(weights)]
    if not layers:
        raise ValueError(f"{function}: weights must have at least one layer, got none.")
    expected = _without_heads(layers[0])
    for i, layer in enumerate(layers):
        if layer.ndim < 3 or layer.shape[-1] != layer.shape[-2] or layer.shape[-3] == 0:
            raise ValueError(
                f"{function}: weights[{i}] must be [*B, N, T, T], got {list(layer.shape)}. Only "
                f"self-attention can be rolled out."
            )
        if _without_heads(layer) != expected:
            raise ValueError(
                f"{function}: all layers must have the same [*B, T, T] = {list(expected)}, got "
                f"{list(_without_heads(layer))} in weights[{i}]."
            )
    residual = _as_share(function, residual)
    if not isinstance(head_fusion, str) or head_fusion not in FUSIONS:
        names = ", ".join(map(repr, FUSIONS))
        raise ValueError(f"{function}: head_fusion must be one of {names}, got {head_fusion!r}.")

    dtype = max((statistics_dtype(x.dtype) for x in layers), key=lambda x: x.itemsize)
    identity = jnp.broadcast_to(jnp.eye(expected[-1], dtype=dtype), expected)
    rolled = identity
    for layer in layers:
        fused = FUSIONS[head_fusion](layer.astype(dtype), axis=-3)
        step = residual * identity + (1 - residual) * fused
        total = step.sum(-1, keepdims=True)
        step = step / jnp.where(total == 0, 1, total)
        rolled = jnp.matmul(step, rolled, precision=lax.Precision.HIGHEST)
    return rolled


def _without_heads(layer: jax.Array) -> tuple[int, ...]:
    return (*layer.shape[:-3], *layer.shape[-2:])


def _as_share(function: str, residual: float) -> float:
    if isinstance(residual, bool) or not isinstance(residual, int | float | np.number):
        raise TypeError(
            f"{function}: residual must be one number, got {residual!r}. Write residual=0.5 for "
            f"the paper's, residual=0 for none."
        )
    if not 0 <= residual < 1:
        raise ValueError(
            f"{function}: residual must lie in [0, 1), got {residual}. It is the share of the "
            f"residual connection: 0.5 in the paper."
        )
    return float(residual)
