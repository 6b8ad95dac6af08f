"""A mask as a picture: which pairs are visible, and its block map."""

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Array, Int

from flax_attn._checks import as_integer
from flax_attn.coords import Coords
from flax_attn.masks import Mask
from flax_attn.masks.plan import EMPTY, FULL, PARTIAL
from flax_attn.visualize._draw import check_axes, new_axes
from flax_attn.visualize._labels import (
    Labels,
    check_labels,
    label_axes,
    number_axis,
    picture_size,
)
from flax_attn.visualize._pairs import Pairs, one_head

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CELLS = 256  # tokens of a side of which every pair is drawn
BLOCKS = 256  # blocks of a side, if their size is chosen here
MOST_BLOCKS = 512  # and if it is given
BLOCKS_OVER_CELLS = 8
TITLE = 46  # characters of a line
LEGEND = 1.3  # inches
LINE = "#b0b0b0"

NAMES = {FULL: "full", PARTIAL: "partial", EMPTY: "empty"}
STRONG = {EMPTY: "#f2f2f2", PARTIAL: "#e39a2d", FULL: "#1d3557"}
BENEATH = {EMPTY: "#ffffff", PARTIAL: "#ffd697", FULL: "#3d8bff"}  # pairs, which darken it
VISIBLE = "#20242b"
OPACITY = 0.78


def mask(
    mask: Mask,
    query_coords: Coords,
    key_coords: Coords | None = None,
    *,
    rows: slice | None = None,
    cols: slice | None = None,
    block: tuple[int, int] | None = None,
    tokens: Labels | None = None,
    query_labels: Labels | None = None,
    key_labels: Labels | None = None,
    head: int = 0,
    batch: int = 0,
    head_ids: Int[Array, "N"] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw which keys each query attends to, with a row for each query.

    With at most 256 queries and keys, every visible pair is a dark cell. The colour behind the
    cells shows the block map of `make_plan`: blue where all pairs of a block are visible, orange
    where the block is partial, white where it is empty. With more queries or keys, only the block
    map is drawn, in at most 256 by 256 blocks, and no pair is evaluated: time and memory are
    O(T + S) for any length. `rows` and `cols` draw a window of a long sequence pair by pair.

    A block may be shown as partial although all of its pairs are equal; see `make_plan`.

    Args:
      mask: The mask.
      query_coords: Coordinates of the T queries.
      key_coords: Coordinates of the S keys. Default: `query_coords`.
      rows: Which queries, a slice; None for all.
      cols: Which keys, a slice; None for all.
      block: Numbers of queries and of keys in a block, such as those of a kernel. It is counted
        from the first token that is drawn. Default: a power of 2. With
        (1, 1), cells have no blocks behind them.
      tokens: Labels of queries and keys, if they are the same T tokens; None for numbers.
      query_labels: Labels of the T queries.
      key_labels: Labels of the S keys.
      head: Index of the head. All are the same if the mask does not depend on it.
      batch: Batch element, counted through all batch axes.
      head_ids: Global numbers of the heads `[N]`. Default: 0 ... N − 1.
      ax: The axes to draw on; None for a new figure.

    Returns:
      The axes. `ax.images[-1].get_array()` is the visible pairs `[T, S]` in booleans if they are
      drawn; `ax.images[0].get_array()` is the block map `[nq, nk]`: 0 empty, 1 partial, 2 full.

    Raises:
      ValueError: If a size, an index or a number of labels is wrong, the mask reads a field that is
        not in the coordinates, or more than 512 by 512 blocks are asked for.
      TypeError: If an argument is of the wrong kind.
      ImportError: If matplotlib is not installed.

    Example:
      >>> from flax_attn import Coords, masks, visualize
      >>> mask = masks.Causal() & masks.Window(2)
      >>> ax = visualize.mask(mask, Coords.arange(5), tokens=["The", "cat", "sat", "down", "."])
      >>> print(ax.images[-1].get_array().astype(int))
      [[1 0 0 0 0]
       [1 1 0 0 0]
       [1 1 1 0 0]
       [0 1 1 1 0]
       [0 0 1 1 1]]
      >>> ax = visualize.mask(mask, Coords.arange(1_000_000))  # blocks of 4096 × 4096
      >>> ax.images[-1].get_array().shape
      (245, 245)
    """
    function = "visualize.mask"
    whole = one_head(function, mask, query_coords, key_coords, batch, head, head_ids)
    labels = check_labels(function, whole.lengths, tokens, query_labels, key_labels)
    chosen = [
        _window(function, name, part, length)
        for name, part, length in zip(("rows", "cols"), (rows, cols), whole.lengths, strict=True)
    ]
    windows = [_slice(part) for part in chosen]
    pairs = whole.take(*windows)
    sizes = _block_sizes(function, block, pairs.lengths)
    kinds = _block_map(function, pairs, sizes, is_given=block is not None)
    shown = [x if x is None else x[part] for x, part in zip(labels, windows, strict=True)]
    if ax is not None:
        (ax,) = check_axes(function, ax, 1)
    else:
        counts = [-(-n // size) for n, size in zip(pairs.lengths, sizes, strict=True)]
        drawn = pairs.lengths if max(pairs.lengths) <= CELLS else counts
        size = picture_size(pairs.lengths, (shown[0], shown[1]), drawn)
        ax = new_axes(function, size=(size[0] + LEGEND, size[1]))[0]
        ax.set_anchor("W")  # the legend stands at the right
    height, width = pairs.lengths
    if 1 / 2 <= height / width <= 2:
        ax.set_box_aspect(height / width)
    number_axis(ax.yaxis, chosen[0])
    number_axis(ax.xaxis, chosen[1])
    label_axes(ax, shown[0], shown[1])
    ax.set_title(_title(mask), loc="left", fontsize="small", parse_math=False)
    _draw(ax, pairs, kinds, sizes)
    return ax


def _block_map(
    function: str, pairs: Pairs, sizes: tuple[int, int], is_given: bool
) -> np.ndarray | None:
    """The block map; None where pairs are drawn and there are no blocks to draw behind them."""
    is_small = max(pairs.lengths) <= CELLS
    if is_small and sizes == (1, 1):
        return None
    try:
        return pairs.kinds(sizes)
    except NotImplementedError as error:
        if is_small and not is_given:
            return None
        raise NotImplementedError(
            f"{function}: this mask has no block map ({error}) Draw at most {CELLS} queries and "
            f"keys, by rows=slice(...) and cols=slice(...), and give no block."
        ) from None


def _draw(ax: "Axes", pairs: Pairs, kinds: np.ndarray | None, sizes: tuple[int, int]) -> None:
    """The block map, the pairs over it if they are few, and the legend."""
    height, width = pairs.lengths
    visible = pairs.visible() if max(pairs.lengths) <= CELLS else None
    if kinds is not None:
        colors = STRONG if visible is None else BENEATH
        frame = (-0.5, kinds.shape[1] * sizes[1] - 0.5, kinds.shape[0] * sizes[0] - 0.5, -0.5)
        _image(ax, kinds, [colors[kind] for kind in (EMPTY, PARTIAL, FULL)], extent=frame)
    if visible is not None:
        _image(ax, visible, ["none", (VISIBLE, 1 if kinds is None else OPACITY)])
    if visible is not None and kinds is not None:
        _grid(ax, sizes, pairs.lengths)
    # The last block of a side may reach beyond the last token.
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    _legend(ax, visible, kinds, sizes)


def _image(ax: "Axes", values: np.ndarray, colors: list[Any], **options: Any) -> None:
    """Draw numbers 0, 1, ... in one colour each."""
    from matplotlib.colors import ListedColormap

    ax.imshow(
        values,
        cmap=ListedColormap(colors),
        vmin=0,
        vmax=len(colors) - 1,
        interpolation="nearest",
        aspect="auto",
        **options,
    )


def _grid(ax: "Axes", sizes: tuple[int, int], lengths: tuple[int, int]) -> None:
    """Draw lines between the blocks."""
    for axis, size, length in zip((ax.yaxis, ax.xaxis), sizes, lengths, strict=True):
        axis.set_ticks(np.arange(size, length, size) - 0.5, minor=True)
    ax.grid(which="minor", color=LINE, linewidth=0.5)
    ax.tick_params(which="minor", length=0)


def _legend(
    ax: "Axes", visible: np.ndarray | None, kinds: np.ndarray | None, sizes: tuple[int, int]
) -> None:
    """Name the colours, with the share of each."""
    from matplotlib.patches import Patch

    entries = [] if visible is None else [(VISIBLE, "visible", visible)]
    title = None
    if kinds is not None:
        title = f"blocks of\n{sizes[0]:,} × {sizes[1]:,}"
        # Where a block is full, its pairs make it dark.
        colors = STRONG if visible is None else BENEATH | {FULL: STRONG[FULL]}
        entries += [(colors[kind], name, kinds == kind) for kind, name in NAMES.items()]
    ax.legend(
        handles=[
            Patch(facecolor=color, edgecolor=LINE, label=f"{name}: {_share(where)}")
            for color, name, where in entries
        ],
        title=title,
        loc="upper left",
        bbox_to_anchor=(1.02, 1),
        borderaxespad=0,
        frameon=False,
        fontsize="small",
        title_fontsize="small",
    )


def _share(flags: np.ndarray) -> str:
    """A percentage, which is 0 or 100 only if none or all are true."""
    share = 100 * float(flags.mean()) if flags.size else 0.0
    if 0 < share < 0.1:
        return "< 0.1 %"
    if 99.9 < share < 100:
        return "> 99.9 %"
    return f"{share:.1f} %" if 0 < share < 100 else f"{share:.0f} %"


def _title(mask: Mask) -> str:
    """The mask in at most two lines."""
    lines = textwrap.wrap(repr(mask), TITLE)
    return "\n".join(
        [*lines[:1], " ".join(lines[1:])[: TITLE - 1] + "…"] if len(lines) > 2 else lines
    )


def _window(function: str, name: str, chosen: Any, length: int) -> range:
    """The numbers of the chosen tokens."""
    if chosen is None:
        return range(length)
    if not isinstance(chosen, slice):
        is_number = isinstance(chosen, int | np.integer)
        fix = f"slice({chosen}, {chosen + 1})" if is_number else "slice(start, stop)"
        raise TypeError(f"{function}: {name} must be a slice, got {chosen!r}. Write {name}={fix}.")
    try:
        window = range(*chosen.indices(length))
    except (TypeError, ValueError):  # a fraction, or a step of 0
        raise ValueError(
            f"{function}: {name} must be a slice of whole numbers with a step of at least 1, got "
            f"{chosen}. Write slice(start, stop)."
        ) from None
    if not window:
        raise ValueError(
            f"{function}: {name} must choose some of the {length} tokens, got {chosen}."
        )
    if window.step < 0:
        raise ValueError(f"{function}: the step of {name} must be at least 1, got {chosen}.")
    return window


def _slice(window: range) -> slice:
    return slice(window.start, window.stop, window.step)


def _block_sizes(
    function: str, block: tuple[int, int] | None, lengths: tuple[int, int]
) -> tuple[int, int]:
    """The given block, or powers of 2 of which not too many are drawn."""
    if min(lengths) == 0:
        raise ValueError(
            f"{function}: there must be at least one query and one key, got T = {lengths[0]} and "
            f"S = {lengths[1]}."
        )
    if block is None:
        most = BLOCKS_OVER_CELLS if max(lengths) <= CELLS else BLOCKS
        rows, cols = (1 << (-(-length // most) - 1).bit_length() for length in lengths)
        return rows, cols
    if not isinstance(block, tuple | list) or len(block) != 2:
        raise ValueError(
            f"{function}: block must be the numbers of queries and of keys, got {block!r}. Write "
            f"block=(256, 256)."
        )
    rows, cols = (as_integer(function, "block", size) for size in block)
    if min(rows, cols) < 1:
        raise ValueError(f"{function}: block sizes must be at least 1, got {(rows, cols)}.")
    counts = -(-lengths[0] // rows), -(-lengths[1] // cols)
    if max(counts) > MOST_BLOCKS:
        least = tuple(-(-length // MOST_BLOCKS) for length in lengths)
        raise ValueError(
            f"{function}: at most {MOST_BLOCKS} by {MOST_BLOCKS} blocks can be drawn, got "
            f"{counts[0]} by {counts[1]}. Give a block of at least {least}, or draw a window by "
            f"rows=slice(...) and cols=slice(...)."
        )
    return rows, cols
