"""The batch normalisation of the vision modules."""

import functools

from flax import linen as nn

# As in PyTorch: an update weighs 0.1. Flax's fast variance loses a small one beside a large mean.
BatchNorm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5, use_fast_variance=False)
