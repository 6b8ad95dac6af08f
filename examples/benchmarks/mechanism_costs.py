"""Measure the cost of each vision mechanism, relative to a 3×3 convolution on the same image.

    python examples/benchmarks/mechanism_costs.py
    python examples/benchmarks/mechanism_costs.py --mechanism cbam eca    # only these

Five minutes on 2 quiet cores. It writes examples/mechanism_costs.json, from which
`examples/mechanisms.py` makes docs/mechanisms.md. A cost is (median seconds of the mechanism) /
(median seconds of the convolution). The image is [4, 56, 56, 128] in float32, and the convolution
has 128 channels. Needs `pip install "flax-attn[examples]"`.
"""

import argparse
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from _harness import Harness, Program, forward_and_backward, progress
from flax import nnx

EXAMPLES = Path(__file__).parents[1]
sys.path.append(str(EXAMPLES))  # for `mechanisms`
COSTS = EXAMPLES / "mechanism_costs.json"
SHAPE = (4, 56, 56, 128)
SMOKE_SHAPE = (1, 56, 56, 128)
BURST = 0.03  # seconds of calls in a row


def programs(module: nnx.Module, shape: tuple[int, ...]) -> dict[str, Program]:
    """The forward pass, and one with the gradients of image and parameters."""
    from mechanisms import num_images

    module.eval()
    graph, state = nnx.split(module)
    image = jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))
    others = [image] * (num_images(module) - 1)

    def forward(x: jax.Array, state: nnx.State) -> jax.Array:
        return nnx.merge(graph, state)(x, *others)

    cotangent = jnp.ones_like(jax.eval_shape(forward, image, state))
    return {
        "fwd": Program(forward, [image, state]),
        "fwd+bwd": Program(forward_and_backward(forward, 2), [cotangent, image, state]),
    }


def main() -> None:
    from mechanisms import build, mechanisms

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mechanism", nargs="+", choices=list(mechanisms()), help="default: all")
    Harness.add_options(parser, rounds=9, seconds=2)
    options = parser.parse_args()
    harness = Harness(options)
    shape = SMOKE_SHAPE if options.smoke else SHAPE
    features = shape[-1]
    convolution = programs(nnx.Conv(features, features, (3, 3), rngs=nnx.Rngs(0)), shape)
    costs = json.loads(COSTS.read_text())
    row = harness.table("mechanism", *convolution)
    default = ["squeeze_excite"] if options.smoke else list(mechanisms())
    for name in progress(options.mechanism or default):
        own = programs(build(name, height=shape[1], width=shape[2]), shape)
        ratios = {}
        for work, program in own.items():
            calls = {"own": program, "convolution": convolution[work]}
            ratios[work] = harness.measure(calls, BURST).ratio("own", "convolution")
        costs[name] = {work: float(f"{ratio:.2g}") for work, ratio in ratios.items()}
        row(name, *(f"{cost:g}" for cost in costs[name].values()))
    if not options.smoke:
        lines = ",\n".join(f"  {json.dumps(n)}: {json.dumps(costs[n])}" for n in sorted(costs))
        COSTS.write_text(f"{{\n{lines}\n}}\n")
    harness.report()


if __name__ == "__main__":
    main()
