"""Programs in another form where XLA divides them among devices, as `lax.platform_dependent`.

XLA's partitioner keeps a batch divided through most operations, but not through all. Where it
would bring the parts together, a program of other operations computes the same.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from flax_attn._jax import is_divided

Arrays = Sequence[jax.Array]
Program = Callable[..., list[jax.Array]]


def devices_dependent(
    *arrays: jax.Array,
    one: Callable[..., jax.Array],
    several: Callable[..., jax.Array],
) -> jax.Array:
    """`one(*arrays)`; `several(*arrays)`, which must be equal, in what XLA divides among devices.

    The form is chosen when the program is lowered. Inside `shard_map` over all axes of a mesh,
    where each device runs a program of its own, it is `one`.
    """
    (result,) = _bind(lambda *xs: [one(*xs)], lambda *xs: [several(*xs)], *arrays)
    return result


def _bind(one: Program, several: Program, *arrays: Any) -> list[jax.Array]:
    programs = tuple(jax.make_jaxpr(program)(*arrays) for program in (one, several))
    return devices_dependent_p.bind(*arrays, programs=programs)


def _transformed(
    transform: Callable[[Program], Program], programs: Sequence[ClosedJaxpr], *arrays: Any
) -> list[jax.Array]:
    """Both forms transformed in the same way, and bound."""
    one, several = (transform(jaxpr_as_fun(program)) for program in programs)
    return _bind(one, several, *arrays)


def _batch(arrays: Arrays, axes: Sequence[Any], *, programs: Sequence[ClosedJaxpr]) -> tuple:
    results = _transformed(lambda f: jax.vmap(f, tuple(axes)), programs, *arrays)
    return results, [0] * len(results)


def _jvp(primals: Arrays, tangents: Sequence[Any], *, programs: Sequence[ClosedJaxpr]) -> tuple:
    moving = [i for i, t in enumerate(tangents) if not isinstance(t, ad.Zero)]
    count = len(primals)

    def change(f: Program) -> Program:
        def run(*arrays: jax.Array) -> list[jax.Array]:
            def of_moving(*values: jax.Array) -> list[jax.Array]:
                return f(*_replaced(arrays[:count], moving, values))

            at = [arrays[i] for i in moving]
            return jax.jvp(of_moving, at, list(arrays[count:]))[1]

        return run

    results = devices_dependent_p.bind(*primals, programs=programs)
    return results, _transformed(change, programs, *primals, *(tangents[i] for i in moving))


def _transpose(
    cotangents: Sequence[Any], *arrays: Any, programs: Sequence[ClosedJaxpr]
) -> list[jax.Array | None]:
    linear = [i for i, x in enumerate(arrays) if ad.is_undefined_primal(x)]
    count = len(arrays)

    def transposed(f: Program) -> Program:
        def run(*arrays: jax.Array) -> list[jax.Array]:
            def of_linear(*values: jax.Array) -> list[jax.Array]:
                return f(*_replaced(arrays[:count], linear, values))

            _, pull_back = jax.vjp(of_linear, *(arrays[i] for i in linear))
            return list(pull_back(list(arrays[count:])))

        return run

    anywhere = [
        ad.instantiate_zeros(ad.Zero(x.aval)) if i in linear else x for i, x in enumerate(arrays)
    ]
    given = map(ad.instantiate_zeros, cotangents)
    found = iter(_transformed(transposed, programs, *anywhere, *given))
    return [next(found) if i in linear else None for i in range(count)]


def _replaced(arrays: Arrays, places: Sequence[int], values: Arrays) -> list[jax.Array]:
    new = dict(zip(places, values, strict=True))
    return [new.get(i, x) for i, x in enumerate(arrays)]


def _lower(
    context: mlir.LoweringRuleContext, *arrays: Any, programs: Sequence[ClosedJaxpr]
) -> Sequence[Any]:
    program = programs[is_divided(context)]
    return mlir.lower_fun(jaxpr_as_fun(program), multiple_results=True)(context, *arrays)


devices_dependent_p = Primitive("devices_dependent")
devices_dependent_p.multiple_results = True
devices_dependent_p.def_impl(lambda *arrays, programs: jaxpr_as_fun(programs[0])(*arrays))
devices_dependent_p.def_abstract_eval(lambda *arrays, programs: list(programs[0].out_avals))
batching.primitive_batchers[devices_dependent_p] = _batch
ad.primitive_jvps[devices_dependent_p] = _jvp
ad.primitive_transposes[devices_dependent_p] = _transpose
mlir.register_lowering(devices_dependent_p, _lower)
