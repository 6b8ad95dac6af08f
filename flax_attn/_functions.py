"""Functions of users in masks and score modifiers: checks, calls, pickling."""

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import jax

BRANCHING_ERRORS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def check_function(owner: str, function: Any, example: str) -> None:
    """Raise unless `function` is a function.

    Args:
      owner: Name of the public function, for error messages.
      function: The argument.
      example: The first line of such a function, for error messages.
    """
    if not callable(function) or inspect.isclass(function):
        kind = function.__name__ if inspect.isclass(function) else type(function).__name__
        raise TypeError(f"{owner}: function must be a function, {example}, got {kind}.")


def kind_of(x: Any) -> str:
    """How error messages name an object: its type, or its name if it is a class or function."""
    if isinstance(x, type):
        return f"the class {x.__name__}"
    if callable(x) and hasattr(x, "__name__"):
        return f"the function {x.__name__}"
    return type(x).__name__


def name_of(function: Any) -> str:
    """The name of a function; the name of the type of another callable."""
    return getattr(function, "__name__", type(function).__name__)


def check_parameters(function: Callable[..., Any], inputs: str, parameters: dict[str, Any]) -> None:
    """Raise unless a function can be called with the inputs and the parameters.

    Args:
      function: The function.
      inputs: Names of its positional arguments, `"q, k"`.
      parameters: Its keyword arguments.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions have no signature
        return
    count = len(inputs.split(", "))
    try:
        signature.bind(*[None] * count, **parameters)
    except TypeError as error:
        name = name_of(function)
        raise TypeError(
            f"{name}: the function must be {name}({inputs}, **parameters), got {name}{signature} "
            f"and the parameters {', '.join(parameters) or 'none'}: {error}."
        ) from None


def call(function: Callable[..., Any], kind: str, *inputs: Any, **parameters: Any) -> Any:
    """Call a function of a user, and explain the error if it branches on the value of an array.

    Args:
      function: The function.
      kind: `"relation"` or `"score modifier"`, for error messages.
      *inputs: Its positional arguments.
      **parameters: Its keyword arguments.
    """
    try:
        return function(*inputs, **parameters)
    except (ValueError, TypeError) as error:
        texts = ("truth value of an array", "Only scalar arrays", "Only integer scalar arrays")
        branches = any(text in str(error) for text in texts)
        if not branches and not isinstance(error, BRANCHING_ERRORS):
            raise
        raise TypeError(
            f"{name_of(function)}: a {kind} must not branch on the value of an array, as it works "
            f"on many tokens at once. Write (a) & (b), (a) | (b), ~(a) for and, or, not; "
            f"(a <= b) & (b <= c) for a <= b <= c; jnp.where for if; jnp.maximum and jnp.minimum "
            f"for max and min; jnp for np."
        ) from error


def by_name(function: Callable[..., Any]) -> Any:
    """A picklable stand-in for a function: the function itself, or its name.

    After `@relation`, the name of the function refers to what `relation` returned, so pickle would
    refuse the function itself.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    try:
        if _made_of(_find(module, name)) is function:
            return module, name
    except (AttributeError, ImportError, TypeError, ValueError):
        pass
    return function


def from_name(named: Any) -> Callable[..., Any]:
    """The inverse of `by_name`."""
    return _made_of(_find(*named)) if isinstance(named, tuple) else named


def _find(module: Any, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))


def _made_of(made: Any) -> Any:
    """The function of a relation or score modifier."""
    return made.function
