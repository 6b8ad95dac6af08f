"""The normalisations of the vision modules."""

import dataclasses
import functools
from typing import Any

from flax import linen as nn

# As in PyTorch: an update has weight 0.1. The fast variance of Flax loses digits at a large mean.
BatchNorm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5, use_fast_variance=False)
# The same with a scale that starts at 0, so that a residual block starts as the identity.
ZeroBatchNorm = functools.partial(BatchNorm, scale_init=nn.initializers.zeros_init())
# An update has weight 0.01, as in the code of a few papers.
SlowBatchNorm = functools.partial(BatchNorm, momentum=0.99)
# As in detectors of the YOLO family: an update has weight 0.03.
DetectorBatchNorm = functools.partial(BatchNorm, momentum=0.97, epsilon=1e-3)
# As in PyTorch.
LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)

# These must be told the phase.
NEEDS_PHASE = (BatchNorm, ZeroBatchNorm, SlowBatchNorm, DetectorBatchNorm)


def default_norm(norm: Any) -> Any:
    """The field `norm` of a module that has a submodule of the same name.

    The class must not have the attribute `norm`: `nnx.bridge.ToNNX` would use it in place of the
    submodule (seen in Flax 0.12.8 and 0.12.12).
    """
    return dataclasses.field(default_factory=lambda: norm)
