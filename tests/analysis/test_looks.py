"""A strategy looks the same in every figure, and like no other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from analysis.figures.styles import ALL, COLOURS, looks, wrapped
from ckpt.registry import names

labels = st.lists(st.text(min_size=1, max_size=40), max_size=60)


@given(labels)
def test_no_two_labels_look_alike(given_labels: list[str]) -> None:
    """All looks differ, however many labels there are, up to the number of looks."""
    found = looks(given_labels)

    assert found.keys() == set(given_labels)
    assert len(set(found.values())) == len(found)


@given(labels, labels)
def test_the_order_of_the_labels_does_not_matter(first: list[str], second: list[str]) -> None:
    """The same labels look the same, in whatever order they are met."""
    assert looks(first + second) == looks(second + first)


@given(st.text(min_size=1), labels)
def test_a_label_keeps_its_look_when_others_are_added(label: str, others: list[str]) -> None:
    """Unless another owns the very same look, in which case one of the two keeps it."""
    [alone] = looks([label]).values()
    together = looks([label, *others])
    rivals = [other for other in others if other != label and looks([other])[other] == alone]

    assert together[label] == alone or any(together[rival] == alone for rival in rivals)


def test_the_look_is_the_same_tomorrow() -> None:
    """It depends on neither the process nor the platform: papers and slides of different days agree."""
    found = looks(["torch_save", "tensorstore_basic", "tensorstore_t5x", "tensorstore_basic+compressor=none"])

    assert [(look.colour, look.marker, look.filled) for look in found.values()] == [
        ("#D55E00", "o", True),
        ("#0072B2", "<", True),
        ("#009E73", "o", True),
        ("#0072B2", "o", True),
    ]


def test_the_strategies_of_this_package_have_looks_of_their_own() -> None:
    """Among themselves none has to give way, so that adding one changes no figure."""
    for name in names():
        assert looks(names())[name] == looks([name])[name]


def test_more_labels_than_looks() -> None:
    """Then some look alike, and nothing fails: the labels stand beside the marks."""
    many = [f"strategy {number}" for number in range(2 * len(ALL))]

    assert len(set(looks(many).values())) == len(ALL)


def luminance(colour: str) -> float:
    """WCAG's relative luminance."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_stand_out_on_white_and_on_black() -> None:
    """On both, each has a contrast of at least 2 : 1; a mark also has a shape, and its name beside it."""
    for colour in COLOURS:
        assert 1.05 / (luminance(colour) + 0.05) >= 2
        assert (luminance(colour) + 0.05) / (luminance("#16181d") + 0.05) >= 3


def test_long_labels_are_wrapped_at_their_options() -> None:
    """Each option on a line of its own, and no line and no label without an end."""
    assert wrapped(["torch_save", "tensorstore_basic+compressor=none"]) == [
        "torch_save",
        "tensorstore_basic\n+compressor=none",
    ]
    [long, longest] = wrapped(["tensorstore_basic+compressor=none+chunk_bytes=67108864+driver=zarr3", "x" * 10_000])
    assert long == "tensorstore_basic\n+compressor=none\n+chunk_bytes=67108864…"
    assert [len(line) for line in longest.split("\n")] == [24] * 3


def test_labels_that_differ_only_at_their_end_are_told_apart() -> None:
    """Where cutting them would make them read the same, they aren't cut there."""
    common = "tensorstore_basic+compressor=none+chunk_bytes=67108864+driver="
    found = wrapped([common + "zarr", common + "zarr3", "torch_save"])

    assert [text.split("\n")[-1] for text in found] == ["+driver=zarr", "+driver=zarr3", "torch_save"]
