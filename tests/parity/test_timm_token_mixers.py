"""The token mixers equal those of the timm models that they come from."""

import functools
import itertools

import jax
import pytest
from flax import linen as flax_linen
from flax import nnx as flax_nnx
from timm_reference import timm
from torch_comparison import (
    FACES,
    Case,
    check_bfloat16,
    check_parity,
    check_sensitivity,
    random_arrays,
    values,
)
from torch_reference import nn, randomize, torch
from vision_faces import NORM, Weights, on_nhwc

from flax_attn import linen, maps, nnx, vision

focalnet = pytest.importorskip("timm.models.focalnet", reason="timm is the reference")
lambda_module = pytest.importorskip("timm.layers.lambda_layer", reason="timm is the reference")
mobilevit = pytest.importorskip("timm.models.mobilevit", reason="timm is the reference")
pvt_v2 = pytest.importorskip("timm.models.pvt_v2", reason="timm is the reference")
volo = pytest.importorskip("timm.models.volo", reason="timm is the reference")
xcit = pytest.importorskip("timm.models.xcit", reason="timm is the reference")
pytestmark = pytest.mark.parity

SHAPE = (2, 6, 4, 24)
CHANNELS, HEADS = 24, 4
EXACT_GELU = functools.partial(jax.nn.gelu, approximate=False)


# From PyTorch's layers to ours.


def linear(layer, read, rows=slice(None)):
    """(O, I) or (O, I, 1, 1) -> (I, O), of some rows."""
    weight = read(layer.weight)[rows]
    params = {"kernel": weight.reshape(weight.shape[:2]).T}
    return params if layer.bias is None else {**params, "bias": read(layer.bias)[rows]}


def split(layer, read, rows=slice(None)):
    """(N · D, I) -> (I, N, D)."""
    return {
        name: array.reshape(*array.shape[:-1], HEADS, -1)
        for name, array in linear(layer, read, rows).items()
    }


def join(layer, read):
    """(O, N · D) -> (N, D, O)."""
    params = linear(layer, read)
    return {**params, "kernel": params["kernel"].reshape(HEADS, -1, params["kernel"].shape[-1])}


def conv(layer, read):
    """(O, I, kh, kw) -> (kh, kw, I, O)."""
    params = {"kernel": read(layer.weight).transpose(2, 3, 1, 0)}
    return params if layer.bias is None else {**params, "bias": read(layer.bias)}


def norm(layer, read):
    return {"scale": read(layer.weight), "bias": read(layer.bias)}


def third(i):
    return slice(i * CHANNELS, (i + 1) * CHANNELS)


def no_statistics(module):
    del module
    return {}


def around_one(module):
    """The gains of normalisations that PyTorch's randomisation leaves near 0."""
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.LayerNorm):
                layer.weight.add_(1)
    return module


def case(
    reference,
    call,
    params,
    function,
    name,
    *,
    statistics=no_statistics,
    settings=None,
    linen_settings=lambda dtype: {},
    nnx_settings=lambda dtype: {},
    **options,
):
    """A module of timm, and our three faces of it; `function` takes `x, Weights`."""
    train = options.get("train", False)
    settings = settings or {}

    def nnx_module(dtype):
        return getattr(nnx, name)(
            CHANNELS, **settings, **nnx_settings(dtype), dtype=dtype, rngs=flax_nnx.Rngs(0)
        )

    def linen_module(dtype):
        return getattr(linen, name)(**settings, **linen_settings(dtype), dtype=dtype)

    return Case(
        reference=around_one(randomize(reference)),
        call=call,
        inputs=random_arrays(0, SHAPE),
        params=params,
        statistics=statistics,
        function=lambda params, statistics, x: function(x, Weights(params, statistics, train)),
        linen=linen_module,
        nnx=nnx_module,
        **options,
    )


def projections(w):
    heads = [w.dense(name) for name in ("query", "key", "value")]
    return [*heads, maps.dense(**w.params["out"], axes=2)]


def on_tokens(module, x, *arguments):
    return module(x.flatten(1, 2), *arguments).reshape(x.shape)


def cross_covariance_attention(use_bias):
    def params(module, read):
        return {
            "query": split(module.qkv, read, third(0)),
            "key": split(module.qkv, read, third(1)),
            "value": split(module.qkv, read, third(2)),
            "out": join(module.proj, read),
            "temperature": read(module.temperature)[:, 0, 0],
        }

    def function(x, w):
        return vision.cross_covariance_attention(x, *projections(w), w.params["temperature"])

    return case(
        xcit.XCA(CHANNELS, num_heads=HEADS, qkv_bias=use_bias),
        on_tokens,
        params,
        function,
        "CrossCovarianceAttention",
        settings={"num_heads": HEADS, "use_bias": use_bias},
    )


def spatial_reduction_attention(reduction, is_linear=False):
    reduces = reduction > 1 or is_linear
    options = {"pool_size": 7, "activation_fn": EXACT_GELU} if is_linear else {}

    def params(module, read):
        tree = {
            "query": split(module.q, read),
            "key": split(module.kv, read, third(0)),
            "value": split(module.kv, read, third(1)),
            "out": join(module.proj, read),
        }
        if reduces:
            tree |= {"reduce": conv(module.sr, read), "norm": norm(module.norm, read)}
        return tree

    def function(x, w):
        reduced = {}
        if reduces:
            reduced["reduce"] = w.conv("reduce", strides=reduction, padding=0)
            reduced["norm"] = maps.layer_norm(**w.params["norm"])
        return vision.spatial_reduction_attention(x, *projections(w), **reduced, **options)

    reference = pvt_v2.Attention(
        CHANNELS, num_heads=HEADS, sr_ratio=reduction, linear_attn=is_linear
    )
    return case(
        reference,
        lambda module, x: on_tokens(module, x, x.shape[1:3]),
        params,
        function,
        "SpatialReductionAttention",
        settings={"num_heads": HEADS, "reduction": reduction, **options},
        promotes=reduces,
        invisible=("key/bias",),
    )


def attention_pool(separate):
    def params(module, read):
        layers = (module.q, module.k, module.v) if separate else (module.qkv,) * 3
        rows = [slice(None)] * 3 if separate else [third(i) for i in range(3)]
        names = ("query", "key", "value")
        return {
            "positions": read(module.pos_embed),
            **{n: split(layer, read, r) for n, layer, r in zip(names, layers, rows, strict=True)},
            "out": join(module.proj, read),
        }

    def function(x, w):
        return vision.attention_pool(x, w.params["positions"], *projections(w))

    reference = timm.layers.AttentionPool2d(
        CHANNELS, feat_size=SHAPE[1:3], out_features=10, num_heads=HEADS, qkv_separate=separate
    )
    return case(
        reference,
        lambda module, x: module(x.permute(0, 3, 1, 2)),
        params,
        function,
        "AttentionPool",
        settings={"num_heads": HEADS, "out_features": 10},
        nnx_settings=lambda dtype: {"input_size": SHAPE[1:3]},
        invisible=("key/bias",),
    )


def separable_attention(patch_size):
    def params(module, read):
        qkv = functools.partial(linear, module.qkv_proj, read)
        return {
            "score": qkv(slice(0, 1)),
            "key": qkv(slice(1, 1 + CHANNELS)),
            "value": qkv(slice(1 + CHANNELS, None)),
            "out": linear(module.out_proj, read),
        }

    def call(module, x):
        """As MobileViT v2: images to [B, C, positions in a patch, patches], and back."""
        b, h, w, c = x.shape
        p = patch_size
        patches = x.reshape(b, h // p, p, w // p, p, c).permute(0, 5, 2, 4, 1, 3)
        y = module(patches.reshape(b, c, p * p, -1)).reshape(patches.shape)
        return y.permute(0, 4, 2, 5, 3, 1).reshape(x.shape)

    def function(x, w):
        layers = [w.dense(name) for name in ("score", "key", "value", "out")]
        return vision.separable_attention(x, *layers, patch_size=patch_size)

    return case(
        mobilevit.LinearSelfAttention(CHANNELS),
        call,
        params,
        function,
        "SeparableAttention",
        settings={"patch_size": patch_size},
        invisible=("score/bias",),
    )


def outlook_attention(kernel_size, stride, use_bias=False):
    settings = {"num_heads": HEADS, "kernel_size": kernel_size, "stride": stride}

    def params(module, read):
        return {
            "score": linear(module.attn, read),
            "value": linear(module.v, read),
            "out": linear(module.proj, read),
        }

    def function(x, w):
        layers = [w.dense(name) for name in ("score", "value", "out")]
        return vision.outlook_attention(x, *layers, **settings)

    reference = volo.OutlookAttention(
        CHANNELS, HEADS, kernel_size, kernel_size // 2, stride, qkv_bias=use_bias
    )
    return case(
        reference,
        lambda module, x: module(x),
        params,
        function,
        "OutlookAttention",
        settings={**settings, "use_bias": use_bias},
    )


def focal_modulation(levels=2, post_norm=False, normalize=False):
    def params(module, read):
        rows = {"query": third(0), "context": third(1), "gate": slice(2 * CHANNELS, None)}
        tree = {name: linear(module.f, read, r) for name, r in rows.items()}
        for level, (layer, _) in enumerate(module.focal_layers):
            tree[f"conv_{level}"] = conv(layer, read)
        tree |= {"modulate": linear(module.h, read), "out": linear(module.proj, read)}
        return {**tree, "norm": norm(module.norm, read)} if post_norm else tree

    def function(x, w):
        return vision.focal_modulation(
            x,
            w.dense("query"),
            w.dense("context"),
            w.dense("gate"),
            [maps.depthwise_conv(**w.params[f"conv_{level}"]) for level in range(levels)],
            w.dense("modulate"),
            w.dense("out"),
            norm=maps.layer_norm(**w.params["norm"], epsilon=1e-6) if post_norm else None,
            normalize_modulator=normalize,
        )

    reference = focalnet.FocalModulation(
        CHANNELS, 3, levels, use_post_norm=post_norm, normalize_modulator=normalize
    )
    exact = {"epsilon": 1e-6, "use_fast_variance": False}
    return case(
        reference,
        on_nhwc,
        params,
        function,
        "FocalModulation",
        settings={"num_levels": levels, "normalize_modulator": normalize},
        promotes=post_norm,
        linen_settings=lambda dtype: (
            {"norm": functools.partial(flax_linen.LayerNorm, dtype=dtype, **exact)}
            if post_norm
            else {}
        ),
        nnx_settings=lambda dtype: (
            {"norm": functools.partial(flax_nnx.LayerNorm, dtype=dtype, **exact)}
            if post_norm
            else {}
        ),
    )


def lambda_layer(use_bias=False, train=False):
    depth = 16
    ends = (0, HEADS * depth, (HEADS + 1) * depth, None)

    def params(module, read):
        rows = [slice(*pair) for pair in itertools.pairwise(ends)]
        tree = {
            name: linear(module.qkv, read, r)
            for name, r in zip(("query", "key", "value"), rows, strict=True)
        }
        position = module.conv_lambda  # (K, 1, r, r, 1)
        return {
            **tree,
            "query_norm": norm(module.norm_q, read),
            "value_norm": norm(module.norm_v, read),
            "position": {
                "kernel": read(position.weight)[..., 0].transpose(2, 3, 1, 0),
                "bias": read(position.bias),
            },
        }

    def statistics(module):
        layers = {"query_norm": module.norm_q, "value_norm": module.norm_v}
        return {
            name: {"mean": values(layer.running_mean), "var": values(layer.running_var)}
            for name, layer in layers.items()
        }

    def function(x, w):
        return vision.lambda_layer(
            x,
            w.dense("query"),
            w.norm("query_norm"),
            w.dense("key"),
            w.dense("value"),
            w.norm("value_norm"),
            w.conv("position"),
        )

    invisible = ("key/bias",) * use_bias
    return case(
        lambda_module.LambdaLayer(CHANNELS, num_heads=HEADS, qkv_bias=use_bias, r=5),
        on_nhwc,
        params,
        function,
        "LambdaLayer",
        statistics=statistics,
        settings={"num_heads": HEADS, "kernel_size": 5, "use_bias": use_bias},
        linen_settings=lambda dtype: {
            "norm": functools.partial(
                flax_linen.BatchNorm, use_running_average=not train, dtype=dtype, **NORM
            )
        },
        nnx_settings=lambda dtype: {
            "norm": functools.partial(flax_nnx.BatchNorm, dtype=dtype, **NORM)
        },
        train=train,
        # The batch's mean takes the biases before it away.
        invisible=(*invisible, "query/bias", "value/bias") if train and use_bias else invisible,
    )


LAYERS = {
    "XCA": lambda: cross_covariance_attention(use_bias=False),
    "XCA_with_bias": lambda: cross_covariance_attention(use_bias=True),
    "SRA_1": lambda: spatial_reduction_attention(1),
    "SRA_2": lambda: spatial_reduction_attention(2),
    "SRA_3": lambda: spatial_reduction_attention(3),  # 4 columns are not a multiple of 3
    "SRA_linear": lambda: spatial_reduction_attention(1, is_linear=True),
    "AttentionPool2d": lambda: attention_pool(separate=False),
    "AttentionPool2d_separate": lambda: attention_pool(separate=True),
    "LinearSelfAttention": lambda: separable_attention(1),
    "LinearSelfAttention_patches": lambda: separable_attention(2),
    "OutlookAttention": lambda: outlook_attention(3, 1),
    "OutlookAttention_stride_2": lambda: outlook_attention(3, 2, use_bias=True),
    "OutlookAttention_5_stride_3": lambda: outlook_attention(5, 3),
    "FocalModulation": lambda: focal_modulation(),
    "FocalModulation_normalised": lambda: focal_modulation(3, post_norm=True, normalize=True),
    "LambdaLayer": lambda: lambda_layer(),
    "LambdaLayer_with_bias": lambda: lambda_layer(use_bias=True),
    "LambdaLayer_in_training": lambda: lambda_layer(train=True),
}


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("layer", LAYERS)
def test_equals_timm(layer, dtype, face, record_property):
    check_parity(LAYERS[layer](), face, dtype, record_property)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("layer", LAYERS)
def test_bfloat16_is_near_timm(layer, face, record_property):
    check_bfloat16(LAYERS[layer](), face, record_property)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("layer", LAYERS)
def test_parity_with_timm_depends_on_every_weight_and_statistic(layer, face, record_property):
    check_sensitivity(LAYERS[layer](), face, record_property)
