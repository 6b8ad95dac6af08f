"""Scaled dot-product attention over several heads."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from jax import lax
from jaxtyping import Array, Bool, Float, Int

from flax_attn.attention._core.arguments import check_static
from flax_attn.attention._core.normalize import normalize
from flax_attn.attention._core.primitive import attend
from flax_attn.attention._core.selection import Choice, as_candidates, refuse_early
from flax_attn.attention.dropout import Dropout, with_rate
from flax_attn.coords import Coords
from flax_attn.masks import Mask, Plan
from flax_attn.normalizers import Normalizer, Softmax, with_sink
from flax_attn.scores import ScoreMod

P = ParamSpec("P")
R = TypeVar("R")

FLAXS_OWN = ("broadcast_dropout", "dropout_rng", "dropout_rate", "deterministic", "dtype", "module")


def _names_attention_fn(function: Callable[P, R]) -> Callable[P, R]:
    """Say what to do where Flax's modules call `function` as their `attention_fn`.

    A wrapper, so that the signature shows no keyword that the function does not take: Flax's Linen
    module reads it.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if flaxs := [name for name in FLAXS_OWN if name in kwargs]:
            raise TypeError(
                f"{function.__name__}: got {', '.join(flaxs)}, which Flax's modules pass. Give "
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
    return_residual: bool = False,
) -> Float[Array, "*B T N Dv"] | Any:
    """Scaled dot-product attention, grouped-query and multi-query attention included.

    O[t, n] = Σ_s p_ts V[s, n // G],   p_t = softmax_s(scale · Q[t, n]·K[s, n // G] + bias)

    The arguments up to `local_window_size` are those of `jax.nn.dot_product_attention`, position
    by position. Three things differ. A row without any visible key gives 0 (not the mean of the
    values), with LSE −∞ and zero gradients. The LSE is float32 (not of the input's dtype). The LSE
    has gradients. The order is scale, bias, score modifiers, mask, normaliser. Scores, statistics
    and accumulators are float32 (float64 for float64 inputs).

    Masks and modifiers are relations between the coordinates of queries and keys. Blocks of pairs
    that a mask hides are skipped, whatever it is made of; memory is O(T + S), also of gradients and
    of forward mode, unless `explain` says "dense". Everything that is a float has a gradient, of
    any order, in either mode.

    Under `jit` with sharded arguments, each device computes its part: batch, heads and queries stay
    split without communication, and keys and values are gathered where their sequence is split. (On
    TPUs XLA decides about a split sequence.) Within `shard_map`, a device knows its own part only.
    Where something depends on the numbers of heads, batch elements or tokens, these must be given
    there as `head_ids`, `Dropout.batch_ids` and coordinates; otherwise it is refused. Attention
    reads the keys of its own device: to split a sequence, use `jit`.

    A key or value that holds NaN or infinity never reaches a query that may not see it, in value or
    gradient. With a mask of any kind or a bias, a query that does see it gets NaN in every feature,
    and no gradient passes through its row.

    Args:
      query: Queries `[*B, T, N, D]`.
      key: Keys `[*B, S, K, D]`; N is a multiple of K, and query head n reads key head n // G with
        G = N // K.
      value: Values `[*B, S, K, Dv]`; Dv may differ from D.
      bias: Added to the scaled scores; broadcasts to `[*B, N, T, S]`. It is read tile by tile.
      mask: A `Mask` such as `masks.Causal() & masks.SameSegment()`; or a boolean array, True where
        a query attends, that broadcasts to `[*B, N, T, S]`.
      scale: Factor of the dot products, default 1/√D.
      is_causal: Whether a query sees only keys at its own position or before. Without coordinates,
        both sides are counted from their first token, also when T ≠ S (jax.nn's convention, which
        warns: a single query would see the first key only). For queries that continue a longer
        sequence give `query_coords=Coords.arange(T, offset=S - T), key_coords=Coords.arange(S)`.
      query_seq_lengths: Number of queries that count `[*B]`; the rest give 0.
      key_value_seq_lengths: Number of keys that count `[*B]`.
      local_window_size: How far to the left and right a query sees, `(left, right)` or one number
        for both, in positions; None for a side leaves it open. Counted as `is_causal`.
      score_mod: A `ScoreMod` such as `scores.ALiBi(slopes) >> scores.SoftCap(30.0)`.
      normalizer: From scores to weights: `Softmax()`, `Softmax(sink)`, `Sigmoid(bias)`, ...
      dropout: `Dropout(rate, key)`, or None.
      query_coords: What the queries carry, `Coords` of T tokens; default the positions 0 ... T − 1.
      key_coords: What the keys carry, `Coords` of S tokens; default the positions 0 ... S − 1.
      head_ids: Global number of each query head `[N]`, for devices that hold a part of the heads:
        dropout and whatever differs between heads depend on it. Default 0 ... N − 1.
      plan: The block map of `mask`, made once for many layers by `make_plan`; default made here. It
        saves time and changes nothing; "dense", which computes every block, has no use for it.
      precision: Precision of both dot products, as in `jax.lax.dot_general`.
      implementation: A name, an object, or several in order of preference: `"blockwise"`,
        `"dense"` (alias `"xla"`), `attention.Blockwise(block_query=256)`. None takes the best for
        the platform that is compiled for; see `explain`.
      return_residual: Whether to return the LSE too.

    Returns:
      The output `[*B, T, N, Dv]` in the query's dtype; with `return_residual` also the LSE
      log Σ_s exp(score) `[*B, T, N]` in float32 (float64 for float64 inputs), differentiable.

    Raises:
      ValueError: If shapes, dtypes or numbers do not fit; if a mask compares positions, T ≠ S, and
        no coordinates are given.
      TypeError: If an argument is of the wrong kind, or a mask or modifier captures a traced array.
      NotImplementedError: If the implementation asked for does not serve the request.
      ExceptionGroup: If several were asked for and none does.

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
    )
    if return_residual and not normalizer.coupled:
        raise ValueError(
            f"dot_product_attention: return_residual asks for the LSE, which "
            f"{type(normalizer).__name__} does not have. Leave it out."
        )
    candidates = as_candidates("dot_product_attention", implementation)
    refuse_early("dot_product_attention", problem, candidates)
    output, lse = attend(problem, candidates)
    output, lse = with_sink(normalizer, with_rate(output, dropout), lse)
    output = output.astype(problem.dtype)
    return (output, lse) if return_residual else output
