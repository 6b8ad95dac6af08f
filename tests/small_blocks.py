"""Small tiles, so that a few tokens make many blocks."""

from flax_attn.attention import Blockwise, _registry

IMPLEMENTATIONS = [implementation.name for implementation in _registry.REGISTRY]


def use_small_blocks(monkeypatch, query, key, blocks_per_tile=1, heads_per_tile=None):
    """Give the implementation "blockwise" these sizes of tiles."""
    small = Blockwise(query, key, blocks_per_tile, heads_per_tile)
    registry = tuple(small if x.name == small.name else x for x in _registry.REGISTRY)
    monkeypatch.setattr(_registry, "REGISTRY", registry)
