"""timm's weights into our models.

    load_timm(model, timm.create_model("seresnet50", pretrained=True).state_dict())

An image in our models is `[H, W, 3]`, in timm's `[3, H, W]`; both are normalised by the mean and
standard deviation of timm's `default_cfg`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

# A layer's arrays by PyTorch's name and by Flax's.
LEAVES = {
    "weight": ("kernel", "scale"),
    "running_mean": ("mean",),
    "running_var": ("var",),
}
Split = Callable[[np.ndarray], Mapping[str, np.ndarray]]


def side_by_side(*names: str) -> Split:
    """A weight `[parts · C, *I]` as parts of one size, one after the other."""
    return lambda weight: dict(zip(names, np.split(weight, len(names)), strict=True))


def head_by_head(*names: str, head_dim: int) -> Split:
    """A weight `[N · parts · D, *I]`, where each head has its parts together."""

    def split(weight: np.ndarray) -> Mapping[str, np.ndarray]:
        heads = weight.reshape(-1, len(names), head_dim, *weight.shape[1:])
        parts = np.moveaxis(heads, 1, 0).reshape(len(names), -1, *weight.shape[1:])
        return dict(zip(names, parts, strict=True))

    return split


# Layers that timm computes as one, by the name of the one.
STACKED = {"qkv": side_by_side("query", "key", "value"), "kv": side_by_side("key", "value")}
# What PyTorch counts, and what our models compute from their sizes.
LEFT_OUT = ("num_batches_tracked", "relative_position_index", "attn_mask")


def load_timm(model: nnx.Module, state_dict: Mapping[str, Any]) -> None:
    """Fill a model of this package, in place, with the weights and statistics of timm's model.

    Args:
      model: A model with `timm_names`, which translate timm's names of layers into ours, and
        `timm_stacked` where it splits other layers than `STACKED`, or in another way. May be
        abstract, `nnx.eval_shape(build)`. It must be the one of the same name: of networks whose
        weights have the same names and shapes none is refused. timm's tf_efficientnet_b0, which
        pads otherwise, fits efficientnet_b0, and resnetblur50 and resnetaa50 fit resnet50.
      state_dict: PyTorch tensors or NumPy arrays, by timm's names: `timm_model.state_dict()`. They
        are copied.

    Raises:
      TypeError: If `model` is not of this package, `state_dict` no mapping, or a weight complex.
      ValueError: If a weight has no place, a place no weight, or the shapes do not fit. The model
        is as before then.
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
            f"load_timm: state_dict must fill {type(model).__name__}. Weights without a place: "
            f"{shapes(unknown)}. Places without a weight: {shapes(missing)}. Build both models "
            f"with the same sizes and the same attention."
        )
    for path, value in found.items():
        places[path].set_value(jnp.asarray(value))
    nnx.update(model, state)


def unpacked(
    state_dict: Mapping[str, Any], stacked: Mapping[str, Split]
) -> Iterator[tuple[str, np.ndarray]]:
    """The weights as NumPy arrays, with queries, keys and values apart."""
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
    """An array of a dtype that NumPy has, of a PyTorch tensor too."""
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
    """Kernels (O, I, *k) -> (*k, I, O), without the k of 1×1 convolutions and with heads apart."""
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
    """Whether `fine` is `coarse` with some axes split, but for axes of size 1."""
    ends = [set(np.cumprod(shape, dtype=int).tolist()) | {1} for shape in (fine, coarse)]
    return ends[1] <= ends[0] and np.prod(fine) == np.prod(coarse)


def shapes(arrays: Mapping[str, Any]) -> str:
    """`bn1.scale [64], bn1.bias [64]`, or `none`."""
    return ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items()) or "none"
