"""The vision mechanisms, found in the package, and their modules with random weights."""

import functools
import inspect
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as flax_linen
from flax import nnx as flax_nnx

from flax_attn import linen, maps, nnx, vision
from flax_attn.linen._module import LayerModule

NONE: Mapping[str, Any] = MappingProxyType({})


class Facts(NamedTuple):
    """What the contracts must know of a mechanism, where it is not the usual.

    Attributes:
      module: Arguments of the Linen and the NNX module.
      nnx: Arguments of the NNX module only, which the Linen module infers.
      function: Arguments of the function that are not maps.
      maps: Settings of the maps of arrays, by layer (`{"conv": {"dilation": 4}}`); or what makes
        the map of the layer's arrays.
      shapes: Images for the oracle.
      shape: An image for everything else.
      others: The further inputs, made from the image.
      options: A value other than the default for options of the modules, where
        `tests/contracts/test_options.py` knows none or another; a pair for Linen and NNX.
      untried: Options for which tests of their own are needed.
      any_size: Whether one function serves images of every height and width.
      symbolic_size: Whether it exports for images of unknown height and width; attention over
        tokens needs their number.
      one_place: What it says of an image of one place, if it refuses it.
      after: What is done to the image after its gate has multiplied it.
    """

    module: Mapping[str, Any] = NONE
    nnx: Mapping[str, Any] = NONE
    function: Mapping[str, Any] = NONE
    maps: Mapping[str, dict[str, Any] | Callable] = NONE
    shapes: tuple[tuple[int, ...], ...] = ((2, 7, 5, 32), (1, 3, 4, 17), (3, 6, 6, 64))
    shape: tuple[int, int, int, int] = (2, 4, 5, 32)
    others: Callable = lambda x: ()
    options: Mapping[str, Any] = NONE
    untried: tuple[str, ...] = ()
    any_size: bool = True
    symbolic_size: bool = True
    one_place: str | None = None
    after: Callable = lambda y: y


def join_heads(p):
    """The map of heads `[..., N, D]` by a kernel `[N, D, C]`."""
    return maps.dense(p["kernel"], p.get("bias"), axes=2)


def split_heads(p):
    """The map to heads `[..., N, D]` by a kernel `[C, N, D]`."""
    return maps.dense(p["kernel"], p.get("bias"))


HEADS = {"query": split_heads, "key": split_heads, "value": split_heads, "out": join_heads}

ones, zeros = jax.nn.initializers.ones, jax.nn.initializers.zeros


def interleave(y):
    """The channels 0, C/2, 1, C/2 + 1, ..."""
    return jnp.stack(jnp.split(y, 2, axis=-1), axis=-1).reshape(y.shape)


def depthwise(p):
    """The convolution of stride 2 that gathers."""
    return maps.depthwise_conv(p["kernel"], strides=2)


def strip(dilation=1):
    """What makes a depthwise map with biases of a layer's arrays."""
    return lambda p: maps.depthwise_conv(p["kernel"], p["bias"], dilation=dilation)


FACTS = {
    "attention_gate": Facts(
        maps={"theta": {"strides": 2, "padding": 0}},
        others=lambda x: (0.5 * x[..., ::3, ::2, ::-1],),
        options={"reduction": 4, "strides": 1},
        one_place="at least one place",
    ),
    "bam": Facts(maps={"conv_1": {"dilation": 4}, "conv_2": {"dilation": 4}}),
    "context_anchor_attention": Facts(
        maps={
            "row": strip(),
            "column": strip(),
            "norm_in": lambda p: maps.batch_norm(**p, epsilon=1e-3),
            "norm_out": lambda p: maps.batch_norm(**p, epsilon=1e-3),
        },
        options={"pool_size": 5},
    ),
    "attention_pool": Facts(
        nnx={"input_size": (4, 5)},
        maps=HEADS,
        shapes=((2, 4, 5, 32), (1, 4, 5, 24), (3, 4, 5, 64)),
        shape=(2, 4, 5, 8),
        options={"num_heads": 4, "out_features": 10, "position_init": ones},
        any_size=False,
    ),
    "focal_modulation": Facts(
        maps={f"conv_{level}": lambda p: maps.depthwise_conv(p["kernel"]) for level in range(2)},
        shape=(2, 4, 5, 8),
        options={"num_levels": 3, "kernel_growth": 4, "normalize_modulator": True},
    ),
    "lambda_layer": Facts(
        module={"kernel_size": 3},
        shapes=((2, 7, 5, 32), (1, 3, 4, 24), (3, 6, 6, 64)),
        options={"num_heads": 2, "key_features": 8},
    ),
    "outlook_attention": Facts(
        shapes=((2, 7, 5, 32), (1, 3, 4, 24), (3, 6, 6, 64)),
        options={"num_heads": 4, "kernel_size": 5, "stride": 2},
    ),
    "separable_attention": Facts(shape=(2, 4, 6, 24), options={"patch_size": 2}),
    "cross_covariance_attention": Facts(
        maps=HEADS,
        shapes=((2, 7, 5, 32), (1, 3, 4, 24), (3, 6, 6, 64)),
        options={"num_heads": 4},
    ),
    "spatial_reduction_attention": Facts(
        maps={**HEADS, "reduce": {"strides": 2, "padding": 0}},
        shapes=((2, 7, 5, 32), (1, 3, 4, 24), (3, 6, 6, 64)),
        options={"num_heads": 4, "reduction": 3, "pool_size": 3},
        one_place="at least one place",
        symbolic_size=False,
    ),
    "efficient_local_attention": Facts(
        maps={
            "conv": lambda p: maps.conv1d(p["kernel"], groups=p["kernel"].shape[-1]),
            "norm": lambda p: maps.group_norm(**p, num_groups=16, spatial_axes=1),
        },
        shapes=((2, 7, 5, 32), (1, 3, 4, 16), (3, 6, 6, 64)),
        options={"group_size": 8, "num_groups": 8},
    ),
    "effective_squeeze_excite": Facts(options={"gate_fn": jax.nn.sigmoid}),
    "frequency_channel_attention": Facts(
        shapes=((2, 7, 5, 32), (1, 3, 4, 16), (3, 9, 8, 64)),
        options={"frequencies": 8, "dct_size": (14, 7)},
    ),
    "gated_channel_transform": Facts(options={"epsilon": 10.0}),
    "gather_excite": Facts(
        module={"gather": "conv", "extent": 4, "reduction": 4},
        maps={"conv_0": depthwise, "conv_1": depthwise},
        options={"gather": "mean", "extent": 2},
    ),
    "global_context": Facts(
        module={"reduction": 4},  # layer normalisation of one or two channels says little
        options={
            "use_attention": False,
            "norm": (flax_linen.RMSNorm, flax_nnx.RMSNorm),
            "expand_kernel_init": jax.nn.initializers.ones,
        },
    ),
    "large_kernel_attention": Facts(
        maps={"local_conv": strip(), "dilated_conv": strip(dilation=3)},
        options={"kernel_size": 3, "dilated_kernel_size": 5},
    ),
    "large_selective_kernel": Facts(
        maps={"conv_0": strip(), "conv_1": strip(dilation=3)},
        options={
            "kernel_sizes": (3, 7),
            "dilations": (1, 2),
            "reduction": 4,
            "select_kernel_size": 5,
        },
    ),
    "polarized_attention": Facts(
        shapes=((2, 7, 5, 32), (1, 3, 4, 18), (3, 6, 6, 64)),
        options={"layout": "sequential", "reduction": 4},
    ),
    "scse": Facts(options={"reduction": 4, "combine": "add"}),
    "selective_kernel": Facts(
        maps={"conv_0": {"groups": 32}, "conv_1": {"groups": 32, "dilation": 2}},
        shapes=((2, 7, 5, 32), (1, 3, 4, 64)),
        shape=(2, 4, 5, 64),
        options={
            "out_features": 96,
            "dilations": (1, 3),
            "strides": 2,
            "groups": 16,
            "reduction": 1,  # up to 512 channels R is 32
        },
    ),
    "separable_large_kernel_attention": Facts(
        maps={
            "local_row": strip(),
            "local_column": strip(),
            "dilated_row": strip(dilation=3),
            "dilated_column": strip(dilation=3),
        },
        options={"kernel_size": 11},
    ),
    "bottleneck_attention": Facts(
        nnx={"input_size": (4, 5)},
        maps=HEADS,
        shapes=((2, 4, 5, 32), (1, 4, 5, 16)),
        options={"num_heads": 2, "scale_positions": False, "position_init": ones},
        any_size=False,
    ),
    "grid_attention": Facts(
        module={"num_heads": 4, "grid_size": (2, 3)},
        function={"grid_size": (2, 3)},
        maps=HEADS,
        shapes=((2, 4, 6, 32), (1, 2, 3, 16), (1, 6, 3, 64)),
        shape=(2, 4, 6, 32),
        options={
            "num_heads": 2,
            "grid_size": (4, 2),
            "use_relative_bias": False,
            "relative_bias_init": ones,
        },
        any_size=False,
    ),
    "halo_attention": Facts(
        module={"num_heads": 4, "block_size": 2},
        function={"block_size": 2},
        maps=HEADS,
        shapes=((2, 4, 6, 32), (1, 2, 2, 16)),
        shape=(2, 4, 6, 32),
        options={
            "num_heads": 2,
            "block_size": 1,
            "halo_size": 1,
            "scale_positions": False,
            "mask_padding": True,
            "position_init": ones,
        },
        any_size=False,
    ),
    "window_attention": Facts(
        module={"num_heads": 4, "window_size": (3, 2), "shift_size": 1, "pad": True},
        function={"window_size": (3, 2), "shift_size": 1, "pad": True},
        maps=HEADS,
        shapes=((2, 6, 4, 32), (1, 7, 5, 16), (1, 4, 3, 64)),
        shape=(2, 7, 5, 32),
        options={
            "num_heads": 2,
            "window_size": 2,
            "shift_size": (1, 0),
            "use_relative_bias": False,
            "relative_bias_init": ones,
        },
        untried=("pad",),  # without it the same image is refused
        any_size=False,
    ),
    "simam": Facts(one_place="at least two places"),
    "split_attention": Facts(
        maps={"conv": {"groups": 2}},
        shapes=((2, 7, 5, 32), (1, 3, 4, 18), (3, 6, 6, 64)),
        options={
            "out_features": 96,
            "radix": 4,
            "groups": 2,
            "strides": 2,
            "reduction": 1,  # up to 64 channels R is 32
            "min_features": 48,
        },
    ),
    "efficient_multi_scale_attention": Facts(
        module={"groups": 4},
        shapes=((2, 7, 5, 32), (1, 3, 4, 20), (3, 6, 6, 64)),
        options={"groups": 8, "epsilon": 0.5},
        one_place="at least two places",
    ),
    "shuffle_attention": Facts(
        module={"groups": 4},
        shapes=((2, 7, 5, 32), (1, 3, 4, 24), (3, 6, 6, 64)),
        options={"groups": 2, "epsilon": 0.5, "scale_init": ones, "bias_init": zeros},
        after=interleave,
    ),
    "spatial_group_enhance": Facts(
        module={"groups": 8},
        shapes=((2, 7, 5, 32), (1, 3, 4, 24), (3, 6, 6, 64)),
        options={"groups": 4, "epsilon": 0.5, "scale_init": ones, "bias_init": zeros},
        one_place="at least two places",
    ),
    "triplet_attention": Facts(options={"use_spatial": False}),
    "criss_cross_attention": Facts(options={"recurrence": 1}, symbolic_size=False),
    "double_attention": Facts(options={"num_descriptors": 5}),
    "external_attention": Facts(options={"memory_size": 5}),
    "non_local": Facts(options={"reduction": 4, "subsample": 2, "scale": 2.0}, symbolic_size=False),
    "position_attention": Facts(symbolic_size=False),
}


def facts(name: str) -> Facts:
    return FACTS.get(name, Facts())


def mechanisms() -> list[str]:
    """Public functions of `vision` that take an image and are neither gates nor weights."""
    return [
        name
        for name, function in vars(vision).items()
        if inspect.isfunction(function)
        and not name.startswith("_")
        and not (name.endswith(("_gate", "_weights")) and hasattr(vision, name.rpartition("_")[0]))
        and next(iter(inspect.signature(function).parameters)) == "x"
    ]


def module_class(package, name: str):
    """`squeeze_excite` -> `SqueezeExcite`, `eca` -> `ECA`."""
    wanted = name.replace("_", "")
    classes = ((key, cls) for key, cls in vars(package).items() if inspect.isclass(cls))
    (found,) = (cls for key, cls in classes if key.lower() == wanted)
    return found


def linen_module(name: str, train: bool = False, **options):
    cls = module_class(linen, name)
    options = {**facts(name).module, **options}
    if hasattr(cls, "use_running_average"):
        options["use_running_average"] = not train
    return cls(**options)


def nnx_module(name: str, features: int, **options):
    options = {**facts(name).module, **facts(name).nnx, "rngs": flax_nnx.Rngs(0), **options}
    return module_class(nnx, name)(features, **options)


def has_layers(name: str) -> bool:
    """Whether the modules have layers of Flax, and so the options of layers."""
    return issubclass(module_class(linen, name), LayerModule)


def random_variables(name: str, features: int, seed: int = 0, dtype=np.float64, module=None):
    """Variables with every weight and statistic random, by a stable seed.

    They are those of a mechanism's Linen module, or of one of its modules with other options.
    """
    shapes = _shapes(name, features) if module is None else _shapes_of(module, name, features)

    def draw(path, leaf):
        name = path[-1].key
        seeds = [seed, zlib.crc32(jax.tree_util.keystr(path).encode())]
        rng = np.random.default_rng(seeds)
        if name in ("scale", "var"):
            return rng.uniform(0.75, 1.25, leaf.shape).astype(dtype)
        if name == "kernel":
            fan_in = np.prod(leaf.shape[:-1])
            return (rng.normal(size=leaf.shape) / np.sqrt(fan_in)).astype(dtype)
        return (0.1 * rng.normal(size=leaf.shape)).astype(dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def _shapes(name, features):
    return _shapes_of(linen_module(name), name, features)


def _shapes_of(module, name, features):
    x = jnp.ones((1, *facts(name).shape[1:3], features), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, *facts(name).others(x))
    return flax_linen.unbox(shapes)


def merged(variables) -> dict:
    """Parameters and statistics in one tree, as in NNX."""

    def merge(a, b):
        both = {**a, **b}
        for key in a.keys() & b.keys():
            both[key] = merge(a[key], b[key])
        return both

    return functools.reduce(merge, variables.values(), {})


def load(module: flax_nnx.Module, variables) -> flax_nnx.Module:
    """Put Linen variables into the NNX module."""
    state = flax_nnx.state(module)
    flax_nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, merged(variables)))
    flax_nnx.update(module, state)
    return module


def maps_of(name: str, variables) -> dict:
    """The function's maps and arrays from plain arrays, by the names of its parameters."""
    layers = _layers(jax.tree.map(jnp.asarray, merged(variables)))
    settings = facts(name).maps
    bound = {key: _bind(p, settings.get(key, {})) for key, p in layers.items()}
    function = getattr(vision, name)
    found = dict(facts(name).function)
    for parameter in inspect.signature(function).parameters:
        if parameter in bound:
            found[parameter] = bound[parameter]
        elif f"{parameter[:-1]}_0" in bound:  # a sequence of maps
            numbered = (f"{parameter[:-1]}_{i}" for i in range(len(bound)))
            found[parameter] = [bound[key] for key in numbered if key in bound]
    return found


def _layers(tree: dict) -> dict:
    layers = {}
    for key, value in tree.items():
        if isinstance(value, dict) and any(isinstance(child, dict) for child in value.values()):
            layers.update(_layers(value))
        else:
            layers[key] = value
    return layers


def _bind(p, settings):
    if callable(settings):
        return settings(p)
    if not isinstance(p, dict):
        return p
    if "kernel" in p:
        make = {2: maps.dense, 3: maps.conv1d, 4: maps.conv}[p["kernel"].ndim]
        return make(p["kernel"], p.get("bias"), **settings)
    if "mean" in p:
        return maps.batch_norm(p["mean"], p["var"], p["scale"], p["bias"])
    return maps.layer_norm(p.get("scale"), p.get("bias"), **settings)
