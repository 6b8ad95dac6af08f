"""The cases, their inputs, and how each JAX library is asked for them."""

import functools
import importlib.util
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np

import flax_attn
from flax_attn import Coords
from flax_attn.masks import Causal, SameSegment

SEED = 0


class Case(NamedTuple):
    """What attention is asked for.

    Attributes:
      name: As in `--case NAME`.
      sizes: Batch B, tokens T, query heads N, key heads K, features of a head D.
      is_causal: Whether a query sees no later key.
      window: How many earlier keys a query sees.
      documents: How many documents of random lengths are packed into each sequence.
      flex: Whether PyTorch's compiled flex_attention takes part.
    """

    name: str
    sizes: tuple[int, int, int, int, int]
    is_causal: bool = True
    window: int | None = None
    documents: int | None = None
    flex: bool = False

    def resized(self, length: int | None, head_dim: int | None) -> "Case":
        """The case with another T or D, and a name that says so."""
        B, T, N, K, D = self.sizes
        name = f"{self.name.partition('-')[0]}-{length}" if length else self.name
        name = f"{name}-D{head_dim}" if head_dim else name
        return self._replace(name=name, sizes=(B, length or T, N, K, head_dim or D))

    def smoke(self) -> "Case":
        """A tiny one of the same kind."""
        _, _, N, K, _ = self.sizes
        window = self.window and 32
        return self._replace(sizes=(1, 128, 4, max(1, 4 * K // N), 16), window=window)


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
SMOKE = ("packed-4096",)


def make_inputs(case: Case) -> dict[str, np.ndarray]:
    """Normal query, key, value and cotangent of the output; and segment_ids [B, T] if packed."""
    B, T, N, K, D = case.sizes
    random = np.random.default_rng(SEED)
    shapes = {"query": (B, T, N, D), "key": (B, T, K, D), "value": (B, T, K, D)}
    shapes["cotangent"] = shapes["query"]
    inputs = {name: random.standard_normal(s, np.float32) for name, s in shapes.items()}
    if case.documents:
        inputs["segment_ids"] = np.stack([segments(T, case.documents, random) for _ in range(B)])
    return inputs


def segments(length: int, documents: int, random: np.random.Generator) -> np.ndarray:
    """Numbers of documents of random lengths, one after the other [T]."""
    starts = random.choice(np.arange(1, length), documents - 1, replace=False)
    return np.searchsorted(np.sort(starts), np.arange(length), side="right").astype(np.int32)


def jax_arguments(inputs: dict[str, np.ndarray], dtype: Any, backward: bool) -> list[jax.Array]:
    """The cotangent for a backward pass, query, key, value, and segment_ids if there are any."""
    names = [*(["cotangent"] if backward else []), "query", "key", "value"]
    arguments = [jnp.asarray(inputs[name], dtype) for name in names]
    return arguments + [jnp.asarray(inputs[n]) for n in ("segment_ids",) if n in inputs]


# Each is called as `attend(case, query, key, value)`, with `segment_ids` at the end if packed.
Ids = jax.Array | None


def ours(case: Case, query: Any, key: Any, value: Any, segment_ids: Ids = None) -> jax.Array:
    if segment_ids is not None:
        coords = Coords.from_segments(segment_ids)
        mask = Causal() & SameSegment() if case.is_causal else SameSegment()
        return flax_attn.dot_product_attention(
            query, key, value, mask=mask, query_coords=coords, key_coords=coords
        )
    return flax_attn.dot_product_attention(query, key, value, **options(case, segment_ids))


def jax_nn(case: Case, query: Any, key: Any, value: Any, segment_ids: Ids = None) -> jax.Array:
    return jax.nn.dot_product_attention(query, key, value, **options(case, segment_ids))


def tokamax_chunked(
    case: Case, query: Any, key: Any, value: Any, segment_ids: Ids = None
) -> jax.Array:
    import tokamax
    from absl import flags

    if not flags.FLAGS.is_parsed():  # else it would take this command line for its own
        flags.FLAGS(["tokamax"])

    return tokamax.dot_product_attention(
        query, key, value, **options(case, segment_ids), implementation="xla_chunked"
    )


def options(case: Case, segment_ids: Ids) -> dict[str, Any]:
    """What jax.nn, tokamax and we call by the same names."""
    window = {"local_window_size": (case.window, 0)} if case.window else {}
    same = {} if segment_ids is None else {"mask": same_segment(segment_ids)}
    return {"is_causal": case.is_causal, **window, **same}


def same_segment(segment_ids: jax.Array) -> jax.Array:
    """`[B, 1, T, T]`."""
    return segment_ids[:, None, :, None] == segment_ids[:, None, None, :]


def flax_linen(case: Case, query: Any, key: Any, value: Any, segment_ids: Ids = None) -> jax.Array:
    tokens = jnp.arange(query.shape[-3])
    distances = tokens[:, None] - tokens
    parts = [distances >= 0] if case.is_causal else []
    parts += [distances <= case.window] if case.window else []
    parts += [] if segment_ids is None else [same_segment(segment_ids)]
    mask = functools.reduce(operator.and_, parts) if parts else None
    groups = query.shape[-2] // key.shape[-2]
    if groups > 1:  # it has no grouped heads: its users repeat the keys
        key, value = (jnp.repeat(x, groups, axis=-2) for x in (key, value))
    return flax.linen.dot_product_attention(query, key, value, mask=mask)


JAX_PEERS: dict[str, Callable[..., jax.Array]] = {
    "jax.nn": jax_nn,
    "flax": flax_linen,
    "tokamax": tokamax_chunked,
}


def bound(name: str, case: Case) -> Callable[..., jax.Array]:
    """`attend(query, key, value)`, and segment_ids, for a case."""
    return functools.partial({"ours": ours, **JAX_PEERS}[name], case)


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
