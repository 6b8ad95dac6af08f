"""HaloNet-26: self-attention of blocks of 8×8 places with a halo of 2.

Vaswani et al., "Scaling Local Self-Attention for Parameter Efficient Visual Backbones", CVPR 2021,
arXiv:2103.12731. The sides of an image are multiples of 256, so that blocks cover the last map.
"""

import functools
from collections.abc import Mapping

import jax
import numpy as np
from flax import nnx

import flax_attn.nnx
from vision_models.bottleneck_resnet import STAGES_26T, BottleneckResNet
from vision_models.convert import Split, head_by_head

BLOCK_SIZE, HALO_SIZE, NUM_HEADS = 8, 2, 8


class StridedQuery(nnx.LinearGeneral):
    """Queries, ordered so that those kept by the stride come first in their block.

    timm's position terms need this order: `HaloAttn` counts rows and columns of queries among the
    kept queries of a block, and those of keys among all places.
    """

    def __init__(self, features: int, stride: int, *, rngs: nnx.Rngs):
        heads = (NUM_HEADS, features // NUM_HEADS)
        super().__init__(features, heads, use_bias=False, rngs=rngs)
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, C]` to `[B, H, W, N, D]`."""
        rows, columns = (strided_first(size, self.stride) for size in x.shape[1:3])
        return super().__call__(x[:, rows][:, :, columns])


def strided_first(size: int, stride: int) -> np.ndarray:
    """The places of a row: in each block, first 0, s, 2 s, ..., then the others."""
    places = np.arange(size).reshape(-1, BLOCK_SIZE // stride, stride)
    return places.swapaxes(1, 2).reshape(size)


class StridedHaloAttention(nnx.Module):
    """`HaloAttn`, which does not scale the position terms, and whose stride drops queries.

    This computes all queries and drops those afterwards.
    """

    def __init__(self, features: int, stride: int, reduction: int, *, rngs: nnx.Rngs):
        self.attention = flax_attn.nnx.HaloAttention(
            features,
            num_heads=NUM_HEADS,
            block_size=BLOCK_SIZE,
            halo_size=HALO_SIZE,
            scale_positions=False,
            rngs=rngs,
        )
        if stride > 1:
            self.attention.query = StridedQuery(features, stride, rngs=rngs)
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, C]` to `[B, H / stride, W / stride, C]`."""
        kept = BLOCK_SIZE // self.stride  # the rows and columns of a block
        rows, columns = (np.arange(size) % BLOCK_SIZE < kept for size in x.shape[1:3])
        return self.attention(x)[:, rows][:, :, columns]


class HaloNet(BottleneckResNet):
    """A `BottleneckResNet` with this attention."""

    @property
    def timm_names(self) -> dict[str, str]:
        """The paths of our layers, by timm's names."""
        return {"self_attn.q": "mixer.attention.query", **super().timm_names}

    @property
    def timm_stacked(self) -> dict[str, Split]:
        """How to split layers that timm computes as one, by timm's name."""

        def split(weight: np.ndarray) -> Mapping[str, np.ndarray]:
            head_dim = len(weight) // (2 * NUM_HEADS)
            return head_by_head("key", "value", head_dim=head_dim)(weight)

        return {"kv": split}


halonet26t = functools.partial(HaloNet, STAGES_26T, self_attention=StridedHaloAttention)
