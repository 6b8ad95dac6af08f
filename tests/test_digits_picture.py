"""The picture of the digits has every kind of gate that modules sow."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from flax import nnx
from train_digits import draw_gate, find_gates

from flax_attn.nnx import CBAM, CoordinateAttention, SelectiveKernel, SplitAttention

X = jax.random.normal(jax.random.key(0), (2, 8, 8, 32))


@pytest.mark.parametrize(
    ("cls", "sizes"),
    [
        (CBAM, {"channel": (1, 1, 32), "spatial": (8, 8, 1)}),
        (CoordinateAttention, {"": (8, 8, 32)}),
        (SelectiveKernel, {"part 1": (1, 1, 32), "part 2": (1, 1, 32)}),
        (SplitAttention, {"part 1": (1, 1, 32), "part 2": (1, 1, 32)}),
    ],
)
def test_each_gate_is_found_and_drawn(cls, sizes):
    module = cls(32, rngs=nnx.Rngs(0))
    module.eval()
    _, sown = nnx.capture(module, nnx.Intermediate)(X)
    arrays = jax.tree.map(np.asarray, nnx.to_pure_dict(sown))
    gates = list(find_gates({"stage_1": {"attention": arrays}}))
    assert {gate.name: gate.values.shape[1:] for gate in gates} == sizes
    for gate in gates:
        figure, axes = plt.subplots(1, 3)
        draw_gate(axes, gate, np.asarray(jnp.abs(X)))
        heat_maps = [axis.images[0].get_array() for axis in axes[:-1]]
        assert all(np.isfinite(values).all() and np.ptp(values) > 0 for values in heat_maps)
        plt.close(figure)
