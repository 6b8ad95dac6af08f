"""Focal modulation, from FocalNet."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_attn._checks import (
    Activation,
    Map,
    as_integer,
    check_at_least,
    check_odd,
    statistics_dtype,
)
from flax_attn.vision._checks import as_image, check_returned
from flax_attn.vision._gates import apply_gate


def exact_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """GELU as x Φ(x), PyTorch's default. The default of `jax.nn.gelu` is an approximation."""
    return jax.nn.gelu(x, approximate=False)


def kernel_sizes(num_levels: int, kernel_size: int, kernel_growth: int) -> list[int]:
    """The odd kernel size of each level of a module."""
    module = "FocalModulation"
    levels = check_at_least(module, "num_levels", num_levels, 0)
    first = check_odd(module, kernel_size)
    growth = as_integer(module, "kernel_growth", kernel_growth)
    sizes = [first + level * growth for level in range(levels)]
    if growth % 2 or any(size < 1 for size in sizes):
        raise ValueError(
            f"{module}: kernel_growth must be even and each kernel at least 1 wide, got "
            f"{growth}, which gives kernels of {sizes}. Use kernel_growth=2."
        )
    return sizes


def focal_modulation(
    x: Float[Array, "*B H W C"],
    query: Map,
    context: Map,
    gate: Map,
    convs: Sequence[Map],
    modulate: Map,
    out: Map,
    *,
    norm: Map | None = None,
    normalize_modulator: bool = False,
    activation_fn: Activation = exact_gelu,
) -> Float[Array, "*B H W C"]:
    """Focal modulation: multiply each place by a gated sum of contexts of growing reach.

    z_0 = context(x),   z_l = δ(conv_l(z_{l−1})),   z_{L+1} = δ(mean_{H,W} z_L),   g = gate(x)
    m = Σ_{l=1}^{L+1} g_l ⊙ z_l,   y = out(norm(query(x) ⊙ modulate(m)))

    In the paper the convolutions are depthwise of size 3, 5, ... (5, 7, ... in some large models),
    without biases, and L = 2 to 4. The gates are linear: they have either sign and need not sum to
    1. `norm` and the division of m by L + 1 are options of the released code for its large models.

    Args:
      x: Image `[*B, H, W, C]`.
      query: Map from `[*B, H, W, C]` to `[*B, H, W, D]`.
      context: Map like `query`.
      gate: Map from `[*B, H, W, C]` to `[*B, H, W, L + 1]`.
      convs: L maps of `[*B, H, W, D]`, the narrowest first.
      modulate: Map of `[*B, H, W, D]`; h in the paper.
      out: Map from `[*B, H, W, D]` to `[*B, H, W, C]`.
      norm: Map of `[*B, H, W, D]`, or None.
      normalize_modulator: If True, divide m by L + 1.
      activation_fn: δ.

    Returns:
      The output `[*B, H, W, C]`.

    Raises:
      ValueError: If `x` is not an image, or a map returns another shape.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x, identity = jnp.ones((1, 4, 4, 8)), lambda u: u
      >>> gate = maps.dense(jnp.full((8, 2), 1 / 8))         # one level, and the mean of all places
      >>> vision.focal_modulation(
      ...     x, identity, identity, gate, [identity], identity, identity, activation_fn=identity
      ... )[0, 0, 0, :2]
      Array([2., 2.], dtype=float32)

    References:
      Yang, Li, Dai, Gao, "Focal Modulation Networks", NeurIPS 2022, arXiv:2203.11926, section 3.
    """
    function = "focal_modulation"
    x = as_image(
        function,
        x,
        query=query,
        context=context,
        gate=gate,
        convs=convs,
        modulate=modulate,
        out=out,
        norm=norm,
        activation_fn=activation_fn,
    )
    q, z, gates = query(x), context(x), gate(x)
    check_returned(function, "query", q, (*x.shape[:-1], q.shape[-1]), "[*B, H, W, D]")
    check_returned(function, "context", z, q.shape, "[*B, H, W, D]")
    levels = len(convs)
    check_returned(function, "gate", gates, (*x.shape[:-1], levels + 1), "[*B, H, W, L + 1]")

    dtype = statistics_dtype(z.dtype)
    modulator = jnp.zeros(z.shape, dtype)
    for level, conv in enumerate(convs):
        z = activation_fn(conv(z))
        check_returned(function, f"convs[{level}]", z, q.shape, "[*B, H, W, D]")
        modulator += apply_gate(z, gates[..., level : level + 1].astype(z.dtype)).astype(dtype)
    everywhere = activation_fn(jnp.mean(z, axis=(-3, -2), keepdims=True, dtype=dtype))
    modulator += gates[..., levels:].astype(dtype) * everywhere
    if normalize_modulator:
        modulator /= levels + 1

    modulator = modulate(modulator.astype(q.dtype))
    check_returned(function, "modulate", modulator, q.shape, "[*B, H, W, D]")
    modulated = q * modulator
    if norm is not None:
        modulated = norm(modulated)
        check_returned(function, "norm", modulated, q.shape, "[*B, H, W, D]")
    y = out(modulated)
    check_returned(function, "out", y, x.shape, "[*B, H, W, C]")
    return y.astype(x.dtype)
