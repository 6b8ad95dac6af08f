"""Normalisers: functions from a row of scores to a row of weights.

Letters: `B` batch, `N` query heads, `T` queries, `S` keys, `R` rows (any leading axes).
"""

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flax_attn._pytree import pytree, static

__all__ = ["Entmax", "Normalizer", "ReLU", "Sigmoid", "Softmax", "TopK"]


def __dir__() -> list[str]:
    return __all__


Statistics = tuple[jax.Array, ...]


class Normalizer:
    """A function from a row of scores to a row of weights.

    A normaliser is a fold over blocks of keys. `begin` returns the statistics of a row without
    keys, `extend` adds a block of scores to them, and `finish` returns the number that the weighted
    sum of values is divided by. So a row may be cut into any blocks.

    Attributes:
      coupled: True if the weights of a row depend on each other, through the LSE of the row.
      folds: True if a row can be computed block by block.
    """

    coupled: ClassVar[bool] = True
    folds: ClassVar[bool] = True

    def normalize(
        self, scores: Float[Array, "*B N T S"]
    ) -> tuple[Float[Array, "*B N T S"], Float[Array, "*B N T"]]:
        """Weights and LSE of whole rows of scores."""
        raise NotImplementedError

    def begin(self, shape: tuple[int, ...], dtype: jnp.dtype) -> Statistics:
        """The statistics of rows of this shape without keys."""
        raise NotImplementedError

    def extend(self, statistics: Statistics, scores: Float[Array, "*R S"]) -> Any:
        """Add a block of keys to the statistics of a row.

        Returns:
          (statistics, rescale factor of the weighted sum so far, unnormalised weights of the
          block). The factor is None if it is 1.
        """
        raise NotImplementedError

    def finish(self, statistics: Statistics) -> tuple[Any, Float[Array, "*R"]]:
        """Returns (divisor of the weighted sum of values, LSE). The divisor is None if it is 1."""
        raise NotImplementedError

    def weights(self, scores: Float[Array, "*R S"], lse: Float[Array, "..."]) -> Any:
        """The weights of a block of scores, given the LSE of the whole row of each."""
        raise NotImplementedError

    def slope(self, weights: Float[Array, "*R S"], scores: Float[Array, "*R S"]) -> Any:
        """The derivative of each weight with respect to its own score, at a fixed LSE."""
        raise NotImplementedError


@pytree
class Softmax(Normalizer):
    """The softmax over the keys, optionally with a sink.

    p_ts = exp(s_ts) / (Σ_s' exp(s_ts') + exp(sink))

    If all scores of a row are −∞ (every key is masked), its weights are 0, its LSE is −∞, or the
    sink if there is one, and its gradients are 0.

    Attributes:
      sink: A logit per head `[N]`, or one for all heads `[]`. It is a term of the sum without a
        value, so the weights of a row add up to less than 1. `None` is the plain softmax, 0 is
        "softmax one", and −∞ is equal to no sink.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import Softmax
      >>> Softmax(sink=jnp.zeros(()))
      Softmax(sink=0.0)

    References:
      Xiao, Tian, Chen, Han, Lewis, "Efficient Streaming Language Models with Attention Sinks",
      ICLR 2024, arXiv:2309.17453 (sinks as tokens); OpenAI, "gpt-oss-120b & gpt-oss-20b Model
      Card", 2025, arXiv:2508.10925 (sinks as logits); Milakov, Gimelshein, "Online normalizer
      calculation for softmax", 2018, arXiv:1805.02867 (the fold).
    """

    sink: Float[Array, "#N"] | Float[Array, ""] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sink", _as_per_head("Softmax: sink", self.sink))

    def normalize(
        self, scores: Float[Array, "*B N T S"]
    ) -> tuple[Float[Array, "*B N T S"], Float[Array, "*B N T"]]:
        """Weights and LSE of rows of scores.

        Args:
          scores: Scores `[*B, N, T, S]` in float32 or float64, −∞ where masked.

        Returns:
          The weights p `[*B, N, T, S]` and LSE = log(Σ exp(s) + exp(sink)) `[*B, N, T]`.
        """
        peak = jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf)
        sink = None
        if self.sink is not None:
            sink = jnp.asarray(self.sink, scores.dtype).reshape(-1, 1, 1)  # [N | 1, 1, 1]
            sink = sink.reshape((1,) * (scores.ndim - 3) + sink.shape)
            peak = jnp.maximum(peak, sink)
        # A shift of a row changes neither its weights nor its LSE, so it has no gradient. For a row
        # without keys, the peak is replaced by the lowest finite number and the sum by 0.5, which
        # is below any other sum. This is done by maxima instead of selects, because XLA for CPUs
        # then fuses the softmax with both dot products around it.
        peak = jax.lax.stop_gradient(peak)
        shift = jnp.maximum(peak, jnp.finfo(scores.dtype).min)
        weights = jnp.exp(_below(scores, shift))
        total = jnp.sum(weights, axis=-1, keepdims=True)
        if sink is not None:
            total = total + jnp.exp(sink - shift)
        total = jnp.maximum(total, 0.5)
        lse = jnp.where(jnp.isneginf(peak), -jnp.inf, shift + jnp.log(total))
        return weights / total, lse[..., 0]

    def begin(self, shape: tuple[int, ...], dtype: jnp.dtype) -> Statistics:
        """m = −∞, ℓ = 0."""
        return jnp.full(shape, -jnp.inf, dtype), jnp.zeros(shape, dtype)

    def extend(self, statistics: Statistics, scores: Float[Array, "*R S"]) -> Any:
        """m' = max(m, max_s s),  ℓ' = ℓ · exp(m − m') + Σ_s exp(s − m')."""
        peak, total = statistics
        new_peak = jnp.maximum(peak, jnp.max(scores, axis=-1))
        shift = _finite_shift(new_peak)
        weights = jnp.exp(_below(scores, shift[..., None]))
        factor = jnp.exp(peak - shift)
        return (new_peak, total * factor + jnp.sum(weights, axis=-1)), factor, weights

    def finish(self, statistics: Statistics) -> tuple[Any, Float[Array, "*R"]]:
        """ℓ and m + log ℓ; 1 and −∞ for a row without keys."""
        peak, total = statistics
        empty = jnp.isneginf(peak)
        total = jnp.where(empty, 1, total)
        return total, jnp.where(empty, -jnp.inf, peak + jnp.log(total))

    def weights(self, scores: Float[Array, "*R S"], lse: Float[Array, "..."]) -> Any:
        """p = exp(s − LSE), which is at most 1."""
        return jnp.exp(_below(scores, lse))

    def slope(self, weights: Float[Array, "*R S"], scores: Float[Array, "*R S"]) -> Any:
        """∂p/∂s = p."""
        del scores
        return weights


@jax.custom_jvp
def _below(scores: jax.Array, peak: jax.Array) -> jax.Array:
    """s − m for the peak or the LSE m of the row, never above 0.

    The minimum is equal to s. It stops LLVM from fusing the product that made s with the
    subtraction: at the peak the result would be the rounding error of the product, which is large
    for large scores. So is the difference between two programs that compute the same score.
    """
    return jnp.minimum(scores, peak) - peak


@_below.defjvp
def _below_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (scores, peak), (dscores, dpeak) = primals, tangents
    return _below(scores, peak), dscores - dpeak


def _finite_shift(peak: jax.Array) -> jax.Array:
    """The peak; the lowest finite number for a row without keys."""
    return jnp.maximum(peak, jnp.finfo(peak.dtype).min)


class _Elementwise(Normalizer):
    """A normaliser whose weights do not depend on each other. Its LSE is replaced by zeros."""

    coupled: ClassVar[bool] = False

    def normalize(self, scores: Float[Array, "*B N T S"]) -> Any:
        """f(s) and zeros."""
        lse = jnp.zeros(scores.shape[:-1], scores.dtype)
        return self.weights(scores, lse), lse

    def begin(self, shape: tuple[int, ...], dtype: jnp.dtype) -> Statistics:
        """Zeros in place of the LSE, which are the only statistics."""
        return (jnp.zeros(shape, dtype),)

    def extend(self, statistics: Statistics, scores: Float[Array, "*R S"]) -> Any:
        """No rescaling, and f(s)."""
        return statistics, None, self.weights(scores, statistics[0])

    def finish(self, statistics: Statistics) -> tuple[Any, Float[Array, "*R"]]:
        """No divisor, and zeros."""
        return None, statistics[0]


@pytree
class Sigmoid(_Elementwise):
    """Sigmoid attention: each weight depends on its own score only.

    p_ts = σ(s_ts + bias)

    Attributes:
      bias: A number that is added to every score, one for all heads `[]` or one per head `[N]`. The
        paper recommends −log S, with which the first outputs are as small as those of the softmax.

    Example:
      >>> import math
      >>> from flax_attn import Sigmoid
      >>> Sigmoid(bias=-math.log(1024))
      Sigmoid(bias=-6.931471805599453)

    References:
      Ramapuram et al., "Theory, Analysis, and Best Practices for Sigmoid Self-Attention", ICLR
      2025, arXiv:2409.04431, equation 3.
    """

    bias: float | Float[Array, "#N"] | Float[Array, ""] = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "bias", _as_per_head("Sigmoid: bias", self.bias))

    def weights(self, scores: Float[Array, "*R S"], lse: Float[Array, "..."]) -> Any:
        """σ(s). Attention has already added the bias, as a score modifier."""
        del lse
        return jax.nn.sigmoid(scores)

    def slope(self, weights: Float[Array, "*R S"], scores: Float[Array, "*R S"]) -> Any:
        """σ' = σ (1 − σ)."""
        del scores
        return weights * (1 - weights)


@pytree
class ReLU(_Elementwise):
    """ReLU attention: each weight depends on its own score only, and is 0 for negative scores.

    p_ts = max(s_ts, 0) / length

    Attributes:
      length: The divisor of the weights. The paper uses the number of keys.

    Example:
      >>> from flax_attn.normalizers import ReLU
      >>> ReLU(length=1024)
      ReLU(length=1024)

    References:
      Wortsman, Lee, Gilmer, Kornblith, "Replacing softmax with ReLU in Vision Transformers", 2023,
      arXiv:2309.08586.
    """

    length: int = static()

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", _as_positive_integer("ReLU: length", self.length))

    def weights(self, scores: Float[Array, "*R S"], lse: Float[Array, "..."]) -> Any:
        """max(s, 0) / length."""
        del lse
        return jnp.maximum(scores, 0) / float(self.length)

    def slope(self, weights: Float[Array, "*R S"], scores: Float[Array, "*R S"]) -> Any:
        """1 / length where s > 0."""
        del weights
        return jnp.where(scores > 0, 1 / self.length, 0).astype(scores.dtype)


@pytree
class Entmax(Normalizer):
    """The α-entmax: a softmax that gives low scores a weight of exactly 0. Dense only.

    p_ts = max(0, (α − 1) s_ts − τ_t)^(1 / (α − 1)),  τ_t such that Σ_s p_ts = 1

    α = 2 is sparsemax, and α → 1 is the softmax. τ is found by bisection. The gradient is exact.

    Attributes:
      alpha: α, above 1.

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> from flax_attn.normalizers import Entmax
      >>> scores = jnp.array([[[1.0, 0.5, -3.0]]])  # [N, T, S]
      >>> weights, _ = Entmax(alpha=2.0).normalize(scores)
      >>> print(np.asarray(weights[0], np.float64).round(3))
      [[0.75 0.25 0.  ]]

    References:
      Peters, Niculae, Martins, "Sparse Sequence-to-Sequence Models", ACL 2019, arXiv:1905.05702,
      equation 10; Correia, Niculae, Martins, "Adaptively Sparse Transformers", EMNLP 2019,
      arXiv:1909.00015 (its Jacobian).
    """

    alpha: float = static(default=1.5)
    coupled: ClassVar[bool] = False
    folds: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.alpha, jax.core.Tracer) or not isinstance(
            self.alpha, int | float | np.floating | jax.Array
        ):
            raise TypeError(
                f"Entmax: alpha must be a known number, got {type(self.alpha).__name__}. Make the "
                f"normaliser outside of jit, as alpha must not be traced."
            )
        object.__setattr__(self, "alpha", float(self.alpha))
        if not self.alpha > 1:
            raise ValueError(
                f"Entmax: alpha must be above 1, got {self.alpha}. For α = 1 use Softmax()."
            )

    def normalize(self, scores: Float[Array, "*B N T S"]) -> Any:
        """p, and zeros in place of an LSE."""
        lse = jnp.zeros(scores.shape[:-1], scores.dtype)
        return (_entmax(scores, self.alpha) if scores.size else scores), lse


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _entmax(scores: jax.Array, alpha: float) -> jax.Array:
    z = (alpha - 1) * scores
    top = jnp.max(z, axis=-1, keepdims=True)
    top = jnp.where(jnp.isneginf(top), 0, top)
    power = 1 / (alpha - 1)

    def weights(tau: jax.Array) -> jax.Array:
        return jnp.maximum(z - tau, 0) ** power

    def halve(_: jax.Array, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) / 2
        too_low = jnp.sum(weights(middle), axis=-1, keepdims=True) >= 1
        return jnp.where(too_low, middle, low), jnp.where(too_low, high, middle)

    # At τ = top − 1 the largest weight is 1, so the sum is at least 1. At τ = top all are 0.
    steps = jnp.finfo(z.dtype).nmant + 2
    low, high = jax.lax.fori_loop(0, steps, halve, (top - 1, top))
    p = weights((low + high) / 2)
    total = jnp.sum(p, axis=-1, keepdims=True)
    return p / jnp.where(total > 0, total, 1)


@_entmax.defjvp
def _entmax_jvp(alpha: float, primals: Any, tangents: Any) -> Any:
    """ṗ = g ∘ (ṡ − Σ g ṡ / Σ g) with g = p^(2 − α) on the support."""
    p = _entmax(*primals, alpha)
    support = p > 0
    slope = jnp.where(support, jnp.where(support, p, 1) ** (2 - alpha), 0)
    moved = slope * tangents[0]
    total = jnp.sum(slope, axis=-1, keepdims=True)
    mean = jnp.sum(moved, axis=-1, keepdims=True) / jnp.where(total > 0, total, 1)
    return p, moved - slope * mean


@pytree
class TopK(Normalizer):
    """The softmax over the k largest scores of each row; other weights are 0. Dense only.

    p_ts = exp(s_ts) / Σ_{s' in top k} exp(s_ts') if s is among the k largest, else 0

    All scores that are equal to the k-th largest are kept. The selection has no gradient.

    Attributes:
      k: Number of scores to keep in each row.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn.normalizers import TopK
      >>> scores = jnp.array([[[1.0, 1.0, -3.0]]])  # [N, T, S]
      >>> TopK(2).normalize(scores)[0]
      Array([[[0.5, 0.5, 0. ]]], dtype=float32)

    References:
      Zhao et al., "Explicit Sparse Transformer: Concentrated Attention Through Explicit Selection",
      2019, arXiv:1912.11637; Gupta et al., "Memory-efficient Transformers via Top-k Attention",
      SustaiNLP 2021, arXiv:2106.06899.
    """

    k: int = static()
    folds: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", _as_positive_integer("TopK: k", self.k))

    def normalize(self, scores: Float[Array, "*B N T S"]) -> Any:
        """Weights and LSE of the k largest scores of each row."""
        if scores.shape[-1] > self.k:
            least = jax.lax.top_k(jax.lax.stop_gradient(scores), self.k)[0][..., -1:]
            scores = jnp.where(scores >= least, scores, -jnp.inf)
        return Softmax().normalize(scores)


def _as_positive_integer(name: str, number: Any) -> int:
    is_integer = isinstance(number, int | np.integer) and not isinstance(number, bool)
    if not is_integer or number < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {number}.")
    return int(number)


def _as_per_head(name: str, value: Any) -> Any:
    """Check a parameter that is None, a number, or an array; convert a list to an array."""
    if isinstance(value, list | tuple):
        value = jnp.asarray(value, jnp.result_type(float))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_array = hasattr(value, "dtype") and not jnp.issubdtype(value.dtype, jnp.bool_)
    if not (value is None or is_number or is_array):
        raise TypeError(
            f"{name} must be a number, or an array with one per head [N], got "
            f"{getattr(value, 'dtype', type(value).__name__)}."
        )
    return value


def check_normalizer(function: str, normalizer: Any, num_heads: int) -> None:
    """Raise unless `normalizer` is a normaliser, and its parameters fit the number of heads."""
    if not isinstance(normalizer, Normalizer):
        is_class = isinstance(normalizer, type) and issubclass(normalizer, Normalizer)
        kind = f"the class {normalizer.__name__}" if is_class else type(normalizer).__name__
        fix = f" Call it: {normalizer.__name__}()." if is_class else ""
        raise TypeError(
            f"{function}: normalizer must be a Normalizer such as Softmax(), got {kind}.{fix}"
        )
    for name, number in (
        ("sink", getattr(normalizer, "sink", None)),
        ("bias of the sigmoid", getattr(normalizer, "bias", None)),
    ):
        if number is not None and jnp.shape(number) not in ((), (1,), (num_heads,)):
            raise ValueError(
                f"{function}: the {name} must be one number or [N] = [{num_heads}], "
                f"got {list(jnp.shape(number))}."
            )


def with_sink(
    normalizer: Normalizer, output: Float[Array, "*B T N D"], lse: Float[Array, "*B T N"]
) -> tuple[Float[Array, "*B T N D"], Float[Array, "*B T N"]]:
    """Add the sink of a normaliser to attention that was computed without it.

    O' = O · σ(LSE − sink),  LSE' = log(exp(LSE) + exp(sink))
    """
    if not isinstance(normalizer, Softmax) or normalizer.sink is None:
        return output, lse
    sink = jnp.asarray(normalizer.sink, lse.dtype)
    sink = sink.reshape((1,) * (lse.ndim - 1) + (-1,))
    # Rows with NaN are replaced before the arithmetic, so that no NaN reaches the sink's gradient.
    is_nan_row = jnp.isnan(lse)
    lse = jnp.where(is_nan_row, 0, lse)
    # Both may be −∞: the LSE of a row without keys, and a sink that is switched off.
    is_empty = jnp.isneginf(lse) & jnp.isneginf(sink)
    logit = jnp.where(is_empty, 0, lse) - jnp.where(is_empty, 0, sink)
    share = jax.nn.sigmoid(logit)[..., None].astype(output.dtype)
    new_lse = jnp.where(is_nan_row, jnp.nan, log_add(lse, sink))
    is_nan = jnp.isnan(output)
    return jnp.where(is_nan, jnp.nan, jnp.where(is_nan, 0, output) * share), new_lse


def log_add(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """log(exp(a) + exp(b)); −∞ with zero gradients where both are −∞."""
    is_empty = jnp.isneginf(a) & jnp.isneginf(b)
    total = jnp.logaddexp(jnp.where(is_empty, 0, a), jnp.where(is_empty, 0, b))
    return jnp.where(is_empty, -jnp.inf, total)
