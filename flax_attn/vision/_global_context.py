"""The global context block (GC)."""

from typing import Literal

import jax
from jaxtyping import Array, Float

from flax_attn._checks import Activation, Map, statistics_dtype
from flax_attn.vision._checks import as_image, check_reduced, check_returned
from flax_attn.vision._gates import add, apply_gate
from flax_attn.vision._pooling import spatial_mean, weighted_sum


def global_context(
    x: Float[Array, "*B H W C"],
    score: Map | None,
    reduce: Map,
    norm: Map,
    expand: Map,
    *,
    combine: Literal["add", "multiply"] = "add",
    activation_fn: Activation = jax.nn.relu,
) -> Float[Array, "*B H W C"]:
    """Global context: one attention map pools the image, and each place gets the result.

    α = softmax_{H,W}(score(x)),   c = Σ_{H,W} α x,   t = expand(ReLU(norm(reduce(c))))
    y = x + t   or   x ⊙ σ(t)

    A non-local block in which every query has the same attention map: O(H W C) instead of
    O((H W)² C). In the paper R = C / 16, `norm` is layer normalisation, and the weights of `expand`
    start at zero: the identity.

    Args:
      x: Image `[*B, H, W, C]`.
      score: Map from `[*B, H, W, C]` to `[*B, H, W, 1]`; None pools by the mean. (A bias has no
        effect: the softmax cancels it.)
      reduce: Map from `[*B, C]` to `[*B, R]`.
      norm: Map of `[*B, R]`. Layer normalisation of a single channel (R = 1) returns its bias.
      expand: Map from `[*B, R]` to `[*B, C]`.
      combine: "add" adds t to x, "multiply" multiplies x by σ(t).
      activation_fn: After the normalisation.

    Returns:
      The output `[*B, H, W, C]`.

    Raises:
      ValueError: If `x` is not an image, R is 0, a map returns another shape, or `combine` is
        neither of the two.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x, score = jnp.ones((2, 7, 7, 16)), maps.dense(jnp.ones((16, 1)))
      >>> reduce, expand = maps.dense(jnp.ones((16, 4))), maps.dense(jnp.ones((4, 16)))
      >>> y = vision.global_context(x, score, reduce, lambda c: c, expand)
      >>> round(float(y[0, 0, 0, 0]), 3)                                   # 1 + 4 · 16
      65.0

    References:
      Cao, Xu, Lin, Wei, Hu, "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and
      Beyond", ICCV Workshops 2019, arXiv:1904.11492, equation 5.
    """
    x = as_image(
        "global_context",
        x,
        score=score,
        reduce=reduce,
        norm=norm,
        expand=expand,
        activation_fn=activation_fn,
    )
    if combine not in ("add", "multiply"):
        raise ValueError(f'global_context: combine must be "add" or "multiply", got {combine!r}.')
    if score is None:
        context = spatial_mean(x)
    else:
        weights = global_context_weights(x, score)
        context = weighted_sum(x, weights, (-3, -2))[..., 0, 0, :]
    hidden = activation_fn(norm(reduce(context)))
    check_reduced("global_context", hidden)
    term = expand(hidden)
    check_returned("global_context", "expand", term, context.shape, "[*B, C]")
    term = term[..., None, None, :]
    if combine == "add":
        return add(x, term)
    return apply_gate(x, jax.nn.sigmoid(term).astype(x.dtype))


def global_context_weights(x: Float[Array, "*B H W C"], score: Map) -> Float[Array, "*B H W 1"]:
    """The attention weights α of `global_context`, which sum to 1 over an image.

    Args:
      x: Image `[*B, H, W, C]`.
      score: Map from `[*B, H, W, C]` to `[*B, H, W, 1]`.

    Returns:
      The weights `[*B, H, W, 1]`, in at least float32.

    Raises:
      ValueError: If `x` is not an image, or the map returns another shape.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> score = maps.dense(jnp.ones((16, 1)))
      >>> float(vision.global_context_weights(jnp.ones((2, 2, 2, 16)), score)[0, 0, 0, 0])
      0.25
    """
    x = as_image("global_context", x, score=score)
    logits = score(x)
    check_returned("global_context", "score", logits, (*x.shape[:-1], 1), "[*B, H, W, 1]")
    return jax.nn.softmax(logits.astype(statistics_dtype(x.dtype)), axis=(-3, -2))
