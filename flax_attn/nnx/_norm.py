"""The normalisations of the vision modules."""

import functools

from flax import nnx

# As in PyTorch: an update has weight 0.1. The fast variance of Flax loses digits at a large mean.
BatchNorm = functools.partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-5, use_fast_variance=False)
# The same with a scale that starts at 0, so that a residual block starts as the identity.
ZeroBatchNorm = functools.partial(BatchNorm, scale_init=nnx.initializers.zeros_init())
# An update has weight 0.01, as in the code of a few papers.
SlowBatchNorm = functools.partial(BatchNorm, momentum=0.99)
# As in detectors of the YOLO family: an update has weight 0.03.
DetectorBatchNorm = functools.partial(BatchNorm, momentum=0.97, epsilon=1e-3)
# As in PyTorch.
LayerNorm = functools.partial(nnx.LayerNorm, epsilon=1e-5, use_fast_variance=False)
