"""Bad input gets a clear error, at once, with the numbers and the fix."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as flax_nnx

from flax_attn import (
    Coords,
    Dropout,
    Sigmoid,
    Softmax,
    additive_attention,
    attention_weights,
    dot_product_attention,
    linen,
    make_plan,
    maps,
    masks,
    merge,
    multi_head_attention,
    nnx,
    positions,
    scaled_dot_product_attention,
    vision,
)
from flax_attn.attention import partial
from flax_attn.normalizers import Entmax

Q, KV = jnp.ones((2, 5, 4, 8)), jnp.ones((2, 7, 2, 8))
X = jnp.ones((2, 6, 6, 16))
KEY = jax.random.key(0)
attend = functools.partial(dot_product_attention, Q, KV, KV)


def dense(*shape):
    return maps.dense(jnp.ones(shape))


def identity(x):
    return x


def rngs():
    return flax_nnx.Rngs(0)


def init(module, x=X):
    return module.init(KEY, x)


CASES = {
    # dot_product_attention
    "mask shape": (
        lambda: attend(mask=jnp.ones((2, 3, 7), bool)),
        ValueError,
        r"mask must broadcast to \[\*B, N, T, S\] = \[2, 4, 5, 7\], got \[2, 3, 7\]\.$",
    ),
    "mask without heads": (
        lambda: attend(mask=jnp.ones((2, 5, 7), bool)),
        ValueError,
        r"got \[2, 5, 7\]\. Add a head axis: mask\[\.\.\., None, :, :\]",
    ),
    "mask rank": (
        lambda: attend(mask=jnp.ones((1, 2, 4, 5, 7), bool)),
        ValueError,
        "mask must broadcast",
    ),
    "mask dtype": (
        lambda: attend(mask=jnp.ones((5, 7))),
        TypeError,
        r"mask must be boolean, True = attend, got float32\. Write mask\.astype\(bool\)",
    ),
    "mask kind": (lambda: attend(mask=[[True]]), TypeError, "boolean array or a Mask, got list"),
    "bias shape": (
        lambda: attend(bias=jnp.ones((4, 5, 6))),
        ValueError,
        r"bias must broadcast to .* = \[2, 4, 5, 7\], got \[4, 5, 6\]",
    ),
    "bias dtype": (lambda: attend(bias=jnp.ones((5, 7), int)), TypeError, "bias must be floating"),
    "integers": (
        lambda: dot_product_attention(Q.astype(int), KV, KV),
        TypeError,
        "query must be floating point, got int32",
    ),
    "not an array": (
        lambda: dot_product_attention([[1.0]], KV, KV),
        TypeError,
        r"query must be an array, got list\. Wrap it: jnp\.asarray\(query\)",
    ),
    "no head axis": (
        lambda: dot_product_attention(Q[0, 0], KV[0, 0], KV[0, 0]),
        ValueError,
        r"query \[4, 8\].*Add a head axis",
    ),
    "ranks": (lambda: dot_product_attention(Q, KV[0], KV[0]), ValueError, "of one rank"),
    "batches": (
        lambda: dot_product_attention(Q, KV[:1], KV[:1]),
        ValueError,
        r"batch axes \*B must be equal, got query \[2, 5, 4, 8\], key \[1, 7, 2, 8\]",
    ),
    "dtypes": (
        lambda: dot_product_attention(Q, KV.astype(jnp.bfloat16), KV),
        ValueError,
        r"one dtype, got query float32, key bfloat16.*key\.astype\(query\.dtype\)",
    ),
    "head sizes": (
        lambda: dot_product_attention(Q[..., :4], KV, KV),
        ValueError,
        "one head size D",
    ),
    "no head size": (
        lambda: dot_product_attention(Q[..., :0], KV[..., :0], KV),
        ValueError,
        "head size D must be at least 1",
    ),
    "value length": (
        lambda: dot_product_attention(Q, KV, KV[:, :5]),
        ValueError,
        r"length and heads \[S, K\] = \[7, 2\], got \[5, 2\]",
    ),
    "heads": (
        lambda: dot_product_attention(Q[:, :, :3], KV, KV),
        ValueError,
        r"multiple of the key's heads K, got N = 3, K = 2\. The layout is",
    ),
    "scale": (lambda: attend(scale=jnp.ones(4)), ValueError, r"one number, got shape \[4\]"),
    "lengths shape": (
        lambda: attend(key_value_seq_lengths=jnp.ones(3, int)),
        ValueError,
        r"key_value_seq_lengths must be \[\*B\] = \[2\], got \[3\]",
    ),
    "lengths dtype": (
        lambda: attend(query_seq_lengths=jnp.ones(2)),
        TypeError,
        "query_seq_lengths must be integers, got float32",
    ),
    "window": (lambda: attend(local_window_size=(-1, 0)), ValueError, "at least 0, got"),
    "window sides": (lambda: attend(local_window_size=(1, 2, 3)), ValueError, r"\(left, right\)"),
    "window kind": (lambda: attend(local_window_size=1.5), TypeError, "whole numbers, got 1.5"),
    "numpy window": (lambda: attend(local_window_size=np.int64(-3)), ValueError, "at least 0"),
    "normalizer": (lambda: attend(normalizer="softmax"), TypeError, "must be a Normalizer"),
    "sink": (
        lambda: attend(normalizer=Softmax(jnp.ones(3))),
        ValueError,
        r"one number or \[N\] = \[4\], got \[3\]",
    ),
    "head ids": (
        lambda: attend(head_ids=jnp.arange(3)),
        ValueError,
        r"head_ids must be \[N\] = \[4\], got \[3\]",
    ),
    "dropout key": (
        lambda: attend(dropout=Dropout(0.1, 0)),
        TypeError,
        r"dropout\.key must be one JAX key, got 0\. Write jax\.random\.key",
    ),
    "dropout keys": (
        lambda: attend(dropout=Dropout(0.1, jax.random.split(KEY))),
        TypeError,
        r"must be one JAX key, got \(2,\)",
    ),
    "dropout kind": (lambda: attend(dropout=0.1), TypeError, r"Dropout\(rate, key\), got float"),
    "dropout rate": (
        lambda: attend(dropout=Dropout(1.1, KEY)),
        ValueError,
        r"rate must lie in \[0, 1\], got 1\.1",
    ),
    "numpy dropout rate": (
        lambda: attend(dropout=Dropout(np.float32(-1.0), KEY)),
        ValueError,
        r"rate must lie in \[0, 1\]",
    ),
    "dropout batch": (
        lambda: attend(dropout=Dropout(0.1, KEY, batch_ids=jnp.arange(3))),
        ValueError,
        r"one number for each batch element, \[2\], got \[3\]",
    ),
    "implementation": (
        lambda: attend(implementation="flash"),
        ValueError,
        "must be one of 'decode', 'cudnn', 'pallas_tpu', 'blockwise', 'dense', 'xla', got 'flash'",
    ),
    "no implementation": (lambda: attend(implementation=[]), ValueError, "at least one"),
    "absent implementation": (
        lambda: attend(implementation="pallas_gpu"),
        NotImplementedError,
        "'pallas_gpu' declines: it is not part of this version",
    ),
    "score mod": (
        lambda: attend(score_mod=identity),
        TypeError,
        r"score_mod must be a ScoreMod, got the function identity. Wrap a function",
    ),
    "residual of the sigmoid": (
        lambda: attend(normalizer=Sigmoid(), return_residual=True),
        ValueError,
        "asks for the LSE, which Sigmoid does not have",
    ),
    "normaliser of whole rows": (
        lambda: attend(normalizer=Entmax(), implementation="blockwise"),
        NotImplementedError,
        "'blockwise' declines: the normaliser Entmax needs whole rows",
    ),
    "coords kind": (
        lambda: attend(query_coords=jnp.arange(5)),
        TypeError,
        r"query_coords must be Coords, got .*Wrap positions: Coords\(positions\)",
    ),
    "coords length": (
        lambda: attend(query_coords=Coords.arange(6)),
        ValueError,
        "must have the 5 tokens of the query, got 6",
    ),
    "coords batch": (
        lambda: attend(key_coords=Coords.from_lengths(jnp.ones(3, int), 7)),
        ValueError,
        r"positions of key_coords must broadcast to .* = \[2, 4, 7\], got \[3, 1, 7\]",
    ),
    "mask of unknown positions": (
        lambda: attend(mask=masks.Causal()),
        ValueError,
        r"T = 5 queries and S = 7 keys have none.*Coords.arange\(5, offset=2\)",
    ),
    "mask without its field": (
        lambda: attend(mask=masks.SameSegment()),
        ValueError,
        r"the query coordinates have no 'segment_ids'.*Coords.from_segments",
    ),
    "option of a part": (
        lambda: partial(Q, KV, KV, return_residual=True),
        TypeError,
        "partial: 'return_residual' is not an option",
    ),
    "nothing to merge": (lambda: merge([]), ValueError, "at least one part, got none"),
    "merge kind": (lambda: merge([Q]), TypeError, r"must be Partial, got .*partial\(query"),
    "plan kind": (lambda: attend(plan=3), ValueError, "a plan describes one Mask"),
    "plan length": (
        lambda: attend(mask=masks.Full(), plan=make_plan(masks.Full(), Coords.arange(9))),
        ValueError,
        r"made for \[T, S\] = \[9, 9\], the attention has \[5, 7\]",
    ),
    "plan of a part": (
        lambda: attend(
            mask=masks.Full(),
            is_causal=True,
            plan=make_plan(masks.Full(), Coords.arange(5), Coords.arange(7)),
        ),
        ValueError,
        "cannot be combined with is_causal",
    ),
    # the other attention functions
    "single head ranks": (
        lambda: scaled_dot_product_attention(Q[0, 0, 0], Q[0, 0, 0], Q[0, 0, 0]),
        ValueError,
        r"query must be \[\*B, T, D\]",
    ),
    "single head kind": (
        lambda: scaled_dot_product_attention([1.0], Q, Q),
        TypeError,
        "scaled_dot_product_attention: query must be an array, got list",
    ),
    "single head sizes": (
        lambda: scaled_dot_product_attention(Q[0], Q[0, ..., :4], Q[0]),
        ValueError,
        "scaled_dot_product_attention: query and key must have one size D",
    ),
    "single head lengths": (
        lambda: scaled_dot_product_attention(Q[0], Q[0], Q[0, :, :3]),
        ValueError,
        "scaled_dot_product_attention: key and value must have one length S",
    ),
    "single head batches": (
        lambda: scaled_dot_product_attention(Q[0], Q[0, :1], Q[0, :1]),
        ValueError,
        "scaled_dot_product_attention: the batch axes",
    ),
    "single head mask": (
        lambda: scaled_dot_product_attention(
            Q[:, :, 0], KV[:, :, 0], KV[:, :, 0], mask=jnp.ones((2, 4, 7), bool)
        ),
        ValueError,
        r"mask must broadcast to \[\*B, T, S\] = \[2, 5, 7\], got \[2, 4, 7\]",
    ),
    "rows": (
        lambda: attention_weights(Q, KV, rows=jnp.array([5])),
        ValueError,
        r"rows must lie in 0 \.\.\. 4",
    ),
    "cols": (
        lambda: attention_weights(Q, KV, cols=jnp.ones((2, 2), int)),
        ValueError,
        "cols must be a slice or a one-dimensional array of integers",
    ),
    "lse": (
        lambda: attention_weights(Q, KV, lse=jnp.ones((2, 4, 5))),
        ValueError,
        r"lse must be \[\*B, T, N\] = \[2, 5, 4\], got \[2, 4, 5\]",
    ),
    "additive ranks": (
        lambda: additive_attention(Q[0, 0], Q[0, 0, 0], Q[0, 0], identity, identity, identity),
        ValueError,
        "of one rank",
    ),
    "additive batches": (
        lambda: additive_attention(Q[0], Q[0, :2], Q[0], identity, identity, identity),
        ValueError,
        "batch axes",
    ),
    "additive lengths": (
        lambda: additive_attention(Q[0], Q[0], Q[0, :, :3], identity, identity, identity),
        ValueError,
        "one length S",
    ),
    "additive mask": (
        lambda: additive_attention(
            Q[0], Q[0], Q[0], identity, identity, identity, mask=jnp.ones((3, 3), bool)
        ),
        ValueError,
        r"mask must broadcast to \[\*B, T, S\] = \[5, 4, 4\], got \[3, 3\]",
    ),
    "additive mask dtype": (
        lambda: additive_attention(
            Q[0], Q[0], Q[0], identity, identity, identity, mask=jnp.ones((4, 4))
        ),
        TypeError,
        "mask must be boolean",
    ),
    "additive maps": (
        lambda: additive_attention(Q[0], Q[0], Q[0], dense(8, 3), dense(8, 2), identity),
        ValueError,
        r"query_map and key_map must return",
    ),
    "additive score": (
        lambda: additive_attention(Q[0], Q[0], Q[0], dense(8, 3), dense(8, 3), identity),
        ValueError,
        r"score_map must return \[\*B, T, S, 1\] = \[5, 4, 4, 1\], got \[5, 4, 4, 3\]",
    ),
    "projection": (
        lambda: multi_head_attention(Q[0], Q[0], *[dense(8, 8)] * 4),
        ValueError,
        r"query must return \[5, 4\] \+ \[heads, head size\], got \[5, 4, 8\]\. Give num_heads",
    ),
    "projection to heads": (
        lambda: multi_head_attention(Q[0], Q[0], *[dense(8, 9)] * 4, num_heads=4),
        ValueError,
        r"a multiple of 4\], got \[5, 4, 9\]",
    ),
    "no head": (
        lambda: multi_head_attention(Q[0], Q[0], *[dense(8, 8)] * 4, num_heads=0),
        ValueError,
        "num_heads must be at least 1, got 0",
    ),
    "no key head": (
        lambda: multi_head_attention(Q[0], Q[0], *[dense(8, 8)] * 4, num_heads=4, num_kv_heads=0),
        ValueError,
        "num_kv_heads must be at least 1, got 0",
    ),
    "a residual": (
        lambda: multi_head_attention(
            Q[0], Q[0], *[dense(8, 8)] * 4, num_heads=4, return_residual=True
        ),
        TypeError,
        "Leave out return_residual",
    ),
    "unknown option": (
        lambda: multi_head_attention(Q[0], Q[0], *[dense(8, 8)] * 4, num_heads=4, windw=3),
        TypeError,
        "unexpected keyword argument 'windw'",
    ),
    # maps
    "dense input": (
        lambda: dense(6, 4)(jnp.ones((2, 4))),
        ValueError,
        r"must end in the kernel's input axes \[6\], got \[2, 4\]",
    ),
    "dense bias": (
        lambda: maps.dense(jnp.ones((6, 8)), jnp.ones(1))(jnp.ones((2, 6))),
        ValueError,
        r"bias must have the kernel's output axes \[8\], got \[1\]",
    ),
    "conv bias": (
        lambda: maps.conv(jnp.ones((3, 3, 16, 8)), jnp.ones(4))(X),
        ValueError,
        r"conv: bias must have the kernel's output axes \[8\], got \[4\]",
    ),
    "conv stride": (
        lambda: maps.conv(jnp.ones((3, 3, 4, 4)), strides=1.5),
        TypeError,
        "strides must be one whole number, got 1.5",
    ),
    "dense axes": (lambda: maps.dense(jnp.ones((2, 2)), axes=0), ValueError, "axes must be"),
    "dense integers": (lambda: dense(6, 4)(jnp.ones(6, int)), TypeError, "floating point"),
    "even kernel": (
        lambda: maps.conv(jnp.ones((2, 3, 16, 1)))(X),
        ValueError,
        r"even kernel \[2, 3\] has no centre\. Give the padding",
    ),
    "conv channels": (
        lambda: maps.conv(jnp.ones((3, 3, 4, 4)), groups=2)(X),
        ValueError,
        r"inputs · groups = 4 · 2, got \[2, 6, 6, 16\]",
    ),
    "conv groups": (
        lambda: maps.conv(jnp.ones((3, 3, 4, 6)), groups=4)(X),
        ValueError,
        "multiple of groups = 4, got 6",
    ),
    "conv kernel": (
        lambda: maps.conv(jnp.ones((3, 16, 4)))(X),
        ValueError,
        "kernel must have 4 axes",
    ),
    "conv strides": (
        lambda: maps.conv(jnp.ones((3, 3, 4, 4)), strides=0),
        ValueError,
        "strides must be one number or 2, at least 1, got 0",
    ),
    "conv dilation": (
        lambda: maps.conv1d(jnp.ones((3, 4, 4)), dilation=(1, 1)),
        ValueError,
        "dilation must be",
    ),
    "conv no groups": (
        lambda: maps.conv(jnp.ones((3, 3, 4, 4)), groups=0),
        ValueError,
        "groups must be at least 1",
    ),
    "conv padding": (
        lambda: maps.conv(jnp.ones((3, 3, 4, 4)), padding=[(1, 1)]),
        ValueError,
        "padding must be None",
    ),
    "norm channels": (
        lambda: maps.batch_norm(jnp.ones(4), jnp.ones(4))(X),
        ValueError,
        r"parameters must be \[C\] = \[16\]",
    ),
    "norm groups": (
        lambda: maps.group_norm(num_groups=3)(X),
        ValueError,
        "multiple of num_groups = 3, got C = 16",
    ),
    "no groups": (lambda: maps.group_norm(num_groups=0), ValueError, "at least 1, got 0"),
    "norm rank": (
        lambda: maps.group_norm(num_groups=2)(jnp.ones((4, 4))),
        ValueError,
        "Set spatial_axes",
    ),
    # positions
    "odd features": (
        lambda: positions.sinusoidal(jnp.arange(3), 5),
        ValueError,
        "positive even number, got 5",
    ),
    "layout": (
        lambda: positions.sinusoidal(jnp.arange(3), 4, layout="quarter"),
        ValueError,
        'layout must be "interleaved" or "half"',
    ),
    "float positions": (
        lambda: positions.learned(jnp.ones(3), jnp.ones((4, 2))),
        TypeError,
        "positions must be integers",
    ),
    "table": (
        lambda: positions.learned(jnp.arange(3), jnp.ones(4)),
        ValueError,
        r"table must be \[P, M\], got \[4\]",
    ),
    # vision
    "no channel left": (
        lambda: vision.squeeze_excite(X, dense(16, 0), dense(0, 16)),
        ValueError,
        "reduce must keep at least 1 channel",
    ),
    "squeeze_excite expand": (
        lambda: vision.squeeze_excite(X, dense(16, 4), dense(4, 1)),
        ValueError,
        r"expand must return \[\*B, C\] = \[2, 16\], got \[2, 1\]",
    ),
    "channel_attention expand": (
        lambda: vision.channel_attention(X, dense(16, 4), dense(4, 1)),
        ValueError,
        "channel_attention: expand must return",
    ),
    "spatial_attention conv": (
        lambda: vision.spatial_attention(X, maps.conv(jnp.ones((3, 3, 2, 2)))),
        ValueError,
        r"conv must return \[\*B, H, W, 1\] = \[2, 6, 6, 1\], got \[2, 6, 6, 2\]",
    ),
    "spatial_attention norm": (
        lambda: vision.spatial_attention(
            X, maps.conv(jnp.ones((3, 3, 2, 1))), norm=lambda u: u[:, 0]
        ),
        ValueError,
        "norm must return",
    ),
    "spatial_attention order": (
        lambda: vision.spatial_attention(X, identity, order=("mean", "mean")),
        ValueError,
        "order must be",
    ),
    "eca conv": (
        lambda: vision.eca(X, maps.conv1d(jnp.ones((3, 1, 1)), padding=0)),
        ValueError,
        r"conv must return \[\*B, C, 1\] = \[2, 16, 1\], got \[2, 14, 1\]",
    ),
    "eca channels": (lambda: vision.eca_kernel_size(0), ValueError, "at least 1, got 0"),
    "eca gamma": (
        lambda: vision.eca_kernel_size(8, gamma=0),
        ValueError,
        "eca_kernel_size: gamma must not be 0, got 0",
    ),
    "window of one": (
        lambda: vision.window_attention(X, *[identity] * 4, window_size=(3,)),
        ValueError,
        r"window_size must be one number or \(height, width\), at least 1, got \(3,\)",
    ),
    "bam pairs": (
        lambda: vision.bam(X, dense(16, 2), identity, dense(2, 16), [identity], [], dense(2, 1)),
        ValueError,
        "must pair up, got 1 and 0",
    ),
    "bam combine": (
        lambda: vision.bam(
            X, dense(16, 2), identity, dense(2, 16), [], [], dense(16, 1), combine="max"
        ),
        ValueError,
        'combine must be "add" or "multiply"',
    ),
    "bam expand": (
        lambda: vision.bam(X, dense(16, 2), identity, dense(2, 1), [], [], dense(16, 1)),
        ValueError,
        "bam: expand must return",
    ),
    "bam project": (
        lambda: vision.bam(X, dense(16, 2), identity, dense(2, 16), [], [], dense(16, 2)),
        ValueError,
        r"project must return \[\*B, H, W, 1\]",
    ),
    "coordinate_attention expand": (
        lambda: vision.coordinate_attention(X, dense(16, 8), identity, dense(8, 8), dense(8, 16)),
        ValueError,
        r"expand_height must return \[\*B, H, C\] = \[2, 6, 16\], got \[2, 6, 8\]",
    ),
    "no e_lambda": (
        lambda: vision.simam(X, e_lambda=0.0),
        ValueError,
        r"simam: e_lambda must be above 0, got 0\.0",
    ),
    "one place": (
        lambda: vision.simam(X[:, :1, :1]),
        ValueError,
        "at least two places, got H · W = 1 · 1",
    ),
    # modules
    "linen reduction": (
        lambda: init(linen.SqueezeExcite(reduction=32)),
        ValueError,
        r"16 // 32 = 0\. Use a smaller reduction, or hidden_features=1",
    ),
    "nnx reduction": (
        lambda: nnx.ChannelAttention(16, reduction=32, rngs=rngs()),
        ValueError,
        "ChannelAttention: C // reduction must be at least 1, got 16 // 32 = 0",
    ),
    "phase": (
        lambda: init(linen.CoordinateAttention()),
        ValueError,
        "CoordinateAttention: use_running_average must be given.*use_running_average=not train",
    ),
    "no reduction": (
        lambda: nnx.BAM(16, reduction=0, rngs=rngs()),
        ValueError,
        "reduction must be at least 1, got 0",
    ),
    "hidden features": (
        lambda: init(linen.CBAM(hidden_features=0)),
        ValueError,
        "hidden_features must be at least 1, got 0",
    ),
    "linen kernel size": (
        lambda: init(linen.SpatialAttention(kernel_size=4)),
        ValueError,
        r"kernel_size must be odd and at least 1, got 4\. Use 5",
    ),
    "nnx kernel size": (
        lambda: nnx.ECA(16, kernel_size=0, rngs=rngs()),
        ValueError,
        "kernel_size must be odd and at least 1, got 0",
    ),
    "kernel sizes": (
        lambda: nnx.SpatialAttention(kernel_size=(3, 3), rngs=rngs()),
        TypeError,
        r"kernel_size must be one whole number, got \(3, 3\)",
    ),
    "channels of another module": (
        lambda: nnx.SqueezeExcite(8, rngs=rngs())(X),
        ValueError,
        r"SqueezeExcite: x must have the 8 channels .* got \[2, 6, 6, 16\]",
    ),
    "an image for a module in lists": (
        lambda: nnx.SqueezeExcite(4, hidden_features=2, rngs=rngs())([[[1.0] * 4]]),
        TypeError,
        r"SqueezeExcite: x must be an array, got list\. Wrap it: jnp\.asarray\(x\)",
    ),
    "a signal for a module in lists": (
        lambda: nnx.AttentionGate(16, rngs=rngs())(X, [[[1.0] * 16]]),
        TypeError,
        r"AttentionGate: gating must be an array, got list\. Wrap it: jnp\.asarray\(gating\)",
    ),
    "tokens for a module in lists": (
        lambda: nnx.MultiHeadAttention(2, 8, rngs=rngs())(Q[:, :, 0], [[1.0] * 8]),
        TypeError,
        "MultiHeadAttention: inputs_k must be an array, got list",
    ),
    "a number for a module": (
        lambda: nnx.ECA(16, rngs=rngs())(jnp.float32(1)),
        ValueError,
        r"ECA: x must have the 16 channels .* got \[\]",
    ),
    "a row for linen.BottleneckAttention": (
        lambda: init(linen.BottleneckAttention(), X[0, 0]),
        ValueError,
        r"BottleneckAttention: x must be \[\*B, H, W, C\] .* got \[6, 16\]",
    ),
    "a place for linen.AttentionPool": (
        lambda: init(linen.AttentionPool(), X[0, 0, 0]),
        ValueError,
        r"AttentionPool: x must be \[\*B, H, W, C\] .* got \[16\]",
    ),
    "width of another module": (
        lambda: nnx.MultiHeadAttention(2, 8, in_kv_features=6, rngs=rngs())(Q[:, :, 0]),
        ValueError,
        "MultiHeadAttention: inputs_k must have the 6 channels",
    ),
    "channels of a signal of another module": (
        lambda: nnx.AttentionGate(16, gating_features=8, rngs=rngs())(X, X),
        ValueError,
        r"AttentionGate: gating must have the 8 channels .* got \[2, 6, 6, 16\]",
    ),
    "module dropout rate": (
        lambda: nnx.MultiHeadAttention(2, 8, dropout_rate=-0.1, rngs=rngs()),
        ValueError,
        r"dropout_rate must lie in \[0, 1\), got -0.1",
    ),
    "head size": (
        lambda: init(linen.MultiHeadAttention(num_heads=2, head_dim=0), Q[:, :, 0]),
        ValueError,
        "head_dim must be at least 1, got 0",
    ),
    "output width": (
        lambda: init(linen.MultiHeadAttention(num_heads=2, out_features=0), Q[:, :, 0]),
        ValueError,
        "out_features must be at least 1, got 0",
    ),
    "an einsum of ones own": (
        lambda: init(
            linen.MultiHeadAttention(num_heads=2, qk_attn_weights_einsum_cls=identity), Q[:, :, 0]
        ),
        NotImplementedError,
        "not part of this version",
    ),
    "sowing outside of capture": (
        lambda: nnx.MultiHeadAttention(2, 8, rngs=rngs())(Q[:, :, 0], sow_weights=True),
        ValueError,
        r"only inside nnx\.capture",
    ),
    "heads do not divide": (
        lambda: nnx.MultiHeadAttention(3, 16, rngs=rngs()),
        ValueError,
        "qkv_features must be a multiple of num_heads, got 16 and 3. Give head_dim",
    ),
    "no heads": (
        lambda: nnx.MultiHeadAttention(0, 16, rngs=rngs()),
        ValueError,
        "num_heads must be at least 1",
    ),
    "key heads": (
        lambda: init(linen.MultiHeadAttention(num_heads=4, num_kv_heads=3), Q[:, :, 0]),
        ValueError,
        "multiple of num_kv_heads, got 4 and 3",
    ),
    "both head sizes": (
        lambda: nnx.MultiHeadAttention(4, 16, qkv_features=16, head_dim=8, rngs=rngs()),
        ValueError,
        r"num_heads \* head_dim = 4 \* 8, got 16",
    ),
    "local head size": (
        lambda: nnx.MultiHeadAttention(4, 16, axis_name="heads", rngs=rngs()),
        ValueError,
        "head_dim must be given with axis_name",
    ),
    "values without keys": (
        lambda: nnx.MultiHeadAttention(2, 8, rngs=rngs())(Q[:, :, 0], None, Q[:, :, 0]),
        ValueError,
        "inputs_v was given without inputs_k",
    ),
    "decode": (
        lambda: nnx.MultiHeadAttention(2, 8, decode=True, rngs=rngs())(Q[:, :, 0]),
        ValueError,
        "decode=True needs a cache, and there is none",
    ),
    "dropout phase": (
        lambda: nnx.MultiHeadAttention(2, 8, dropout_rate=0.1, rngs=rngs())(Q[:, :, 0]),
        ValueError,
        "deterministic must be given for dropout_rate = 0.1",
    ),
    "module dropout keys": (
        lambda: nnx.MultiHeadAttention(
            2, 8, dropout_rate=0.1, deterministic=False, keep_rngs=False, rngs=rngs()
        )(Q[:, :, 0]),
        ValueError,
        "rngs must be passed",
    ),
    "weights of another function": (
        lambda: nnx.MultiHeadAttention(2, 8, attention_fn=identity, rngs=rngs())(
            Q[:, :, 0], sow_weights=True
        ),
        NotImplementedError,
        "sow_weights needs attention_fn",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_with_the_numbers_and_the_fix(name):
    call, kind, message = CASES[name]
    with pytest.raises(kind, match=message):
        call()


# Modules for images of 16 channels, and how both kinds of module refuse them.
MODULES = [
    ("HaloAttention", {"halo_size": -2}, ValueError, "halo_size must be at least 0, got -2."),
    ("HaloAttention", {"block_size": 0}, ValueError, "block_size must be at least 1, got 0."),
    *[
        (
            "HaloAttention",
            {"block_size": size},
            TypeError,
            f"block_size must be one whole number, got {size}.",
        )
        for size in (2.5, (2, 2))
    ],
    *[
        (name, {width: size}, ValueError, f"{width} must be at least 1, got {size}.")
        for name, width in (
            ("LambdaLayer", "key_features"),
            ("AttentionPool", "out_features"),
            ("SelectiveKernel", "out_features"),
            ("SelectiveKernel", "strides"),
            ("SplitAttention", "out_features"),
            ("SplitAttention", "strides"),
            ("SplitAttention", "dilation"),
            ("SplitAttention", "radix"),
            ("SplitAttention", "groups"),
            ("AttentionGate", "strides"),
        )
        for size in (0, -1)
    ],
    *[
        (name, {number: value}, kind, message.format(number))
        for name, number in (("FocalModulation", "num_levels"), ("BAM", "num_convs"))
        for value, kind, message in (
            (-1, ValueError, "{} must be at least 0, got -1."),
            (1.5, TypeError, "{} must be one whole number, got 1.5."),
        )
    ],
    *[
        ("SplitAttention", {"radix": radix}, TypeError, f"must be one whole number, got {radix}.")
        for radix in (2.0, 1.5)
    ],
    (
        "SplitAttention",
        {"radix": 3},
        ValueError,
        "C must be a multiple of radix · groups = 3, got C = 16. "
        "Choose radix and groups so that radix · groups divides C.",
    ),
    *[
        (
            name,
            {"dilations": 1},
            TypeError,
            "dilations must be a sequence, got 1. Give a number for each kernel, such as (1, 3).",
        )
        for name in ("SelectiveKernel", "LargeSelectiveKernel")
    ],
    *[
        (
            "GatherExcite",
            {"extent": extent},
            TypeError,
            f"extent must be one whole number, got {extent!r}.",
        )
        for extent in (2.0, "4")
    ],
    *[
        (
            "GatherExcite",
            {"extent": extent},
            ValueError,
            f"extent must be one number or (height, width), at least 1, got {extent}.",
        )
        for extent in ((6,), (0, 0))
    ],
    ("GatherExcite", {"extent": 6}, ValueError, "extent must be a power of 2, at least 2, got 6."),
]


@pytest.mark.parametrize(("name", "options", "kind", "message"), MODULES)
def test_both_kinds_of_module_refuse_what_cannot_be_made_in_the_same_words(
    name, options, kind, message
):
    options = {"groups": 1, **options} if name == "SelectiveKernel" else options
    size = {"input_size": (6, 6)} if name == "AttentionPool" else {}
    inputs = [X, X] if name == "AttentionGate" else [X]
    with pytest.raises(kind, match=re.escape(message)) as made:
        getattr(nnx, name)(16, **size, **options, rngs=rngs())
    with pytest.raises(kind) as called:
        getattr(linen, name)(**options).init(KEY, *inputs)
    assert str(made.value) == str(called.value)
    assert str(made.value).startswith(f"{name}: ")


@pytest.mark.parametrize("gather", ["mean", "conv"])
def test_an_extent_may_be_of_numpys_integers(gather):
    for extent in (4, (6, 6)):
        of_numpy = jax.tree.map(np.int64, extent)
        ours, same = (
            nnx.GatherExcite(16, extent=e, gather=gather, rngs=rngs()) for e in (extent, of_numpy)
        )
        np.testing.assert_array_equal(ours(X), same(X))
        module = linen.GatherExcite(extent=of_numpy, gather=gather, use_running_average=True)
        assert module.init_with_output(KEY, X)[0].shape == X.shape


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("HaloAttention", {"halo_size": 0, "block_size": 2}),
        ("FocalModulation", {"num_levels": 0}),
        ("BAM", {"num_convs": 0}),
    ],
)
def test_some_numbers_may_be_0(name, options):
    phase = {"use_running_average": True} if name == "BAM" else {}
    assert getattr(nnx, name)(16, **options, rngs=rngs())(X).shape == X.shape
    made = getattr(linen, name)(**options, **phase)
    assert made.init_with_output(KEY, X)[0].shape == X.shape


def test_errors_come_under_jit_too():
    with pytest.raises(ValueError, match="mask must broadcast"):
        jax.jit(lambda q, m: dot_product_attention(q, KV, KV, mask=m))(Q, jnp.ones((3, 7), bool))


def test_when_all_implementations_decline_each_says_why():
    with pytest.raises(ExceptionGroup, match="every implementation declines") as caught:
        attend(implementation=["cudnn", "pallas_tpu"])
    assert [type(e) for e in caught.value.exceptions] == [NotImplementedError] * 2
    assert "'pallas_tpu' declines" in str(caught.value.exceptions[1])
    served = attend(implementation=["cudnn", "dense"])
    assert np.array_equal(served, attend(implementation="xla"))
