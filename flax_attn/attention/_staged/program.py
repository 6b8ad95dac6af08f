"""A function of arrays, cut into what depends on single tokens and what depends on pairs of them.

The equations of the function's jaxpr are sorted by what their results depend on:

    HEAD    parameters, batch elements and heads: one number per head
    QUERY   the query too: a vector over queries
    KEY     the key too: a vector over keys
    PAIR    both: an array over pairs

XLA computes all below PAIR once, outside of a kernel. A tile of a kernel computes the others from
the parts of these vectors that belong to it. They must be elementwise there: a tile knows no pairs
but its own.
"""

import enum
import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flax_attn._jax import bind_equation, derivative_of_equation, literal_value, open_jaxpr


class Depends(enum.IntFlag):
    """What a value depends on."""

    HEAD = 0
    QUERY = 1
    KEY = 2
    PAIR = 3


class NotStagedError(Exception):
    """A function cannot be cut; the message says why."""


INLINED = {"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"}
CUSTOM = "custom_jvp_call"
PLACED = {"reshard", "sharding_constraint", "pvary", "pcast"}
"""What says on which devices an array lies, and changes no value. JAX adds it in a `shard_map`."""

ELEMENTWISE = frozenset(
    """
    abs add add_any and atan2 cbrt ceil clamp convert_element_type copy copy_p cos cosh div eq erf
    erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le log log1p logistic lt max min
    mul ne neg nextafter not or pow rem round rsqrt select_n shift_left shift_right_arithmetic
    shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor
    """.split()  # noqa: SIM905 (a list of 60 lines reads worse)
)
"""Primitives whose result at a place depends on their operands at this place only."""

MOVES = frozenset(
    ["broadcast_in_dim", "concatenate", "expand_dims", "gather", "iota", "reshape", "squeeze"]
)
"""What else may be done with vectors over tokens: nothing that joins several tokens."""


class Value:
    """A value of a program.

    Attributes:
      shape: Its shape.
      dtype: Its dtype.
      depends: What it depends on.
    """

    def __init__(self, aval: Any, depends: Depends) -> None:
        self.shape, self.dtype, self.depends = aval.shape, aval.dtype, depends


class Constant(NamedTuple):
    """A number or an array in the text of a program."""

    value: Any
    depends: Depends = Depends.HEAD


Atom = Value | Constant


class Step(NamedTuple):
    """An equation of a program."""

    equation: Any
    inputs: list[Atom]
    outputs: list[Value]

    @property
    def depends(self) -> Depends:
        """What its results depend on."""
        return self.outputs[0].depends

    @property
    def name(self) -> str:
        """The name of its primitive."""
        return self.equation.primitive.name


class Program:
    """A function cut into what is computed outside of tiles and what is computed in them.

    Attributes:
      inputs: The arguments of the function.
      results: Its results.
      given: What a tile needs to compute all results, apart from arguments that are `raw`.

    Args:
      function: A function of arrays that returns a list of arrays.
      arguments: Abstract values of its arguments.
      depends: What each argument depends on.
      raw: Which arguments a tile computes itself.

    Raises:
      NotStagedError: If it cannot be cut.
    """

    def __init__(
        self,
        function: Callable[..., Sequence[jax.Array]],
        arguments: Sequence[jax.ShapeDtypeStruct],
        depends: Sequence[Depends],
        raw: Sequence[int] = (),
    ) -> None:
        closed = jax.make_jaxpr(function)(*arguments)
        self.inputs = [Value(x, d) for x, d in zip(arguments, depends, strict=True)]
        self.steps: list[Step] = []
        self._single: dict[int, Atom] = {}  # what a value is, if it is one number, spread
        self._equal: dict[Any, Step] = {}
        self.results = self._flatten(closed, self.inputs)
        self._raw = [self.inputs[i] for i in raw]
        self._check()
        self.given = self._needed(range(len(self.results)))

    def _flatten(self, closed: Any, arguments: Sequence[Atom]) -> Sequence[Atom]:
        """Append the equations of a jaxpr, with calls replaced by what they call."""
        jaxpr, constants = open_jaxpr(closed)
        known: dict[Any, Atom] = dict(zip(jaxpr.constvars, map(Constant, constants), strict=True))
        known.update(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Atom:
            value = literal_value(atom)
            return known[atom] if value is None else Constant(value.astype(atom.aval.dtype))

        for equation in jaxpr.eqns:
            inputs = [read(atom) for atom in equation.invars]
            outputs: Sequence[Atom]
            if equation.primitive.name in INLINED:
                body = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
                outputs = self._flatten(body, inputs)
            elif equation.primitive.name in PLACED:
                outputs = inputs
            else:
                outputs = self._outputs(equation, inputs)
            known.update(zip(equation.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _outputs(self, equation: Any, inputs: list[Atom]) -> list[Value]:
        """The results of an equation, which is appended unless an equal one is there."""
        settings = sorted(equation.params.items())
        key = (equation.primitive, str(settings), tuple(map(_identity, inputs)))
        if equation.primitive.name == CUSTOM or key not in self._equal:
            depends = functools.reduce(operator.or_, (x.depends for x in inputs), Depends.HEAD)
            step = Step(equation, inputs, [Value(x.aval, depends) for x in equation.outvars])
            self.steps.append(step)
            self._equal[key] = step
            if step.name in ("broadcast_in_dim", "convert_element_type"):
                self._note_number(step.name, self._as_number(inputs[0]), step.outputs[0])
        return self._equal[key].outputs

    def _note_number(self, name: str, atom: Atom, result: Value) -> None:
        """Note that a result is a known number, or a number of the program that is spread."""
        if isinstance(atom, Value):
            if name == "broadcast_in_dim" and not atom.shape:
                self._single[id(result)] = atom
        elif isinstance(atom.value, np.ndarray) and atom.value.size == 1:
            number = atom.value.reshape(()).astype(result.dtype)
            self._single[id(result)] = Constant(number)

    def _as_number(self, atom: Atom) -> Atom:
        return self._single.get(id(atom), atom)

    def _check(self) -> None:
        for step in self._steps_for([x for x in self.results if isinstance(x, Value)]):
            if step.depends == Depends.PAIR:
                for name in names_within(step.equation):
                    if name not in ELEMENTWISE | {"broadcast_in_dim"}:
                        raise NotStagedError(f"{name} of pairs of tokens is not elementwise.")
                if any(isinstance(x, Constant) and np.size(x.value) > 1 for x in step.inputs):
                    raise NotStagedError("an array of pairs is no parameter. Give it as Aligned.")
            elif step.depends and not _keeps_tokens_apart(step):
                raise NotStagedError(f"{step.name} may join several tokens.")

    def _steps_for(self, wanted: Sequence[Value]) -> list[Step]:
        """The steps that some values need, in order."""
        needed, found = set(wanted), []
        for step in reversed(self.steps):
            if needed.intersection(step.outputs):
                found.append(step)
                needed.update(x for x in step.inputs if isinstance(x, Value))
        return found[::-1]

    def _needed(self, results: Sequence[int]) -> list[Value]:
        """What the tiles of some results need from outside."""
        values = [self.results[i] for i in results]
        steps = self._steps_for([x for x in values if isinstance(x, Value)])
        within = [step for step in steps if step.depends == Depends.PAIR]
        made = {id(x) for step in within for x in step.outputs}
        read = [*(x for step in within for x in step.inputs), *values]
        found: dict[int, Value] = {}
        for x in map(self._as_number, read):
            if isinstance(x, Value) and id(x) not in made and x not in self._raw:
                found[id(x)] = x
        return list(found.values())

    def depending_on(self, arguments: Sequence[int]) -> list[bool]:
        """Which of the values `given` depend on some of the arguments."""
        moved = {id(self.inputs[i]) for i in arguments}
        for step in self.steps:
            if any(id(x) in moved for x in step.inputs):
                moved.update(map(id, step.outputs))
        return [id(x) in moved for x in self.given]

    @property
    def dtypes_inside(self) -> set[jnp.dtype]:
        """The dtypes of what tiles read and compute."""
        steps = self._steps_for([x for x in self.results if isinstance(x, Value)])
        made = [x for step in steps if step.depends == Depends.PAIR for x in step.outputs]
        return {x.dtype for x in [*self.given, *made]}

    # ---- outside

    def outside(self, arguments: Sequence[Any]) -> list[jax.Array]:
        """The values `given`, from those of the arguments.

        The axes of queries and keys have size 1 where a value does not depend on them.

        Args:
          arguments: The values of the arguments; those that no given value needs are ignored.
        """
        known: dict[int, Any] = {id(x): y for x, y in zip(self.inputs, arguments, strict=True)}
        for step in self._steps_for(self.given):
            if step.depends == Depends.PAIR:
                continue
            outs = _compute_outside(step, [_read(known, x) for x in step.inputs])
            known.update(zip(map(id, step.outputs), outs, strict=True))
        return [known[id(x)] for x in self.given]

    # ---- in a tile

    def inside(
        self, results: Sequence[int], raw: Sequence[jax.Array], given: Sequence[Any]
    ) -> list[jax.Array]:
        """Some of the results, on a tile.

        Args:
          results: Their numbers.
          raw: The tiles of the raw arguments.
          given: The values `given` as tiles.
        """
        wanted = [self.results[i] for i in results]
        known = {id(x): y for x, y in zip(self.given, given, strict=True)}
        known.update((id(x), y) for x, y in zip(self._raw, raw, strict=True))
        shape = next(x.shape for x in [*raw, *given] if x is not None)

        def tile(atom: Atom) -> jax.Array:
            return _lifted(_read(known, self._as_number(atom)), shape)

        for step in self._steps_for([x for x in wanted if isinstance(x, Value)]):
            if step.depends != Depends.PAIR:
                continue
            outs = _compute_inside(step.equation, list(map(tile, step.inputs)))
            known.update(zip(map(id, step.outputs), outs, strict=True))
        return list(map(tile, wanted))


def _identity(atom: Atom) -> Any:
    """What is equal for equal atoms."""
    if isinstance(atom, Value) or isinstance(atom.value, jax.core.Tracer):
        return id(atom)
    value = np.asarray(atom.value)
    return value.dtype, value.shape, value.tobytes()


def _read(known: dict[int, Any], atom: Atom) -> Any:
    return atom.value if isinstance(atom, Constant) else known[id(atom)]


def _lifted(value: Any, shape: tuple[int, ...]) -> jax.Array:
    """A number, an array with one number, or a tile, as a tile."""
    if jnp.shape(value) == shape:
        return value
    if jnp.size(value) != 1:
        raise NotStagedError(f"an array {list(value.shape)} belongs to no token and no head.")
    if isinstance(value, np.ndarray):  # a known number stays one in the text of a kernel
        return lax.full(shape, value.item(), value.dtype)
    return jnp.broadcast_to(value.reshape(()) if value.ndim else value, shape)


def _keeps_tokens_apart(step: Step) -> bool:
    """Whether each token of the result depends on the same token of the operands only."""
    if step.name == "gather":  # by the tokens, from what is the same for all
        return step.inputs[0].depends == Depends.HEAD
    return step.name in {CUSTOM, *ELEMENTWISE, *MOVES}


def names_within(equation: Any) -> Iterator[str]:
    """The names of the primitives that an equation computes, those of what it calls included."""
    name = equation.primitive.name
    if name in PLACED:
        return
    if name not in {CUSTOM, *INLINED}:
        yield name
        return
    body = equation.params.get("call_jaxpr", equation.params.get("jaxpr"))
    for inner in open_jaxpr(body)[0].eqns:
        yield from names_within(inner)


def _compute_outside(step: Step, values: list[Any]) -> Sequence[jax.Array]:
    """The results of an equation on whole arrays, whose broadcast axes stay of size 1."""
    equation = step.equation
    if step.name == "broadcast_in_dim":
        (array, *_), axes = values, equation.params["broadcast_dimensions"]
        shape = [1] * len(equation.params["shape"])
        for axis, size in zip(axes, jnp.shape(array), strict=True):
            shape[axis] = size
        return [lax.broadcast_in_dim(array, shape, axes)]
    if step.name in ELEMENTWISE:
        rank = max(jnp.ndim(x) for x in values)
        numbers = [x for x in values if jnp.ndim(x) == 0]
        if len(numbers) < len(values):
            whole = jnp.broadcast_shapes(*(x.shape for x in values if jnp.ndim(x) == rank))
            values = [jnp.broadcast_to(x, whole) for x in values]
        return bind_equation(equation, values)
    values = [_spread(x, atom) for x, atom in zip(values, step.inputs, strict=True)]
    return bind_equation(equation, values)


def _spread(value: Any, atom: Atom) -> Any:
    """An array in its full shape, for an operation that is not elementwise."""
    if isinstance(atom, Constant) or value.shape == atom.shape:
        return value
    if math.prod(atom.shape[-2:]) > max(atom.shape[-2:]):
        raise NotStagedError("a vector over tokens is spread over pairs before it is used.")
    return jnp.broadcast_to(value, atom.shape)


def _compute_inside(equation: Any, tiles: list[jax.Array]) -> Sequence[jax.Array]:
    """The results of an elementwise equation on tiles."""
    name = equation.primitive.name
    if name == CUSTOM:
        return _with_own_derivative(equation)(*tiles)
    if name in INLINED:
        body = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        return run_on_tiles(body, tiles)
    if name in {"broadcast_in_dim", "copy", "copy_p", *PLACED}:
        return tiles[:1]
    return bind_equation(equation, tiles)


def run_on_tiles(closed: Any, tiles: Sequence[jax.Array]) -> list[jax.Array]:
    """The results of an elementwise jaxpr of any shape on tiles."""
    jaxpr, constants = open_jaxpr(closed)
    known = dict(zip(jaxpr.constvars, constants, strict=True))
    known.update(zip(jaxpr.invars, tiles, strict=True))
    lifted = functools.partial(_lifted, shape=tiles[0].shape)

    def read(atom: Any) -> Any:
        value = literal_value(atom)
        if atom.aval.dtype == jax.dtypes.float0:  # the tangent of a whole number: nothing
            return known[atom] if value is None else value
        return lifted(known[atom] if value is None else value.astype(atom.aval.dtype))

    for equation in jaxpr.eqns:
        outs = _compute_inside(equation, [read(atom) for atom in equation.invars])
        known.update(zip(equation.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _with_own_derivative(equation: Any) -> Callable[..., list[jax.Array]]:
    """A function with a derivative rule of its own, on tiles."""

    @jax.custom_jvp
    def function(*tiles: jax.Array) -> list[jax.Array]:
        return run_on_tiles(equation.params["call_jaxpr"], tiles)

    @function.defjvp
    def rule(primals: Sequence[jax.Array], tangents: Sequence[jax.Array]) -> Any:
        moving = [i for i, x in enumerate(primals) if jnp.issubdtype(x.dtype, jnp.inexact)]
        changes = [tangents[i] for i in moving]
        found = run_on_tiles(derivative_of_equation(equation), [*primals, *changes])
        count = len(equation.outvars)
        return found[:count], found[count:]

    return function
