"""Polarized self-attention (PSA)."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_attn._checks import Activation, Map, check_multiple, reduced_features, statistics_dtype
from flax_attn.vision._checks import as_image, check_returned
from flax_attn.vision._gates import apply_gate
from flax_attn.vision._pooling import spatial_mean

Layout = Literal["parallel", "sequential"]


def polarized_attention(
    x: Float[Array, "*B H W C"],
    channel_query: Map,
    channel_value: Map,
    channel_expand: Map,
    spatial_query: Map,
    spatial_value: Map,
    *,
    channel_norm: Map | None = None,
    layout: Layout = "parallel",
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B H W C"]:
    """Polarized self-attention: a softmax over places gates channels, and vice versa.

    g_c(x) = σ(norm(expand(Σ_{H,W} softmax_{H,W}(q_c(x)) ⊙ v_c(x))))
    g_s(x) = σ(Σ_R softmax_R(mean_{H,W} q_s(x)) ⊙ v_s(x))
    parallel:     y = g_c(x) ⊙ x + g_s(x) ⊙ x
    sequential:   y = g_s(u) ⊙ u,   u = g_c(x) ⊙ x

    All five maps are pointwise, with R = C / 2. The released parallel code applies the softmax of
    the spatial branch over the places, after the product with the values; its σ is 1/2 almost
    everywhere. The released sequential code does the same to the values, and has a bottleneck with
    layer normalisation as `channel_expand`. Other versions normalise the output of
    `channel_expand`: `channel_norm`.

    Args:
      x: Image `[*B, H, W, C]`.
      channel_query: q_c, map from `[*B, H, W, C]` to `[*B, H, W, 1]`.
      channel_value: v_c, map from `[*B, H, W, C]` to `[*B, H, W, R]`.
      channel_expand: Map from `[*B, R]` to `[*B, C]`.
      spatial_query: q_s, map from `[*B, H, W, C]` to `[*B, H, W, R]`.
      spatial_value: v_s, map from `[*B, H, W, C]` to `[*B, H, W, R]`.
      channel_norm: Map of `[*B, C]`, or None.
      layout: "parallel" if both branches read x, "sequential" if the spatial branch reads the
        output of the channel branch.
      gate_fn: σ, from the attended values to the gates.

    Returns:
      The scaled image `[*B, H, W, C]`.

    Raises:
      ValueError: If `x` is not an image, R is 0, a map returns another shape, or `layout` is
        neither of the two.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x = jnp.ones((2, 7, 7, 4))
      >>> query, value, expand = (maps.dense(jnp.zeros(s)) for s in ((4, 1), (4, 2), (2, 4)))
      >>> bound = query, value, expand, value, value
      >>> vision.polarized_attention(x, *bound)[0, 0, 0, :2]                  # 1/2 + 1/2
      Array([1., 1.], dtype=float32)
      >>> vision.polarized_attention(x, *bound, layout="sequential")[0, 0, 0, :2]
      Array([0.25, 0.25], dtype=float32)

    References:
      Liu, Liu, Fan, Huang, "Polarized Self-Attention: Towards High-quality Pixel-wise Regression",
      arXiv 2021, arXiv:2107.00782, section 3.
    """
    gate = polarized_attention_gate(
        x,
        channel_query,
        channel_value,
        channel_expand,
        spatial_query,
        spatial_value,
        channel_norm=channel_norm,
        layout=layout,
        gate_fn=gate_fn,
    )
    return apply_gate(x, gate)


def polarized_attention_gate(
    x: Float[Array, "*B H W C"],
    channel_query: Map,
    channel_value: Map,
    channel_expand: Map,
    spatial_query: Map,
    spatial_value: Map,
    *,
    channel_norm: Map | None = None,
    layout: Layout = "parallel",
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B H W C"]:
    """The factor g_c + g_s, or g_c ⊙ g_s, of `polarized_attention`, in the dtype of x."""
    x = as_image(
        "polarized_attention",
        x,
        channel_query=channel_query,
        channel_value=channel_value,
        channel_expand=channel_expand,
        spatial_query=spatial_query,
        spatial_value=spatial_value,
        channel_norm=channel_norm,
        gate_fn=gate_fn,
    )
    if layout not in ("parallel", "sequential"):
        raise ValueError(
            f'polarized_attention: layout must be "parallel" or "sequential", got {layout!r}.'
        )
    pooled = _pooled_by_place(x, channel_query, channel_value)
    expanded = channel_expand(pooled)
    check_returned("polarized_attention", "channel_expand", expanded, _shape(x), "[*B, C]")
    if channel_norm is not None:
        expanded = channel_norm(expanded)
        check_returned("polarized_attention", "channel_norm", expanded, _shape(x), "[*B, C]")
    channel = gate_fn(expanded)[..., None, None, :].astype(statistics_dtype(x.dtype))

    seen = apply_gate(x, channel.astype(x.dtype)) if layout == "sequential" else x
    spatial = gate_fn(_mixed_by_channel(seen, spatial_query, spatial_value))
    spatial = spatial.astype(channel.dtype)
    gate = channel * spatial if layout == "sequential" else channel + spatial
    return gate.astype(x.dtype)


def _shape(x: jax.Array) -> tuple[int, ...]:
    return (*x.shape[:-3], x.shape[-1])


def _pooled_by_place(x: jax.Array, query: Map, value: Map) -> jax.Array:
    """Σ_{H,W} softmax_{H,W}(q) ⊙ v: `[*B, H, W, C]` -> `[*B, R]`, in at least float32."""
    dtype = statistics_dtype(x.dtype)
    scores = query(x)
    check_returned(
        "polarized_attention", "channel_query", scores, (*x.shape[:-1], 1), "[*B, H, W, 1]"
    )
    values = value(x)
    _check_values(x, "channel_value", values)
    weights = jax.nn.softmax(scores.astype(dtype), axis=(-3, -2))
    return jnp.sum(weights * values.astype(dtype), axis=(-3, -2))


def _mixed_by_channel(x: jax.Array, query: Map, value: Map) -> jax.Array:
    """Σ_R softmax_R(mean_{H,W} q) ⊙ v: `[*B, H, W, C]` -> `[*B, H, W, 1]`, at least float32."""
    queries, values = query(x), value(x)
    _check_values(x, "spatial_value", values)
    check_returned("polarized_attention", "spatial_query", queries, values.shape, "[*B, H, W, R]")
    weights = jax.nn.softmax(spatial_mean(queries), axis=-1)[..., None, None, :]
    return jnp.sum(weights * values.astype(weights.dtype), axis=-1, keepdims=True)


def _check_values(x: jax.Array, name: str, values: jax.Array) -> None:
    if values.shape[:-1] != x.shape[:-1] or values.shape[-1] == 0:
        raise ValueError(
            f"polarized_attention: {name} must return [*B, H, W, R] with *B, H, W = "
            f"{list(x.shape[:-1])} and R at least 1, got {list(values.shape)}."
        )


def polarized_attention_features(features: int, reduction: int, hidden_features: int | None) -> int:
    """R of the modules, which must be C / reduction exactly."""
    hidden = reduced_features("PolarizedAttention", features, reduction, hidden_features)
    if hidden_features is None:
        check_multiple("PolarizedAttention", "C", features, "reduction", reduction)
    return hidden
