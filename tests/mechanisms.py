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

NONE: Mapping[str, Any] = MappingProxyType({})


class Facts(NamedTuple):
    """What the contracts must know of a mechanism, where it is not the usual.

    Attributes:
      module: Arguments of the Linen and the NNX module.
      function: Arguments of the function that are not maps.
      maps: Settings of the maps of arrays, by layer (`{"conv": {"dilation": 4}}`); or what makes
        the map of the layer's arrays.
      shapes: Images for the oracle.
      shape: An image for everything else.
      others: The further inputs, made from the image.
      options: A value other than the default for options of the modules, where
        `tests/contracts/test_options.py` knows none or another; a pair for Linen and NNX.
      any_size: Whether one function serves images of every height and width.
      one_place: What it says of an image of one place, if it refuses it.
    """

    module: Mapping[str, Any] = NONE
    function: Mapping[str, Any] = NONE
    maps: Mapping[str, dict[str, Any] | Callable] = NONE
    shapes: tuple[tuple[int, ...], ...] = ((2, 7, 5, 32), (1, 3, 4, 17), (3, 6, 6, 64))
    shape: tuple[int, int, int, int] = (2, 4, 5, 32)
    others: Callable = lambda x: ()
    options: Mapping[str, Any] = NONE
    any_size: bool = True
    one_place: str | None = None


FACTS = {
    "bam": Facts(maps={"conv_1": {"dilation": 4}, "conv_2": {"dilation": 4}}),
    "simam": Facts(one_place="at least two places"),
}


def facts(name: str) -> Facts:
    return FACTS.get(name, Facts())


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
    options = {**facts(name).module, **options}
    if hasattr(cls, "use_running_average"):
        options["use_running_average"] = not train
    return cls(**options)


def nnx_module(name: str, features: int, **options):
    cls = module_class(nnx, name)
    options = {**facts(name).module, **options}
    parameters = inspect.signature(cls.__init__).parameters
    if "in_features" in parameters:
        options["in_features"] = features
    if "rngs" in parameters:
        options["rngs"] = flax_nnx.Rngs(0)
    return cls(**options)


def random_variables(name: str, features: int, seed: int = 0, dtype=np.float64, module=None):
    """Variables with every weight and statistic random, by a stable seed.

    They are those of a mechanism's Linen module, or of one of its modules with other options.
    """
    x = jnp.ones((1, *facts(name).shape[1:3], features), jnp.float32)
    module = linen_module(name) if module is None else module
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, *facts(name).others(x))

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
