"""The vision mechanisms as functions, Linen and NNX modules, and the way to PyTorch's weights."""

import functools
from collections.abc import Callable

from flax import linen as flax_linen
from flax import nnx as flax_nnx
from torch_comparison import Case, random_arrays, values
from torch_reference import nn, randomize

from flax_attn import linen, maps, nnx, vision

# PyTorch's momentum of 0.1 weighs the new statistics, Flax's 0.9 the old ones.
NORM = {"momentum": 0.9, "use_fast_variance": False}


def layers(module, names):
    """The layers of a PyTorch module that hold weights, each with its path in our tree."""
    for name, layer in module.named_modules():
        if [*layer.parameters(recurse=False)]:
            yield names.get(name, name).split("."), layer


def put(tree, path, leaf):
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = leaf


def kernel(weight, layer):
    """(O, I) -> (I, O), and so a 1×1 convolution; otherwise (O, I, *k) -> (*k, I, O)."""
    if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
        weight = weight[:, :, 0, 0]
    return weight.transpose(*range(2, weight.ndim), 1, 0)


def params(module, read, *, names):
    tree = {}
    for path, layer in layers(module, names):
        weight = read(layer.weight)
        if isinstance(layer, nn.modules.batchnorm._BatchNorm | nn.LayerNorm):
            converted = {"scale": weight}
        else:
            converted = {"kernel": kernel(weight, layer)}
        if layer.bias is not None:
            converted["bias"] = read(layer.bias)
        put(tree, path, converted)
    return tree


def statistics(module, *, names):
    tree = {}
    for path, layer in layers(module, names):
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            put(tree, path, {"mean": values(layer.running_mean), "var": values(layer.running_var)})
    return tree


class Weights:
    """What a function's maps are made of: one node of the trees of parameters and statistics."""

    def __init__(self, params, statistics, train):
        self.params, self.statistics, self.train = params, statistics, train

    def __getitem__(self, name):
        return Weights(self.params[name], self.statistics.get(name, {}), self.train)

    def dense(self, name):
        return maps.dense(**self.params[name])

    def conv(self, name, **settings):
        return maps.conv(**self.params[name], **settings)

    def norm(self, name):
        if name not in self.params:
            return None
        if not self.train:
            return maps.batch_norm(**self.statistics[name], **self.params[name])

        def by_the_batch(x):
            axes = tuple(range(x.ndim - 1))
            return maps.batch_norm(x.mean(axes), x.var(axes), **self.params[name])(x)

        return by_the_batch


def squeeze_excite(x, w):
    return vision.squeeze_excite(x, w.dense("reduce"), w.dense("expand"))


def channel_attention(x, w):
    return vision.channel_attention(x, w.dense("reduce"), w.dense("expand"))


def spatial_attention(x, w, order=("mean", "max")):
    return vision.spatial_attention(x, w.conv("conv"), norm=w.norm("norm"), order=order)


def cbam(x, w, order=("mean", "max")):
    channel, spatial = w["channel"], w["spatial"]
    mlp = channel.dense("reduce"), channel.dense("expand")
    return vision.cbam(x, *mlp, spatial.conv("conv"), norm=spatial.norm("norm"), order=order)


def eca(x, w):
    return vision.eca(x, maps.conv1d(**w.params["conv"]))


def coordinate_attention(x, w):
    expand = w.dense("expand_height"), w.dense("expand_width")
    return vision.coordinate_attention(x, w.dense("reduce"), w.norm("norm"), *expand)


def bam(x, w, combine="add"):
    return vision.bam(
        x,
        w.dense("reduce"),
        w.norm("reduce_norm"),
        w.dense("expand"),
        [w.dense("conv_0"), w.conv("conv_1", dilation=4), w.conv("conv_2", dilation=4)],
        [w.norm(f"conv_norm_{i}") for i in range(3)],
        w.dense("project"),
        combine=combine,
    )


def simam(x, w):
    return vision.simam(x)


CLASSES = {
    squeeze_excite: "SqueezeExcite",
    channel_attention: "ChannelAttention",
    spatial_attention: "SpatialAttention",
    cbam: "CBAM",
    eca: "ECA",
    coordinate_attention: "CoordinateAttention",
    bam: "BAM",
    simam: "SimAM",
}


def on_nhwc(module, x):
    return module(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def vision_case(
    function: Callable,
    reference,
    shape,
    *,
    module=None,
    settings=None,
    function_settings=None,
    names=None,
    train=False,
    invisible=(),
):
    """A PyTorch module on NCHW, and our three faces of `function` on NHWC images of `shape`.

    `module` names our modules, where `CLASSES` does not; `settings` are their arguments,
    `function_settings` the function's, `names` the paths of PyTorch's layers where they are not
    ours.
    """
    settings, names, name = settings or {}, names or {}, module or CLASSES[function]
    weightless = function is simam
    normalized = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in reference.modules())

    def options(dtype, norm):
        chosen = dict(settings)
        if not weightless:
            chosen["dtype"] = dtype
        if normalized and norm is not None:
            chosen["norm"] = norm
        return chosen

    def linen_module(dtype):
        norm = functools.partial(
            flax_linen.BatchNorm, use_running_average=not train, dtype=dtype, **NORM
        )
        return getattr(linen, name)(**options(dtype, norm))

    def nnx_module(dtype):
        norm = None  # where normalisation is part of the mechanism, the module's own is PyTorch's
        if function in (spatial_attention, cbam):
            norm = functools.partial(flax_nnx.BatchNorm, dtype=dtype, **NORM)
        features = () if weightless or function is spatial_attention else shape[-1:]
        keys = {} if weightless else {"rngs": flax_nnx.Rngs(0)}
        return getattr(nnx, name)(*features, **options(dtype, norm), **keys)

    return Case(
        reference=randomize(reference),
        call=on_nhwc,
        inputs=random_arrays(0, shape),
        params=functools.partial(params, names=names),
        statistics=functools.partial(statistics, names=names),
        function=lambda params, statistics, x: function(
            x, Weights(params, statistics, train), **(function_settings or {})
        ),
        linen=linen_module,
        nnx=nnx_module,
        train=train,
        promotes=any(isinstance(m, nn.LayerNorm) for m in reference.modules()),
        invisible=invisible,
    )
