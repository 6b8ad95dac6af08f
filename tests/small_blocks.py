"""The implementations that run here; small tiles, so that a few tokens make many blocks."""

import jax
import numpy as np

from flax_attn.attention import Blockwise, _registry
from flax_attn.attention._core.implementation import Target
from flax_attn.attention._core.normalize import normalize


def _runs_here(implementation):
    """Whether it takes a plain call on this machine, in some dtype."""
    target = Target(jax.default_backend())
    calls = (np.zeros((1, 8, 1, 8), dtype) for dtype in (np.float32, np.float16))
    problems = (normalize("attention", x, x, x, None, None) for x in calls)
    return any(implementation.declines(problem, target) is None for problem in problems)


IMPLEMENTATIONS = [x.name for x in _registry.REGISTRY if _runs_here(x)]


def use_small_blocks(monkeypatch, query, key, blocks_per_tile=1, heads_per_tile=None):
    """Give the implementation "blockwise" these sizes of tiles."""
    small = Blockwise(query, key, blocks_per_tile, heads_per_tile)
    registry = tuple(small if x.name == small.name else x for x in _registry.REGISTRY)
    monkeypatch.setattr(_registry, "REGISTRY", registry)
