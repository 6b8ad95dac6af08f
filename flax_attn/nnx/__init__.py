"""Flax NNX modules. Each owns its layers and calls the function of the same name.

A module is made as `Class(in_features, *, options, rngs=rngs)`. Arguments that its function has,
too, have the same meaning there. These have the same meaning in all modules:

- `in_features`: C, the channels of the input. A module that works for any number of channels does
  not need it.
- `reduction`, `hidden_features`: R = C // reduction, or R itself, which overrides the reduction.
  `min_features` is the smallest R that the reduction gives.
- `out_features`: The channels of the output; C by default.
- `num_heads`: N, of D = C // N channels each.
- `kernel_size`, `strides`, `dilation`, `groups`: Of the convolutions. Kernel sizes are odd.
- `use_bias`: If True, the layers have biases.
- `norm`: Makes each normalisation, called as `norm(features, rngs=rngs)`. The default is batch
  normalisation with the momentum and ε of PyTorch and an exact variance.
- `rngs`: Keys of the parameters. A module without random parameters does not need it.
- `dtype`, `param_dtype`, `kernel_init`, `bias_init`: Of the layers; see `LayerOptions`.

A class describes the rest, its parameters, and what it sows: values are sown as `nnx.Intermediate`
inside `nnx.capture` only, `nnx.capture(model, nnx.Intermediate)(x)`. Large weights are sown with
`sow_weights=True`, which raises outside `nnx.capture`.

The examples assume `from flax_attn import nnx`, `import jax.numpy as jnp`,
`rngs = flax.nnx.Rngs(0)` and an image `x = jnp.ones((2, 8, 8, 64))`.
"""

from flax_attn.attention import attention_fn as attention_fn
from flax_attn.nnx._channel_gates import ECA as ECA
from flax_attn.nnx._channel_gates import ChannelAttention as ChannelAttention
from flax_attn.nnx._channel_gates import EffectiveSqueezeExcite as EffectiveSqueezeExcite
from flax_attn.nnx._channel_gates import FrequencyChannelAttention as FrequencyChannelAttention
from flax_attn.nnx._channel_gates import GatedChannelTransform as GatedChannelTransform
from flax_attn.nnx._channel_gates import GatherExcite as GatherExcite
from flax_attn.nnx._channel_gates import SqueezeExcite as SqueezeExcite
from flax_attn.nnx._global_mixers import ChannelAffinityAttention as ChannelAffinityAttention
from flax_attn.nnx._global_mixers import CrissCrossAttention as CrissCrossAttention
from flax_attn.nnx._global_mixers import DoubleAttention as DoubleAttention
from flax_attn.nnx._global_mixers import ExternalAttention as ExternalAttention
from flax_attn.nnx._global_mixers import GlobalContext as GlobalContext
from flax_attn.nnx._global_mixers import NonLocal as NonLocal
from flax_attn.nnx._global_mixers import PositionAttention as PositionAttention
from flax_attn.nnx._joint_gates import BAM as BAM
from flax_attn.nnx._joint_gates import CBAM as CBAM
from flax_attn.nnx._joint_gates import SCSE as SCSE
from flax_attn.nnx._joint_gates import EfficientMultiScaleAttention as EfficientMultiScaleAttention
from flax_attn.nnx._joint_gates import PolarizedAttention as PolarizedAttention
from flax_attn.nnx._joint_gates import ShuffleAttention as ShuffleAttention
from flax_attn.nnx._joint_gates import SpatialGroupEnhance as SpatialGroupEnhance
from flax_attn.nnx._kernel_selection import SelectiveKernel as SelectiveKernel
from flax_attn.nnx._kernel_selection import SplitAttention as SplitAttention
from flax_attn.nnx._large_kernels import ContextAnchorAttention as ContextAnchorAttention
from flax_attn.nnx._large_kernels import FocalModulation as FocalModulation
from flax_attn.nnx._large_kernels import LargeKernelAttention as LargeKernelAttention
from flax_attn.nnx._large_kernels import LargeSelectiveKernel as LargeSelectiveKernel
from flax_attn.nnx._large_kernels import (
    SeparableLargeKernelAttention as SeparableLargeKernelAttention,
)
from flax_attn.nnx._latent_attention import LatentAttention as LatentAttention
from flax_attn.nnx._multi_head_attention import MultiHeadAttention as MultiHeadAttention
from flax_attn.nnx._sequences import AdditiveAttention as AdditiveAttention
from flax_attn.nnx._sequences import LearnedPositions as LearnedPositions
from flax_attn.nnx._spatial_gates import AttentionGate as AttentionGate
from flax_attn.nnx._spatial_gates import CoordinateAttention as CoordinateAttention
from flax_attn.nnx._spatial_gates import EfficientLocalAttention as EfficientLocalAttention
from flax_attn.nnx._spatial_gates import SimAM as SimAM
from flax_attn.nnx._spatial_gates import SpatialAttention as SpatialAttention
from flax_attn.nnx._spatial_gates import TripletAttention as TripletAttention
from flax_attn.nnx._token_mixers import AttentionPool as AttentionPool
from flax_attn.nnx._token_mixers import CrossCovarianceAttention as CrossCovarianceAttention
from flax_attn.nnx._token_mixers import LambdaLayer as LambdaLayer
from flax_attn.nnx._token_mixers import OutlookAttention as OutlookAttention
from flax_attn.nnx._token_mixers import SeparableAttention as SeparableAttention
from flax_attn.nnx._token_mixers import SpatialReductionAttention as SpatialReductionAttention
from flax_attn.nnx._windows import BottleneckAttention as BottleneckAttention
from flax_attn.nnx._windows import GridAttention as GridAttention
from flax_attn.nnx._windows import HaloAttention as HaloAttention
from flax_attn.nnx._windows import WindowAttention as WindowAttention

__all__ = [name for name in dir() if not name.startswith("_")]


def __dir__() -> list[str]:
    return __all__
