"""Published speeds of attention, by which an implementation says whether another is faster."""

import re
from typing import Literal, NamedTuple

from flax_attn.attention._core.implementation import Target
from flax_attn.attention._core.problem import Problem
from flax_attn.masks import Full

Pass = Literal["forward", "backward"]

HEAD_SIZES = (64, 128, 256)
"""The head sizes D of the figures in a row."""

CONVENTION = (
    "TFLOP/s in bfloat16 with 4 × 4096 tokens and 2048 / D heads. Forward counts as "
    "4 · B · N · T · S · D operations, half of them if causal, and backward as 2.5 times as many."
)
"""What the figures are figures of, and how operations are counted."""


class Row(NamedTuple):
    """Speeds of one implementation on one device.

    Attributes:
      device: The family of the device, as `family` names it.
      implementation: The name of ours. Figures of a program of another library with the same
        algorithm stand for it.
      work: The pass.
      is_causal: Whether the figures are those of a causal mask. Otherwise there is no mask.
      rates: TFLOP/s at each of `HEAD_SIZES`, as `CONVENTION` says; None if not published.
      measured: The program that was measured.
      source: Where the figures are from.
    """

    device: str
    implementation: str
    work: Pass
    is_causal: bool
    rates: tuple[int | None, int | None, int | None]
    measured: str
    source: str


def _of_tokamax(
    device: str,
    folder: str,
    implementation: str,
    file: str,
    causal: tuple[int | None, int | None, int | None],
    full: tuple[int | None, int | None, int | None],
    work: Pass = "forward",
) -> tuple[Row, Row]:
    """Rows computed from tokamax's database: the median times of the fastest configuration."""
    suffix = "_vjp" if work == "backward" else ""
    source = f"tokamax 0.0.17, data/autotuning/{folder}/{file}{suffix}.json"
    measured = _MEASURED[file]
    return (
        Row(device, implementation, work, True, causal, measured, source),
        Row(device, implementation, work, False, full, measured, source),
    )


_CUDNN, _TPU = "jax_nn_dot_product_attention", "pallas_mosaic_tpu_flash_attention"
_CHUNKED, _DENSE = "xla_chunked_dot_product_attention", "dot_product_attention"
_MEASURED = {
    _CUDNN: "`jax.nn` with cuDNN",
    _TPU: "tokamax's TPU kernel",
    _CHUNKED: 'tokamax\'s "xla_chunked"',
    _DENSE: 'tokamax\'s "xla"',
}
_FLASH_3 = "Shah et al., FlashAttention-3, 2024, arXiv:2407.08608, figure 6"
_A100, _H100 = ("A100", "nvidia_a100-sxm4-40gb"), ("H100", "nvidia_h100_80gb_hbm3")
_V5P, _V6E, _7X = ("v5p", "tpu_v5"), ("v6e", "tpu_v6_lite"), ("7x", "tpu7x")

FIGURES: tuple[Row, ...] = (
    *_of_tokamax(*_A100, "cudnn", _CUDNN, (119, 145, None), (152, 158, None)),
    *_of_tokamax(*_A100, "blockwise", _CHUNKED, (7, 12, 17), (15, 24, 34)),
    *_of_tokamax(*_A100, "dense", _DENSE, (9, 18, 31), (22, 43, 71)),
    *_of_tokamax(*_H100, "cudnn", _CUDNN, (468, 595, 601), (536, 679, 721)),
    *_of_tokamax(*_H100, "blockwise", _CHUNKED, (15, 26, 39), (31, 52, 79)),
    *_of_tokamax(*_H100, "dense", _DENSE, (18, 35, 65), (47, 90, 160)),
    *_of_tokamax(*_H100, "dense", _DENSE, (18, 35, 65), (40, 76, 141), "backward"),
    Row("H100", "cudnn", "backward", False, (417, 499, None), "cuDNN in float16", _FLASH_3),
    *_of_tokamax(*_V5P, "pallas_tpu", _TPU, (124, 222, 244), (201, 367, 346)),
    *_of_tokamax(*_V5P, "blockwise", _CHUNKED, (24, 40, 65), (48, 81, 131)),
    *_of_tokamax(*_V5P, "dense", _DENSE, (26, 49, 79), (54, 99, 155)),
    *_of_tokamax(*_V6E, "pallas_tpu", _TPU, (105, 174, 264), (159, 273, 434)),
    *_of_tokamax(*_V6E, "blockwise", _CHUNKED, (13, 27, 106), (26, 53, 249)),
    *_of_tokamax(*_V6E, "dense", _DENSE, (13, 30, 54), (27, 59, 107)),
    *_of_tokamax(*_7X, "pallas_tpu", _TPU, (113, 203, 306), (189, 355, 579)),
    *_of_tokamax(*_7X, "blockwise", _CHUNKED, (28, 54, 86), (58, 113, 175)),
    *_of_tokamax(*_7X, "dense", _DENSE, (30, 60, 101), (70, 125, 213)),
    *_of_tokamax(*_7X, "pallas_tpu", _TPU, (118, 225, 349), (203, 402, 653), "backward"),
    *_of_tokamax(*_7X, "dense", _DENSE, (27, 52, 94), (58, 109, 201), "backward"),
)
"""All figures."""

# JAX's kinds of devices, and the nearest family that has figures. The H200 has the processor of the
# H100 and faster memory. The v5e has the matrix units of the v5p, but fewer.
_FAMILIES = (
    (r"NVIDIA G?H[128]00\b", "H100"),
    (r"NVIDIA A[18]00\b", "A100"),
    (r"TPU v5( lite|e|p)?$", "v5p"),
    (r"TPU v6( lite|e)$", "v6e"),
    (r"TPU ?7x$", "7x"),
)


def family(device: str | None) -> str | None:
    """The family of devices whose figures stand for a device; None if there is none.

    Args:
      device: The kind of device in JAX's words, such as "NVIDIA H100 80GB HBM3".
    """
    matches = (name for pattern, name in _FAMILIES if device and re.match(pattern, device))
    return next(matches, None)


class Comparison(NamedTuple):
    """The speeds of two implementations in the same case.

    Attributes:
      own: The row of one.
      other: The row of the other.
      head_size: The head size that both have a figure of.
    """

    own: Row
    other: Row
    head_size: int

    @property
    def ratio(self) -> float:
        """How many times as fast as the other the one is."""
        own, other = (_rate(row, self.head_size) for row in (self.own, self.other))
        assert own is not None
        assert other is not None
        return own / other

    def __str__(self) -> str:
        case = f"D = {self.head_size}, {'causal' if self.own.is_causal else 'no mask'}"
        own, other = (_rate(row, self.head_size) for row in (self.own, self.other))
        return (
            f"{own} TFLOP/s beside {other} of {self.other.implementation!r} "
            f"({self.own.work} on {self.own.device}, {case})"
        )


def compare(
    own: str,
    other: str,
    device: str | None,
    head_size: int,
    *,
    is_causal: bool,
    work: Pass = "forward",
) -> Comparison | None:
    """Compare the published speeds of two implementations.

    Args:
      own: The name of one implementation.
      other: The name of the other.
      device: The kind of device in JAX's words; None if it is not known.
      head_size: D. The nearest one that both have figures of is compared.
      is_causal: Whether a query sees no later key.
      work: The pass.

    Returns:
      The comparison; None if there are no figures of both.
    """
    found = family(device)
    rows = [
        row
        for name in (own, other)
        for row in FIGURES
        if (row.implementation, row.device) == (name, found)
        and (row.work, row.is_causal) == (work, is_causal)
    ]
    if len(rows) != 2:
        return None
    sizes = [size for size in HEAD_SIZES if None not in (_rate(row, size) for row in rows)]
    if not sizes:
        return None
    return Comparison(rows[0], rows[1], min(sizes, key=lambda size: abs(size - head_size)))


def reason_to_defer(own: str, other: str, problem: Problem, target: Target) -> str | None:
    """Why another implementation is likely to be faster by the published figures, or None."""
    head_size = problem.query.values.shape[-1]
    is_causal = not isinstance(problem.mask, Full)
    found = compare(own, other, target.device, head_size, is_causal=is_causal)
    return None if found is None or found.ratio > 1 else f"{found}."


def _rate(row: Row, head_size: int) -> int | None:
    return row.rates[HEAD_SIZES.index(head_size)]
