"""Measure what each vision mechanism costs, in terms of a 3×3 convolution on the same image.

    python examples/benchmarks/mechanism_costs.py

Five minutes on 2 quiet cores. It writes examples/mechanism_costs.json, from which
`examples/mechanisms.py` makes the table of the README. A cost is seconds of the mechanism / seconds
of the convolution in the same round, median over the rounds; each is called several times in a row.
The image is [4, 56, 56, 128] in float32, the convolution keeps its 128 channels.

    python examples/benchmarks/mechanism_costs.py --mechanism cbam eca    # only print these
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from _rounds import Budget, Machine, Program, burst, forward_and_backward, paired, say, take_rounds
from flax import nnx
from tqdm import tqdm

EXAMPLES = Path(__file__).parents[1]
sys.path.append(str(EXAMPLES))  # for `mechanisms`

SHAPE = (4, 56, 56, 128)
PASSES = ("fwd", "fwd+bwd")
BUDGET = Budget(3, 9, seconds=2.0)


def programs(module: nnx.Module) -> dict[str, Callable[[], float]]:
    """Seconds of the forward pass, and with the gradients of image and parameters."""
    from mechanisms import num_images

    module.eval()
    graph, state = nnx.split(module)
    image = jnp.asarray(np.random.default_rng(0).standard_normal(SHAPE, np.float32))
    others = [image] * (num_images(module) - 1)

    def forward(x: jax.Array, state: nnx.State) -> jax.Array:
        return nnx.merge(graph, state)(x, *others)

    cotangent = jnp.ones_like(jax.eval_shape(forward, image, state))
    made = {
        "fwd": Program(forward, [image, state]),
        "fwd+bwd": Program(forward_and_backward(forward, 2), [cotangent, image, state]),
    }
    return {work: lambda p=p: burst(p.results) for work, p in made.items()}


def costs(names: list[str], machine: Machine) -> dict[str, dict[str, float]]:
    from mechanisms import build

    features = SHAPE[-1]
    convolution = programs(nnx.Conv(features, features, (3, 3), rngs=nnx.Rngs(0)))
    found = {}
    for name in (bar := tqdm(names)):
        bar.set_description(name)
        own = programs(build(name, height=SHAPE[1], width=SHAPE[2]))
        calls = {
            (what, work): f[work]
            for work in PASSES
            for what, f in (("own", own), ("convolution", convolution))
        }
        rounds = take_rounds(calls, machine, BUDGET)
        ratios = {w: paired(rounds, ("own", w), ("convolution", w)) for w in PASSES}
        found[name] = {work: float(f"{ratio:.2g}") for work, ratio in ratios.items()}
    return found


def main() -> None:
    from mechanisms import mechanisms

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mechanism", nargs="+", choices=list(mechanisms()))
    parser.add_argument("--noisy", action="store_true", help="do not wait for other processes")
    options = parser.parse_args()
    machine = Machine(noisy=options.noisy)
    found = costs(options.mechanism or list(mechanisms()), machine)
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(c)}" for name, c in found.items())
    if options.mechanism:
        say(lines)
    else:
        (EXAMPLES / "mechanism_costs.json").write_text(f"{{\n{lines}\n}}\n")
    say(machine.report())


if __name__ == "__main__":
    main()
