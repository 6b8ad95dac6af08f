"""GCResNet-33: global context after the 3×3 convolutions.

Cao et al., "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond", ICCV Workshops
2019, arXiv:1904.11492.
"""

import functools

import jax

from vision_models.attention import ATTENTION
from vision_models.bottleneck_resnet import BottleneckResNet, Stage

gcresnet33ts = functools.partial(
    BottleneckResNet,
    (
        Stage(256, 1, (False, False)),
        Stage(512, 2, (False, False, False)),
        Stage(1536, 2, (False, False, False)),
        Stage(1536, 2, (False, False)),
    ),
    attention=ATTENTION["gca"],
    activation_fn=jax.nn.silu,
    pooled_stem=False,
    head_features=1280,
)
