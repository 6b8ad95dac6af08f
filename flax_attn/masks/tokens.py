"""Masks on what tokens carry: segments, validity, marks, trees, images, intervals."""

from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool

from flax_attn._functions import kind_of
from flax_attn._integers import comparable
from flax_attn._pytree import pytree, static
from flax_attn._record import Record
from flax_attn.masks._mask import Mask


@pytree
class SameSegment(Mask):
    """A query attends to the keys of its own sequence, where several are packed into one.

    M_ij = (segment_i = segment_j)

    Put it last: what is joined by `|` before it stays within each sequence,
    `(Causal() | Overlay()) & SameSegment()`.

    Attributes:
      None: It reads `segment_ids` of `Coords.from_segments`.

    Example:
      >>> from flax_attn import masks
      >>> masks.Causal() & masks.SameSegment()
      Causal() & SameSegment()

    References:
      Krell, Kosec, Perez, Fitzgibbon, "Efficient Sequence Packing without Cross-contamination:
      Accelerating Large Language Models without Impacting Performance", 2021, arXiv:2107.02027.
    """

    reads: ClassVar = "segment_ids, which are in the coordinates: Coords.from_segments(segment_ids)"

    def __call__(self, q: Record, k: Record) -> Bool[Array, "..."]:
        """See `Mask`."""
        mine, theirs = comparable(q.segment_ids, k.segment_ids)
        return mine == theirs


@pytree
class Padding(Mask):
    """A token that counts attends to the tokens that count.

    M_ij = valid_i ∧ valid_j

    Attention excludes tokens whose `valid` is False by itself; this mask says so in a composition,
    as `~Padding()` or a picture of a mask.

    Attributes:
      None: It reads `valid` of `Coords.from_lengths`.

    Example:
      >>> from flax_attn import masks
      >>> masks.Causal() & masks.Padding()
      Causal() & Padding()
    """

    reads: ClassVar = "valid, which is in the coordinates: Coords.from_lengths(lengths, length)"

    def __call__(self, q: Record, k: Record) -> Bool[Array, "..."]:
        """See `Mask`."""
        return q.valid & k.valid


@pytree
class GlobalTokens(Mask):
    """Global tokens attend to all tokens, and all tokens attend to them.

    M_ij = global_i ∨ global_j

    To be joined with a local mask: `Window(256, 256) | GlobalTokens()`.

    Attributes:
      feature: Name of the boolean feature of the tokens `[*B, T]` that is True for global ones.

    Example:
      >>> from flax_attn import masks
      >>> masks.Window(256, 256) | masks.GlobalTokens()
      Window(left=256, right=256) | GlobalTokens(feature='is_global')

    References:
      Beltagy, Peters, Cohan, "Longformer: The Long-Document Transformer", 2020, arXiv:2004.05150;
      Zaheer, Guruganesh, Dubey, Ainslie, Alberti, Ontanon, Pham, Ravula, Wang, Yang, Ahmed, "Big
      Bird: Transformers for Longer Sequences", NeurIPS 2020, arXiv:2007.14062.
    """

    feature: str = static(default="is_global")

    def __post_init__(self) -> None:
        _check_name(self, "feature")

    def __call__(self, q: Record, k: Record) -> Bool[Array, "..."]:
        """See `Mask`."""
        return self._mark(q) | self._mark(k)

    def _mark(self, record: Record) -> Any:
        mark = getattr(record, self.feature)
        if mark.dtype != jnp.bool_:
            raise TypeError(
                f"GlobalTokens: the feature {self.feature!r} must be boolean, True for global "
                f"tokens, got {mark.dtype}. Write {self.feature}.astype(bool)."
            )
        return mark


@pytree
class Tree(Mask):
    """A node of a tree attends to itself and its ancestors.

    M_ij = (enter_j ≤ enter_i < leave_j)

    Nodes are numbered in preorder: a node's descendants are those from its `enter` up to its
    `leave`. Drafts of speculative decoding branch after a committed text, whose tokens are
    ancestors of every node: give these `enter` = 0 and `leave` = the number of nodes, and add
    `& Causal()` where they are queries, too.

    Attributes:
      None: It reads the features `enter` and `leave` of `Coords.tree`.

    Example:
      >>> from flax_attn import Coords, masks
      >>> Coords.tree([-1, 0, 0, 1]).features["leave"]  # 0 has the children 1, 2; 1 has 3
      Array([4, 3, 4, 3], dtype=int32)
      >>> masks.Tree()
      Tree()

    References:
      Miao, Oliaro, Zhang, Cheng, Wang, Zhang, Wong, Zhu, Yang, Shi, Shi, Chen, Arfeen, Abhyankar,
      Jia, "SpecInfer: Accelerating Large Language Model Serving with Tree-based Speculative
      Inference and Verification", ASPLOS 2024, arXiv:2305.09781.
    """

    reads: ClassVar = "enter and leave, which are in the coordinates: Coords.tree(parents)"

    def __call__(self, q: Record, k: Record) -> Bool[Array, "..."]:
        """See `Mask`."""
        enter, first = comparable(q.enter, k.enter)
        before, leave = comparable(q.enter, k.leave)
        return (first <= enter) & (before < leave)


@pytree
class Overlay(Mask):
    """The tokens of one image, or of any other group, attend to each other in both directions.

    M_ij = (image_i = image_j) ∧ (image_i ≥ 0)

    To be laid over a causal mask: `Causal() | Overlay()`. With packed sequences `& SameSegment()`
    comes last, so that images with the same number in different sequences stay apart.

    Attributes:
      feature: Name of the integer feature of the tokens `[*B, T]`: the number of their image, −1
        for tokens of none.

    Example:
      >>> from flax_attn import masks
      >>> (masks.Causal() | masks.Overlay()) & masks.SameSegment()
      (Causal() | Overlay(feature='image')) & SameSegment()

    References:
      Beyer, Steiner, Pinto, Kolesnikov, Wang et al., "PaliGemma: A versatile 3B VLM for transfer",
      2024, arXiv:2407.07726; Gemma Team, "Gemma 3 Technical Report", 2025, arXiv:2503.19786.
    """

    feature: str = static(default="image")

    def __post_init__(self) -> None:
        _check_name(self, "feature")

    def __call__(self, q: Record, k: Record) -> Bool[Array, "..."]:
        """See `Mask`."""
        image, theirs = comparable(getattr(q, self.feature), getattr(k, self.feature))
        return (image == theirs) & (image >= 0)


@pytree
class Interval(Mask):
    """A key is seen from the interval of query positions that it carries.

    M_ij = (lower_j ≤ i < upper_j)

    As text attends to the image before it and to no other: the image's tokens carry the positions
    of the text from the image on, up to the next image.

    Attributes:
      lower: Name of the keys' feature `[*B, S]` with the first query position.
      upper: Name of the keys' feature with the position after the last.

    Example:
      >>> from flax_attn import masks
      >>> masks.Interval()
      Interval(lower='lower', upper='upper')

    References:
      Alayrac, Donahue, Luc, Miech, Barr et al., "Flamingo: a Visual Language Model for Few-Shot
      Learning", NeurIPS 2022, arXiv:2204.14198, section 2.3.
    """

    lower: str = static(default="lower")
    upper: str = static(default="upper")

    def __post_init__(self) -> None:
        _check_name(self, "lower")
        _check_name(self, "upper")

    def __call__(self, q: Record, k: Record) -> Bool[Array, "..."]:
        """See `Mask`."""
        lower, from_lower = comparable(getattr(k, self.lower), q.positions)
        upper, up_to_upper = comparable(getattr(k, self.upper), q.positions)
        return (lower <= from_lower) & (up_to_upper < upper)


def _check_name(mask: Any, field: str) -> None:
    name = getattr(mask, field)
    if not isinstance(name, str):
        raise TypeError(
            f"{type(mask).__name__}: {field} must be the name of a feature of the coordinates, got "
            f"{kind_of(name)}. Give its values to the coordinates: "
            f"coords.with_features({type(mask).__dataclass_fields__[field].default}=values)."
        )
