"""The normalisations of the vision modules."""

import dataclasses
import functools
from typing import Any

from flax import linen as nn

# As in PyTorch: an update weighs 0.1. Flax's fast variance loses a small one beside a large mean.
BatchNorm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5, use_fast_variance=False)
# The same with a gain that starts at 0: a branch that is added and begins as nothing.
ZeroBatchNorm = functools.partial(BatchNorm, scale_init=nn.initializers.zeros_init())
# An update weighs 0.01, as in a few released codes.
SlowBatchNorm = functools.partial(BatchNorm, momentum=0.99)
# As in detectors of the YOLO family: an update weighs 0.03.
DetectorBatchNorm = functools.partial(BatchNorm, momentum=0.97, epsilon=1e-3)
# As in PyTorch, too.
LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)


def default_norm(norm: Any) -> Any:
    """The field `norm` of a module whose submodule has that name, too.

    The class itself must have no such attribute: `nnx.bridge.ToNNX` would take it for the submodule
    (seen in Flax 0.12.8 and 0.12.12).
    """
    return dataclasses.field(default_factory=lambda: norm)


def with_phase(module: str, norm: Any, attribute: bool | None, argument: bool | None) -> Any:
    """What makes the normalisation, told the phase if it is given, as an attribute or an argument.

    The default normalisation must know the phase.
    """
    if attribute is not None or argument is not None:
        phase = nn.merge_param("use_running_average", attribute, argument)
        return functools.partial(norm, use_running_average=phase)
    if norm in (BatchNorm, ZeroBatchNorm, SlowBatchNorm, DetectorBatchNorm):
        raise ValueError(
            f"{module}: use_running_average must be given, for batch normalisation depends on the "
            f"phase. Pass use_running_average=not train, or a norm of your own."
        )
    return norm
