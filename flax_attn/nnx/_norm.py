"""The normalisations of the vision modules."""

import functools

from flax import nnx

# As in PyTorch: an update weighs 0.1. Flax's fast variance loses a small one beside a large mean.
BatchNorm = functools.partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-5, use_fast_variance=False)
# The same with a gain that starts at 0: a branch that is added and begins as nothing.
ZeroBatchNorm = functools.partial(BatchNorm, scale_init=nnx.initializers.zeros_init())
# An update weighs 0.01, as in a few released codes.
SlowBatchNorm = functools.partial(BatchNorm, momentum=0.99)
# As in detectors of the YOLO family: an update weighs 0.03.
DetectorBatchNorm = functools.partial(BatchNorm, momentum=0.97, epsilon=1e-3)
# As in PyTorch, too.
LayerNorm = functools.partial(nnx.LayerNorm, epsilon=1e-5, use_fast_variance=False)
