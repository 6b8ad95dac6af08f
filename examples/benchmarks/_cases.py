"""The cases of the attention benchmark, their inputs, and how each library computes them."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
from _harness import Program, forward_and_backward

import flax_attn
from flax_attn import Coords
from flax_attn.masks import Causal, SameSegment

SEED = 0
DTYPES = ("float32", "bfloat16")


class Case(NamedTuple):
    """What attention is asked to compute.

    Attributes:
      name: Name for `--case`.
      sizes: Batch B, tokens T, query heads N, key heads K, head size D.
      is_causal: True if a query attends to no later key.
      window: Number of earlier keys that a query attends to; None for all.
      documents: Number of documents of random lengths that are packed into a sequence.
      flex: True if PyTorch's compiled flex_attention is compared, too.
    """

    name: str
    sizes: tuple[int, int, int, int, int]
    is_causal: bool = True
    window: int | None = None
    documents: int | None = None
    flex: bool = False

    def resized(self, length: int | None, head_dim: int | None) -> "Case":
        """The case with another T or D in its sizes and its name."""
        B, T, N, K, D = self.sizes
        name = f"{self.name.partition('-')[0]}-{length}" if length else self.name
        name = f"{name}-D{head_dim}" if head_dim else name
        return self._replace(name=name, sizes=(B, length or T, N, K, head_dim or D))

    def smoke(self) -> "Case":
        """A tiny case of the same kind."""
        _, _, N, K, _ = self.sizes
        return self._replace(sizes=(1, 128, 4, max(1, 4 * K // N), 16), window=self.window and 32)


CASES = (
    Case("causal-256", (4, 256, 8, 8, 64)),
    Case("causal-512", (1, 512, 8, 8, 64)),
    Case("causal-1024", (2, 1024, 8, 8, 64)),
    Case("causal-4096", (1, 4096, 8, 8, 64), flex=True),
    Case("causal-16384", (1, 16384, 2, 2, 64)),
    Case("full-197", (8, 197, 12, 12, 64), is_causal=False),  # ViT-B/16 at 224 × 224
    Case("full-1024", (2, 1024, 8, 8, 64), is_causal=False),
    Case("grouped-4096", (1, 4096, 8, 2, 64)),
    Case("packed-4096", (1, 4096, 8, 8, 64), documents=8),
    Case("window-8192", (1, 8192, 4, 4, 64), window=256, flex=True),
)


def make_inputs(case: Case) -> dict[str, np.ndarray]:
    """Normal query, key, value and cotangent; and segment_ids [B, T] if documents are packed."""
    B, T, N, K, D = case.sizes
    random = np.random.default_rng(SEED)
    shapes = {"query": (B, T, N, D), "key": (B, T, K, D), "value": (B, T, K, D)}
    shapes["cotangent"] = shapes["query"]
    inputs = {name: random.standard_normal(s, np.float32) for name, s in shapes.items()}
    if case.documents:
        inputs["segment_ids"] = np.stack([segments(T, case.documents, random) for _ in range(B)])
    return inputs


def segments(length: int, documents: int, random: np.random.Generator) -> np.ndarray:
    """Numbers of consecutive documents of random lengths [T]."""
    starts = random.choice(np.arange(1, length), documents - 1, replace=False)
    return np.searchsorted(np.sort(starts), np.arange(length), side="right").astype(np.int32)


def arguments_of(inputs: dict[str, np.ndarray], dtype: str, work: str) -> list[jax.Array]:
    """The cotangent if there is a backward pass, query, key, value, and segment_ids if given."""
    names = [*(["cotangent"] if work == "fwd+bwd" else []), "query", "key", "value"]
    arguments = [jnp.asarray(inputs[name], dtype) for name in names]
    return arguments + [jnp.asarray(inputs[n]) for n in ("segment_ids",) if n in inputs]


def make_program(
    attend: Callable[..., jax.Array],
    inputs: dict[str, np.ndarray],
    dtype: str,
    work: str,
    parameters: Sequence[Any] = (),
    num_moving: int = 3,
) -> Program:
    """The program of `attend(query, key, value, *more)`, and its gradients for `"fwd+bwd"`."""
    function = forward_and_backward(attend, num_moving) if work == "fwd+bwd" else attend
    return Program(function, [*arguments_of(inputs, dtype, work), *parameters])


# Each is called as `attend(case, query, key, value)`, with `segment_ids` last if they are given.
Ids = jax.Array | None


def ours(case: Case, query: Any, key: Any, value: Any, segment_ids: Ids = None) -> jax.Array:
    if segment_ids is None:
        return library(flax_attn.dot_product_attention, case, query, key, value)
    coords = Coords.from_segments(segment_ids)
    mask = Causal() & SameSegment() if case.is_causal else SameSegment()
    return flax_attn.dot_product_attention(
        query, key, value, mask=mask, query_coords=coords, key_coords=coords
    )


def library(
    attend: Callable[..., jax.Array], case: Case, *arrays: Any, **options: Any
) -> jax.Array:
    """A function with the arguments of jax.nn; documents are a dense mask."""
    query, key, value, *segment_ids = arrays
    if case.window:
        options["local_window_size"] = (case.window, 0)
    if segment_ids:
        options["mask"] = same_segment(segment_ids[0])
    return attend(query, key, value, is_causal=case.is_causal, **options)


def tokamax(case: Case, *arrays: Any) -> jax.Array:
    import tokamax
    from absl import flags

    if not flags.FLAGS.is_parsed():  # otherwise it parses the command line of this program
        flags.FLAGS(["tokamax"])
    return library(tokamax.dot_product_attention, case, *arrays, implementation="xla_chunked")


def flax_linen(case: Case, query: Any, key: Any, value: Any, segment_ids: Ids = None) -> jax.Array:
    tokens = jnp.arange(query.shape[-3])
    distances = tokens[:, None] - tokens
    parts = [distances >= 0] if case.is_causal else []
    parts += [distances <= case.window] if case.window else []
    parts += [] if segment_ids is None else [same_segment(segment_ids)]
    mask = functools.reduce(operator.and_, parts) if parts else None
    groups = query.shape[-2] // key.shape[-2]
    if groups > 1:  # Flax has no grouped heads: its users repeat the keys
        key, value = (jnp.repeat(x, groups, axis=-2) for x in (key, value))
    return flax.linen.dot_product_attention(query, key, value, mask=mask)


def same_segment(segment_ids: jax.Array) -> jax.Array:
    """`[B, 1, T, T]`."""
    return segment_ids[:, None, :, None] == segment_ids[:, None, None, :]


LIBRARIES: dict[str, Callable[..., jax.Array]] = {
    "ours": ours,
    "jax.nn": functools.partial(library, jax.nn.dot_product_attention),
    "flax": flax_linen,
    "tokamax": tokamax,
}
