"""Every implementation × masks × score modifiers × normalisers: value, LSE, every derivative.

A mask or a modifier is given twice, by the library's object and by its formula. Many cells share
one compilation: which mask, modifier, layout of tokens and dropout rate is data. The oracle is
float64; what it knows of derivatives is `jax.linearize` of the formula on whole arrays.
"""

import collections
import functools
import itertools
import operator
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import Coords, Dropout, Sigmoid, Softmax, dot_product_attention, masks, scores
from flax_attn.coords import PerHead
from flax_attn.normalizers import Entmax, ReLU, TopK
from tests.oracles import attention as oracle
from tests.oracles.scores import t5_bucket
from tests.small_blocks import IMPLEMENTATIONS, use_small_blocks
from tests.tolerances import FORWARD, GRADIENT, assert_close

pytestmark = [
    pytest.mark.conformance,
    pytest.mark.filterwarnings("ignore:.*is_causal and local_window_size count"),  # T ≠ S
]

B, T, S, N, K, D, DV = 2, 37, 41, 4, 2, 8, 6
HEADS = np.arange(N).reshape(1, N, 1, 1)
RATE = 0.3
LENGTH = 9  # of ReLU


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def pick(*shape, share, seed=0):
    return np.random.default_rng([seed, *shape]).random(shape) < share


# ---- where the tokens stand


def in_order(rng):
    return np.arange(T) + S - T, np.arange(S)


def decoding(rng):
    return np.array([[90], [3]]) + np.arange(T), np.tile(np.arange(S), (B, 1))


def shuffled(rng):
    return tuple(np.stack([rng.permutation(S)[:x] for _ in range(B)]) for x in (T, S))


def restarting(rng):
    return np.arange(T) % 17, np.arange(S) % 17


LAYOUTS = {f.__name__: f for f in (in_order, decoding, shuffled, restarting)}
PARENTS = np.array([-1, 0, 0, 1, 1, -1, 5, 4])


@functools.cache
def tokens(layout):
    """Fields of queries and of keys `[B, T]`; what differs between heads is `[B, T, N]`."""
    rng = np.random.default_rng(list(layout.encode()))
    tree = Coords.tree(PARENTS).features
    sides = []
    for positions in LAYOUTS[layout](rng):
        positions = np.broadcast_to(positions, (B, positions.shape[-1]))
        shape = positions.shape
        run = np.arange(shape[1]) // 11  # of neighbours, so that whole blocks are empty or full
        runs = np.stack([run, run[::-1]]) if layout != "shuffled" else rng.integers(0, 4, shape)
        node = rng.integers(0, len(PARENTS), shape)
        lower = rng.integers(0, S, shape)
        sides.append(
            {
                "positions": positions,
                "segment_ids": runs,
                "valid": np.arange(shape[1]) < np.array([[shape[1]], [shape[1] - 5]])
                if layout != "shuffled"
                else rng.random(shape) < 0.8,
                "is_global": rng.random(shape) < 0.05,
                "prefix": np.broadcast_to([[9], [0]], shape),
                "image": np.where(runs == 1, runs + rng.integers(0, 2, shape), -1),
                "enter": np.asarray(tree["enter"])[node],
                "leave": np.asarray(tree["leave"])[node],
                "lower": lower,
                "upper": lower + rng.integers(0, 9, shape),
                "row": positions % 42 // 7,
                "col": positions % 7,
                "x": rng.integers(-16, 16, shape) / 8,
                "y": rng.integers(-16, 16, shape) / 8,
                "log_forget": -np.cumsum(rng.random((*shape, N)), axis=1) / 4,
            }
        )
    return sides


def expand(fields, side):
    """Fields as `[B, 1 | N, T, 1]` for queries and `[B, 1 | N, 1, S]` for keys."""
    axis = {"query": -1, "key": -2}[side]
    whole = {
        name: jnp.swapaxes(x, 1, 2) if x.ndim == 3 else x[:, None] for name, x in fields.items()
    }
    return {name: jnp.expand_dims(x, axis) for name, x in whole.items()}


def as_coords(fields):
    return Coords(**{name: PerHead(x) if x.ndim == 3 else x for name, x in fields.items()})


# ---- masks: the object, and the formula of dictionaries q and k


@masks.relation
def near(q, k, *, radius):
    return (abs(q.x - k.x) < radius.astype(q.x.dtype)) & (q.positions != k.positions + 1)


LEFT, RIGHT = np.array([0, 7, 3, 20]), np.array([1, 0, 30, 2])
ARRAY = pick(B, N, T, S, share=0.5)
BLOCKS = np.random.default_rng(0).integers(-1, 6, (1, N, 5, 2)).astype(np.int32)


def between(q, k):
    return q["positions"] - k["positions"]


def causal(q, k):
    return between(q, k) >= 0


def same(name):
    return lambda q, k: q[name] == k[name]


def selected(q, k):
    rows, columns = q["positions"] // 8, k["positions"] // 8
    chosen = (BLOCKS[..., None] == np.arange(6)).any(-2)  # [1, N, nq, nk]
    inside = (rows < 5) & (columns < 6)
    return inside & chosen[0][HEADS, np.minimum(rows, 4), np.minimum(columns, 5)]


def neighborhood(q, k):
    near_axis = lambda i, j, size, kernel: (
        (j >= np.clip(i - kernel // 2, 0, size - kernel))
        & (j < np.clip(i - kernel // 2, 0, size - kernel) + kernel)
    )
    return near_axis(q["row"], k["row"], 6, 3) & near_axis(q["col"], k["col"], 7, 3)


MASKS = {
    "everything": (masks.Full(), lambda q, k: True),
    "Causal": (masks.Causal(), causal),
    "Window": (masks.Window(5, 2), lambda q, k: (between(q, k) <= 5) & (between(q, k) >= -2)),
    "windows of heads": (
        masks.Window(LEFT, jnp.asarray(RIGHT)),
        lambda q, k: (between(q, k) <= LEFT[HEADS]) & (between(q, k) >= -RIGHT[HEADS]),
    ),
    "Dilated": (
        masks.Dilated(9, 3),
        lambda q, k: (abs(between(q, k)) <= 9) & (between(q, k) % 3 == 0),
    ),
    "Chunked": (masks.Chunked(8), lambda q, k: q["positions"] // 8 == k["positions"] // 8),
    "Prefix": (masks.Prefix(), lambda q, k: (k["positions"] < q["prefix"]) | causal(q, k)),
    "Strided": (
        masks.Strided(6),
        lambda q, k: causal(q, k) & ((between(q, k) < 6) | (between(q, k) % 6 == 0)),
    ),
    "Strided, fixed": (
        masks.Strided(6, fixed=True, summary=2),
        lambda q, k: (
            causal(q, k)
            & ((q["positions"] // 6 == k["positions"] // 6) | (k["positions"] % 6 >= 4))
        ),
    ),
    "packed": (
        masks.Causal() & masks.SameSegment(),
        lambda q, k: causal(q, k) & same("segment_ids")(q, k),
    ),
    "Padding": (masks.Padding(), lambda q, k: q["valid"] & k["valid"]),
    "GlobalTokens": (
        masks.Window(3, 3) | masks.GlobalTokens(),
        lambda q, k: (abs(between(q, k)) <= 3) | q["is_global"] | k["is_global"],
    ),
    "Tree": (
        masks.Tree(),
        lambda q, k: (k["enter"] <= q["enter"]) & (q["enter"] < k["leave"]),
    ),
    "images": (
        (masks.Causal() | masks.Overlay()) & masks.SameSegment(),
        lambda q, k: (
            (causal(q, k) | (same("image")(q, k) & (q["image"] >= 0))) & same("segment_ids")(q, k)
        ),
    ),
    "Interval": (
        masks.Interval(),
        lambda q, k: (k["lower"] <= q["positions"]) & (q["positions"] < k["upper"]),
    ),
    "Neighborhood": (masks.Neighborhood((6, 7), 3), neighborhood),
    "Selected": (masks.Selected(jnp.asarray(BLOCKS), 8, num_key_blocks=6), selected),
    "an array": (masks.Dense(jnp.asarray(ARRAY)), lambda q, k: ARRAY),
    "differ": (
        masks.Causal() ^ masks.Chunked(10) ^ ~masks.SameSegment(),
        lambda q, k: (
            causal(q, k)
            ^ (q["positions"] // 10 == k["positions"] // 10)
            ^ (q["segment_ids"] != k["segment_ids"])
        ),
    ),
    "a relation": (
        near(radius=jnp.float32(1.2)),
        lambda q, k: (abs(q["x"] - k["x"]) < 1.2) & (between(q, k) != 1),
    ),
    "nothing": (masks.Empty(), lambda q, k: False),
}


@functools.cache
def seen(mask, layout):
    """Who sees whom `[B, N, T, S]`."""
    q, k = (
        {name: np.asarray(x) for name, x in expand(fields, side).items()}
        for fields, side in zip(tokens(layout), ("query", "key"), strict=True)
    )
    return np.broadcast_to(MASKS[mask][1](q, k) & q["valid"] & k["valid"], (B, N, T, S))


# ---- score modifiers: the object of some leaves, and the formula


def heads(leaf):
    return leaf.reshape(1, -1, 1, 1)


def distance(q, k):
    return abs(between(q, k)).astype(q["x"].dtype)


def twist(s, q, k, head_ids, *, w, u):
    return s + w[head_ids].astype(s.dtype) * jnp.sin(u.astype(s.dtype) * s + q.x * k.y)


BUCKETS = np.array([t5_bucket(j, 12, 20, True) for j in range(-200, 200)])


def t5(s, x, q, k):
    bucket = jnp.asarray(BUCKETS)[200 - jnp.clip(between(q, k), -199, 199)]
    return s + jnp.moveaxis(x["table"][bucket[:, 0]], -1, 1)


def relative_2d(s, x, q, k):
    down = jnp.clip(q["row"] - k["row"], -2, 2) + 2
    right = jnp.clip(q["col"] - k["col"], -1, 1) + 1
    return s + jnp.moveaxis(x["grid"][(3 * down + right)[:, 0]], -1, 1)


def euclid(s, x, q, k):
    square = (q["x"] - k["x"]) ** 2 + (q["y"] - k["y"]) ** 2
    root = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    return s - heads(x["far"]) * root


def alibi(s, x, q, k):
    return s - heads(x["slopes"]) * distance(q, k)


def soft_cap(s, x, q, k):
    return x["cap"] * jnp.tanh(s / x["cap"])


LEAVES = {
    "values": draw(B, 1, T, S),
    "row": draw(N, 1, S),
    "factor": 1 + 0.3 * draw(N),
    "growth": np.array(0.4),
    "cap": np.array(2.5),
    "slopes": 0.1 + 0.02 * draw(N),
    "table": draw(12, N),
    "grid": draw(15, N),
    "far": 0.3 + 0.1 * draw(N),
    "w": draw(N),
    "u": np.array(0.7),
}
MODIFIERS = {
    "none": (lambda x: None, lambda s, x, q, k: s),
    "Bias": (lambda x: scores.Bias(x["values"]), lambda s, x, q, k: s + x["values"]),
    "Scale": (lambda x: scores.Scale(x["factor"]), lambda s, x, q, k: s * heads(x["factor"])),
    "Temperature": (
        lambda x: scores.Temperature(8, x["growth"]),
        lambda s, x, q, k: (
            s * (1 + x["growth"] * jnp.log1p(((q["positions"] + 1) // 8).astype(s.dtype)))
        ),
    ),
    "SoftCap": (lambda x: scores.SoftCap(x["cap"]), soft_cap),
    "ALiBi": (lambda x: scores.ALiBi(x["slopes"]), alibi),
    "T5Bias": (lambda x: scores.T5Bias(x["table"], max_distance=20), t5),
    "RelativeBias2D": (lambda x: scores.RelativeBias2D(x["grid"], (3, 2)), relative_2d),
    "DistanceBias": (lambda x: scores.DistanceBias(x["far"], ("x", "y")), euclid),
    "Forget": (lambda x: scores.Forget(), lambda s, x, q, k: s + q["log_forget"] - k["log_forget"]),
    "a function": (
        lambda x: scores.score_mod(twist, w=x["w"], u=x["u"]),
        lambda s, x, q, k: s + heads(x["w"]) * jnp.sin(x["u"] * s + q["x"] * k["y"]),
    ),
    "a pipe": (
        lambda x: scores.ALiBi(x["slopes"]) >> scores.SoftCap(x["cap"]) >> scores.Bias(x["row"]),
        lambda s, x, q, k: soft_cap(alibi(s, x, q, k), x, q, k) + x["row"][None],
    ),
}


# ---- normalisers


NORMALIZERS = {
    "Softmax": (lambda x: Softmax(), {}),
    "Softmax with a sink": (lambda x: Softmax(x["sink"]), {"sink": draw(N, seed=3)}),
    "Sigmoid": (lambda x: Sigmoid(x["shift"]), {"shift": draw(N, seed=3) - 2}),
    "ReLU": (lambda x: ReLU(LENGTH), {}),
}


def attend(s, value, seen, keep, rate, x, name):
    """What `oracle.attend` does, in JAX."""
    lse = jnp.zeros(s.shape[:-1])
    if name.startswith("Softmax"):
        sink = heads(x["sink"]) if "sink" in x else jnp.full((1, 1, 1, 1), -jnp.inf)
        peak = jnp.max(jnp.where(seen, s, -jnp.inf), axis=-1, keepdims=True)
        peak = jax.lax.stop_gradient(jnp.maximum(jnp.maximum(peak, sink), -1e30))
        p = jnp.where(seen, jnp.exp(jnp.where(seen, s, 0) - peak), 0)
        total = jnp.sum(p, axis=-1, keepdims=True) + jnp.exp(sink - peak)
        some = total > 0
        total = jnp.where(some, total, 1)
        p = p / total
        lse = jnp.where(some, peak + jnp.log(total), -jnp.inf)[..., 0]
    elif name == "Sigmoid":
        p = jnp.where(seen, 1 / (1 + jnp.exp(-s - heads(x["shift"]))), 0)
    else:
        p = jnp.where(seen, jnp.maximum(s, 0) / LENGTH, 0)
    p = jnp.where(keep, p / (1 - rate.astype(p.dtype)), 0)
    value = jnp.repeat(value, s.shape[1] // value.shape[2], axis=2)
    return jnp.einsum("bnts,bsnd->btnd", p, value), jnp.swapaxes(lse, 1, 2)


# ---- one program for all cells of a normaliser


class Data(NamedTuple):
    """What chooses a cell, and the tokens' whole numbers."""

    mask: int
    modifier: int
    rate: Any
    query: dict[str, Any]
    key: dict[str, Any]
    seen: Any
    keep: Any


FLOATS = ("x", "y", "log_forget")


def leaves_of(layout, normalizer):
    """All that has a derivative, float64."""
    sides = zip(("query", "key"), tokens(layout), strict=True)
    features = {f"{side} {name}": fields[name] for side, fields in sides for name in FLOATS}
    return {
        "query": draw(B, T, N, D),
        "key": draw(B, S, K, D, seed=1),
        "value": draw(B, S, K, DV, seed=2),
        "scale": np.array(0.4),
        **LEAVES,
        **NORMALIZERS[normalizer][1],
        **features,
    }


def fields_of(x, whole, side):
    return whole | {name: x[f"{side} {name}"] for name in FLOATS}


@masks.relation
def number(q, k, *, chosen, number):
    return jnp.broadcast_to(chosen == number, (1,) * q.positions.ndim)


def any_modifier(s, q, k, head_ids, *, chosen, modifiers):
    def branch(mod):
        return lambda s: s if mod is None else mod(s, q, k, head_ids).astype(s.dtype)

    return jax.lax.switch(chosen, [branch(mod) for mod in modifiers], s)


def by_library(x, data, normalizer, implementation, alone=None):
    """Any cell, or the mask and modifier of one."""
    if alone is None:
        every = [number(chosen=data.mask, number=i) & m for i, (m, _) in enumerate(MASKS.values())]
        mask = functools.reduce(operator.or_, every)
        mods = tuple(make(x) for make, _ in MODIFIERS.values())
        mod = scores.score_mod(any_modifier, chosen=data.modifier, modifiers=mods)
    else:
        mask, mod = MASKS[alone[0]][0], MODIFIERS[alone[1]][0](x)
    has_lse = normalizer.startswith("Softmax")
    result = dot_product_attention(
        x["query"],
        x["key"],
        x["value"],
        mask=mask,
        scale=x["scale"],
        score_mod=mod,
        normalizer=NORMALIZERS[normalizer][0](x),
        dropout=Dropout(data.rate, jax.random.key(5)),
        query_coords=as_coords(fields_of(x, data.query, "query")),
        key_coords=as_coords(fields_of(x, data.key, "key")),
        implementation=implementation,
        return_residual=has_lse,
    )
    return result if has_lse else (result, jnp.zeros(x["query"].shape[:-1], result.dtype))


def scores_by_formula(x, data):
    key = jnp.repeat(x["key"], N // K, axis=2)
    s = x["scale"] * jnp.einsum("btnd,bsnd->bnts", x["query"], key)
    q, k = (
        expand(fields_of(x, f, side), side)
        for side, f in zip(("query", "key"), data[3:5], strict=True)
    )
    branches = [lambda s, rule=rule: rule(s, x, q, k) for _, rule in MODIFIERS.values()]
    return jax.lax.switch(data.modifier, branches, s)


def by_formula(x, data, normalizer):
    s = scores_by_formula(x, data)
    return attend(s, x["value"], data.seen, data.keep, data.rate, x, normalizer)


def derivatives(function, x, dx, ct):
    """The result, its derivative along dx, and the gradient for the cotangents ct."""
    result, pushed = jax.linearize(function, x)
    return result, pushed(dx), jax.linear_transpose(pushed, x)(ct)[0]


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def library_derivatives(x, dx, ct, data, *settings):
    return derivatives(lambda x: by_library(x, data, *settings), x, dx, ct)


@functools.partial(jax.jit, static_argnums=4)
def formula_derivatives(x, dx, ct, data, normalizer):
    found = derivatives(lambda x: by_formula(x, data, normalizer), x, dx, ct)
    return scores_by_formula(x, data), found


def pairwise(*axes):
    """Cells so that any two members of different axes meet at least once; the rarest fill up.

    The package allpairspy makes equally many cells of these axes, but fills them up with the last
    members: three quarters would have one normaliser.
    """
    left = {
        (i, a, j, b)
        for (i, x), (j, y) in itertools.combinations(enumerate(axes), 2)
        for a, b in itertools.product(x, y)
    }
    used = collections.Counter()

    def gain(n, a, cell):
        new = sum(bool(left & {(n, a, m, b), (m, b, n, a)}) for m, b in cell.items())
        return new, -used[n, a]

    for i, j in itertools.combinations(range(len(axes)), 2):
        for a, b in itertools.product(axes[i], axes[j]):
            if (i, a, j, b) not in left:
                continue
            cell = {i: a, j: b}
            for n, axis in enumerate(axes):
                if n not in cell:
                    cell[n] = max(axis, key=functools.partial(gain, n, cell=cell))
            used.update(cell.items())
            left -= {(m, cell[m], n, cell[n]) for m, n in itertools.combinations(sorted(cell), 2)}
            yield tuple(cell[n] for n in range(len(axes)))


CELLS = list(pairwise(list(MASKS), list(MODIFIERS), list(NORMALIZERS), list(LAYOUTS), [0.0, RATE]))


@pytest.fixture
def small_blocks(monkeypatch):
    """Many blocks of few tokens, the last of them ragged; no two in a tile, to compile less."""
    use_small_blocks(monkeypatch, 16, 16, 1, 1)


def data_of(mask, modifier, layout, rate):
    sides = []
    for fields in tokens(layout):
        whole = {n: v for n, v in fields.items() if n not in FLOATS}
        sides.append(
            {n: jnp.asarray(v, v.dtype if v.dtype == bool else np.int32) for n, v in whole.items()}
        )
    keep = kept() if rate else np.ones((B, N, T, S), bool)
    number = [
        jnp.int32(list(table).index(x)) for table, x in ((MASKS, mask), (MODIFIERS, modifier))
    ]
    return Data(
        *number, jnp.asarray(rate), *sides, jnp.asarray(seen(mask, layout)), jnp.asarray(keep)
    )


@functools.cache
def kept():
    """What dropout keeps `[B, N, T, S]`: it counts tokens, whatever their positions are."""
    ids = (np.arange(length, dtype=np.int32) for length in (N, T, S))
    return np.asarray(Dropout(RATE, jax.random.key(5)).keep((B,), *ids))


def oracle_of(s, x, seen, normalizer, keep=True, rate=0.0):
    """Output and LSE, in NumPy."""
    s = np.asarray(s) + (np.reshape(x["shift"], (1, -1, 1, 1)) if "shift" in x else 0)
    name = {"Softmax with a sink": "softmax"}.get(normalizer, normalizer.lower())
    return oracle.attend(
        s,
        x["value"],
        seen,
        normalizer=name,
        sink=x.get("sink"),
        length=LENGTH,
        keep=keep,
        rate=rate,
    )


def compare(actual, expected, dtype, message):
    for name, a, b in zip(("value", "derivative", "gradient"), actual, expected, strict=True):
        tolerance = (FORWARD if name == "value" else GRADIENT)[dtype]
        found = jax.tree_util.tree_leaves_with_path(a)
        for (path, p), r in zip(found, jax.tree.leaves(b), strict=True):
            assert_close(p, r, tolerance, f"{message}: {name}{jax.tree_util.keystr(path)}")


def refuses(call, *arguments):
    """The result; or None where an implementation declines, and says why."""
    try:
        return call(*arguments)
    except NotImplementedError as error:
        assert re.search(r"declines: .{10,}\.$", str(error)), error  # noqa: PT017
        return None


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_any_mask_modifier_and_normaliser(implementation, normalizer, small_blocks, x64):
    ct = tuple(map(jnp.asarray, (draw(B, T, N, DV, seed=20), draw(B, T, N, seed=21))))
    together = True
    for mask, modifier, name, layout, rate in CELLS:
        if name != normalizer:
            continue
        x = jax.tree.map(jnp.asarray, leaves_of(layout, normalizer))
        dx = {n: jnp.asarray(draw(*v.shape, seed=9)) for n, v in x.items()}
        data = data_of(mask, modifier, layout, rate)
        s, expected = formula_derivatives(x, dx, ct, data, normalizer)
        by_numpy = oracle_of(s, x, data.seen, normalizer, data.keep, rate)
        cell = f"{mask}, {modifier}, {layout}, {rate}"
        for a, b in zip(expected[0], by_numpy, strict=True):
            assert_close(a, b, FORWARD["float64"], cell)
        arguments = x, dx, ct, data, normalizer, implementation
        actual = refuses(library_derivatives, *arguments) if together else None
        if actual is None:  # it does not take them all at once: one by one
            together = False
            actual = refuses(library_derivatives, *arguments, (mask, modifier))
        if actual is not None:
            compare(actual, expected, "float64", cell)


# ---- cells of their own: what cannot be data, because it changes what is compiled


class Sizes(NamedTuple):
    """The sizes of a cell; two batch axes come as a pair."""

    batch: tuple[int, ...]
    t: int
    s: int
    n: int
    k: int
    d: int = 5
    dv: int = 3


@functools.cache
def any_shape(*shape):
    """All shapes `[B, N, T, S]` that broadcast to it."""
    return tuple(itertools.product(*((1, size) for size in shape)))


def every_array(z):
    """A bias of each shape, and a mask of each; one of the masks is whatever `which` says."""
    shapes = any_shape(z.batch[0], z.n, z.t, z.s)
    return {f"bias {i}": draw(*shape, seed=i) / 3 for i, shape in enumerate(shapes)}, {
        f"mask {i}": pick(*shape, share=0.95, seed=i) for i, shape in enumerate(shapes)
    }


def nothing_at_all(x, z):
    return {}, lambda s: s, True


def causal_argument(x, z):
    return {"is_causal": True}, lambda s: s, np.tri(z.t, z.s, dtype=bool)


def arguments_of_jax_nn(x, z):
    lengths = np.arange(z.batch[0]) * 9
    arrays = np.arange(z.s) < z.s - lengths[:, None], np.arange(z.t) < z.t - lengths[:, None] // 2
    i, j = np.arange(z.t)[:, None], np.arange(z.s)
    seen = arrays[0][:, None, None] & arrays[1][:, None, :, None] & (i - j <= 20) & (j <= i)
    array = pick(1, z.n, 1, z.s, share=0.8)
    given = {
        "bias": x["bias"],
        "mask": jnp.asarray(array),
        "is_causal": True,
        "local_window_size": (20, 6),
        "key_value_seq_lengths": jnp.asarray(z.s - lengths),
        "query_seq_lengths": jnp.asarray(z.t - lengths // 2),
        "normalizer": Softmax(x["sink"]),
    }
    return given, lambda s: s + x["bias"], seen & array


def arrays_of_every_shape(x, z):
    count = len(any_shape(z.batch[0], z.n, z.t, z.s))
    arrays = every_array(z)[1]
    pipe = functools.reduce(operator.rshift, (scores.Bias(x[f"bias {i}"]) for i in range(count)))
    mask = functools.reduce(operator.and_, (masks.Dense(jnp.asarray(a)) for a in arrays.values()))
    biases = lambda s: s + sum(x[f"bias {i}"] for i in range(count))
    return (
        {"mask": mask, "score_mod": pipe},
        biases,
        functools.reduce(operator.and_, arrays.values()),
    )


def two_batch_axes(x, z):
    """What has one of the axes, the other, or none."""
    valid = pick(*z.batch, z.s, share=0.8)
    coords = Coords.arange(z.s), Coords.arange(z.t, jnp.arange(z.batch[1]) * 3)
    places = np.arange(z.t) + 3 * np.arange(z.batch[1])[:, None]  # [B2, T]
    array = pick(z.batch[0], 1, 1, z.t, z.s, share=0.7)
    seen = (np.arange(z.s) <= places[..., None])[None, :, None] & valid[:, :, None, None] & array
    given = {
        "bias": x["bias"],
        "mask": masks.Causal() & masks.Dense(jnp.asarray(array)),
        "score_mod": scores.ALiBi(x["slopes"]),
        "key_coords": coords[0].with_features(valid=jnp.asarray(valid)),
        "query_coords": coords[1],
    }
    far = jnp.asarray(abs(places[..., None] - np.arange(z.s)), x["slopes"].dtype)
    return given, lambda s: s + x["bias"] - x["slopes"].reshape(-1, 1, 1) * far[:, None], seen


def no_batch_axis(x, z):
    ids = np.array([4, 1, 0, 5, 2, 2])  # heads of a larger model
    buckets = jnp.asarray(BUCKETS)[200 - (np.arange(z.t)[:, None] + 7 - np.arange(z.s))]
    given = {
        "mask": masks.Window(9, None),
        "score_mod": scores.T5Bias(x["table"], max_distance=20) >> scores.SoftCap(2.0),
        "query_coords": Coords.arange(z.t, 7),
        "key_coords": Coords.arange(z.s),
        "head_ids": jnp.asarray(ids),
        "normalizer": Sigmoid(x["shift"]),  # of the heads that are here
    }
    table = lambda s: jnp.moveaxis(x["table"][buckets][..., ids], -1, 0)
    return (
        given,
        lambda s: 2 * jnp.tanh((s + table(s)) / 2),
        np.arange(z.t)[:, None] + 7 - np.arange(z.s) <= 9,
    )


def a_plan(x, z):
    mask, coords = (
        masks.Causal() & masks.Chunked(24),
        (Coords.arange(z.t, z.s - z.t), Coords.arange(z.s)),
    )
    i, j = np.arange(z.t)[:, None] + z.s - z.t, np.arange(z.s)
    given = {
        "mask": mask,
        "query_coords": coords[0],
        "key_coords": coords[1],
        "plan": masks.make_plan(mask, *coords, block=(16, 8)),
        "normalizer": ReLU(LENGTH),
    }
    return given, lambda s: s, (j <= i) & (i // 24 == j // 24)


def longer_than_a_block(x, z):
    i, j = np.arange(z.t)[:, None], np.arange(z.s)
    given = {
        "mask": masks.Window(150, 90),
        "score_mod": scores.ALiBi(x["slopes"]),
        "query_coords": Coords.arange(z.t),
        "key_coords": Coords.arange(z.s),
        "normalizer": Softmax(x["sink"]),
    }
    far = jnp.asarray(abs(i - j), x["slopes"].dtype)
    return given, lambda s: s - x["slopes"].reshape(-1, 1, 1) * far, (i - j <= 150) & (i - j >= -90)


def another_reach_of_each_head(x, z):
    """The lists of tiles differ from head to head."""
    reach = np.arange(z.n) ** 2
    near = masks.relation(lambda q, k: abs(q.positions - k.positions) <= q.reach)
    of_heads = PerHead(jnp.broadcast_to(reach, (z.t, z.n)))
    given = {
        "mask": near(),
        "query_coords": Coords.arange(z.t).with_features(reach=of_heads),
        "key_coords": Coords.arange(z.s),
    }
    far = abs(np.arange(z.t)[:, None] - np.arange(z.s))
    return given, lambda s: s, far <= reach[:, None, None]


def leaves_alone(make, z):
    lead = (1, z.batch[-1]) if len(z.batch) == 2 else (1,)
    x = {
        "query": draw(*z.batch, z.t, z.n, z.d),
        "key": draw(*z.batch, z.s, z.k, z.d, seed=1),
        "value": draw(*z.batch, z.s, z.k, z.dv, seed=2),
        "scale": np.array(0.45),
    }
    own = {
        arguments_of_jax_nn: {"bias": draw(*lead, z.n, z.t, 1), "sink": draw(z.n)},
        arrays_of_every_shape: every_array(z)[0] if len(z.batch) == 1 else {},
        two_batch_axes: {"bias": draw(*lead, 1, 1, z.s), "slopes": abs(draw(z.n)) / 9},
        no_batch_axis: {"table": draw(12, 6), "shift": draw(z.n) - 1},
        longer_than_a_block: {"slopes": abs(draw(z.n)) / 99, "sink": draw(z.n) + 3},
    }
    return x | own.get(make, {})


ALONE = [
    (nothing_at_all, Sizes((2,), 31, 31, 3, 3), "float32"),
    (nothing_at_all, Sizes((1,), 1, 19, 4, 1), "float64"),
    (nothing_at_all, Sizes((3,), 19, 1, 1, 1, 1, 1), "float32"),
    (causal_argument, Sizes((2,), 29, 43, 6, 2, 8, 17), "bfloat16"),
    (arguments_of_jax_nn, Sizes((2,), 41, 37, 8, 4), "float32"),
    (arguments_of_jax_nn, Sizes((2,), 41, 37, 4, 2), "bfloat16"),
    (arrays_of_every_shape, Sizes((2,), 19, 23, 8, 4), "float64"),
    (two_batch_axes, Sizes((2, 3), 19, 23, 4, 4), "float32"),
    (no_batch_axis, Sizes((), 23, 29, 6, 3), "float64"),
    (another_reach_of_each_head, Sizes((2,), 51, 43, 6, 6), "float32"),
    (a_plan, Sizes((2,), 31, 47, 2, 1), "float32"),
    (longer_than_a_block, Sizes((1,), 163, 283, 4, 2), "float32"),
    (longer_than_a_block, Sizes((1,), 163, 283, 4, 2), "bfloat16"),
]


def alone_by_library(x, make, z, implementation):
    given = make(x, z)[0]
    has_lse = isinstance(given.get("normalizer", Softmax()), Softmax)
    arrays = x["query"], x["key"], x["value"]
    settings = {"scale": x["scale"], "implementation": implementation, "return_residual": has_lse}
    result = dot_product_attention(*arrays, **given, **settings)
    return result if has_lse else (result, jnp.zeros(x["query"].shape[:-1], x["scale"].dtype))


def alone_by_formula(x, make, z):
    given, modify, seen = make(x, z)
    key = jnp.repeat(x["key"], z.n // z.k, axis=-2)
    with jax.numpy_rank_promotion("allow"):
        s = modify(x["scale"] * jnp.einsum("...tnd,...snd->...nts", x["query"], key))
    seen = jnp.broadcast_to(jnp.asarray(seen), s.shape)
    s, seen = (y.reshape(-1, *y.shape[-3:]) for y in (s, seen))
    value = x["value"].reshape(-1, *x["value"].shape[-3:])
    name = type(given.get("normalizer", Softmax())).__name__
    result = attend(s, value, seen, True, jnp.zeros(()), x, name)
    return tuple(y.reshape(*z.batch, *y.shape[1:]) for y in result)


@pytest.mark.parametrize(("make", "sizes", "dtype"), ALONE)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_any_arguments_and_sizes(implementation, make, sizes, dtype, monkeypatch):
    if make not in (longer_than_a_block, a_plan):
        use_small_blocks(monkeypatch, 16, 8, 2, 2)
    wide = leaves_alone(make, sizes)
    half = ("query", "key", "value")
    others = "float64" if dtype == "float64" else "float32"
    with jax.enable_x64(True):
        narrow = {n: jnp.asarray(v, dtype if n in half else others) for n, v in wide.items()}
        x = jax.tree.map(lambda v: jnp.asarray(v, jnp.float64), narrow)
        shapes = jax.eval_shape(lambda x: alone_by_formula(x, make, sizes), x)
        dx = {n: jnp.asarray(draw(*v.shape, seed=9)) for n, v in x.items()}
        ct = tuple(jnp.asarray(draw(*y.shape, seed=20)) for y in shapes)
        f = lambda x: alone_by_formula(x, make, sizes)
        expected = jax.jit(functools.partial(derivatives, f))(x, dx, ct)

    f = lambda x: alone_by_library(x, make, sizes, implementation)
    with jax.enable_x64(dtype == "float64"):
        like = lambda a, b: jax.tree.map(lambda v, w: jnp.asarray(v, w.dtype), a, b)
        shapes = refuses(jax.eval_shape, f, narrow)
        if shapes is None:
            return
        assert shapes[0].dtype == dtype
        actual = jax.jit(functools.partial(derivatives, f))(
            narrow, like(dx, narrow), like(ct, shapes)
        )
    compare(actual, expected, dtype, make.__name__)


@pytest.mark.parametrize("normalizer", [Entmax(1.5), TopK(3)], ids=repr)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_whoever_cannot_cut_rows_says_so(implementation, normalizer):
    q = jnp.asarray(draw(1, 4, 2, 3), jnp.float32)
    call = functools.partial(
        dot_product_attention, normalizer=normalizer, implementation=implementation
    )
    output = refuses(call, q, q, q)
    assert (output is None) == (implementation not in ("dense", "decode"))
