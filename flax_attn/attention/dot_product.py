"""Scaled dot-product attention over several heads."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from jax import lax
from jaxtyping import Array, Bool, Float, Int

from flax_attn.attention._core.arguments import check_static
from flax_attn.attention._core.normalize import normalize
from flax_attn.attention._core.placement import Placement, check_placement
from flax_attn.attention._core.primitive import attend
from flax_attn.attention._core.selection import Choice, as_candidates, refuse_early
from flax_attn.attention.dropout import Dropout, with_rate
from flax_attn.coords import Coords
from flax_attn.masks import Mask, Plan
from flax_attn.normalizers import Normalizer, Softmax, with_sink
from flax_attn.scores import ScoreMod

P = ParamSpec("P")
R = TypeVar("R")

KEYWORDS_OF_FLAX = (
    "broadcast_dropout",
    "dropout_rng",
    "dropout_rate",
    "deterministic",
    "dtype",
    "module",
)


def _names_attention_fn(function: Callable[P, R]) -> Callable[P, R]:
    """Make `function` raise a helpful error when a Flax module calls it as `attention_fn`.

    This is a wrapper because Flax's Linen module reads the signature of its `attention_fn`: the
    signature must not show keywords that the function does not take.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if found := [name for name in KEYWORDS_OF_FLAX if name in kwargs]:
            raise TypeError(
                f"{function.__name__}: got {', '.join(found)}, which Flax's modules pass. Give "
                f"them attention_fn=flax_attn.attention.attention_fn()."
            )
        return function(*args, **kwargs)

    return call


@_names_attention_fn
def dot_product_attention(
    query: Float[Array, "*B T N D"],
    key: Float[Array, "*B S K D"],
    value: Float[Array, "*B S K Dv"],
    bias: Float[Array, "..."] | None = None,
    mask: Mask | Bool[Array, "..."] | None = None,
    *,
    scale: float | Float[Array, ""] | None = None,
    is_causal: bool = False,
    query_seq_lengths: Int[Array, "..."] | None = None,
    key_value_seq_lengths: Int[Array, "..."] | None = None,
    local_window_size: int | tuple[int | None, int | None] | None = None,
    score_mod: ScoreMod | None = None,
    normalizer: Normalizer = Softmax(),
    dropout: Dropout | None = None,
    query_coords: Coords | None = None,
    key_coords: Coords | None = None,
    head_ids: Int[Array, "N"] | None = None,
    plan: Plan | None = None,
    precision: lax.PrecisionLike = None,
    implementation: Choice = None,
    placement: Placement | None = None,
    return_residual: bool = False,
) -> Float[Array, "*B T N Dv"] | Any:
    """Scaled dot-product attention, grouped-query and multi-query attention included.

    O[t, n] = Σ_s p_ts V[s, n // G],   p_t = softmax_s(scale · Q[t, n]·K[s, n // G] + bias)

    The arguments up to `local_window_size` are those of `jax.nn.dot_product_attention`, in the same
    positions. Three things differ. A query that sees no key gives 0 (not the mean of the values),
    with LSE −∞ and zero gradients. The LSE is float32 (not of the input's dtype). The LSE has
    gradients.

    The order is scale, bias, score modifiers, mask, normaliser. Scores, statistics and accumulators
    are float32 (float64 for float64 inputs). Every float that is passed has gradients of any order,
    in forward and reverse mode.

    Masks and modifiers are relations between the coordinates of queries and keys. Blocks of pairs
    that a mask hides are skipped, for any mask. Memory is O(T + S), for gradients and forward mode
    too, unless `explain` says "dense". Second-order derivatives take O(T · S).

    Under `jit` with sharded arguments, each device computes its part. Batch, heads and queries stay
    split without communication. Where the sequence of the keys is split, keys and values are
    gathered. (On TPUs XLA decides about a split sequence.) Within `shard_map`, a device knows only
    its own part and attends only to its own keys; with a `placement` it attends to the keys of
    all. Where something depends on the numbers of heads, batch elements or tokens, give them there
    as `head_ids`, `Dropout.batch_ids` and coordinates; otherwise the call is refused.

    A key or value with NaN or infinity never reaches a query that does not see it, in value or
    gradient. With a mask or a bias, a query that sees it gets NaN in every feature, and no gradient
    passes through its row. "cudnn" promises this for lengths only; see `attention.Cudnn`.

    In half precision on NVIDIA GPUs, attention without masks, with causal masks and left windows,
    lengths and biases is cuDNN's. Its gradients are deterministic only under XLA's flag
    `--xla_gpu_deterministic_ops`, and always with `implementation=attention.Cudnn(backward=False)`.

    Args:
      query: Queries `[*B, T, N, D]`.
      key: Keys `[*B, S, K, D]`; N is a multiple of K, and query head n reads key head n // G with
        G = N // K.
      value: Values `[*B, S, K, Dv]`; Dv may differ from D.
      bias: Added to the scaled scores; broadcasts to `[*B, N, T, S]`. It is read tile by tile.
      mask: A `Mask` such as `masks.Causal() & masks.SameSegment()`; or a boolean array, True where
        a query attends, that broadcasts to `[*B, N, T, S]`.
      scale: Factor of the dot products, default 1/√D.
      is_causal: If True, a query sees only keys at its own position or before. Without coordinates,
        positions on both sides start at 0, as in jax.nn. If T ≠ S this warns: a single query would
        see only the first key. For queries that continue a longer sequence give
        `query_coords=Coords.arange(T, offset=S - T), key_coords=Coords.arange(S)`.
      query_seq_lengths: Number of valid queries `[*B]`; the others give 0.
      key_value_seq_lengths: Number of valid keys `[*B]`.
      local_window_size: How many positions to the left and right a query sees, `(left, right)` or
        one number for both; None leaves a side open. Positions are those of `is_causal`.
      score_mod: A `ScoreMod` such as `scores.ALiBi(slopes) >> scores.SoftCap(30.0)`.
      normalizer: From scores to weights: `Softmax()`, `Softmax(sink)`, `Sigmoid(bias)`, ...
      dropout: `Dropout(rate, key)`, or None.
      query_coords: Coordinates of the T queries; default the positions 0 ... T − 1.
      key_coords: Coordinates of the S keys; default the positions 0 ... S − 1.
      head_ids: Global number of each query head `[N]`, default 0 ... N − 1. A device that holds a
        part of the heads needs it for dropout and for everything that differs between heads.
      plan: The block map of `mask`, made once for many layers by `make_plan`; by default it is made
        here. It saves time and changes no number. "dense" computes every block and ignores it.
      precision: Precision of both dot products, as in `jax.lax.dot_general`.
      implementation: A name, an object, or several in order of preference: `"cudnn"`,
        `"blockwise"`, `"dense"` (alias `"xla"`), `attention.Blockwise(block_query=256)`. None takes
        the best for the device that is compiled for; see `explain`.
      placement: How tokens are split over devices: `sharded.Ring("seq")` within a `shard_map` over
        the mesh axis "seq", `sharded.Ring("seq").on(mesh)` for arrays of all devices.
      return_residual: Whether to return the LSE too.

    Returns:
      The output `[*B, T, N, Dv]` in the query's dtype; with `return_residual` also the LSE
      log Σ_s exp(score) `[*B, T, N]` in float32 (float64 for float64 inputs), differentiable.

    Raises:
      ValueError: If shapes, dtypes or numbers do not fit; if a mask compares positions, T ≠ S, and
        no coordinates are given.
      TypeError: If an argument is of the wrong kind, or a mask or modifier captures a traced array.
      NotImplementedError: If the implementation that was asked for declines.
      ExceptionGroup: If several were asked for and all decline.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import dot_product_attention, masks
      >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 16, 4, 8))
      >>> out, lse = dot_product_attention(q, k, v, is_causal=True, return_residual=True)
      >>> out.shape, lse.shape
      ((2, 16, 4, 8), (2, 16, 4))
      >>> bool(jnp.allclose(out[:, 0], v[:, 0]))    # the first query sees only the first key
      True
      >>> @masks.relation
      ... def every_other(q, k):
      ...     return (q.positions - k.positions) % 2 == 0
      >>> out = dot_product_attention(q, k, v, mask=every_other() & masks.Causal())

    References:
      Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv:1706.03762, equation 1;
      Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head
      Checkpoints", EMNLP 2023, arXiv:2305.13245; Rabe, Staats, "Self-attention Does Not Need O(n²)
      Memory", 2021, arXiv:2112.05682; Dao, Fu, Ermon, Rudra, Ré, "FlashAttention: Fast and
      Memory-Efficient Exact Attention with IO-Awareness", NeurIPS 2022, arXiv:2205.14135.
    """
    check_static("dot_product_attention", "return_residual", return_residual)
    if placement is not None:
        check_placement("dot_product_attention", placement)
    problem = normalize(
        "dot_product_attention",
        query,
        key,
        value,
        bias,
        mask,
        scale=scale,
        is_causal=is_causal,
        query_seq_lengths=query_seq_lengths,
        key_value_seq_lengths=key_value_seq_lengths,
        local_window_size=local_window_size,
        score_mod=score_mod,
        normalizer=normalizer,
        dropout=dropout,
        query_coords=query_coords,
        key_coords=key_coords,
        head_ids=head_ids,
        plan=plan,
        precision=precision,
        placement=placement,
    )
    if return_residual and not normalizer.coupled:
        raise ValueError(
            f"dot_product_attention: return_residual asks for the LSE, which "
            f"{type(normalizer).__name__} does not have. Leave it out."
        )
    if placement is not None:
        placement = placement.with_implementation("dot_product_attention", implementation)
        located = (query_coords, key_coords)
        output, lse = placement.attend("dot_product_attention", problem, located)
    else:
        candidates = as_candidates("dot_product_attention", implementation)
        refuse_early("dot_product_attention", problem, candidates)
        output, lse = attend(problem, candidates)
    output, lse = with_sink(normalizer, with_rate(output, dropout), lse)
    output = output.astype(problem.dtype)
    return (output, lse) if return_residual else output
