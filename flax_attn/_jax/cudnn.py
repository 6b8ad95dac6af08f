"""JAX's primitives for cuDNN's fused attention, which are private and differ between versions.

`jax.nn.dot_product_attention(implementation="cudnn")` asks the device of this machine what it can
do, and returns the LSE in the dtype of the query. The primitives below it do neither.

Written for JAX 0.10.2 to 0.12.0.
"""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Band(NamedTuple):
    """What cuDNN is told about the scores.

    Attributes:
      scale: Factor of the dot products.
      causal: Whether query t sees only keys s ≤ t, both counted from 0.
      window: Query t sees only keys s > t − window; None for all of them.
      lengths: Numbers of valid queries and of valid keys, int32 `[B]` each, or None.
    """

    scale: float
    causal: bool
    window: int | None
    lengths: tuple[jax.Array, jax.Array] | None


def cudnn_version() -> int | None:
    """The version of the cuDNN that is installed, as 91002 for 9.10.2; None if it is not known."""
    from jax._src.lib import cuda_versions

    if cuda_versions is None:
        return None
    try:
        return cuda_versions.cudnn_get_version()
    except RuntimeError:  # the plugin is there, and the library is not
        return None


def cudnn_forward(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None, band: Band
) -> tuple[jax.Array, jax.Array]:
    """Output `[B, T, N, Dv]` and LSE, float32 `[B, N, T]`.

    Rows that see no key are not defined.

    Args:
      query: `[B, T, N, D]`.
      key: `[B, S, K, D]`.
      value: `[B, S, K, Dv]`.
      bias: `[B | 1, N | 1, T, S]`, or None.
      band: Scale and mask.
    """
    from jax._src.cudnn import fused_attention_stablehlo as fused

    output, lse = fused._dot_product_attention_fwd_p.bind(
        query, key, value, *_side_inputs(query, bias, band), **_options(bias, band),
        is_training=True,
    )  # fmt: skip
    return output, lse


def cudnn_backward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    band: Band,
    lse: jax.Array,
    output: jax.Array,
    d_output: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of query, key and value, from what `cudnn_forward` returned."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    d_query, d_key, d_value = fused._dot_product_attention_bwd_p.bind(
        query, key, value, *_side_inputs(query, bias, band), lse, output, d_output,
        **_options(bias, band),
    )  # fmt: skip
    return d_query, d_key, d_value


def _side_inputs(query: jax.Array, bias: jax.Array | None, band: Band) -> list[jax.Array]:
    """Bias, lengths, offsets of packed sequences and page tables. An empty array is not used."""
    unused = jnp.zeros(0, query.dtype)
    lengths = (unused, unused) if band.lengths is None else band.lengths
    return [unused if bias is None else bias, *lengths, *[unused] * 4]


def _options(bias: jax.Array | None, band: Band) -> dict[str, Any]:
    from jax._src.cudnn import fused_attention_stablehlo as fused

    kinds = {
        (False, False): fused.MaskType.NO_MASK,
        (False, True): fused.MaskType.PADDING,
        (True, False): fused.MaskType.CAUSAL,
        (True, True): fused.MaskType.PADDING_CAUSAL,
    }
    options = {
        "scale": band.scale,
        "seed": 0,
        "dropout_rate": 0.0,
        "variadic_args": (bias is not None, False),  # it has a bias, whose gradient is not wanted
        "mask_type": kinds[band.causal, band.lengths is not None],
        "layout": fused.AttentionLayout.BTNH.value,
        "sliding_window_length": band.window,
    }
    # Newer versions of JAX take a score modifier.
    known = inspect.signature(fused._dot_product_attention_fwd_cuda_lowering).parameters
    return options | {x: None for x in ("score_mod_name", "score_mod_jaxpr") if x in known}
