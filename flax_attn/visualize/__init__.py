"""Pictures of gates and attention weights, drawn with matplotlib.

Letters: `H` and `W` height and width of an image; `h` and `w` those of a gate or of a grid of
tokens, which may be coarser; `C` channels; `N` heads; `T` and `S` queries and keys. The functions
draw one image or sequence, so arrays have no batch axis.

Each function returns the matplotlib axes. Their last image is the heat map, whose range, colours
and opacity can be changed: `ax.images[-1].set(clim=(0, 1), cmap="viridis", alpha=0.5)`.
"""

from flax_attn.visualize._gate import gate
from flax_attn.visualize._heat_map import heat_map
from flax_attn.visualize._where import where

__all__ = [
    "gate",
    "heat_map",
    "where",
]


def __dir__() -> list[str]:
    return __all__
