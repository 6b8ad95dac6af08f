"""The vision mechanisms, found in the package, and their modules with random weights."""

import functools
import inspect
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as flax_linen
from flax import nnx as flax_nnx

from flax_attn import linen, maps, nnx, vision

# What a map of arrays must know beside its arrays, where it is not the default.
SETTINGS = {"bam": {"conv_1": {"dilation": 4}, "conv_2": {"dilation": 4}}}


def mechanisms() -> list[str]:
    """Public functions of `vision` that take an image and are not gates."""
    return [
        name
        for name, function in vars(vision).items()
        if inspect.isfunction(function)
        and not name.startswith("_")
        and not name.endswith("_gate")
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
    if hasattr(cls, "use_running_average"):
        options["use_running_average"] = not train
    return cls(**options)


def nnx_module(name: str, features: int, **options):
    cls = module_class(nnx, name)
    parameters = inspect.signature(cls.__init__).parameters
    if "in_features" in parameters:
        options["in_features"] = features
    if "rngs" in parameters:
        options["rngs"] = flax_nnx.Rngs(0)
    return cls(**options)


def random_variables(module, features: int, seed: int = 0, dtype=np.float64):
    """The module's variables with every weight and statistic random, by a stable seed."""
    x = jnp.ones((1, 2, 2, features), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)

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

    return jax.tree_util.tree_map_with_path(draw, flax_linen.unbox(shapes))


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
    """The function's maps from plain arrays, by the names of its parameters."""
    layers = _layers(jax.tree.map(jnp.asarray, merged(variables)))
    settings = SETTINGS.get(name, {})
    bound = {key: _bind(p, settings.get(key, {})) for key, p in layers.items()}
    function = getattr(vision, name)
    found = {}
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
        if any(isinstance(child, dict) for child in value.values()):
            layers.update(_layers(value))
        else:
            layers[key] = value
    return layers


def _bind(p: dict, settings: dict):
    if "kernel" not in p:
        return maps.batch_norm(p["mean"], p["var"], p["scale"], p["bias"])
    make = {2: maps.dense, 3: maps.conv1d, 4: maps.conv}[p["kernel"].ndim]
    return make(p["kernel"], p.get("bias"), **settings)
