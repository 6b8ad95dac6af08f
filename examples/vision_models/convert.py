"""Load timm's weights into our models.

    load_timm(model, timm.create_model("seresnet50", pretrained=True).state_dict())

Images of our models are `[H, W, 3]`, and those of timm `[3, H, W]`. Both are normalised by the mean
and standard deviation of timm's `default_cfg`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

# Names of the arrays of a layer in Flax, by their names in PyTorch.
LEAVES = {
    "weight": ("kernel", "scale"),
    "running_mean": ("mean",),
    "running_var": ("var",),
}
Split = Callable[[np.ndarray], Mapping[str, np.ndarray]]


def side_by_side(*names: str) -> Split:
    """Split a weight `[parts · C, *I]` into consecutive parts."""
    return lambda weight: dict(zip(names, np.split(weight, len(names)), strict=True))


def head_by_head(*names: str, head_dim: int) -> Split:
    """Split a weight `[N · parts · D, *I]`, in which the parts of each head are consecutive."""

    def split(weight: np.ndarray) -> Mapping[str, np.ndarray]:
        heads = weight.reshape(-1, len(names), head_dim, *weight.shape[1:])
        parts = np.moveaxis(heads, 1, 0).reshape(len(names), -1, *weight.shape[1:])
        return dict(zip(names, parts, strict=True))

    return split


# How to split layers that timm computes as one, by the name of the layer.
STACKED = {"qkv": side_by_side("query", "key", "value"), "kv": side_by_side("key", "value")}
# Arrays that our models do not have, or compute from their sizes.
LEFT_OUT = ("num_batches_tracked", "relative_position_index", "attn_mask")


def load_timm(model: nnx.Module, state_dict: Mapping[str, Any]) -> None:
    """Fill a model of this package in place with the weights and statistics of timm's model.

    Args:
      model: A model with `timm_names`, which translates timm's names of layers into ours, and with
        `timm_stacked` if its split layers differ from `STACKED`. It may be abstract,
        `nnx.eval_shape(build)`. It must be the model of the same name: other networks whose weights
        have the same names and shapes are not detected. For example, timm's tf_efficientnet_b0,
        which pads differently, fits efficientnet_b0, and resnetblur50 and resnetaa50 fit resnet50.
      state_dict: PyTorch tensors or NumPy arrays by timm's names: `timm_model.state_dict()`. They
        are copied.

    Raises:
      TypeError: If `model` is not of this package, `state_dict` is not a mapping, or a weight is
        complex.
      ValueError: If weights are missing or unknown, or shapes do not fit. The model is then
        unchanged.
    """
    if not hasattr(model, "timm_names"):
        raise TypeError(
            f"load_timm: model must be one of vision_models, got {type(model).__name__}. Build it "
            f"with MODELS[name](rngs=rngs)."
        )
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"load_timm: state_dict must be a mapping, got {type(state_dict).__name__}. "
            f"Pass model.state_dict()."
        )
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    places = {".".join(map(str, path)): place for path, place in nnx.to_flat_state(state)}
    names, missing, unknown, found = model.timm_names, dict(places), {}, {}
    for name, weight in unpacked(state_dict, STACKED | getattr(model, "timm_stacked", {})):
        path = next((p for p in candidates(name, names) if p in missing), None)
        if path is None:
            unknown[name] = weight
        else:
            place = missing.pop(path)
            fitted = converted(name, weight, path, place.shape)
            found[path] = np.array(fitted, place.dtype, order="C")  # jax may share NumPy's memory
    if unknown or missing:
        raise ValueError(
            f"load_timm: state_dict must have the weights of {type(model).__name__}. Unknown: "
            f"{shapes(unknown)}. Missing: {shapes(missing)}. Build both models with the same sizes "
            f"and the same attention."
        )
    for path, value in found.items():
        places[path].set_value(jnp.asarray(value))
    nnx.update(model, state)


def unpacked(
    state_dict: Mapping[str, Any], stacked: Mapping[str, Split]
) -> Iterator[tuple[str, np.ndarray]]:
    """The weights as NumPy arrays, with stacked layers split."""
    for name, tensor in state_dict.items():
        layer, _, leaf = name.rpartition(".")
        if leaf in LEFT_OUT:
            continue
        weight = as_numpy(tensor)
        outer, _, inner = layer.rpartition(".")
        if inner in stacked:
            for part, values in stacked[inner](weight).items():
                yield f"{outer}.{part}.{leaf}", values
        else:
            yield name, weight


def as_numpy(tensor: Any) -> np.ndarray:
    """A tensor or array as a NumPy array, in a dtype that NumPy has."""
    if hasattr(tensor, "detach"):
        tensor = tensor.detach()
        tensor = tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor
    return np.asarray(tensor)


def candidates(name: str, names: Mapping[str, str]) -> Iterator[str]:
    """`layer1.0.bn1.weight` -> `stages.0.0.bn1.kernel`, `stages.0.0.bn1.scale`."""
    path = f".{name}."
    for theirs, ours in names.items():
        path = path.replace(f".{theirs}.", f".{ours}.")
    layer, _, leaf = path.strip(".").rpartition(".")
    return (f"{layer}.{ours}".lstrip(".") for ours in LEAVES.get(leaf, (leaf,)))


def converted(name: str, weight: np.ndarray, path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Kernels (O, I, *k) -> (*k, I, O), reshaped to dense layers and heads where Flax has these."""
    if np.iscomplexobj(weight):
        raise TypeError(f"load_timm: {name} must be real, got {weight.dtype}.")
    if path.endswith(".kernel"):
        weight = weight.transpose(*range(2, weight.ndim), 1, 0)
    if not splits(shape, weight.shape):
        raise ValueError(
            f"load_timm: {name} must fit {path} {list(shape)}, got {list(weight.shape)} in Flax's "
            f"layout. Build both models with the same sizes."
        )
    return weight.reshape(shape)


def splits(fine: tuple[int, ...], coarse: tuple[int, ...]) -> bool:
    """True if `fine` is `coarse` with some axes split, apart from axes of size 1."""
    ends = [set(np.cumprod(shape, dtype=int).tolist()) | {1} for shape in (fine, coarse)]
    return ends[1] <= ends[0] and np.prod(fine) == np.prod(coarse)


def shapes(arrays: Mapping[str, Any]) -> str:
    """`bn1.scale [64], bn1.bias [64]`, or `none`."""
    return ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items()) or "none"
