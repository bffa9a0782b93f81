"""Gives a strategy its style in every figure: colour, marker and line depend on its label, and on nothing else.

The colours are a grey and those of M. Okabe and K. Ito (Color Universal Design, 2008) that stand out on white and on
black; markers, their filling and lines distinguish strategies of the same colour, and figures printed without colour.
"""

from __future__ import annotations

import hashlib
import itertools
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from analysis.tables.table import printable

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
LINES = ("-", "--", ":", "-.")

_PINNED = {"torch_save": 0, "tensorstore_basic": 1, "tensorstore_t5x": 2}
"""The strategies of the original OpenLLaMA-3B comparison, which most studies have, get the most distinct colours."""

_MOVED = {"torch_dcp_direct": 51}
"""The style of torch_dcp, filled: the name's digest would give it that of hdf5."""

_LONGEST_LINE = 24
_MOST_LINES = 3


@dataclass(frozen=True, slots=True)
class Style:
    """The marks and lines that a strategy is drawn with."""

    color: str
    marker: str
    filled: bool
    line: str


ALL = tuple(
    Style(color, marker, filled, LINES[m % len(LINES)])
    for filled, (m, marker) in itertools.product((True, False), enumerate(MARKERS))
    for color in COLORS
)


def styles_of(labels: Iterable[str]) -> dict[str, Style]:
    """Assign a style to every label; all differ while there are at most as many labels as styles.

    A label has the same style whatever else is drawn. Only where two labels would have the same one (1 pair in 165)
    does the later of them by name get the next that is free.
    """
    names = sorted(set(labels))
    owners: dict[int, str] = {}
    for label in names:
        owners.setdefault(_preferred(label), label)
    chosen = {label: index for index, label in owners.items()}
    taken = set(owners)
    for label in names:
        if label not in chosen:
            preferred = _preferred(label)
            indices = ((preferred + step) % len(ALL) for step in range(len(ALL)))
            chosen[label] = next((index for index in indices if index not in taken), preferred)
            taken.add(chosen[label])
    return {label: ALL[chosen[label]] for label in names}


def _preferred(label: str) -> int:
    """Return the index in `ALL` of the style that a label gets if it is free."""
    if label in _PINNED or label in _MOVED:
        return (_PINNED | _MOVED)[label]
    digest = hashlib.sha256(label.encode("utf-8", "backslashreplace")).digest()
    return len(_PINNED) + int.from_bytes(digest[:8], "big") % (len(ALL) - len(_PINNED))


def wrapped(labels: Sequence[str]) -> list[str]:
    """Break labels into a few short lines, options on separate ones if there is room; longer labels end with dots.

    Labels that would then read the same get more room.
    """
    texts = [_wrapped(label, _MOST_LINES) for label in labels]
    alike = {text for text, count in Counter(texts).items() if count > 1}
    return [
        _wrapped(label, 3 * _MOST_LINES) if text in alike else text for label, text in zip(labels, texts, strict=True)
    ]


def _wrapped(label: str, most_lines: int) -> str:
    name, *options = printable(label).split("+")
    lines = [
        line for part in (name, *(f"+{option}" for option in options)) for line in textwrap.wrap(part, _LONGEST_LINE)
    ]
    if len(lines) > most_lines:
        lines = [*lines[: most_lines - 1], lines[most_lines - 1][: _LONGEST_LINE - 1] + "…"]
    return "\n".join(lines)
