"""Pictures of gates and attention weights, drawn with matplotlib.

Letters: `H`, `W` height and width of an image; `h`, `w` those of a gate or of a grid of tokens,
which is coarser; `C` channels; `N` heads; `T`, `S` queries and keys. All of one image: no batch.

Each function returns the matplotlib axes, whose last image is the heat map: its range, colours and
opacity are changed by `ax.images[-1].set(clim=(0, 1), cmap="viridis", alpha=0.5)`.
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
