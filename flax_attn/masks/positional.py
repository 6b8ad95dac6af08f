"""Masks on positions: full, empty, causal, window, prefix."""

import functools
import operator
from typing import ClassVar

from jaxtyping import Array, Bool

from flax_attn._integers import comparable
from flax_attn._pytree import pytree
from flax_attn._record import Record
from flax_attn.masks._mask import Mask, everywhere
from flax_attn.masks._numbers import Number, as_number, per_head, scalar


@pytree
class Full(Mask):
    """Every query attends to every key.

    M_ij = true

    Attributes:
      None.

    Example:
      >>> from flax_attn import masks
      >>> masks.Full() & ~masks.Causal()
      Full() & ~Causal()
    """

    def __call__(self, q: Record, k: Record) -> Bool[Array, "..."]:
        """See `Mask`."""
        return everywhere(True, q, k)


@pytree
class Empty(Mask):
    """No query attends to any key. The output of attention is then 0.

    M_ij = false

    Attributes:
      None.

    Example:
      >>> from flax_attn import masks
      >>> masks.Empty() | masks.Causal()
      Empty() | Causal()
    """

    def __call__(self, q: Record, k: Record) -> Bool[Array, "..."]:
        """See `Mask`."""
        return everywhere(False, q, k)


@pytree
class Causal(Mask):
    """A query attends to keys at its own position and earlier.

    M_ij = (j ≤ i)

    i and j are the positions of query and key, wherever the tokens are stored.

    Attributes:
      None.

    Example:
      >>> from flax_attn import masks
      >>> masks.Causal() & masks.SameSegment()
      Causal() & SameSegment()

    References:
      Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin, "Attention Is All You
      Need", NeurIPS 2017, arXiv:1706.03762.
    """

    def __call__(self, q: Record, k: Record) -> Bool[Array, "..."]:
        """See `Mask`."""
        return k.positions <= q.positions


@pytree
class Window(Mask):
    """A query attends to the keys from `left` positions before it to `right` positions after it.

    M_ij = (−right ≤ i − j ≤ left)

    Both distances are inclusive, so the window has left + 1 + right keys, including the query's own
    position. Other libraries count differently; `Window.last_n` takes the number of keys. A
    negative distance excludes the query itself: `Window(None, -1)` is the strict past.

    The attention sinks of StreamingLLM are a window and the first n tokens, which here are marked
    as `is_global`: `Causal() & (Window(left) | GlobalTokens())`.

    Attributes:
      left: Distance to the earliest key, in positions. A number, which may be traced, or one per
        query head `[N]`. None, or a number of at least 2³¹ − 1, for all earlier keys.
      right: Distance to the latest key, in the same forms. 0 is causal.

    Example:
      >>> from flax_attn import masks
      >>> masks.Window(left=255)
      Window(left=255, right=0)
      >>> masks.Window.last_n(256)
      Window(left=255, right=0)
      >>> masks.Causal() & (masks.Window(1023) | masks.GlobalTokens())
      Causal() & (Window(left=1023, right=0) | GlobalTokens(feature='is_global'))

    References:
      Beltagy, Peters, Cohan, "Longformer: The Long-Document Transformer", 2020, arXiv:2004.05150;
      Xiao, Tian, Chen, Han, Lewis, "Efficient Streaming Language Models with Attention Sinks",
      ICLR 2024, arXiv:2309.17453.
    """

    left: Number | None
    right: Number | None = 0

    per_head: ClassVar = ("left", "right")

    def __post_init__(self) -> None:
        fix = "For an open side write None."
        for name, value in (("left", self.left), ("right", self.right)):
            if value is not None:
                object.__setattr__(self, name, as_number(f"Window: {name}", value, None, fix))
        left, right = self.left, self.right
        if isinstance(left, int) and isinstance(right, int) and left + right < 0:
            raise ValueError(
                f"Window: left + right must be at least 0, got {left} + {right}. The window has no "
                f"key. Use Empty()."
            )

    @classmethod
    def last_n(cls, n: Number) -> "Window":
        """The last n keys, including the query's own position: `Window(left=n - 1, right=0)`.

        Args:
          n: Number of keys, at least 1. One number, or one per query head `[N]`.

        Returns:
          A window.

        Raises:
          ValueError: If n is less than 1.

        Example:
          >>> from flax_attn import masks
          >>> masks.Window.last_n(4096)
          Window(left=4095, right=0)
        """
        n = as_number("Window.last_n: n", n, 1, "It includes the query's own position.")
        return cls(left=n - 1, right=0)

    def __call__(self, q: Record, k: Record) -> Bool[Array, "..."]:
        """See `Mask`."""
        distance = q.positions - k.positions
        seen = []
        if self.left is not None:
            seen.append(distance <= per_head("Window: left", self.left, q))
        if self.right is not None:
            seen.append(-distance <= per_head("Window: right", self.right, q))
        return functools.reduce(operator.and_, seen) if seen else everywhere(True, q, k)


@pytree
class Prefix(Mask):
    """Every query attends to the first `length` positions; attention to other keys is causal.

    M_ij = (j < length) ∨ (j ≤ i)

    Attention within the prefix is bidirectional. For packed sequences, positions must begin at 0 in
    each sequence, `Coords.from_segments(segment_ids, restart=True)`; combine with `&
    SameSegment()`.

    Attributes:
      length: Number of positions of the prefix, which may be traced. If None, it is the feature
        `prefix` of the queries `[*B, T]`, and may differ between sequences.

    Example:
      >>> from flax_attn import masks
      >>> masks.Prefix(16)
      Prefix(length=16)
      >>> masks.Prefix() & masks.SameSegment()
      Prefix() & SameSegment()

    References:
      Liu, Saleh, Pot, Goodrich, Sepassi, Kaiser, Shazeer, "Generating Wikipedia by Summarizing Long
      Sequences", ICLR 2018, arXiv:1801.10198; Raffel, Shazeer, Roberts, Lee, Narang, Matena, Zhou,
      Li, Liu, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
      JMLR 2020, arXiv:1910.10683.
    """

    length: Number | None = None

    def __post_init__(self) -> None:
        if self.length is not None:
            fix = "For no prefix use Causal()."
            object.__setattr__(self, "length", as_number("Prefix: length", self.length, 0, fix))

    def __call__(self, q: Record, k: Record) -> Bool[Array, "..."]:
        """See `Mask`."""
        fix = "For one length per sequence use Prefix() and Coords.with_features(prefix=...)."
        length = q.prefix if self.length is None else scalar("Prefix: length", self.length, fix)
        j, end = (
            (k.positions, length) if isinstance(length, int) else comparable(k.positions, length)
        )
        return (j < end) | (k.positions <= q.positions)
