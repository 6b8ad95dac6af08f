"""Attention calls that are drawn at random: masks, modifiers, coordinates, sizes and placements."""

import dataclasses
import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from flax_attn import Coords, Dropout, Sigmoid, Softmax, masks, normalizers, scores
from flax_attn.attention import Blockwise
from flax_attn.coords import PerHead, zigzag
from flax_attn.sharded import AllGather, AllReduce, Heads, Ring, Ulysses

INNER = (None, "dense", Blockwise(block_query=4, block_key=3, blocks_per_tile=1))
ROWS = 6  # of tables of relative positions


@masks.relation
def near(q, k, *, radius):
    return jnp.abs(q.positions - k.positions) <= radius


@masks.relation
def same_parity(q, k):
    return (q.positions + k.positions) % 2 == 0


def tilted(scores, q, k, head_ids, *, slope, gain):
    distance = (q.positions - k.positions).astype(scores.dtype)
    return scores * gain.astype(scores.dtype) + jnp.tanh(
        slope[head_ids].astype(scores.dtype) * distance / 7
    )


LAYOUTS = {
    # name: (placement of an inner one, mesh, options of `on`, whether keys are gathered)
    "ring of 2": (lambda i: Ring("a", i), {"a": 2}, {}, False),
    "ring of 3": (lambda i: Ring("a", i), {"a": 3}, {}, False),
    "ring of 8": (lambda i: Ring("a", i), {"a": 8}, {}, False),
    "Ulysses of 2": (lambda i: Ulysses("a", i), {"a": 2}, {}, True),
    "Ulysses of 4": (lambda i: Ulysses("a", i), {"a": 4}, {}, True),
    "all-gather of 3": (lambda i: AllGather("a", i), {"a": 3}, {}, True),
    "all-gather of 8": (lambda i: AllGather("a", i), {"a": 8}, {}, True),
    "all-reduce of 5": (lambda i: AllReduce("a", i), {"a": 5}, {}, False),
    "heads": (lambda i: Heads("a", i), {"a": 4}, {}, True),
    "heads of a ring": (lambda i: Ring("a", i), {"h": 2, "a": 4}, {"heads": "h"}, False),
    "heads of Ulysses": (lambda i: Ulysses("a", i), {"a": 2, "h": 2}, {"heads": "h"}, True),
    "heads of all-reduce": (lambda i: AllReduce("a", i), {"h": 2, "a": 3}, {"heads": "h"}, False),
    "Ulysses of a ring": (lambda i: Ulysses("a", Ring("b", i)), {"b": 3, "a": 2}, {}, False),
    "Ulysses of Ulysses": (lambda i: Ulysses("a", Ulysses("b", i)), {"a": 2, "b": 2}, {}, True),
    "Ulysses of all-gather": (
        lambda i: Ulysses("a", AllGather("b", i)),
        {"a": 2, "b": 3},
        {},
        True,
    ),
    "ring of rings": (lambda i: Ring("a", Ring("b", i)), {"b": 2, "a": 4}, {}, False),
    "ring of Ulysses": (lambda i: Ring("a", Ulysses("b", i)), {"a": 2, "b": 4}, {}, False),
    "ring of all-gather": (lambda i: Ring("a", AllGather("b", i)), {"a": 2, "b": 2}, {}, False),
    "all-gather of a ring": (lambda i: AllGather("a", Ring("b", i)), {"a": 2, "b": 3}, {}, False),
    "all-gather twice": (lambda i: AllGather("a", AllGather("b", i)), {"a": 3, "b": 2}, {}, True),
    "all-reduce of a ring": (lambda i: AllReduce("a", Ring("b", i)), {"a": 2, "b": 2}, {}, False),
    "all-reduce of Ulysses": (
        lambda i: AllReduce("a", Ulysses("b", i)),
        {"a": 3, "b": 2},
        {},
        False,
    ),
    "all three": (
        lambda i: Ring("a", i),
        {"d": 2, "h": 2, "a": 2},
        {"batch": "d", "heads": "h"},
        False,
    ),
    "batch over two axes": (
        lambda i: Ring("a", i),
        {"d": 2, "e": 2, "a": 2},
        {"batch": ("d", "e")},
        False,
    ),
    "an axis left to XLA": (
        lambda i: Ring("a", i),
        {"d": 2, "a": 2, "free": 2},
        {"batch": "d"},
        False,
    ),
}


@dataclasses.dataclass
class Call:
    """A call of `dot_product_attention`.

    Attributes:
      name: The layout.
      placement: The placement with its mesh, for arrays of all devices.
      floats: What has derivatives.
      traced: Other arrays, which are traced.
      build: From both to the arguments of `dot_product_attention`.
    """

    name: str
    placement: Any
    floats: dict[str, Any]
    traced: dict[str, Any]
    build: Any
    has_lse: bool
    dtype: str
    text: str = ""


def make_mesh(sizes, kind=AxisType.Auto):
    shape, count = tuple(sizes.values()), int(np.prod(list(sizes.values())))
    return jax.make_mesh(
        shape, tuple(sizes), axis_types=(kind,) * len(shape), devices=jax.devices()[:count]
    )


def pick(rng, choices):
    choices = list(choices)
    return choices[rng.integers(len(choices))]


def draw_call(seed, layout=None, dtype=None, kind=AxisType.Auto, smooth=False):
    """The call of a seed; `smooth` leaves out normalisers with a kink."""
    rng = np.random.default_rng([16, seed])
    layout = pick(rng, LAYOUTS) if layout is None else layout
    dtype = pick(rng, ["float32", "float32", "bfloat16"]) if dtype is None else dtype
    make, sizes, options, gathers = LAYOUTS[layout]
    inner = pick(rng, INNER)
    placement = make(inner).on(make_mesh(sizes, kind), **options)

    # ---- sizes
    parts = int(np.prod([sizes[a] for a in ("d", "e") if a in sizes and options.get("batch")]))
    batch = pick(rng, [(), (2,), (1,), (2, 2), (1, 3)]) if parts == 1 else (parts,)
    batch = (*batch, 2) if parts > 1 and rng.random() < 0.3 else batch
    num_heads = pick(rng, [4, 8]) if rng.random() < 0.8 else 12
    num_kv_heads = pick(rng, [k for k in (1, 2, 4, num_heads) if num_heads % k == 0])
    count = int(np.prod(list(sizes.values())))
    order = pick(rng, ["arange", "arange", "packed", "restarting", "zigzag", "shuffled", "none"])
    length_q = pick(rng, [count, 2 * count, int(rng.integers(2, 30)), 24])
    length_k = length_q if order != "arange" or rng.random() < 0.5 else int(rng.integers(1, 40))
    if order == "zigzag":
        length_q = length_k = 2 * count * int(rng.integers(1, 3))
    size, size_v = pick(rng, [(4, 4), (4, 6), (8, 2)])

    def normal(*shape, scale=1.0):
        return jnp.asarray(scale * rng.normal(size=shape), dtype)

    floats = {
        "query": normal(*batch, length_q, num_heads, size),
        "key": normal(*batch, length_k, num_kv_heads, size),
        "value": normal(*batch, length_k, num_kv_heads, size_v),
    }
    traced: dict[str, Any] = {}
    text = [layout, repr(placement.placement), dtype, f"{batch=} {num_heads=} {num_kv_heads=}"]
    text.append(f"{length_q=} {length_k=} {order=}")

    # ---- coordinates
    coords_batch = pick(rng, [(), (), batch])
    features = rng.random() < 0.5
    hides = rng.random() < 0.3

    def sorted_segments(length):
        return jnp.asarray(np.sort(rng.integers(0, 3, (*coords_batch, length)), axis=-1))

    def coords_of(length, offset=0):
        index = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (*coords_batch, length))
        if order in ("packed", "restarting"):
            made = Coords.from_segments(sorted_segments(length), restart=order == "restarting")
        elif order == "shuffled":
            chosen = rng.permuted(np.broadcast_to(np.arange(length), index.shape), axis=-1)
            chosen = jnp.asarray(chosen, jnp.int32)
            made = Coords(chosen, numbers=chosen)
        else:
            made = Coords(index + offset, numbers=index + offset)
        if hides:
            valid = jnp.asarray(rng.random((*coords_batch, length)) < 0.8)
            made = made.with_features(valid=valid)
        if features:
            made = made.with_features(
                is_global=jnp.asarray(rng.random((*coords_batch, length)) < 0.2),
                group=PerHead(jnp.asarray(rng.integers(0, 2, (length, num_heads)))),
            )
        return zigzag(made, count) if order == "zigzag" else made

    query_coords = key_coords = None
    if order != "none":
        key_coords = coords_of(length_k)
        query_coords = key_coords if length_q == length_k else coords_of(length_q, 3)
        if rng.random() < 0.4:
            traced["coords"] = (query_coords, key_coords)
            text.append("traced coords")
        if features:
            # a feature with a derivative
            floats["gates"] = [
                normal(*pick(rng, [(), batch]), x, num_heads, scale=0.3)
                for x in (length_q, length_k)
            ]

    # ---- the mask
    array_shape = [
        pick(rng, [(n,), (1,), (n,)])[0] for n in (*batch, num_heads, length_q, length_k)
    ]
    shape = tuple(array_shape[rng.integers(0, len(batch) + 1) :])
    visible = jnp.asarray(rng.random(shape) < 0.7)
    radius = jnp.asarray(rng.integers(0, 12), jnp.int32)
    per_head = jnp.asarray(rng.integers(0, 9, num_heads), jnp.int32)
    leaves = [
        lambda x: masks.Causal(),
        lambda x: masks.Window(int(radius), 2),
        lambda x: masks.Window(per_head, 0),
        lambda x: masks.Prefix(3),
        lambda x: masks.Chunked(5),
        lambda x: masks.Dilated(4, 2),
        lambda x: masks.Strided(4),
        lambda x: masks.Full(),
        lambda x: masks.Dense(x["visible"]),
        lambda x: near(radius=x["radius"]),
        lambda x: same_parity(),
    ]
    if order in ("packed", "restarting"):
        leaves += [lambda x: masks.SameSegment()] * 4
    if order != "none" and features:
        leaves += [lambda x: masks.GlobalTokens(), lambda x: same_group()] * 2
    if hides and order != "none":
        leaves += [lambda x: masks.Padding()]
    join = [operator.and_, operator.or_, operator.xor]

    def draw_mask(depth):
        if depth == 0 or rng.random() < 0.2:
            leaf, negate = pick(rng, leaves), rng.random() < 0.2
            return (lambda x: ~leaf(x)) if negate else leaf
        first, second = draw_mask(depth - 1), draw_mask(depth - 1)
        both = pick(rng, join)
        return lambda x: both(first(x), second(x))

    kind_of_mask = pick(rng, ["none", "array", "mask", "mask", "mask"])
    mask = {
        "none": lambda x: None,
        "array": lambda x: x["visible"],
        "mask": draw_mask(int(rng.integers(0, 3))),
    }[kind_of_mask]
    traced["visible"], traced["radius"] = visible, radius

    # ---- score modifiers
    modifiers = {
        "alibi": lambda x: scores.ALiBi(x["slopes"]),
        "cap": lambda x: scores.SoftCap(x["cap"]),
        "bias": lambda x: scores.Bias(x["extra"]),
        "t5": lambda x: scores.T5Bias(x["table"], max_distance=9, bidirectional=False),
        "relative": lambda x: scores.RelativeBias(x["table"]),
        "tilted": lambda x: scores.score_mod(tilted, slope=x["slopes"], gain=x["gain"]),
        "scale": lambda x: scores.Scale(x["slopes"]),
    }
    if "gates" in floats:
        modifiers["forget"] = lambda x: scores.Forget()
    chosen = [n for n in modifiers if rng.random() < 0.3]
    rng.shuffle(chosen)
    rows = 2 * ROWS + 1
    parameters = {
        "slopes": normal(num_heads, scale=0.2),
        "cap": jnp.asarray(6.0, dtype),
        "extra": normal(*array_shape),
        "table": normal(rows, num_heads),
        "gain": jnp.asarray(0.8, dtype),
    }
    used = {
        "alibi": ["slopes"],
        "cap": ["cap"],
        "bias": ["extra"],
        "t5": ["table"],
        "relative": ["table"],
        "tilted": ["slopes", "gain"],
        "scale": ["slopes"],
        "forget": [],
    }
    floats |= {p: parameters[p] for n in chosen for p in used[n]}
    has_bias = rng.random() < 0.4
    if has_bias:
        shape = tuple(pick(rng, [n, n, 1]) for n in (*batch, num_heads, length_q, length_k))
        floats["bias"] = normal(*shape[rng.integers(0, len(batch) + 1) :])

    # ---- normaliser, dropout, lengths
    normalizer = pick(rng, ["softmax", "softmax", "sink", "sink", "sigmoid", "relu"])
    normalizer = "sink" if smooth and normalizer == "relu" else normalizer
    if gathers and not smooth and not isinstance(inner, Blockwise) and rng.random() < 0.3:
        normalizer = pick(rng, ["entmax", "topk"])
    if normalizer in ("sink", "sigmoid"):
        floats["logits"] = normal(*pick(rng, [(num_heads,), ()]))
    make_normalizer = {
        "softmax": lambda x: Softmax(),
        "sink": lambda x: Softmax(x["logits"]),
        "sigmoid": lambda x: Sigmoid(x["logits"]),
        "relu": lambda x: normalizers.ReLU(length_k),
        "entmax": lambda x: normalizers.Entmax(1.5),
        "topk": lambda x: normalizers.TopK(3),
    }[normalizer]
    drops = order != "none" and rng.random() < 0.4
    if drops:
        traced["seed"] = jax.random.key(seed)
    broadcast = bool(rng.random() < 0.3)
    if rng.random() < 0.3:
        traced["lengths"] = jnp.asarray(rng.integers(0, length_k + 1, batch), jnp.int32)
    if rng.random() < 0.2:
        floats["scale"] = jnp.asarray(0.4, dtype)
    causal = bool(order != "none" and rng.random() < 0.2)
    text.append(f"{kind_of_mask} {chosen=} {has_bias=} {normalizer} {drops=} {causal=} {hides=}")
    text.append(f"lengths={'lengths' in traced}")

    def build(floats, traced):
        x = floats | traced
        located = {}
        if order != "none":
            q, k = x.get("coords", (query_coords, key_coords))
            if "gates" in x:
                q, k = (
                    c.with_features(log_forget=PerHead(g))
                    for c, g in zip((q, k), x["gates"], strict=True)
                )
            located = {"query_coords": q, "key_coords": k}
        mods = [modifiers[n](x) for n in chosen]
        return {
            "query": x["query"],
            "key": x["key"],
            "value": x["value"],
            "bias": x.get("bias"),
            "mask": mask(x),
            "is_causal": causal,
            "scale": x.get("scale"),
            "score_mod": functools.reduce(operator.rshift, mods) if mods else None,
            "normalizer": make_normalizer(x),
            "dropout": Dropout(0.3, x["seed"], broadcast=broadcast) if drops else None,
            "key_value_seq_lengths": x.get("lengths"),
            **located,
        }

    has_lse = normalizer in ("softmax", "sink", "topk")
    call = Call(layout, placement, floats, traced, build, has_lse, dtype, "\n".join(text))
    call.text += f"\n{build(floats, traced)['mask']!r}"
    return call


@masks.relation
def same_group(q, k):
    return q.group == k.group
