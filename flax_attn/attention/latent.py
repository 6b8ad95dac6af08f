"""Latent attention (MLA)."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_attn import maps
from flax_attn._checks import as_floating, check_maps, statistics_dtype
from flax_attn.attention._cache_checks import check_batch, check_cache, check_rotary
from flax_attn.attention._core.finite import finite, not_finite
from flax_attn.attention.dot_product import dot_product_attention
from flax_attn.attention.multi_head import KeyValueCache, Map, Rotation
from flax_attn.coords import Coords

Form = Literal["naive", "absorbed"]


def latent_attention(
    inputs: Float[Array, "*B T M"],
    query: Map,
    kv_down: Map,
    key_up: Float[Array, "R N Dn"],
    value_up: Float[Array, "R N Dv"],
    out: Map,
    *,
    query_down: Map | None = None,
    query_norm: Map | None = None,
    kv_norm: Map | None = None,
    rotary: Rotation | None = None,
    coords: Coords | None = None,
    cache: KeyValueCache | None = None,
    form: Form | None = None,
    scale: float | Float[Array, ""] | None = None,
    attention: Callable[..., Array] = dot_product_attention,
    **options: Any,
) -> Float[Array, "*B T Mo"] | Any:
    """Multi-head latent attention (MLA): keys and values are compressed to one vector per token.

    [c_s; r_s] = kv_down(x_s),   [q_tn; q'_tn] = query(x_t)

    O_t = out(Σ_s p_tsn Wv_n c_s),   p_tsn = softmax_s(scale · (q_tn · Wk_n c_s + q'_tn · r_s))

    The latent c_s, of R features, and the rotary key r_s, of Dr features, are shared by all heads.
    Only r and q' are rotated. c is normalised by `kv_norm`. Two forms give the same numbers:

    - `"naive"` expands keys [Wk_n c_s; r_s] and values Wv_n c_s for each head. It takes fewer
      operations for many queries, as in training.
    - `"absorbed"` multiplies the queries by Wk_n and the outputs by Wv_n. Attention then has one
      key head, with keys [c_s; r_s] and values c_s. It takes less memory and fewer operations for
      few queries, as in decoding.

    Args:
      inputs: Inputs `[*B, T, M]`.
      query: Map from `[*B, T, M]` to `[*B, T, N, Dn + Dr]`; with `query_down`, from
        `[*B, T, Rq]`. The last Dr features of each head are rotated.
      kv_down: Map from `[*B, T, M]` to `[*B, T, R + Dr]`: the latent, then the rotary key.
      key_up: Wk, from the latent to the keys of each head `[R, N, Dn]`.
      value_up: Wv, from the latent to the values of each head `[R, N, Dv]`.
      out: Map from `[*B, T, N, Dv]` to `[*B, T, Mo]`.
      query_down: Map from `[*B, T, M]` to the queries' own latent `[*B, T, Rq]`. Default: none.
      query_norm: Map applied to that latent.
      kv_norm: Map applied to the latent `[*B, T, R]`.
      rotary: Function of heads `[*B, T, N, Dr]` and their positions. DeepSeek's is
        `positions.Rotary(Dr, layout="interleaved")`.
      coords: Coordinates of the tokens, of which `rotary` reads the positions. Default: the
        positions 0 ... T − 1, or with a cache those after its tokens.
      cache: A cache of `flax_attn.caches` made with `num_kv_heads=1`, `head_dim=R + Dr` and
        `value_head_dim=0`. It stores `[c; r]` of each token, once, after norm and rotation. The
        tokens are appended to it, and attend to all that it holds.
      form: `"naive"` or `"absorbed"`. Default: absorbed with a cache, and naive without.
      scale: Factor of the scores, 1/√(Dn + Dr) by default. DeepSeek-V3 with
        `positions.YaRN(factor, ..., mscale=m, mscale_all_dim=m)` multiplies this by
        (0.1 · m · ln(factor) + 1)².
      attention: Attention on heads, called as `attention(q, k, v, scale=scale, **options)`.
      **options: Passed on to `attention`: `mask`, `is_causal`, `dropout`, `implementation`, ...
        `precision` is that of the products with `key_up` and `value_up`, too.

    Returns:
      The output `[*B, T, Mo]`; with a cache also the new cache.

    Raises:
      ValueError: If an array, or the result of a map, has the wrong shape; if tokens do not fit
        into the cache.
      TypeError: If an argument is of the wrong kind, or `attention` does not know an option.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import attention, caches, maps, masks, positions
      >>> shapes = (32, 4, 8 + 2), (32, 16 + 2), (16, 4, 8), (16, 4, 8), (4, 8, 32)
      >>> keys = jax.random.split(jax.random.key(0), 6)
      >>> query, kv_down, key_up, value_up, out = (
      ...     jax.random.normal(k, shape) / 5 for k, shape in zip(keys, shapes))
      >>> def attend(x, **options):
      ...     return attention.latent_attention(
      ...         x, maps.dense(query), maps.dense(kv_down), key_up, value_up,
      ...         maps.dense(out, axes=2), mask=masks.Causal(),
      ...         rotary=positions.Rotary(2, layout="interleaved"), **options)
      >>> x = jax.random.normal(keys[5], (1, 10, 32))
      >>> y = attend(x)
      >>> y.shape, bool(jnp.allclose(y, attend(x, form="absorbed"), atol=1e-4))
      ((1, 10, 32), True)
      >>> cache = caches.KVCache.create(10, 1, 16 + 2, value_head_dim=0, batch=1)
      >>> first, cache = attend(x[:, :9], cache=cache)
      >>> last, cache = attend(x[:, 9:], cache=cache)
      >>> bool(jnp.allclose(last, y[:, 9:], atol=1e-4)), cache.stored_keys.shape
      (True, (1, 1, 10, 18))

    References:
      DeepSeek-AI, "DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language
      Model", 2024, arXiv:2405.04434, section 2.1 and equations 37 to 47; DeepSeek-AI, "DeepSeek-V3
      Technical Report", 2024, arXiv:2412.19437, section 2.1.1. The paper's W^UQ and W^QR are both
      in `query`, and its W^DKV and W^KR in `kv_down`, as in the released weights. The paper's
      equations leave out the norms, which its section 3.1.2 and the released code have.
    """
    function = "latent_attention"
    check_maps(function, query=query, kv_down=kv_down, out=out, query_down=query_down)
    check_maps(function, query_norm=query_norm, kv_norm=kv_norm, rotary=rotary)
    check_maps(function, attention=attention)
    inputs = as_floating(function, "inputs", inputs)
    key_up, value_up = _as_up_projections(function, key_up, value_up)
    if query_norm is not None and query_down is None:
        raise ValueError(
            f"{function}: query_norm must come with query_down, whose result it normalises, got "
            f"query_down=None. Normalise the inputs before the call."
        )
    if form not in (None, "naive", "absorbed"):
        raise ValueError(f'{function}: form must be "naive" or "absorbed", got {form!r}.')
    located = coords
    if cache is not None:
        check_cache(function, cache)
        located = cache.next_coords(inputs.shape[-2], coords)
        check_batch(function, "inputs", inputs, located)
        check_rotary(function, rotary)
    places = jnp.arange(inputs.shape[-2]) if located is None else located.positions
    rank, num_heads, nope = key_up.shape

    def queries(x: jax.Array) -> jax.Array:
        for layer in (query_down, query_norm):
            x = x if layer is None else layer(x)
        heads = query(x)
        if heads.shape[:-1] != (*inputs.shape[:-1], num_heads) or heads.shape[-1] < nope:
            raise ValueError(
                f"{function}: query must return [*B, T, N, Dn + Dr] = "
                f"{[*inputs.shape[:-1], num_heads]} + [Dn = {nope} and more], as key_up is "
                f"{list(key_up.shape)}, got {list(heads.shape)}."
            )
        return _rotated(rotary, heads, nope, places)

    def latents(x: jax.Array) -> jax.Array:
        latent = kv_down(x)
        if latent.shape != (*inputs.shape[:-1], rank + rope):
            raise ValueError(
                f"{function}: kv_down must return [*B, T, R + Dr] = "
                f"{[*inputs.shape[:-1], rank + rope]}, with R = {rank} of key_up and Dr = {rope} "
                f"features of query beyond Dn = {nope}, got {list(latent.shape)}."
            )
        if kv_norm is not None:
            normalised = kv_norm(latent[..., :rank]).astype(latent.dtype)
            latent = jnp.concatenate([normalised, latent[..., rank:]], axis=-1)
        return _rotated(rotary, latent[..., None, :], rank, places)

    q = _keeping_nan(queries, inputs)
    rope = q.shape[-1] - nope
    key = _keeping_nan(latents, inputs)
    scale = 1 / math.sqrt(nope + rope) if scale is None else scale
    attend = functools.partial(
        _absorbed if form == "absorbed" or (form is None and cache is not None) else _naive,
        key_up=key_up,
        value_up=value_up,
        attention=attention,
    )
    if cache is None:
        if coords is not None:
            options |= {"query_coords": coords, "key_coords": coords}
        return out(attend(q, key, key[..., :0], scale=scale, **options))
    _check_latent_cache(function, cache, rank, rope)
    heads, cache = cache.attend(
        q, key, key[..., :0], coords, attention=attend, scale=scale, **options
    )
    return out(heads), cache


def _naive(
    query: jax.Array,
    latents: jax.Array,
    empty: jax.Array,
    *,
    key_up: jax.Array,
    value_up: jax.Array,
    attention: Callable[..., jax.Array],
    **options: Any,
) -> jax.Array:
    """Attention `[*B, T, N, Dv]` with the keys and values of each head.

    Args:
      query: `[*B, T, N, Dn + Dr]`.
      latents: `[*B, S, 1, R + Dr]`.
      empty: `[*B, S, 1, 0]`, which a cache stores as values.
      key_up: `[R, N, Dn]`.
      value_up: `[R, N, Dv]`.
      attention: Attention on heads.
      **options: Its options.
    """
    del empty
    rank, num_heads, _ = key_up.shape
    rotary_key = latents[..., rank:]

    def expanded(kernel: jax.Array) -> jax.Array:
        dense = maps.dense(kernel, precision=options.get("precision"))
        return _keeping_nan(dense, latents[..., 0, :rank])

    shared = jnp.broadcast_to(rotary_key, (*rotary_key.shape[:-2], num_heads, rotary_key.shape[-1]))
    key = jnp.concatenate([expanded(key_up), shared], axis=-1)
    return _one_array(attention(query, key, expanded(value_up), **options))


def _absorbed(
    query: jax.Array,
    latents: jax.Array,
    empty: jax.Array,
    *,
    key_up: jax.Array,
    value_up: jax.Array,
    attention: Callable[..., jax.Array],
    **options: Any,
) -> jax.Array:
    """Attention `[*B, T, N, Dv]` with the latents as keys and values of one head; see `_naive`."""
    del empty
    rank, _, nope = key_up.shape

    def product(equation: str, kernel: jax.Array, x: jax.Array) -> jax.Array:
        y = jnp.einsum(
            equation,
            x,
            kernel.astype(x.dtype),
            precision=options.get("precision"),
            preferred_element_type=statistics_dtype(x.dtype),
        )
        return y.astype(x.dtype)

    absorb = functools.partial(product, "...tnd,rnd->...tnr", key_up)
    expand = functools.partial(product, "...tnr,rnd->...tnd", value_up)
    query = jnp.concatenate([_keeping_nan(absorb, query[..., :nope]), query[..., nope:]], axis=-1)
    # The rotary features of the output are dropped: values latents[..., :rank] would be a copy of
    # the whole cache in each step (16384 tokens on 2 CPU cores: 1.3 times the time).
    heads = _one_array(attention(query, latents, latents, **options))[..., :rank]
    return _keeping_nan(expand, heads)


def _rotated(rotary: Rotation | None, x: jax.Array, start: int, places: jax.Array) -> jax.Array:
    """Heads whose features from `start` on are rotated."""
    if rotary is None:
        return x
    return jnp.concatenate([x[..., :start], rotary(x[..., start:], places)], axis=-1)


def _keeping_nan(function: Map, x: jax.Array) -> jax.Array:
    """A function of vectors `[..., M]`, NaN for vectors that are not finite.

    They must not enter the gradient of the function's weights: where a mask hides their token, that
    gradient would be NaN · 0.
    """
    y, bad = function(finite(x)), not_finite(x)
    return jnp.where(bad.reshape(*bad.shape, *(1,) * (y.ndim - bad.ndim)), jnp.nan, y)


def _as_up_projections(
    function: str, key_up: jax.Array, value_up: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The matrices of the up-projections, which must agree."""
    arrays = []
    for name, letters, array in (("key_up", "Dn", key_up), ("value_up", "Dv", value_up)):
        if callable(array) and not hasattr(array, "dtype"):
            raise TypeError(
                f"{function}: {name} must be an array [R, N, {letters}], as queries or outputs are "
                f"multiplied by it in the absorbed form, got the map {type(array).__name__}. Pass "
                f"the kernel of the layer: {name}.kernel[...]."
            )
        array = as_floating(function, name, array)
        if array.ndim != 3:
            raise ValueError(
                f"{function}: {name} must be [R, N, {letters}], got {list(array.shape)}. Split a "
                f"kernel [R, N · {letters}]: {name}.reshape(R, N, {letters})."
            )
        arrays.append(array)
    key_up, value_up = arrays
    if key_up.shape[:2] != value_up.shape[:2]:
        raise ValueError(
            f"{function}: key_up [R, N, Dn] and value_up [R, N, Dv] must have the same R and N, "
            f"got {list(key_up.shape)} and {list(value_up.shape)}."
        )
    return key_up, value_up


def _check_latent_cache(function: str, cache: Any, rank: int, rope: int) -> None:
    """Raise if a cache of `flax_attn.caches` was made for other keys and values."""
    sizes = getattr(cache, "_heads", None)
    if sizes is None:  # a cache of the user's own
        return
    found = (sizes.num, sizes.head_dim, sizes.value_head_dim)
    if found != (1, rank + rope, 0):
        raise ValueError(
            f"{function}: cache must have one key head of R + Dr = {rank} + {rope} features and no "
            f"values, got num_kv_heads={found[0]}, head_dim={found[1]}, value_head_dim={found[2]}. "
            f"Create it with num_kv_heads=1, head_dim=R + Dr = {rank + rope}, value_head_dim=0."
        )


def _one_array(heads: Any) -> jax.Array:
    if isinstance(heads, tuple):
        raise TypeError(
            f"latent_attention: attention must return one array, got {len(heads)}. "
            f"Leave out return_residual."
        )
    return heads
