"""Attention in windows equals timm's: Swin's block, MaxViT's block and grid, BoTNet, HaloNet."""

import pytest
import timm_reference  # noqa: F401  (torchvision's operators, before timm)
from flax import nnx as flax_nnx
from torch_comparison import (
    FACES,
    Case,
    check_bfloat16,
    check_parity,
    check_sensitivity,
    random_arrays,
)
from torch_reference import randomize

from flax_attn import linen, maps, nnx, vision

bottleneck_attn = pytest.importorskip("timm.layers.bottleneck_attn", reason="timm is the reference")
halo_attn = pytest.importorskip("timm.layers.halo_attn", reason="timm is the reference")
maxxvit = pytest.importorskip("timm.models.maxxvit", reason="timm is the reference")
swin = pytest.importorskip("timm.models.swin_transformer", reason="timm is the reference")
pytestmark = pytest.mark.parity

FEATURES, NUM_HEADS, HEAD_DIM = 32, 4, 8
HEADS = (NUM_HEADS, HEAD_DIM)


def split_heads(weights, biases):
    """Layers of weights `[N, D, C]` and biases `[N, D]` as maps to heads, `[C, N, D]`."""
    layers = {}
    for name in weights:
        layers[name] = {"kernel": weights[name].transpose(2, 0, 1)}
        if biases is not None:
            layers[name]["bias"] = biases[name]
    return layers


def packed(layer, read, heads_first=False):
    """One layer of queries, keys and values; `heads_first` if each head has all three together."""
    order = (NUM_HEADS, 3, HEAD_DIM) if heads_first else (3, *HEADS)

    def unpack(array, *rest):
        array = array.reshape(*order, *rest)
        array = array.swapaxes(0, 1) if heads_first else array
        return dict(zip(("query", "key", "value"), array, strict=True))

    biases = None if layer.bias is None else unpack(read(layer.bias))
    return split_heads(unpack(read(layer.weight), FEATURES), biases)


def projected(layer, read):
    kernel = read(layer.weight).T.reshape(*HEADS, FEATURES)
    return {"out": {"kernel": kernel, "bias": read(layer.bias)}}


def swin_params(block, read):
    attention = block.attn
    table = read(attention.relative_position_bias_table)
    layers = packed(attention.qkv, read) | projected(attention.proj, read)
    return layers | {"relative_bias": table}


def maxvit_params(block, read):
    attention = block.attn
    table = read(attention.rel_pos.relative_position_bias_table)
    layers = packed(attention.qkv, read, heads_first=True) | projected(attention.proj, read)
    return layers | {"relative_bias": table}


def tables(module, read):
    positions = module.pos_embed
    return {
        "relative_height": read(positions.height_rel),
        "relative_width": read(positions.width_rel),
    }


def bottleneck_params(module, read):
    return packed(module.qkv, read) | tables(module, read)


def halo_params(module, read):
    """Queries in a layer of their own; each head has its keys and values together."""

    def unpack(queries, pairs, *rest):
        pairs = pairs.reshape(NUM_HEADS, 2, HEAD_DIM, *rest)
        return {
            "query": queries.reshape(*HEADS, *rest),
            "key": pairs[:, 0],
            "value": pairs[:, 1],
        }

    layers = module.q, module.kv
    biases = None
    if module.q.bias is not None:
        biases = unpack(*(read(layer.bias) for layer in layers))
    weights = unpack(*(read(layer.weight) for layer in layers), FEATURES)
    return split_heads(weights, biases) | tables(module, read)


def bind(params):
    """The arguments of our functions."""
    bound = {name: maps.dense(**params[name]) for name in ("query", "key", "value")}
    if "out" in params:
        bound["out"] = maps.dense(**params["out"], axes=2)
    return bound | {name: array for name, array in params.items() if name.startswith("relative")}


def case(name, cls, reference, call, read_params, shape, settings, sizes=(), **options):
    """timm's module, and ours with `settings`, of which `use_bias` is the modules' only."""
    of_function = {key: value for key, value in settings.items() if key != "use_bias"}

    def function(params, statistics, x):
        return getattr(vision, name)(x, **bind(params), **of_function)

    return Case(
        reference=randomize(reference),
        call=call,
        inputs=random_arrays(0, (*shape, FEATURES)),
        params=read_params,
        function=function,
        linen=lambda dtype: getattr(linen, cls)(num_heads=NUM_HEADS, dtype=dtype, **settings),
        nnx=lambda dtype: getattr(nnx, cls)(
            FEATURES, *sizes, num_heads=NUM_HEADS, dtype=dtype, rngs=flax_nnx.Rngs(0), **settings
        ),
        **options,
    )


def swin_block(shift, bias=True):
    height, width, window = 9, 4, (3, 2)
    block = swin.SwinTransformerBlock(
        FEATURES, (height, width), NUM_HEADS, window_size=window, shift_size=shift, qkv_bias=bias
    )
    settings = {"window_size": window, "shift_size": shift, "use_bias": bias}
    return case(
        "window_attention",
        "WindowAttention",
        block,
        lambda module, x: module._attn(x),
        swin_params,
        (2, height, width),
        settings,
        # A key's bias moves all scores of a query alike.
        invisible=("key/bias",) if bias else (),
    )


def maxvit_block(kind):
    size = (3, 2)
    config = maxxvit.MaxxVitTransformerCfg(
        dim_head=HEAD_DIM, window_size=size, grid_size=size, rel_pos_type="bias"
    )
    names = {
        "block": ("window_attention", "WindowAttention", {"window_size": size}),
        "grid": ("grid_attention", "GridAttention", {"grid_size": size}),
    }
    name, cls, settings = names[kind]
    return case(
        name,
        cls,
        maxxvit.PartitionAttentionCl(FEATURES, kind, config),
        lambda module, x: module._partition_attn(x),
        maxvit_params,
        (2, 6, 8),
        settings,
        invisible=("key/bias",),
    )


def on_nhwc(module, x):
    return module(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def bottleneck(scaled, bias=False):
    size = (4, 5)
    module = bottleneck_attn.BottleneckAttn(
        FEATURES, feat_size=size, num_heads=NUM_HEADS, qkv_bias=bias, scale_pos_embed=scaled
    )
    settings = {"scale_positions": scaled, "use_bias": bias}
    return case(
        "bottleneck_attention",
        "BottleneckAttention",
        module,
        on_nhwc,
        bottleneck_params,
        (2, *size),
        settings,
        sizes=(size,),
        invisible=("key/bias",) if bias else (),
    )


def halo(scaled, halo_size, bias=False):
    module = halo_attn.HaloAttn(
        FEATURES,
        num_heads=NUM_HEADS,
        block_size=2,
        halo_size=halo_size,
        qkv_bias=bias,
        scale_pos_embed=scaled,
    )
    settings = {
        "block_size": 2,
        "halo_size": halo_size,
        "scale_positions": scaled,
        "use_bias": bias,
    }
    return case(
        "halo_attention",
        "HaloAttention",
        module,
        on_nhwc,
        halo_params,
        (2, 4, 6),
        settings,
    )


LAYERS = {
    "SwinTransformerBlock": lambda: swin_block(0),
    "SwinTransformerBlock_shifted": lambda: swin_block(1),
    "SwinTransformerBlock_shifted_rows": lambda: swin_block((2, 0), bias=False),
    "PartitionAttentionCl_block": lambda: maxvit_block("block"),
    "PartitionAttentionCl_grid": lambda: maxvit_block("grid"),
    "BottleneckAttn": lambda: bottleneck(scaled=False),
    "BottleneckAttn_scaled": lambda: bottleneck(scaled=True, bias=True),
    "HaloAttn": lambda: halo(scaled=False, halo_size=1),
    "HaloAttn_scaled": lambda: halo(scaled=True, halo_size=3, bias=True),
}


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("layer", LAYERS)
def test_windows_equal_timm(layer, dtype, face, record_property):
    check_parity(LAYERS[layer](), face, dtype, record_property)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("layer", LAYERS)
def test_windows_in_bfloat16_are_near_timm(layer, face, record_property):
    check_bfloat16(LAYERS[layer](), face, record_property)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("layer", LAYERS)
def test_parity_of_windows_depends_on_every_weight(layer, face, record_property):
    check_sensitivity(LAYERS[layer](), face, record_property)
