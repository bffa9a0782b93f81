"""A strategy looks the same in every figure, and like no other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from analysis.figures.styles import ALL, COLORS, styles_of, wrapped
from ckpt.registry import names

labels = st.lists(st.text(min_size=1, max_size=40), max_size=60)


@given(labels)
def test_no_two_labels_look_alike(given_labels: list[str]) -> None:
    """All styles differ, however many labels there are, up to the number of styles."""
    styles = styles_of(given_labels)

    assert styles.keys() == set(given_labels)
    assert len(set(styles.values())) == len(styles)


@given(labels, labels)
def test_the_order_of_the_labels_does_not_matter(first: list[str], second: list[str]) -> None:
    """The same labels look the same, in whatever order they are met."""
    assert styles_of(first + second) == styles_of(second + first)


@given(st.text(min_size=1), labels)
def test_a_label_keeps_its_style_when_others_are_added(label: str, others: list[str]) -> None:
    """A label keeps its style, unless another prefers the same one: then one of the two keeps it."""
    [alone] = styles_of([label]).values()
    together = styles_of([label, *others])
    rivals = [other for other in others if other != label and styles_of([other])[other] == alone]

    assert together[label] == alone or any(together[rival] == alone for rival in rivals)


def test_the_style_is_the_same_tomorrow() -> None:
    """A style depends on neither the process nor the platform: papers and slides of different days agree."""
    styles = styles_of(["torch_save", "tensorstore_basic", "tensorstore_t5x", "tensorstore_basic+compressor=none"])

    assert [(style.color, style.marker, style.filled) for style in styles.values()] == [
        ("#D55E00", "o", True),
        ("#0072B2", "<", True),
        ("#009E73", "o", True),
        ("#0072B2", "o", True),
    ]


def test_the_strategies_of_this_package_prefer_different_styles() -> None:
    """No strategy has to take another style than it prefers, so adding one changes no figure."""
    for name in names():
        assert styles_of(names())[name] == styles_of([name])[name]


def test_more_labels_than_styles() -> None:
    """With more labels than styles, some look alike, and nothing fails: the labels are beside the marks."""
    many = [f"strategy {number}" for number in range(2 * len(ALL))]

    assert len(set(styles_of(many).values())) == len(ALL)


def luminance(color: str) -> float:
    """WCAG's relative luminance."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colors_stand_out_on_white_and_on_black() -> None:
    """Every colour has, on both, a contrast of at least 2 : 1; a mark also has a shape, and its name beside it."""
    for color in COLORS:
        assert 1.05 / (luminance(color) + 0.05) >= 2
        assert (luminance(color) + 0.05) / (luminance("#16181d") + 0.05) >= 3


def test_long_labels_are_wrapped_at_their_options() -> None:
    """Every option gets a separate line, and lines and labels have a maximum length."""
    assert wrapped(["torch_save", "tensorstore_basic+compressor=none"]) == [
        "torch_save",
        "tensorstore_basic\n+compressor=none",
    ]
    [long, longest] = wrapped(["tensorstore_basic+compressor=none+chunk_bytes=67108864+driver=zarr3", "x" * 10_000])
    assert long == "tensorstore_basic\n+compressor=none\n+chunk_bytes=67108864…"
    assert [len(line) for line in longest.split("\n")] == [24] * 3


def test_labels_that_differ_only_at_their_end_stay_different() -> None:
    """Where cutting them would make them read the same, they aren't cut there."""
    common = "tensorstore_basic+compressor=none+chunk_bytes=67108864+driver="
    texts = wrapped([common + "zarr", common + "zarr3", "torch_save"])

    assert [text.split("\n")[-1] for text in texts] == ["+driver=zarr", "+driver=zarr3", "torch_save"]
