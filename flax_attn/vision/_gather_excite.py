"""Gather-excite (GE)."""

import functools
import math
from collections.abc import Sequence
from typing import TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_attn._checks import Activation, Map, as_integer, expand_rank, statistics_dtype
from flax_attn.vision._checks import as_image, check_reduced, check_returned
from flax_attn.vision._gates import apply_gate
from flax_attn.vision._pooling import window_sum
from flax_attn.vision._resize import resize_nearest
from flax_attn.vision._windows import as_pair

# A power of 2, the (height, width) of the whole image, or None for the whole image at any size.
Extent = int | tuple[int, int] | None


def gather_excite(
    x: Float[Array, "*B H W C"],
    convs: Sequence[Map] = (),
    norms: Sequence[Map] = (),
    reduce: Map | None = None,
    expand: Map | None = None,
    *,
    extent: int | None = None,
    activation_fn: Activation = jax.nn.relu,
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B H W C"]:
    """Gather-excite: gate each channel of each place by its wider neighbourhood.

    y = x ⊙ σ(resize(excite(gather(x))))

    GE-θ⁻ has no parameters. It gathers by the mean over (2e − 1)×(2e − 1) windows with stride e;
    the mean counts only places inside the image. GE-θ gathers by `convs`: log₂ e depthwise
    convolutions of stride 2, or one kernel as large as the image, each followed by its
    normalisation, with ReLU between them. GE-θ⁺ also excites by expand(ReLU(reduce(ReLU(·)))), in
    the paper with R = C / 16. The inner ReLU follows the convolutions only, as in the released
    networks; timm has none there. The gathered image is resized to the grid of x by nearest
    neighbours: row i is row ⌊i · h / H⌋. With the mean over the whole image and with `reduce` and
    `expand`, this is squeeze-and-excitation.

    Args:
      x: Image `[*B, H, W, C]`.
      convs: Maps, the first from `[*B, H, W, C]`, the last to `[*B, h, w, C]`; empty for the mean.
      norms: Maps of the outputs of `convs`, one for each.
      reduce: Map from `[*B, h, w, C]` to `[*B, h, w, R]`, or None for no excitation.
      expand: Map from `[*B, h, w, R]` to `[*B, h, w, C]`, given with `reduce`.
      extent: e of the mean, a power of 2; None for the whole image, and with `convs`.
      activation_fn: Between the convolutions, between them and `reduce`, and after `reduce`.
      gate_fn: σ, from the excited values to the gate.

    Returns:
      The scaled image `[*B, H, W, C]`.

    Raises:
      ValueError: If `x` is not an image, `extent` is not a power of 2 or given with `convs`,
        `convs` and `norms` do not pair up, only one of `reduce` and `expand` is given, R is 0, or a
        map returns another shape.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x = jnp.zeros((1, 8, 8, 1)).at[0, 0, 0].set(9.0)
      >>> vision.gather_excite(x).shape                                   # GE-θ⁻
      (1, 8, 8, 1)
      >>> float(vision.gather_excite_gate(x, extent=4)[0, 7, 7, 0])       # σ(0)
      0.5
      >>> conv = maps.depthwise_conv(jnp.ones((3, 3, 1, 1)), strides=2)
      >>> vision.gather_excite(x, [conv], [lambda u: u]).shape            # GE-θ, e = 2
      (1, 8, 8, 1)

    References:
      Hu, Shen, Albanie, Sun, Vedaldi, "Gather-Excite: Exploiting Feature Context in Convolutional
      Neural Networks", NeurIPS 2018, arXiv:1810.12348, section 3.
    """
    gate = gather_excite_gate(
        x,
        convs,
        norms,
        reduce,
        expand,
        extent=extent,
        activation_fn=activation_fn,
        gate_fn=gate_fn,
    )
    return apply_gate(x, gate)


def gather_excite_gate(
    x: Float[Array, "*B H W C"],
    convs: Sequence[Map] = (),
    norms: Sequence[Map] = (),
    reduce: Map | None = None,
    expand: Map | None = None,
    *,
    extent: int | None = None,
    activation_fn: Activation = jax.nn.relu,
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B #H #W C"]:
    """The gate of `gather_excite` in the dtype of x.

    Shape `[*B, H, W, C]`, or `[*B, 1, 1, C]` if the whole image is gathered.
    """
    x = as_image(
        "gather_excite",
        x,
        convs=convs,
        norms=norms,
        reduce=reduce,
        expand=expand,
        activation_fn=activation_fn,
        gate_fn=gate_fn,
    )
    if len(convs) != len(norms):
        raise ValueError(
            f"gather_excite: convs and norms must pair up, got {len(convs)} and {len(norms)}."
        )
    if convs and extent is not None:
        raise ValueError(
            f"gather_excite: extent must be None if convs are given, got {extent}. The extent of "
            f"convs is 2 to the power of their number."
        )
    gathered = _by_convs(x, convs, norms, activation_fn) if convs else _by_mean(x, extent)
    if reduce is not None and expand is not None:
        hidden = activation_fn(reduce(activation_fn(gathered) if convs else gathered))
        check_reduced("gather_excite", hidden)
        excited = expand(hidden)
        check_returned("gather_excite", "expand", excited, gathered.shape, "[*B, h, w, C]")
        gathered = excited
    elif reduce is not None or expand is not None:
        raise ValueError("gather_excite: reduce and expand must be given together, got only one.")
    gate = gate_fn(gathered).astype(x.dtype)
    return gate if gate.shape[-3:-1] == (1, 1) else resize_nearest(gate, x.shape[-3:-1])


def check_extent(name: str, extent: int) -> int:
    """The extent; raise unless it is a power of 2 and at least 2."""
    extent = as_integer(name, "extent", extent)
    if extent < 2 or extent & (extent - 1):
        raise ValueError(f"{name}: extent must be a power of 2, at least 2, got {extent}.")
    return extent


def _by_convs(
    x: jax.Array, convs: Sequence[Map], norms: Sequence[Map], activation_fn: Activation
) -> jax.Array:
    gathered = norms[0](convs[0](x))
    for conv, norm in zip(convs[1:], norms[1:], strict=True):
        gathered = norm(conv(activation_fn(gathered)))
    kept = (*x.shape[:-3], x.shape[-1])
    if gathered.ndim != x.ndim or (*gathered.shape[:-3], gathered.shape[-1]) != kept:
        raise ValueError(
            f"gather_excite: convs must return [*B, h, w, C] with *B = {list(x.shape[:-3])} and "
            f"C = {x.shape[-1]}, got {list(gathered.shape)}."
        )
    if gathered.shape[-3] == 0 or gathered.shape[-2] == 0:
        raise ValueError(
            f"gather_excite: convs must leave at least one place of [H, W] = "
            f"{list(x.shape[-3:-1])}, got [h, w] = {list(gathered.shape[-3:-1])}."
        )
    return gathered


def _by_mean(x: jax.Array, extent: int | None) -> jax.Array:
    wide = x.astype(statistics_dtype(x.dtype))
    if extent is None:
        return jnp.mean(wide, axis=(-3, -2), keepdims=True)
    extent = check_extent("gather_excite", extent)
    sums = functools.partial(window_sum, size=2 * extent - 1, stride=extent)
    places = jnp.ones((*x.shape[-3:-1], 1), wide.dtype)
    return sums(wide) / expand_rank(sums(places), x.ndim)


def as_extent(extent: Extent) -> Extent:
    """The extent of a module, checked and in Python's integers."""
    if isinstance(extent, tuple | list):
        return as_pair("GatherExcite", "extent", extent, 1)
    return None if extent is None else check_extent("GatherExcite", extent)


class Window(TypedDict):
    """What a convolution of a module sees."""

    kernel_size: int | tuple[int, int]
    strides: int
    padding: int


def gathering_convs(gather: str, extent: Extent) -> list[Window]:
    """The convolutions of a module that gather over `extent`; none if the mean gathers."""
    if gather not in ("mean", "conv"):
        raise ValueError(f'GatherExcite: gather must be "mean" or "conv", got {gather!r}.')
    extent = as_extent(extent)
    if gather == "mean":
        return []
    if extent is None:
        raise ValueError(
            "GatherExcite: extent must be a power of 2, or the (height, width) of the images, "
            "where convolutions gather, got None. The kernels cover the extent."
        )
    if isinstance(extent, int):
        return [{"kernel_size": 3, "strides": 2, "padding": 1}] * int(math.log2(extent))
    return [{"kernel_size": extent, "strides": 1, "padding": 0}]


def mean_extent(x: jax.Array, extent: Extent) -> int | None:
    """The extent of a module as `gather_excite` takes it; x must have the size of a pair."""
    if extent is None or isinstance(extent, int):
        return extent
    if x.shape[-3:-1] != extent:
        raise ValueError(
            f"GatherExcite: x must have [H, W] = {list(extent)}, the extent that the module was "
            f"made for, got {list(x.shape)}."
        )
    return None
