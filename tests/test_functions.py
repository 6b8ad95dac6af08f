"""Functions of users in masks and score modifiers: what is said of a wrong one, and pickling."""

import copy
import functools
import inspect
import pickle

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import Coords, dot_product_attention, make_plan, masks, scores
from tests.small_blocks import IMPLEMENTATIONS

L = 300
Q, K, V = np.random.default_rng(0).normal(size=(3, 1, L, 2, 4)).astype(np.float32)


@masks.relation
def near(q, k, *, radius):
    """Tokens that are close."""
    return abs(q.positions - k.positions) <= radius


@scores.score_mod
def halved(s, q, k, head_ids):
    return s / 2


def decay(s, q, k, head_ids, *, rates):
    return s - rates[head_ids] * abs(q.positions - k.positions).astype(s.dtype)


def within(q, k):
    return q.positions <= k.positions + 7


PARTS = {
    "decorated relation": near(radius=3),
    "composition": masks.Causal() & ~near(radius=jnp.arange(4)),
    "relation of a function": masks.relation(within)(),
    "decorated modifier": halved,
    "modifier of a function": scores.score_mod(decay, rates=jnp.ones(2)),
    "pipe": halved >> scores.ALiBi.for_heads(2) >> scores.score_mod(decay, rates=jnp.ones(2)),
    "maker": near,
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_can_be_pickled_and_copied(name):
    part = PARTS[name]
    for again in (pickle.loads(pickle.dumps(part)), copy.deepcopy(part), copy.copy(part)):
        assert repr(again) == repr(part)
        if name != "maker":
            chex.assert_trees_all_equal(again, part)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_pickled_mask_and_modifier_give_the_same_output(implementation):
    mask, mod = near(radius=20), halved >> scores.score_mod(decay, rates=jnp.array([0.1, 0.2]))

    def f(mask, mod):
        options = {"mask": mask, "score_mod": mod, "implementation": implementation}
        return dot_product_attention(Q, K, V, **options)

    chex.assert_trees_all_equal(f(mask, mod), f(*pickle.loads(pickle.dumps((mask, mod)))))


def test_what_a_relation_makes_keeps_its_name_its_documentation_and_its_parameters():
    assert (near.__name__, near.__doc__) == ("near", "Tokens that are close.")
    assert str(inspect.signature(near)) == "(*, radius)"
    partial = masks.relation(functools.partial(lambda q, k, r: k.positions < r, r=4))()
    assert repr(partial) == "partial()"
    c = Coords.arange(6)
    plan = make_plan(partial, c, block=(6, 1))
    chex.assert_trees_all_equal(plan.kinds[0, 0], np.array([[2, 2, 2, 2, 0, 0]]))
    scaled = scores.score_mod(functools.partial(decay, rates=jnp.zeros(2)))
    out = dot_product_attention(Q, K, V, score_mod=scaled)
    chex.assert_trees_all_close(out, dot_product_attention(Q, K, V), rtol=1e-5)


def test_a_relation_may_return_a_constant():
    everything = masks.relation(lambda q, k: True)()
    for implementation in IMPLEMENTATIONS:
        out = dot_product_attention(Q, K, V, mask=everything, implementation=implementation)
        chex.assert_trees_all_close(out, dot_product_attention(Q, K, V), rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("mask", [masks.Full(), masks.relation(lambda q, k: True)()], ids=repr)
def test_a_mask_that_compares_nothing_needs_no_coordinates(mask):
    """T ≠ S: what compares positions would have to be told them."""
    out = dot_product_attention(Q[:, :5], K, V, mask=mask)
    chex.assert_trees_all_close(out, dot_product_attention(Q[:, :5], K, V))
    assert not np.asarray(dot_product_attention(Q[:, :5], K, V, mask=masks.Empty())).any()


def relation(function):
    return lambda: dot_product_attention(Q, K, V, mask=masks.relation(function)())


def planned(function):
    return lambda: make_plan(masks.relation(function)(), Coords.arange(L))


def modifier(function, **parameters):
    return lambda: dot_product_attention(
        Q, K, V, score_mod=scores.score_mod(function, **parameters)
    )


def by_if(q, k):
    seen = q.positions > k.positions
    if seen.any():
        seen = ~seen
    return seen


DECIDES = {
    "and": lambda q, k: q.positions >= k.positions and k.positions > 3,
    "or": lambda q, k: q.positions >= k.positions or k.positions > 3,
    "not": lambda q, k: not q.positions >= k.positions,
    "if": by_if,
    "if else": lambda q, k: k.positions > 3 if q.positions > 3 else k.positions < 3,
    "chain": lambda q, k: 0 <= q.positions - k.positions < 8,
    "max": lambda q, k: max(q.positions, k.positions) < 8,
    "range": lambda q, k: k.positions in range(8),
    "float": lambda q, k: float(k.positions) < 8,
    "int": lambda q, k: int(k.positions) < 8,
    "bool": lambda q, k: bool(k.positions < 8),
    "numpy": lambda q, k: np.abs(q.positions - k.positions) < 8,
    "index": lambda q, k: [True, False][k.positions],
    "any": lambda q, k: any(k.positions < 8),
}


@pytest.mark.parametrize("name", DECIDES)
def test_a_function_that_decides_by_the_value_of_an_array_is_told_what_to_write(name):
    for call in (relation(DECIDES[name]), planned(DECIDES[name])):
        with pytest.raises(TypeError, match=r"a relation must not branch.*\(a\) & \(b\), \(a\)"):
            call()
    mod = modifier(lambda s, q, k, head_ids: s if DECIDES[name](q, k) else -s)
    with pytest.raises(TypeError, match=r"a score modifier must not branch.*jnp.where for if"):
        mod()


def test_errors_within_a_function_stay_what_they_are():
    def broken(q, k):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        relation(broken)()


CASES = {
    "nothing": (relation(lambda q, k: None), "return booleans, got NoneType. Return True where"),
    "numbers": (
        relation(lambda q, k: q.positions - k.positions),
        "must return booleans, got int32",
    ),
    "one record": (relation(lambda q: q), r"must be <lambda>\(q, k, \*\*parameters\)"),
    "indices": (relation(lambda b, h, i, j: i >= j), "missing a required argument: 'i'"),
    "no parameter": (near, "missing a required .*argument: 'radius'"),
    "another parameter": (lambda: near(radius=1, size=2), "unexpected keyword argument 'size'"),
    "no name": (lambda: near(5), r"must be given by name, near\(\*, radius\), got 1 by position"),
    "no function": (lambda: masks.relation(3), "function must be a function, def near.*got int"),
    "a class": (lambda: masks.relation(masks.Causal), "got Causal"),
    "scores of nothing": (modifier(lambda s, q, k, h: None), "return the new scores, got NoneType"),
    "scores that are a mask": (
        modifier(lambda s, q, k, h: q.positions >= k.positions),
        "got bool. A function that returns booleans is a mask",
    ),
    "scores alone": (modifier(lambda s: s), "must be .*scores, q, k, head_ids"),
    "an unknown table": (modifier(lambda s, q, k, h: s, table=1), "unexpected keyword.*'table'"),
    "a modifier of a modifier": (lambda: scores.score_mod(scores.ALiBi(1.0)), "already a score"),
    "a modifier of a number": (lambda: scores.score_mod(3.0), "must be a function, .* got float"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_function_of_another_kind_is_refused(name):
    call, message = CASES[name]
    with pytest.raises(TypeError, match=message):
        call()


def test_a_relation_that_does_not_read_its_records_is_refused():
    with pytest.raises(ValueError, match=r"as the fields of q and k.*masks\.Dense\(array\)"):
        relation(lambda q, k: jnp.tri(L, dtype=bool))()


CAP, CAUSAL, ARRAY = scores.SoftCap(3.0), masks.Causal(), np.ones((L, L), bool)
OPERATORS = {
    "cap + alibi": (lambda: CAP + scores.ALiBi(1.0), "compose by >>, from left to right"),
    "cap * 2": (lambda: CAP * 2, "compose by >>"),
    "2 * cap": (lambda: 2 * CAP, "compose by >>"),
    "-cap": (lambda: -CAP, "compose by >>"),
    "cap - 1": (lambda: CAP - 1, "compose by >>"),
    "cap / 2": (lambda: CAP / 2, r"scores\.Scale\(factor\)"),
    "cap + array": (lambda: CAP + ARRAY, r"scores\.Bias\(array\)"),
    "array + cap": (lambda: ARRAY + CAP, r"scores\.Bias\(array\)"),
    "jax array + cap": (lambda: jnp.ones(3) + CAP, r"scores\.Bias\(array\)"),
    "cap | cap": (lambda: CAP | CAP, "compose by >>"),
    "cap & mask": (lambda: CAP & CAUSAL, "mask=..."),
    "mask & cap": (lambda: CAUSAL & CAP, "a Mask combines with a Mask, got SoftCap"),
    "cap @ cap": (lambda: CAP @ CAP, "compose by >>"),
    "cap << cap": (lambda: CAP << CAP, "compose by >>"),
    "~cap": (lambda: ~CAP, "compose by >>"),
    "sum": (lambda: sum([CAP, CAP]), "compose by >>"),
    "cap and cap": (lambda: CAP and CAP, "no truth value. Compose by >>"),
    "not cap": (lambda: not CAP, "no truth value"),
    "cap >> function": (lambda: CAP >> within, r"Wrap a function: scores\.score_mod"),
    "function >> cap": (lambda: within >> CAP, r"Wrap a function: scores\.score_mod"),
    "cap >> class": (lambda: CAP >> scores.ALiBi, r"the class ALiBi\. Call it"),
    "cap >> mask": (lambda: CAP >> CAUSAL, "got Causal.*A mask is the argument mask"),
    "cap >> list": (lambda: CAP >> [CAP], "Compose several by >>"),
    "cap >> array": (lambda: CAP >> ARRAY, r"write scores\.Bias\(array\)"),
    "mask + mask": (lambda: CAUSAL + CAUSAL, r"no arithmetic. Combine masks by & \(and\)"),
    "mask - mask": (lambda: CAUSAL - CAUSAL, r"~ \(not\)"),
    "mask * mask": (lambda: CAUSAL * CAUSAL, "no arithmetic"),
    "mask @ mask": (lambda: CAUSAL @ CAUSAL, "no arithmetic"),
    "array * mask": (lambda: ARRAY * CAUSAL, "no arithmetic"),
    "-mask": (lambda: -CAUSAL, "no arithmetic"),
    "sum of masks": (lambda: sum([CAUSAL, CAUSAL]), "no arithmetic"),
    "mask >> mask": (lambda: CAUSAL >> CAUSAL, "does not compose by >>"),
    "mask >> cap": (lambda: CAUSAL >> CAP, "separate arguments of attention"),
    "mask and mask": (lambda: CAUSAL and CAUSAL, "no truth value"),
    "mask & class": (lambda: CAUSAL & masks.Full, r"the class Full\. Call it: masks\.Full\(\)"),
    "class & mask": (lambda: masks.Full & CAUSAL, r"the class Full\. Call it: masks\.Full\(\)"),
    "mask & relation": (lambda: CAUSAL & near, r"the function near\. Call it.*near\(\*, radius\)"),
    "relation & relation": (lambda: near & near, "Call it"),
    "relation | mask": (lambda: near | CAUSAL, "Call it"),
    "~relation": (lambda: ~near, "Call it"),
    "mask & lambda": (lambda: CAUSAL & within, r"masks\.relation\(function\)\(\)"),
    "mask & array": (lambda: CAUSAL & ARRAY, r"masks\.Dense\(array\)"),
    "array & mask": (lambda: ARRAY & CAUSAL, r"got ndarray.*masks\.Dense\(array\)"),
    "mask & None": (lambda: CAUSAL & None, "Omit it"),
    "mask & text": (lambda: CAUSAL & "causal", r"masks\.Causal\(\)"),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_wrong_operators_name_the_right_ones(name):
    call, message = OPERATORS[name]
    with pytest.raises(TypeError, match=message):
        call()
