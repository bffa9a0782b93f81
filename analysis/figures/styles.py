"""How a strategy looks in every figure: its colour, marker and line depend on its label, and on nothing else.

The colours are those of M. Okabe and K. Ito (Color Universal Design, 2008) that stand out on white and on black, and a
grey; markers, their filling and lines tell apart what shares a colour, and what is printed without any.
"""

from __future__ import annotations

import hashlib
import itertools
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from analysis.tables.table import printable

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
LINES = ("-", "--", ":", "-.")

_PINNED = {"torch_save": 0, "tensorstore_basic": 1, "tensorstore_t5x": 2}
"""The strategies of the original OpenLLaMA-3B comparison, which most studies have, get the most distinct colours."""

_LONGEST_LINE = 24
_MOST_LINES = 3


@dataclass(frozen=True, slots=True)
class Look:
    """What a strategy is drawn with."""

    colour: str
    marker: str
    filled: bool
    line: str


ALL = tuple(
    Look(colour, marker, filled, LINES[m % len(LINES)])
    for filled, (m, marker) in itertools.product((True, False), enumerate(MARKERS))
    for colour in COLOURS
)


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """A look for each label, all different while there are at most as many labels as looks.

    It is the label's own, whatever else is drawn; only where two labels own the same one (1 pair in 165) does
    the later of them by name take the next that nobody owns.
    """
    names = sorted(set(labels))
    owners: dict[int, str] = {}
    for label in names:
        owners.setdefault(_own(label), label)
    chosen = {label: place for place, label in owners.items()}
    taken = set(owners)
    for label in names:
        if label not in chosen:
            own = _own(label)
            places = ((own + step) % len(ALL) for step in range(len(ALL)))
            chosen[label] = next((place for place in places if place not in taken), own)
            taken.add(chosen[label])
    return {label: ALL[chosen[label]] for label in names}


def _own(label: str) -> int:
    """The place of a label's own look."""
    if label in _PINNED:
        return _PINNED[label]
    digest = hashlib.sha256(label.encode("utf-8", "backslashreplace")).digest()
    return len(_PINNED) + int.from_bytes(digest[:8], "big") % (len(ALL) - len(_PINNED))


def wrapped(labels: Sequence[str]) -> list[str]:
    """Labels in a few short lines, each option on its own if there is room; what is too long ends with dots.

    Labels that would then read the same are given more room.
    """
    texts = [_wrapped(label, _MOST_LINES) for label in labels]
    alike = {text for text, count in Counter(texts).items() if count > 1}
    return [
        _wrapped(label, 3 * _MOST_LINES) if text in alike else text for label, text in zip(labels, texts, strict=True)
    ]


def _wrapped(label: str, most_lines: int) -> str:
    name, *options = printable(label).split("+")
    lines = [line for part in (name, *(f"+{each}" for each in options)) for line in textwrap.wrap(part, _LONGEST_LINE)]
    if len(lines) > most_lines:
        lines = [*lines[: most_lines - 1], lines[most_lines - 1][: _LONGEST_LINE - 1] + "…"]
    return "\n".join(lines)
