"""Masks on other fields of tokens: segments, validity, global tokens, trees, images, intervals."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from flax_attn._functions import kind_of
from flax_attn._integers import comparable
from flax_attn._pytree import pytree, static
from flax_attn._record import Record
from flax_attn.masks._mask import Mask


@pytree
class SameSegment(Mask):
    """A query attends to the keys of its own segment: of its own sequence, if several are packed.

    M_ij = (segment_i = segment_j)

    Combine it last, so that it also restricts masks that are joined by `|`:
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
        q_segments, k_segments = comparable(q.segment_ids, k.segment_ids)
        return q_segments == k_segments


@pytree
class Padding(Mask):
    """Valid queries attend to valid keys.

    M_ij = valid_i ∧ valid_j

    Attention always excludes tokens whose `valid` is False. Use this mask in a composition, such as
    `~Padding()`, or to see the padding in the picture of a mask.

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

    Combine it with a local mask: `Window(256, 256) | GlobalTokens()`.

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

    Nodes are numbered in preorder, and the descendants of a node have the numbers from its `enter`
    to its `leave` − 1. The drafts of speculative decoding form a tree after a committed text, whose
    tokens are ancestors of every node. Give these tokens `enter` = 0 and `leave` = the number of
    nodes, and combine with `& Causal()` if they are queries too.

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
        return _is_at_most(k.enter, q.enter) & _is_less(q.enter, k.leave)


@pytree
class Overlay(Mask):
    """The tokens of one image, or of another group, attend to each other in both directions.

    M_ij = (image_i = image_j) ∧ (image_i ≥ 0)

    Combine it with a causal mask: `Causal() | Overlay()`. For packed sequences, combine with
    `& SameSegment()` last, so that images of different sequences with the same number are separate.

    Attributes:
      feature: Name of the integer feature of the tokens `[*B, T]` with the number of their image;
        −1 for tokens outside of images.

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
        q_image, k_image = comparable(getattr(q, self.feature), getattr(k, self.feature))
        return (q_image == k_image) & (q_image >= 0)


@pytree
class Interval(Mask):
    """Queries whose positions lie in the interval of a key attend to the key.

    M_ij = (lower_j ≤ i < upper_j)

    For example, text attends to the preceding image only: the interval of an image token is from
    the position of its image to that of the next image.

    Attributes:
      lower: Name of the feature of the keys `[*B, S]` with the first query position.
      upper: Name of the feature of the keys `[*B, S]` with the position after the last.

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
        lower, upper = getattr(k, self.lower), getattr(k, self.upper)
        return _is_at_most(lower, q.positions) & _is_less(q.positions, upper)


def _is_at_most(a: jax.Array, b: jax.Array) -> Bool[Array, "..."]:
    """a ≤ b, for integers of any dtypes."""
    a, b = comparable(a, b)
    return a <= b


def _is_less(a: jax.Array, b: jax.Array) -> Bool[Array, "..."]:
    """a < b, for integers of any dtypes."""
    a, b = comparable(a, b)
    return a < b


def _check_name(mask: Any, field: str) -> None:
    name = getattr(mask, field)
    if not isinstance(name, str):
        raise TypeError(
            f"{type(mask).__name__}: {field} must be the name of a feature of the coordinates, got "
            f"{kind_of(name)}. Pass its values to the coordinates: "
            f"coords.with_features({type(mask).__dataclass_fields__[field].default}=values)."
        )
