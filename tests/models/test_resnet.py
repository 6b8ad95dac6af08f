"""A ResNet takes any attention in its blocks, and trains with it."""

import functools

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flax_attn.nnx as attention
from vision_models.resnet import BasicBlock, ResNet

MODULES = {
    "BAM": attention.BAM,
    "CBAM": functools.partial(attention.CBAM, kernel_size=7),
    "ECA": attention.ECA,
    "SCSE": attention.SCSE,
    "SimAM": lambda features, rngs: attention.SimAM(),
    "SqueezeExcite": attention.SqueezeExcite,
}


def small(**options):
    return ResNet(BasicBlock, (1, 1), num_classes=7, **options, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("module", MODULES)
def test_any_attention_gives_logits(module):
    def logits(x):
        return small(attention=MODULES[module])(x)

    chex.assert_shape(nnx.eval_shape(logits, jnp.ones((2, 64, 32, 3))), (2, 7))


def test_every_parameter_of_a_new_model_gets_a_gradient():
    """None is idle from the start, as those of the attention are where the last gain is 0."""
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)

    @nnx.jit
    def gradients_of_a_new_model(x):
        model = small(attention=attention.SqueezeExcite)
        return nnx.grad(lambda model: jnp.mean(model(x)[:, 0]))(model)

    gradients = gradients_of_a_new_model(x)
    for path, gradient in nnx.to_flat_state(gradients):
        assert np.any(gradient[...] != 0), path
