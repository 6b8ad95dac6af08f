"""Labels of queries and keys: checked, made printable, and as many as an axis has room for."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

Labels = Sequence[str]

LONGEST = 16  # characters of a label
SMALLEST = 6  # points of a font
LINE = 1.2  # height of a line, in heights of the font
CHARACTER = 0.6  # width of a character, in heights of the font
ROOM = 0.16  # inches for each token, where the figure may grow
DENSITY = 100  # pixels of an inch
LEAST, MOST = 3.6, 7.2  # inches of the side of a picture


def check_labels(
    function: str,
    lengths: tuple[int, int],
    tokens: Labels | None,
    query_labels: Labels | None = None,
    key_labels: Labels | None = None,
) -> tuple[Labels | None, Labels | None]:
    """The labels of queries and keys; raise unless there are T and S of them.

    Args:
      function: The public function, for messages.
      lengths: T and S.
      tokens: Labels of both.
      query_labels: Labels of the queries.
      key_labels: Labels of the keys.
    """
    length_q, length_k = lengths
    if tokens is not None:
        if query_labels is not None or key_labels is not None:
            other = "query_labels" if query_labels is not None else "key_labels"
            raise ValueError(
                f"{function}: tokens must be the only labels, got {other} too. Give tokens, or "
                f"query_labels and key_labels."
            )
        if length_q != length_k:
            raise ValueError(
                f"{function}: tokens must label queries and keys of one sequence, got T = "
                f"{length_q} and S = {length_k}. Give query_labels and key_labels."
            )
        query_labels = key_labels = tokens
    for name, labels, count in (
        ("query_labels", query_labels, length_q),
        ("key_labels", key_labels, length_k),
    ):
        name = name if tokens is None else "tokens"
        if labels is not None and not hasattr(labels, "__len__"):
            raise TypeError(
                f"{function}: {name} must be a list of labels, got {type(labels).__name__}."
            )
        if labels is not None and len(labels) != count:
            raise ValueError(f"{function}: {name} must be {count} labels, got {len(labels)}.")
    return query_labels, key_labels


def picture_size(
    lengths: tuple[int, int],
    labels: tuple[Labels | None, Labels | None],
    cells: Sequence[int] = (1, 1),
) -> tuple[float, float]:
    """Inches (width, height) of a picture, (4.8, 3.6) if it has no labels and few cells.

    Args:
      lengths: T and S, the tokens that are shown.
      labels: Labels of queries and keys.
      cells: Rows and columns of the image, which should not be smaller than a pixel.
    """
    height, width = (
        max(LEAST, min(ROOM * length, MOST) if shown is not None else 0, cell / DENSITY + 0.8)
        for length, shown, cell in zip(lengths, labels, cells, strict=True)
    )
    return width + 1.2, height


def label_axes(
    ax: "Axes", query_labels: Labels | None, key_labels: Labels | None, title: str = ""
) -> None:
    """Name the axes, and show as many labels as there is room for."""
    ax.set(xlabel="key", ylabel="query")
    ax.set_title(title, parse_math=False)
    width, height = _inches(ax)
    if query_labels is not None:
        _show(ax.yaxis, query_labels, height, across=False)
    if key_labels is not None:
        _show(ax.xaxis, key_labels, width, across=True)


def number_axis(axis: "Axis", chosen: range) -> None:
    """Show the numbers of the chosen tokens."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    def number(x: float, _: Any) -> str:
        return f"{chosen[int(x)]:,}" if x == int(x) and 0 <= x < len(chosen) else ""

    axis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=1))
    axis.set_major_formatter(FuncFormatter(number))


def _inches(ax: "Axes") -> tuple[float, float]:
    """Width and height of the axes, before the figure is laid out."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    box, (width, height) = ax.get_position(), figure.get_size_inches()
    width, height = box.width * width, box.height * height
    aspect = ax.get_box_aspect()
    if aspect is None:
        return width, height
    width = min(width, height / aspect)
    return width, width * aspect


def _show(axis: "Axis", labels: Labels, inches: float, across: bool) -> None:
    """Show every label, or every second, third, ... if there is no room for all."""
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties

    wanted = FontProperties(size=rcParams["ytick.labelsize"]).get_size_in_points()
    room = 72 * inches / max(len(labels), 1)  # points for each token
    size = max(min(wanted, room / LINE), min(SMALLEST, wanted))
    step = max(1, math.ceil(LINE * size / room))
    places = range(0, len(labels), step)
    texts = printable([labels[i] for i in places])
    longest = max((len(text) for text in texts), default=0)
    upright = across and longest * CHARACTER * size > room * step
    axis.set_ticks(list(places), texts, size=size, parse_math=False, rotation=90 if upright else 0)


def printable(labels: Labels) -> list[str]:
    """The labels in characters that the font has, at most 16 of each label.

    Control characters are escaped as in Python. `□` stands for a character that the font does not
    have, and `␣` for each space of a label of spaces.
    """
    fonts = _fonts()

    def show(character: str) -> str:
        if not character.isprintable():
            return ascii(character)[1:-1]
        drawn = any(font.get_char_index(ord(character)) for font in fonts)
        return character if drawn or character == " " else "□"

    texts = []
    for label in labels:
        text = label.decode(errors="backslashreplace") if isinstance(label, bytes) else str(label)
        if not text.strip(" "):
            text = "␣" * len(text)
        cut = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
        texts.append("".join(map(show, cut)))
    return texts


def _fonts() -> list[Any]:
    """The fonts that text is drawn with: the first that is found of each family."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = []
    for family in FontProperties().get_family():
        try:
            path = findfont(FontProperties(family=family), fallback_to_default=False)
        except ValueError:
            continue
        fonts.append(get_font(path))
    return fonts or [get_font(findfont(FontProperties()))]
