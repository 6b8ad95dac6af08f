"""Labels of tokens: readable for any number of tokens, and printed as they are."""

import itertools

import chex
import matplotlib as mpl
import numpy as np
import pytest

from flax_attn import Coords, masks, visualize

mpl.use("Agg")
import matplotlib.pyplot as plt

WORDS = ["attention", "is", "a", "weighted", "mean", "of", "values", ",", "whose", "keys", "match"]


def picture(tokens):
    """A heat map with tokens at both axes."""
    return visualize.heat_map(np.eye(len(tokens)), tokens=tokens)


def texts(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def shown(tokens):
    """The labels of the keys, after a picture was drawn without a warning."""
    ax = picture(tokens)
    ax.figure.canvas.draw()
    assert texts(ax.xaxis) == texts(ax.yaxis)
    return texts(ax.xaxis)


def test_tokens_label_queries_and_keys():
    assert shown(WORDS[:4]) == WORDS[:4]


@pytest.mark.parametrize("draw", ["heat_map", "mask", "axes"])
@pytest.mark.parametrize("length", [4, 40, 400])
def test_labels_do_not_overlap_and_none_leaves_the_figure(draw, length):
    tokens = (WORDS * 40)[:length]
    if draw == "mask":
        ax = visualize.mask(masks.Causal(), Coords.arange(length), tokens=tokens)
    else:
        given = plt.subplots()[1] if draw == "axes" else None
        ax = visualize.heat_map(np.eye(length), tokens=tokens, ax=given)
    figure = ax.figure
    figure.canvas.draw()
    boxes = [
        [label.get_window_extent() for label in axis.get_ticklabels()]
        for axis in (ax.xaxis, ax.yaxis)
    ]
    for extents, side in zip(boxes, "xy", strict=True):
        least = min(length, 10)
        assert least <= len(extents) <= 60
        ends = sorted((getattr(box, side + "0"), getattr(box, side + "1")) for box in extents)
        for (_, end), (start, _) in itertools.pairwise(ends):
            assert end <= start + 1  # pixel
    if draw != "axes":
        tight = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
        assert (tight.min >= figure.bbox.min - 1).all(), tight
        assert (tight.max <= figure.bbox.max + 1).all(), (tight, figure.bbox)


def test_labels_that_are_left_out_leave_the_others_at_their_tokens():
    tokens = [str(i) for i in range(400)]
    ax = picture(tokens)
    for axis in (ax.xaxis, ax.yaxis):
        places = axis.get_ticklocs()
        assert texts(axis) == [tokens[i] for i in places.astype(int)]
        chex.assert_trees_all_equal(np.unique(np.diff(places)), np.diff(places)[:1])


def test_dollars_are_no_formula():
    tokens = ["$x^2$", "$", r"\$5", "a_b"]
    ax = picture(tokens)
    ax.figure.canvas.draw()
    assert texts(ax.xaxis) == tokens
    labels = [*ax.get_xticklabels(), *ax.get_yticklabels()]
    assert not any(label.get_parse_math() for label in labels)


@pytest.mark.parametrize(
    ("token", "label"),
    [
        ("\n", r"\n"),
        ("a\tb", r"a\tb"),
        ("\x00", r"\x00"),
        ("\ud800", r"\ud800"),  # half of a pair, from a cut byte sequence
        ("\u200b", r"\u200b"),
        ("猫", "□"),
        ("\U0001f98a!", "□!"),
        ("é", "é"),
        ("Ġthe", "Ġthe"),
        ("▁the", "▁the"),
        (" the", " the"),
        ("  ", "␣␣"),
        ("", ""),
        (b"caf\xc3\xa9", "café"),
        (b"\xff", r"\xff"),
        (17, "17"),
        ("incomprehensibilities", "incomprehensibi…"),
    ],
)
def test_what_cannot_be_printed_is_replaced(token, label):
    assert shown([token, "b"]) == [label, "b"]


def test_characters_of_the_chosen_fonts_are_kept():
    with mpl.rc_context({"font.family": ["DejaVu Sans Mono", "sans-serif"]}):
        assert shown(["é", "猫"]) == ["é", "□"]
    with mpl.rc_context({"font.family": "no such font"}):
        assert picture(["é", "猫"]).get_xticklabels()[0].get_text() == "é"


EYE = np.eye(4)
ERRORS = {
    "count": ((EYE,), {"tokens": WORDS[:3]}, ValueError, "tokens must be 4 labels, got 3"),
    "two sequences": (
        (EYE[:3],),
        {"tokens": WORDS[:4]},
        ValueError,
        "of one sequence, got T = 3 and S = 4. Give query_labels and key_labels",
    ),
    "twice": (
        (EYE,),
        {"tokens": WORDS[:4], "key_labels": WORDS[:4]},
        ValueError,
        "tokens must be the only labels, got key_labels too",
    ),
    "iterator": (
        (EYE,),
        {"tokens": iter(WORDS)},
        TypeError,
        "tokens must be a list of labels, got list_iterator",
    ),
}


@pytest.mark.parametrize(("args", "options", "kind", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_say_what_to_do(args, options, kind, message):
    with pytest.raises(kind, match=r"^visualize\.heat_map: .*" + message):
        visualize.heat_map(*args, **options)
