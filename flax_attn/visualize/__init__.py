"""Pictures of gates, attention weights and masks, drawn with matplotlib.

Letters: `H` and `W` height and width of an image; `h` and `w` those of a gate or of a grid of
tokens, which may be coarser; `C` channels; `N` heads; `T` and `S` queries and keys; `nq` and `nk`
blocks of them. The functions draw one image or sequence, so arrays have no batch axis.

Each function but `rollout`, which computes a matrix to draw, returns the matplotlib axes. Their
last image is the heat map, whose range, colours and opacity can be changed:
`ax.images[-1].set(clim=(0, 1), cmap="viridis", alpha=0.5)`.
"""

from flax_attn.visualize._gate import gate
from flax_attn.visualize._heads import heads
from flax_attn.visualize._heat_map import heat_map
from flax_attn.visualize._mask import mask
from flax_attn.visualize._rollout import rollout
from flax_attn.visualize._where import where

__all__ = [
    "gate",
    "heads",
    "heat_map",
    "mask",
    "rollout",
    "where",
]


def __dir__() -> list[str]:
    return __all__
