"""Checks shared by the public functions. Each error names the numbers and the fix."""

import operator
import sys
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Map = Callable[[jax.Array], jax.Array]
Activation = Callable[[jax.Array], jax.Array]


def statistics_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype of statistics, scores and accumulators of an array: at least float32."""
    return jnp.dtype(dtype if jnp.finfo(dtype).bits > 32 else jnp.float32)


def is_wide(x: jax.Array) -> bool:
    """Whether an array already has the dtype of its statistics."""
    return statistics_dtype(x.dtype) == x.dtype


def warn(message: str) -> None:
    """Warn with the line that called the library."""
    level = 1
    frame: types.FrameType | None = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("flax_attn"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def check_array(owner: str, name: str, array: jax.Array) -> None:
    """Raise unless it is an array of NumPy or JAX."""
    if isinstance(array, jax.Array | np.ndarray):
        return
    if not hasattr(array, "dtype") or not hasattr(array, "shape"):
        raise TypeError(
            f"{owner}: {name} must be an array, got {type(array).__name__}. "
            f"Wrap it: jnp.asarray({name})."
        )
    try:
        jnp.dtype(array.dtype)
    except TypeError:  # an array of another library
        library = type(array).__module__.partition(".")[0]
        convert = ".detach().cpu().numpy()" if library == "torch" else ".numpy()"
        raise TypeError(
            f"{owner}: {name} must be an array of JAX or NumPy, got {library}'s "
            f"{type(array).__name__}. Convert it: jnp.asarray({name}{convert})."
        ) from None


def check_arrays(owner: str, **arrays: jax.Array | None) -> None:
    """Raise unless each is an array of NumPy or JAX, or None."""
    for name, array in arrays.items():
        if array is not None:
            check_array(owner, name, array)


def as_floating(function: str, name: str, array: jax.Array) -> jax.Array:
    """The array as a JAX array; `TypeError` unless it is real floating point."""
    check_array(function, name, array)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(
            f"{function}: {name} must be real floating point, got {array.dtype}. Pass both parts "
            f"as channels: jnp.concatenate([{name}.real, {name}.imag], axis=-1)."
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"{function}: {name} must be floating point, got {array.dtype}. "
            f"Convert it: {name}.astype(jnp.float32)."
        )
    return jnp.asarray(array)


def check_maps(function: str, **maps: Any) -> None:
    """Raise unless each is a map, a sequence of maps, or None."""
    for name, given in maps.items():
        many = isinstance(given, Sequence) and not isinstance(given, str) and not callable(given)
        for number, one in enumerate(given if many else [given]):
            if one is not None:
                _check_map(function, f"{name}[{number}]" if many else name, one)


def _check_map(function: str, name: str, given: Any) -> None:
    attention = name in ("attention", "attention_fn")
    kind = "function" if attention or name.endswith("_fn") else "map"
    fix = "Bind arrays by flax_attn.maps, such as maps.dense(kernel, bias)."
    got = type(given).__name__
    if isinstance(given, jax.Array | np.ndarray) or hasattr(given, "__jax_array__"):
        bind = {3: "conv1d(kernel), or to heads maps.dense", 4: "conv"}.get(given.ndim, "dense")
        got, fix = f"an array {list(given.shape)}", f"Bind it: maps.{bind}(kernel)."
    elif isinstance(given, Mapping):
        fix = f"Bind its arrays, as maps.dense({name}['kernel'], {name}['bias'])."
    elif isinstance(given, str):
        function_of_name = "flax_attn.dot_product_attention" if attention else f"jax.nn.{given}"
        got, fix = repr(given), f"Pass the function, as {function_of_name}."
    elif isinstance(given, type):
        got, fix = f"the class {given.__name__}", "Create an instance."
    elif type(given).__module__.partition(".")[0] == "torch":
        got, fix = f"torch's {got}", "Bind its weights: maps.dense(jnp.asarray(weight.T.numpy()))."
    elif callable(given):
        return
    raise TypeError(f"{function}: {name} must be a {kind} from array to array, got {got}. {fix}")


def broadcasts_to(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether an array of `shape` broadcasts to exactly `target`."""
    if len(shape) > len(target):
        return False
    trailing = target[len(target) - len(shape) :]
    return all(size in (1, full) for size, full in zip(shape, trailing, strict=True))


def expand_rank(array: jax.Array, ndim: int) -> jax.Array:
    """Prepend axes of size 1 until `array` has `ndim` axes."""
    return array.reshape((1,) * (ndim - array.ndim) + array.shape)


def broadcast_like(array: jax.Array, like: jax.Array, last: int | None = None) -> jax.Array:
    """The array broadcast to the shape of another, or to that shape with a last axis of `last`.

    On an explicit mesh it is divided as `like` is. Without that, its gradient would be gathered.
    """
    shape = like.shape if last is None else (*like.shape[:-1], last)
    sharding = jax.typeof(like).sharding
    return jnp.broadcast_to(array, shape, out_sharding=sharding if any(sharding.spec) else None)


def as_integer(function: str, name: str, number: int) -> int:
    """The number as a Python integer; `TypeError` if it is not a whole number."""
    try:
        return operator.index(number)
    except TypeError:
        shape = getattr(number, "shape", ())
        got = f"an array {list(shape)}" if shape else repr(number)
        raise TypeError(f"{function}: {name} must be one whole number, got {got}.") from None


def check_features(
    module: str, x: jax.Array, features: int, name: str = "x", fix: str = ""
) -> None:
    """Raise unless `x` is an array with the module's number of input channels."""
    check_array(module, name, x)
    if x.shape[-1:] != (features,):
        if x.shape[-3:-2] == (features,):
            fix = fix or f"Images are [*B, H, W, C]: jnp.moveaxis({name}, -3, -1)."
        raise ValueError(
            f"{module}: {name} must have the {features} channels that the module was made for, "
            f"got {list(x.shape)}. {fix}".rstrip()
        )


def reduced_features(
    module: str, features: int, reduction: int, hidden_features: int | None, least: int = 0
) -> int:
    """R: `hidden_features`, or max(least, C // reduction), which must not be 0."""
    if hidden_features is not None:
        return check_positive(module, "hidden_features", hidden_features)
    reduced = max(least, features // check_positive(module, "reduction", reduction))
    if reduced == 0:
        raise ValueError(
            f"{module}: C // reduction must be at least 1, got {features} // {reduction} = 0. "
            f"Use a smaller reduction, or hidden_features=1."
        )
    return reduced


def output_features(module: str, features: int, out_features: int | None) -> int:
    """The output channels: `out_features`, or C."""
    if out_features is None:
        return features
    return check_positive(module, "out_features", out_features)


def check_at_least(owner: str, name: str, number: int, least: int) -> int:
    """The number as an integer; raise unless it is whole and at least `least`."""
    size = as_integer(owner, name, number)
    if size < least:
        raise ValueError(f"{owner}: {name} must be at least {least}, got {size}.")
    return size


def check_positive(owner: str, name: str, number: int) -> int:
    """The number as an integer; raise unless it is whole and at least 1."""
    return check_at_least(owner, name, number, 1)


def check_above_zero(owner: str, name: str, number: float) -> None:
    """Raise unless a number is above 0. A traced number is not checked."""
    if not isinstance(number, jax.core.Tracer) and not number > 0:
        raise ValueError(f"{owner}: {name} must be above 0, got {number}.")


def check_multiple(owner: str, name: str, features: int, of: str, groups: int) -> int:
    """The channels per group; raise unless `groups` divides the channels."""
    groups = check_positive(owner, of, groups)
    if features % groups:
        chosen = " and ".join(factor for factor in of.split(" · ") if not factor.isdigit())
        raise ValueError(
            f"{owner}: {name} must be a multiple of {of} = {groups}, got {name} = {features}. "
            f"Choose {chosen} so that {of} divides {name}."
        )
    return features // groups


def group_features(owner: str, features: int, groups: int, *, parts: int = 1) -> int:
    """C / (parts · groups), the channels of each part of a group; it must be a whole number."""
    groups = check_positive(owner, "groups", groups)
    of = "groups" if parts == 1 else f"{parts} · groups"
    return check_multiple(owner, "C", features, of, parts * groups)


def head_features(owner: str, features: int, num_heads: int) -> int:
    """D = C / num_heads, which must be a whole number."""
    return check_multiple(owner, "C", features, "num_heads", num_heads)


def heads_of_32(owner: str, features: int, num_heads: int | None) -> tuple[int, int]:
    """N and D = C / N; by default, heads of 32 channels."""
    if num_heads is None:
        num_heads = features // 32
        if num_heads == 0:
            raise ValueError(
                f"{owner}: num_heads must be given for fewer than 32 channels, got C = {features}. "
                f"The default is C // 32."
            )
    return num_heads, head_features(owner, features, num_heads)


def check_odd(module: str, kernel_size: int, name: str = "kernel_size") -> int:
    """The kernel size; raise unless it is odd."""
    size = as_integer(module, name, kernel_size)
    if size < 1 or size % 2 == 0:
        raise ValueError(
            f"{module}: {name} must be odd and at least 1, got {size}. Use {max(size, 0) + 1}."
        )
    return size


def dilated_kernels(
    module: str, kernel_sizes: Sequence[int], dilations: Sequence[int]
) -> list[tuple[int, int]]:
    """The odd size and the dilation of each kernel."""
    kernel_sizes = _as_list(module, "kernel_sizes", kernel_sizes)
    dilations = _as_list(module, "dilations", dilations)
    if len(kernel_sizes) != len(dilations):
        raise ValueError(
            f"{module}: kernel_sizes and dilations must pair up, got {len(kernel_sizes)} and "
            f"{len(dilations)}."
        )
    sizes = [check_odd(module, size, "kernel_sizes") for size in kernel_sizes]
    return list(zip(sizes, check_dilations(module, dilations), strict=True))


def check_dilations(module: str, dilations: Sequence[int]) -> list[int]:
    """The dilations; raise unless there is at least one and each is positive."""
    dilations = _as_list(module, "dilations", dilations)
    check_positive(module, "the number of dilations", len(dilations))
    return [check_positive(module, "dilations", dilation) for dilation in dilations]


def _as_list(module: str, name: str, numbers: Sequence[int]) -> list[int]:
    try:
        return list(numbers)
    except TypeError:
        raise TypeError(
            f"{module}: {name} must be a sequence, got {numbers!r}. Give a number for each kernel, "
            f"such as (1, 3)."
        ) from None
