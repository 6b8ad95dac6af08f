"""What is private, unstable or different between versions of JAX.

Written for JAX 0.10.2 to 0.12.0.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import checkify, jet
from jax.extend.core import ClosedJaxpr, Literal, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jax.sharding import AbstractMesh

Zero = ad.Zero
"""A tangent or cotangent that is known to be 0."""
instantiate_zeros = ad.instantiate_zeros
LoweringContext = mlir.LoweringRuleContext


def is_linear(operand: Any) -> bool:
    """Whether a transpose rule is asked for the cotangent of an operand."""
    return ad.is_undefined_primal(operand)


def check_traced(predicate: jax.Array, message: str) -> None:
    """An error of `jax.experimental.checkify` unless a traced predicate is True."""
    checkify.check(predicate, message)


def new_primitive(name: str, no_jet: str) -> Primitive:
    """A primitive with several results that is always compiled; `no_jet` is the error of `jet`."""
    primitive = Primitive(name)
    primitive.multiple_results = True

    @functools.lru_cache(maxsize=256)
    def jitted(**settings: Any) -> Callable[..., list[jax.Array]]:
        return jax.jit(functools.partial(primitive.bind, **settings))

    def compiled(*operands: jax.Array, **settings: Any) -> list[jax.Array]:
        with jax.disable_jit(False):  # a primitive has no other meaning than its compiled program
            return jitted(**settings)(*operands)

    def refuse(*args: Any, **settings: Any) -> Any:
        del args, settings
        raise NotImplementedError(no_jet)

    primitive.def_impl(compiled)
    jet.jet_rules[primitive] = refuse
    return primitive


def set_rules(
    primitive: Primitive,
    *,
    shapes: Callable[..., Any],
    jvp: Callable[..., Any],
    transpose: Callable[..., Any],
    batch: Callable[..., Any],
) -> None:
    """Register the abstract values, derivatives and batching of a primitive."""
    primitive.def_abstract_eval(shapes)
    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = batch


def set_lowering(primitive: Primitive, rule: Callable[..., Any], platform: str | None) -> None:
    """Register how a primitive is lowered for a platform; None = for all others."""
    mlir.register_lowering(primitive, rule, platform=platform)


def varying_axes(x: jax.Array) -> frozenset[str]:
    """The mesh axes of a surrounding `shard_map` along which an array differs between devices."""
    return jax.typeof(x).mat.varying


def _vary(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """An array as one that differs along mesh axes; its gradient is summed in float32."""
    is_half = x.dtype in (jax.numpy.bfloat16, jax.numpy.float16)
    wide = x.astype(jax.numpy.float32) if is_half else x
    return jax.lax.pcast(wide, axes, to="varying").astype(x.dtype)


def vary_together(arrays: list[jax.Array]) -> list[jax.Array]:
    """Make arrays differ along the same mesh axes, as `shard_map` wants of operands.

    Those of half precision do so in float32, so that their gradients are summed over the devices in
    float32. Also, XLA for CPUs (JAX 0.10.2 to 0.12.0) aborts at a `pcast` of bfloat16 within a
    `shard_map` over some of the mesh axes: "Invalid binary instruction opcode copy".
    """
    axes = frozenset().union(*(varying_axes(x) for x in arrays))
    return [
        _vary(x, missing) if (missing := tuple(sorted(axes - varying_axes(x)))) else x
        for x in arrays
    ]


NO_MESH = AbstractMesh((), ())


@contextlib.contextmanager
def no_mesh(ctx: LoweringContext) -> Iterator[LoweringContext]:
    """Inside the block there is no mesh. Yields a lowering context without mesh types.

    The types of an explicit mesh or of `shard_map` would forbid loops over what they split. The
    axes of a `shard_map` keep their names, for collectives. One over some axes of a mesh keeps the
    mesh, which JAX needs to number the devices.
    """
    from jax._src.config import _check_vma

    avals: Any = ctx.avals_in
    context: Any = ctx.module_context.axis_context
    plain = [jax.core.ShapedArray(x.shape, x.dtype) for x in avals]
    mesh = jax.sharding.get_abstract_mesh()
    is_whole = getattr(context, "manual_axes", frozenset()) in (frozenset(), {*mesh.axis_names})
    with jax.sharding.use_abstract_mesh(NO_MESH if is_whole else mesh), _check_vma(False):
        yield ctx.replace(avals_in=plain)


def lower_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """A lowering rule from a function of arrays with several results."""
    return mlir.lower_fun(function, multiple_results=True)


def is_divided(ctx: LoweringContext) -> bool:
    """Whether XLA's partitioner will divide the module being lowered among several devices.

    False within a `shard_map` over all axes of its mesh and within `pmap`: shapes are local there.
    """
    context: Any = ctx.module_context.axis_context
    manual = getattr(context, "manual_axes", None)
    if manual is not None:  # shard_map; the other axes of its mesh are left to XLA
        return math.prod(n for name, n in context.mesh.shape.items() if name not in manual) > 1
    return getattr(context, "num_devices", 1) > 1


# ---- primitives


def identity_primitive(
    name: str,
    cpu: Callable[[Sequence[jax.Array]], Sequence[jax.Array]],
    *,
    cotangents: bool = True,
) -> Callable[..., tuple[jax.Array, ...]]:
    """Make a function that returns its arrays unchanged, lowered to another identity on CPUs.

    Args:
      name: The name of the primitive.
      cpu: What it is lowered to on CPUs: a function from a list of arrays to the same arrays, such
        as `jax.lax.optimization_barrier`. Other platforms get nothing.
      cotangents: Whether cotangents pass through the primitive too. Tangents always do.

    Returns:
      A function of arrays that returns a tuple of them.
    """
    identity_p = Primitive(name)
    identity_p.multiple_results = True

    def jvp(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[list, list]:
        nonzero = iter(identity_p.bind(*(t for t in tangents if not isinstance(t, Zero))))
        passed = [t if isinstance(t, Zero) else next(nonzero) for t in tangents]
        return identity_p.bind(*primals), passed

    def transpose(given: Sequence[Any], *arrays: Any) -> list[jax.Array]:
        del arrays
        instantiated = [instantiate_zeros(cotangent) for cotangent in given]
        return identity_p.bind(*instantiated) if cotangents else instantiated

    def batch(arrays: Sequence[Any], axes: Sequence[Any]) -> tuple[list, Sequence[Any]]:
        return identity_p.bind(*arrays), axes

    def unchanged(*arrays: Any) -> list[Any]:
        return list(arrays)

    def on_cpus(*arrays: jax.Array) -> Sequence[jax.Array]:
        return cpu(arrays)

    identity_p.def_impl(unchanged)
    set_rules(identity_p, shapes=unchanged, jvp=jvp, transpose=transpose, batch=batch)
    set_lowering(identity_p, lambda ctx, *arrays: arrays, None)
    set_lowering(identity_p, lower_function(on_cpus), "cpu")
    return lambda *arrays: tuple(identity_p.bind(*arrays))


Program = Callable[..., list[jax.Array]]


def choice_primitive(
    name: str, choose: Callable[[LoweringContext], bool]
) -> Callable[..., list[jax.Array]]:
    """Make a function that chooses between two equal programs when it is lowered.

    Both programs are traced, and transformed together by `vmap`, `jvp` and transposition.

    Args:
      name: The name of the primitive.
      choose: Whether to take the second program, asked at each lowering.

    Returns:
      A function `choice(first, second, *arrays)` of two functions from arrays to a list of arrays.
      Outside `jit` it runs the first.
    """
    choice_p = Primitive(name)
    choice_p.multiple_results = True

    def bind(first: Program, second: Program, *arrays: Any) -> list[jax.Array]:
        programs = tuple(jax.make_jaxpr(program)(*arrays) for program in (first, second))
        return choice_p.bind(*arrays, programs=programs)

    def transformed(
        transform: Callable[[Program], Program], programs: Sequence[ClosedJaxpr], *arrays: Any
    ) -> list[jax.Array]:
        first, second = (transform(jaxpr_as_fun(program)) for program in programs)
        return bind(first, second, *arrays)

    def batch(arrays: Sequence[Any], axes: Sequence[Any], *, programs: Any) -> tuple[list, list]:
        results = transformed(lambda f: jax.vmap(f, tuple(axes)), programs, *arrays)
        return results, [0] * len(results)

    def jvp(primals: Sequence[Any], tangents: Sequence[Any], *, programs: Any) -> tuple:
        moving = [i for i, t in enumerate(tangents) if not isinstance(t, Zero)]
        count = len(primals)

        def tangent_of(f: Program) -> Program:
            def run(*arrays: jax.Array) -> list[jax.Array]:
                def of_moving(*values: jax.Array) -> list[jax.Array]:
                    return f(*_replaced(arrays[:count], moving, values))

                at = [arrays[i] for i in moving]
                return jax.jvp(of_moving, at, list(arrays[count:]))[1]

            return run

        results = choice_p.bind(*primals, programs=programs)
        nonzero = [tangents[i] for i in moving]
        return results, transformed(tangent_of, programs, *primals, *nonzero)

    def transpose(cotangents: Sequence[Any], *arrays: Any, programs: Any) -> list[jax.Array | None]:
        linear = [i for i, x in enumerate(arrays) if is_linear(x)]
        count = len(arrays)

        def transposed(f: Program) -> Program:
            def run(*arrays: jax.Array) -> list[jax.Array]:
                def of_linear(*values: jax.Array) -> list[jax.Array]:
                    return f(*_replaced(arrays[:count], linear, values))

                _, pull_back = jax.vjp(of_linear, *(arrays[i] for i in linear))
                return list(pull_back(list(arrays[count:])))

            return run

        anywhere = [
            instantiate_zeros(Zero(x.aval)) if i in linear else x for i, x in enumerate(arrays)
        ]
        given = map(instantiate_zeros, cotangents)
        found = iter(transformed(transposed, programs, *anywhere, *given))
        return [next(found) if i in linear else None for i in range(count)]

    def lower(ctx: LoweringContext, *arrays: Any, programs: Any) -> Sequence[Any]:
        return lower_function(jaxpr_as_fun(programs[choose(ctx)]))(ctx, *arrays)

    def shapes(*arrays: Any, programs: Any) -> list[Any]:
        return list(programs[0].out_avals)

    choice_p.def_impl(lambda *arrays, programs: jaxpr_as_fun(programs[0])(*arrays))
    set_rules(choice_p, shapes=shapes, jvp=jvp, transpose=transpose, batch=batch)
    set_lowering(choice_p, lower, None)
    return bind


def _replaced(
    arrays: Sequence[jax.Array], places: Sequence[int], values: Sequence[jax.Array]
) -> list[jax.Array]:
    new = dict(zip(places, values, strict=True))
    return [new.get(i, x) for i, x in enumerate(arrays)]


# ---- jaxprs


def open_jaxpr(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """A jaxpr and its constants: JAX 0.10 keeps them in a `ClosedJaxpr`, 0.12 in the jaxpr."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def literal_value(atom: Any) -> np.ndarray | None:
    """The value of a jaxpr's atom if it is a literal; None if it is a variable."""
    return np.asarray(atom.val) if isinstance(atom, Literal) else None


def bind_equation(equation: Any, values: Sequence[Any]) -> Sequence[jax.Array]:
    """The results of an equation of a jaxpr for other operands, of any shape that fits."""
    results = equation.primitive.bind(
        *values, **equation.primitive.get_bind_params(equation.params)
    )
    return results if equation.primitive.multiple_results else [results]


def derivative_of_equation(equation: Any) -> ClosedJaxpr:
    """Results and tangents of an equation, from its operands and the tangents of the floats."""
    operands = [jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype) for x in equation.invars]
    moving = [i for i, x in enumerate(operands) if jax.numpy.issubdtype(x.dtype, np.inexact)]

    def derivative(*arrays: jax.Array) -> tuple[Sequence[jax.Array], Sequence[jax.Array]]:
        values, changes = arrays[: len(operands)], arrays[len(operands) :]

        def of_moving(*moved: jax.Array) -> list[jax.Array]:
            return list(bind_equation(equation, _replaced(values, moving, moved)))

        return jax.jvp(of_moving, [values[i] for i in moving], list(changes))

    return jax.make_jaxpr(derivative)(*operands, *(operands[i] for i in moving))


# ---- outside of a trace


@contextlib.contextmanager
def outside_of_traces() -> Iterator[None]:
    """Inside the block, functions of JAX compute as they do outside `jit`.

    In `jax.ensure_compile_time_eval`, constants of functions that are traced are computed, too:
    a jaxpr then holds an array in place of the operation that makes it.
    """
    from jax._src.core import eval_context

    with eval_context():
        yield


# ---- Flax


def is_captured(module: Any) -> bool:
    """Whether an NNX module runs inside `flax.nnx.capture`.

    Flax has no public way to ask. This is the attribute that `Module.sow` itself looks for (Flax
    0.12.8 on).
    """
    return hasattr(module, "__captures__")
