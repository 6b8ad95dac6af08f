"""Write the page of vision mechanisms, made from the code.

    python examples/mechanisms.py > docs/mechanisms.md

Ten seconds on a CPU. A mechanism is a public function of `flax_attn.vision` whose first argument is
the image x. Its gate is what its module sows for an image whose axes all have different sizes. Its
paper is the first reference of its docstring. Its cost was measured by
`python examples/benchmarks/mechanism_costs.py`.
"""

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

import flax_attn.linen
import flax_attn.nnx
from flax_attn import vision

SIZES = {"B": 3, "H": 6, "W": 5, "C": 128}
# Images whose sides are multiples of the default windows.
PLACES = {"grid_attention": (14, 7), "halo_attention": (16, 8), "window_attention": (14, 7)}
SIZED = ("attention_pool", "bottleneck_attention")  # parameters depend on the size of the image
COSTS = Path(__file__).with_name("mechanism_costs.json")
INTRODUCTION = """\
# Vision mechanisms

Made by `python examples/mechanisms.py > docs/mechanisms.md`. [vision.md](vision.md) says how they
are used.

- **Function** is in `flax_attn.vision`, **Module** in `flax_attn.linen` and `flax_attn.nnx`.
- **Gate** is the shape of what the image is multiplied by. None: the mechanism adds to the image,
  or replaces it.
- **Cost** is the time of a forward pass, and of a pass with gradients, divided by that of a 3×3
  convolution. The image is 4 × 56 × 56 × 128 in float32; measured with JAX 0.12.0 on two CPU cores
  (`python examples/benchmarks/mechanism_costs.py`).
"""
HEADER = ("Function", "Module", "Gate", f"Parameters at C = {SIZES['C']}", "Cost", "Paper")


class Row(NamedTuple):
    function: str
    module: str
    gate: str
    parameters: int
    cost: str
    paper: str


def mechanisms() -> dict[str, Callable[..., jax.Array]]:
    """The functions of `flax_attn.vision` of an image x, except for gates and weights."""
    return {
        name: function
        for name, function in inspect.getmembers(vision, inspect.isfunction)
        if not name.startswith("_")
        and not (name.endswith(("_gate", "_weights")) and hasattr(vision, name.rpartition("_")[0]))
        and next(iter(inspect.signature(function).parameters), None) == "x"
    }


def module_class(namespace: Any, mechanism: str) -> type:
    """`squeeze_excite` -> `SqueezeExcite` of `flax_attn.nnx` or `flax_attn.linen`."""
    wanted = mechanism.replace("_", "")
    for name, value in inspect.getmembers(namespace, inspect.isclass):
        if name.lower() == wanted:
            return value
    raise LookupError(f"{namespace.__name__} has no module for vision.{mechanism}.")


def build(mechanism: str, height: int = SIZES["H"], width: int = SIZES["W"]) -> nnx.Module:
    """The NNX module for C channels, with default options."""
    options = {"input_size": (height, width)} if mechanism in SIZED else {}
    return module_class(flax_attn.nnx, mechanism)(SIZES["C"], **options, rngs=nnx.Rngs(0))


def num_images(module: nnx.Module) -> int:
    """The number of images that a module takes: the attention gate also takes a gating signal."""
    return 2 if isinstance(module, flax_attn.nnx.AttentionGate) else 1


def in_letters(shape: tuple[int, ...]) -> str:
    """`(2, 1, 1, 64)` -> `[B, 1, 1, C]`."""
    letters = {size: letter for letter, size in SIZES.items()}
    return f"`[{', '.join(letters.get(size, str(size)) for size in shape)}]`"


def gates(sown: Mapping[str, Any]) -> Iterator[str]:
    """The shape of every gate; the shapes of a pair of factors are joined by ×."""
    for name in sorted(sown):
        if name == "gate":
            for gate in sown[name]:
                yield " × ".join(in_letters(factor.shape) for factor in jax.tree.leaves(gate))
        elif isinstance(sown[name], Mapping):
            yield from gates(sown[name])


def paper(function: Callable[..., jax.Array]) -> str:
    """`"Title", venue and year, arXiv link` from the docstring's first reference."""
    references = inspect.getdoc(function).partition("References:")[2]
    text = " ".join(references.split())
    found = re.search(r'(".+?"), ([^,]+ \d{4})(?:, arXiv:(\d+\.\d+))?', text)
    if found is None:
        raise ValueError(f'{function.__name__}: no reference like: Authors, "Title", venue year.')
    title, venue, number = found.groups()
    link = f", [arXiv:{number}](https://arxiv.org/abs/{number})" if number else ""
    return f"{title}, {venue}{link}"


def row(mechanism: str, function: Callable[..., jax.Array]) -> Row:
    name = module_class(flax_attn.nnx, mechanism).__name__
    if module_class(flax_attn.linen, mechanism).__name__ != name:
        raise LookupError(f"The modules of vision.{mechanism} differ in name.")
    sizes = SIZES | dict(zip("HW", PLACES.get(mechanism, ()), strict=False))

    def run() -> tuple[Any, Any]:
        module = build(mechanism)
        images = [jnp.ones(tuple(sizes.values()))] * num_images(module)
        _, sown = nnx.capture(module, nnx.Intermediate)(*images)
        return nnx.to_pure_dict(nnx.state(module, nnx.Param)), nnx.to_pure_dict(sown)

    weights, sown = jax.eval_shape(run)  # only shapes are needed
    parameters = sum(leaf.size for leaf in jax.tree.leaves(weights))
    shapes = " and ".join(gates(sown))
    costs = json.loads(COSTS.read_text())[mechanism]
    cost = f"{costs['fwd']:g}, {costs['fwd+bwd']:g}"
    return Row(mechanism, name, shapes or "none", parameters, cost, paper(function))


def rows() -> list[Row]:
    return [row(name, function) for name, function in mechanisms().items()]


def table() -> str:
    """The table in Markdown."""
    lines = [HEADER, ("---", "---", "---", "---:", "---:", "---")]
    lines += [
        (f"`{r.function}`", f"`{r.module}`", r.gate, f"{r.parameters:,}", r.cost, r.paper)
        for r in rows()
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    print(INTRODUCTION)
    print(table())
