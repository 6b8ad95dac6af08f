"""A ResNet takes any attention in its blocks, and trains with it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flax_attn.nnx as attention
from vision_models import resnet18
from vision_models.resnet import BasicBlock, ResNet

MODULES = {
    "BAM": attention.BAM,
    "CBAM": functools.partial(attention.CBAM, kernel_size=7),
    "ECA": attention.ECA,
    "SCSE": attention.SCSE,
    "SimAM": lambda features, rngs: attention.SimAM(),
    "SqueezeExcite": attention.SqueezeExcite,
}


@pytest.mark.parametrize("module", MODULES)
def test_any_attention_gives_logits(module):
    model = nnx.eval_shape(
        lambda: resnet18(attention=MODULES[module], num_classes=7, rngs=nnx.Rngs(0))
    )
    logits = nnx.eval_shape(lambda model, x: model(x), model, jnp.ones((2, 64, 32, 3)))
    assert logits.shape == (2, 7)


def test_every_parameter_of_a_new_model_gets_a_gradient():
    """None is idle from the start, as those of the attention are where the last gain is 0."""
    se = attention.SqueezeExcite
    model = ResNet(BasicBlock, (1, 1), attention=se, num_classes=7, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    gradients = nnx.jit(nnx.grad(lambda model: jnp.mean(model(x)[:, 0])))(model)
    for path, gradient in nnx.to_flat_state(gradients):
        assert np.any(gradient[...] != 0), path
