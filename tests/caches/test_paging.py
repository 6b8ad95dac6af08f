"""Pages: uses, free pages and contents against a plain Python implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import Coords, caches
from tests.runs import long

PAGES, SIZE, B, MOST, T = 9, 3, 4, 5, 4


class Paged:
    """Pages as sets of users, and the tokens of each sequence."""

    def __init__(self):
        self.tokens = [[] for _ in range(B)]
        self.pages = [[] for _ in range(B)]  # objects, which sequences share
        self.overflowed = [False] * B

    @property
    def uses(self):
        every = [id(page) for pages in self.pages for page in pages]
        return sorted(every.count(page) for page in set(every))

    @property
    def num_free(self):
        return PAGES - len({id(page) for pages in self.pages for page in pages})

    def append(self, new):
        free = self.num_free  # a page that is freed by copies is free in the next call
        for b, tokens in enumerate(new):
            pages, length = self.pages[b], len(self.tokens[b])
            after = length + len(tokens)
            count = -(-after // SIZE) - len(pages)
            copies = bool(tokens) and length % SIZE > 0 and self.users(pages[-1]) > 1
            if after > MOST * SIZE or count + copies > free:
                self.overflowed[b] = True
                continue
            free -= count + copies
            if copies:
                pages[-1] = object()
            pages += [object() for _ in range(count)]
            self.tokens[b] = self.tokens[b] + tokens

    def users(self, page):
        return sum(page is other for pages in self.pages for other in pages)

    def share(self, source, target, length):
        length = min(length, len(self.tokens[source]))
        self.tokens[target] = self.tokens[source][:length]
        self.pages[target] = self.pages[source][: -(-length // SIZE)]
        self.overflowed[target] = False

    def truncate(self, lengths):
        for b, length in enumerate(lengths):
            self.tokens[b] = self.tokens[b][:length]
            self.pages[b] = self.pages[b][: -(-len(self.tokens[b]) // SIZE)]


append = jax.jit(lambda cache, x, c: cache.append(x, 2 * x, c))
share = jax.jit(lambda cache, *numbers: cache.share(*numbers))
truncate = jax.jit(lambda cache, lengths: cache.truncate(lengths))
reset = jax.jit(lambda cache, where: cache.reset(where))
contents = jax.jit(lambda c: (c.keys, c.values, c.coords.positions, c.coords.valid, c.num_free))


def make(batch=B):
    return caches.PagedCache.create(PAGES, SIZE, 1, 2, batch=batch, capacity=MOST * SIZE)


def check(cache, plain):
    keys, values, positions, valid, num_free = jax.device_get(contents(cache))
    assert cache.lengths.tolist() == [len(tokens) for tokens in plain.tokens]
    assert cache.overflowed.tolist() == plain.overflowed
    assert num_free == plain.num_free
    assert sorted(x for x in cache.uses.tolist() if x) == plain.uses
    for b, tokens in enumerate(plain.tokens):
        assert valid[b].sum() == len(tokens)
        for each, wanted in ((keys, tokens), (values, 2 * np.array(tokens)), (positions, tokens)):
            found = each[b, : len(tokens)].reshape(len(tokens), each[0, 0].size)
            assert (found == np.reshape(wanted, (-1, 1))).all()


def walk(seed, count):
    rng = np.random.default_rng(seed)
    cache, plain, number = make(), Paged(), 1
    for _ in range(count):
        action = rng.choice(["append", "append", "share", "truncate", "reset"])
        if action == "append":
            valid = rng.random((B, T)) < rng.choice([0.2, 0.9])
            names = number + np.arange(B * T).reshape(B, T)
            number += B * T
            x = np.broadcast_to(np.float32(names)[..., None, None], (B, T, 1, 2))
            cache = append(cache, x, Coords(names, valid=valid))
            plain.append([names[b][valid[b]].tolist() for b in range(B)])
        elif action == "share":
            source, target = rng.permutation(B)[:2]
            length = rng.integers(0, MOST * SIZE)
            cache = share(cache, source, target, length)
            plain.share(source, target, length)
        elif action == "truncate":
            lengths = rng.integers(0, MOST * SIZE, B)
            cache = truncate(cache, lengths)
            plain.truncate(lengths)
        else:
            where = rng.random(B) < 0.4
            cache = reset(cache, where)
            plain.truncate(np.where(where, 0, MOST * SIZE))
            plain.overflowed = [o and not w for o, w in zip(plain.overflowed, where, strict=True)]
        check(cache, plain)


def test_any_sequence_of_appends_shares_truncations_and_resets():
    for seed in range(5):
        walk(seed, 60)


@long
def test_any_longer_sequence_of_them():
    for seed in range(5, 60):
        walk(seed, 200)


def ones(*shape):
    return jnp.ones((*shape, 1, 2))


def test_the_last_user_of_a_shared_page_writes_in_place():
    """Two sequences share one page of two tokens, and one page is free."""
    cache = caches.PagedCache.create(2, SIZE, 1, 2, batch=2, capacity=3)
    cache = append(
        cache, ones(2, 2), Coords(jnp.arange(2), valid=jnp.array([[True, True], [False, False]]))
    )
    cache = append(share(cache, 0, 1, 9), ones(2, 1), Coords(jnp.zeros(1, int)))
    assert cache.lengths.tolist() == [3, 3]
    assert cache.uses.tolist() == [1, 1]
    assert cache.table[:, 0].tolist() == [1, 0]


def test_several_batch_axes_share_by_flat_index():
    cache = make((2, 2))
    cache = jax.jit(lambda c, x: c.append(x, x))(cache, ones(2, 2, 4))
    cache = jax.jit(lambda c: c.share(3, 0, 1))(cache)
    assert cache.lengths.tolist() == [[1, 4], [4, 4]]
    np.testing.assert_array_equal(cache.table[0, 0, 0], cache.table[1, 1, 0])
    assert int(cache.num_free) == PAGES - 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 0), r"share: source must be the index of a sequence, 0 \.\.\. 3, got 4"),
        ((0, -1), r"share: target must be the index of a sequence, 0 \.\.\. 3, got -1"),
        ((jnp.array([0, 1]), 2), r"share: source must be the index .* got \[2\]"),
        ((1, 1), "share: source and target must differ, got 1 twice"),
        ((0, 1, -2), "share: length must be at least 0, got -2"),
    ],
)
def test_wrong_arguments_of_share(arguments, message):
    with pytest.raises(ValueError, match=message):
        make().share(*arguments)


@pytest.mark.parametrize("arguments", [(4, 0), (0, 7), (2, 2), (-1, 0), (0, 1, -3)])
def test_traced_indices_of_no_sequence_share_nothing(arguments):
    cache = append(make(), ones(B, 4), Coords(jnp.arange(4)))
    shared = share(cache, *arguments)
    lengths = [4, 4, 4, 4] if len(arguments) == 2 else [4, 0, 4, 4]
    assert shared.lengths.tolist() == lengths
    assert shared.num_free == PAGES - sum(-(-length // SIZE) for length in lengths)
    source, target = arguments[:2]
    may_share = source in range(B) and source != target
    assert shared.overflowed.tolist() == [i == target and not may_share for i in range(B)]
