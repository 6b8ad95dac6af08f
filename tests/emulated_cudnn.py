"""cuDNN's fused attention by its formula, on CPUs; and an implementation that calls it.

What cuDNN does not define is NaN here: rows that see no key, and gradients of tokens beyond a
length. A weight of 0 does not hide a NaN, as in its kernels.
"""

import dataclasses

import jax
import jax.numpy as jnp

from flax_attn import attention


@dataclasses.dataclass(frozen=True)
class Emulated(attention.Cudnn):
    """cuDNN for an H100, on a CPU."""

    def declines(self, problem, target):
        return super().declines(problem, as_h100(target))

    def transpose(self, problem, target, *operands):
        return super().transpose(problem, as_h100(target), *operands)


def as_h100(target):
    return target._replace(platform="cuda", compute_capability=(9, 0))


def seen(query, key, band):
    """Which pairs are visible `[B, 1, T, S]`, and which tokens are beyond a length."""
    (batch, length_q), length_k = query.shape[:2], key.shape[1]
    rows, columns = jnp.arange(length_q)[:, None], jnp.arange(length_k)[None]
    visible = jnp.ones((length_q, length_k), bool)
    if band.causal:
        visible &= columns <= rows
    if band.window is not None:
        assert band.causal
        visible &= columns > rows - band.window
    visible = jnp.broadcast_to(visible[None, None], (batch, 1, length_q, length_k))
    beyond_q, beyond_k = (jnp.zeros((batch, x), bool) for x in (length_q, length_k))
    if band.lengths is not None:
        count_q, count_k = (x.reshape(batch, 1) for x in band.lengths)
        assert count_q.dtype == count_k.dtype == jnp.int32
        beyond_q, beyond_k = (
            jnp.arange(x)[None] >= n for x, n in ((length_q, count_q), (length_k, count_k))
        )
        visible &= ~beyond_q[:, None, :, None] & ~beyond_k[:, None, None, :]
    return visible, beyond_q, beyond_k


def scores(query, key, bias, band):
    groups = query.shape[2] // key.shape[2]
    products = jnp.einsum("btnd,bsnd->bnts", wide(query), repeated(key, groups))
    return band.scale * products + (jnp.zeros((1, 1, 1, 1)) if bias is None else wide(bias))


def wide(x):
    return x.astype(jnp.float32)


def repeated(x, groups):
    return jnp.repeat(wide(x), groups, axis=2)


def forward(query, key, value, bias, band):
    visible, _, _ = seen(query, key, band)
    s = jnp.where(visible, scores(query, key, bias, band), -jnp.inf)
    lse = jax.nn.logsumexp(s, axis=-1)
    weights = jnp.exp(s - lse[..., None])  # NaN where no key is visible
    groups = query.shape[2] // key.shape[2]
    output = jnp.einsum("bnts,bsnd->btnd", weights, repeated(value, groups))
    lse = jnp.where(jnp.isneginf(lse), jnp.nan, lse)
    return output.astype(query.dtype), lse


def backward(query, key, value, bias, band, lse, output, d_output):
    visible, beyond_q, beyond_k = seen(query, key, band)
    batch, length_k, kv_heads, _ = key.shape
    groups = query.shape[2] // kv_heads
    s = jnp.where(visible, scores(query, key, bias, band), -jnp.inf)
    weights = jnp.exp(s - lse[..., None])
    d_value = jnp.einsum("bnts,btnd->bsnd", weights, wide(d_output))
    d_weights = jnp.einsum("btnd,bsnd->bnts", wide(d_output), repeated(value, groups))
    delta = jnp.einsum("btnd,btnd->bnt", wide(d_output), wide(output))
    d_scores = band.scale * weights * (d_weights - delta[..., None])
    d_query = jnp.einsum("bnts,bsnd->btnd", d_scores, repeated(key, groups))
    d_key = jnp.einsum("bnts,btnd->bsnd", d_scores, wide(query))
    d_key, d_value = (
        x.reshape(batch, length_k, kv_heads, groups, -1).sum(axis=3) for x in (d_key, d_value)
    )
    found = ((d_query, beyond_q), (d_key, beyond_k), (d_value, beyond_k))
    return tuple(
        jnp.where(beyond[..., None, None], jnp.nan, x).astype(query.dtype) for x, beyond in found
    )
