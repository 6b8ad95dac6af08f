"""Periodic masks: dilated windows, chunks, and the two patterns of the Sparse Transformer."""

from typing import ClassVar

from jaxtyping import Array, Bool

from flax_attn._pytree import pytree, static
from flax_attn._record import Record
from flax_attn.masks._mask import Mask
from flax_attn.masks._numbers import Number, as_number, known, per_head


@pytree
class Dilated(Mask):
    """A query attends to every `dilation`-th key up to `window` positions away, on both sides.

    M_ij = (|i − j| ≤ window) ∧ ((i − j) mod dilation = 0)

    Attributes:
      window: Largest distance, in positions and not in multiples of the dilation. A number, which
        may be traced, or one per query head `[N]`.
      dilation: Distance between neighbouring keys, in the same forms. 1 is a plain window.

    Example:
      >>> from flax_attn import masks
      >>> masks.Dilated(window=64, dilation=4) & masks.Causal()
      Dilated(window=64, dilation=4) & Causal()

    References:
      Beltagy, Peters, Cohan, "Longformer: The Long-Document Transformer", 2020, arXiv:2004.05150.
    """

    window: Number
    dilation: Number

    per_head: ClassVar = ("window", "dilation")

    def __post_init__(self) -> None:
        _set(self, "window", 0, "0 is the query's own position alone.")
        _set(self, "dilation", 1, "1 is a plain window.")

    def __call__(self, q: Record, k: Record) -> Bool[Array, "..."]:
        """See `Mask`."""
        distance = q.positions - k.positions
        near = abs(distance) <= per_head("Dilated: window", self.window, q)
        return near & (distance % per_head("Dilated: dilation", self.dilation, q) == 0)


@pytree
class Chunked(Mask):
    """A query attends to the keys of its own chunk of `size` positions, earlier and later ones.

    M_ij = (⌊i / size⌋ = ⌊j / size⌋)

    It is bidirectional, as in block-local attention. Llama 4 uses `Chunked(8192) & Causal()`.

    Attributes:
      size: Number of positions in a chunk. The first chunk begins at position 0. A number, which
        may be traced, or one per query head `[N]`.

    Example:
      >>> from flax_attn import masks
      >>> masks.Chunked(8192) & masks.Causal()
      Chunked(size=8192) & Causal()

    References:
      Liu, Saleh, Pot, Goodrich, Sepassi, Kaiser, Shazeer, "Generating Wikipedia by Summarizing Long
      Sequences", ICLR 2018, arXiv:1801.10198 (local attention); Meta AI, "The Llama 4 herd", 2025
      (with `Causal`).
    """

    size: Number

    per_head: ClassVar = ("size",)

    def __post_init__(self) -> None:
        _set(self, "size", 1, "It counts positions.")

    def __call__(self, q: Record, k: Record) -> Bool[Array, "..."]:
        """See `Mask`."""
        size = per_head("Chunked: size", self.size, q)
        return q.positions // size == k.positions // size


@pytree
class Strided(Mask):
    """The strided or the fixed pattern of the Sparse Transformer; both are causal.

    With stride l and c summary positions:

    strided:  M_ij = (j ≤ i) ∧ ((i − j < l) ∨ ((i − j) mod l = 0))
    fixed:    M_ij = (j ≤ i) ∧ ((⌊i / l⌋ = ⌊j / l⌋) ∨ (j mod l ≥ l − c))

    This is the union of the paper's two attention sets in one head, which the paper calls "merged".

    Attributes:
      stride: The stride l, in positions. The paper uses about √T. A number, which may be traced, or
        one per query head `[N]`.
      fixed: If True, the fixed pattern, for data without the period of the stride, such as text. If
        False, the strided pattern.
      summary: Number c of summary positions at the end of each block of l positions. Only the fixed
        pattern uses it.

    Example:
      >>> from flax_attn import masks
      >>> masks.Strided(128, fixed=True, summary=8)
      Strided(stride=128, fixed=True, summary=8)

    References:
      Child, Gray, Radford, Sutskever, "Generating Long Sequences with Sparse Transformers", 2019,
      arXiv:1904.10509, section 4.3.
    """

    stride: Number
    fixed: bool = static(default=False)
    summary: Number = 1

    per_head: ClassVar = ("stride", "summary")

    def __post_init__(self) -> None:
        _set(self, "stride", 1, "It counts positions.")
        _set(self, "summary", 1, "It counts positions.")
        stride, summary = known(self.stride), known(self.summary)
        if stride is not None and summary is not None and (summary > stride).any():
            raise ValueError(
                f"Strided: summary must be at most the stride = {stride}, got {summary}. If every "
                f"position is a summary, use Causal()."
            )

    def __call__(self, q: Record, k: Record) -> Bool[Array, "..."]:
        """See `Mask`."""
        stride = per_head("Strided: stride", self.stride, q)
        distance = q.positions - k.positions
        if not self.fixed:
            return (distance >= 0) & ((distance < stride) | (distance % stride == 0))
        summary = per_head("Strided: summary", self.summary, q)
        same = q.positions // stride == k.positions // stride
        return (distance >= 0) & (same | (k.positions % stride >= stride - summary))


def _set(mask: Mask, name: str, minimum: int, fix: str) -> None:
    """Check a number of a mask, and store it clamped to int32."""
    number = as_number(f"{type(mask).__name__}: {name}", getattr(mask, name), minimum, fix)
    object.__setattr__(mask, name, number)
