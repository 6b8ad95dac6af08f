"""The names that the examples of the Linen and NNX modules assume."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def _names_in_examples(doctest_namespace):
    import flax
    import jax
    import jax.numpy as jnp

    from flax_attn import linen, nnx

    doctest_namespace |= {"jnp": jnp, "linen": linen, "nnx": nnx}
    doctest_namespace |= {"key": jax.random.key(0), "rngs": flax.nnx.Rngs(0)}
    doctest_namespace["x"] = jnp.ones((2, 8, 8, 64))
