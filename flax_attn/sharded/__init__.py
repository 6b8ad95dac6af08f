"""Attention over several devices."""

from flax_attn.sharded.meshes import ring_mesh as ring_mesh

__all__ = ["ring_mesh"]


def __dir__() -> list[str]:
    return __all__
