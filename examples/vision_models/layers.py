"""Layers that the models share, with PyTorch's conventions where Flax's differ."""

import functools

from flax import nnx

# PyTorch's momentum of 0.1 weighs the new statistics, Flax's 0.9 the old ones.
# Flax's fast variance, E[x²] − E[x]², loses a small variance beside a large mean.
BatchNorm = functools.partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-5, use_fast_variance=False)
LayerNorm = functools.partial(nnx.LayerNorm, use_fast_variance=False)


def conv(
    in_features: int,
    features: int,
    size: int,
    stride: int = 1,
    *,
    dilation: int = 1,
    groups: int = 1,
    use_bias: bool = False,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A square convolution padded alike on all sides.

    "SAME" would pad even images on the right and below only where the stride is 2, and PyTorch
    does not.
    """
    padding = dilation * (size - 1) // 2
    return nnx.Conv(
        in_features,
        features,
        (size, size),
        strides=stride,
        padding=[(padding, padding)] * 2,
        kernel_dilation=dilation,
        feature_group_count=groups,
        use_bias=use_bias,
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
        rngs=rngs,
    )


def divisible(width: float, divisor: int = 8, least: float = 0.0) -> int:
    """The multiple of `divisor` nearest to `width`, but for 0; the next if it is under `least`."""
    nearest = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return nearest if nearest >= least * width else nearest + divisor
