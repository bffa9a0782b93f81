"""Lists what is missing, wrong, not comparable or unsure: everything, or grouped by kind to fit on one screen."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from analysis.measures.caveats import Kind
from analysis.measures.setting import Setting
from analysis.tables.table import printable

_LONGEST = 160
"""Longer texts end with dots where they are grouped."""

_MOST_PLACES = 12


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that a reader of the results has to know."""

    kind: str
    """What it is grouped by."""
    setting: str
    target: str
    where: str
    """A method, a job or a target; empty where it is the whole setting."""
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        """All of it on one line."""
        parts = [self.setting, *filter(None, [self.where]), self.what + (f"; {self.remedy}" if self.remedy else "")]
        return printable(": ".join(parts))


def remarks(settings: Sequence[Setting]) -> list[Remark]:
    """Collect what is missing or wrong, then what isn't comparable, then what makes numbers less reliable."""
    problems = [
        Remark(_kind(problem), setting.name, setting.target, method.label, problem)
        for setting in settings
        for method in setting.methods
        for problem in method.problems
    ]
    apart = [Remark("apart", setting.name, setting.target, "", setting.apart) for setting in settings if setting.apart]
    caveats = [
        Remark(caveat.kind.name, setting.name, setting.target, caveat.where, caveat.what, caveat.kind.remedy)
        for setting in settings
        for caveat in setting.caveats
    ]
    order = {kind.name: number for number, kind in enumerate(Kind)}
    return [*problems, *apart, *sorted(caveats, key=lambda remark: order[remark.kind])]


def _kind(problem: str) -> str:
    """Return a problem without what differs between jobs: the job's id, and numbers."""
    return re.sub(r"\d+", "#", re.sub(r"^r\d[^\s:]*: ", "", problem))


def in_full(listed: Sequence[Remark]) -> list[str]:
    """Write every remark on a line."""
    return [str(remark) for remark in listed]


def grouped(listed: Sequence[Remark]) -> list[str]:
    """Write two lines per kind: how often, and the first of them; where, and what to do about it."""
    kinds: dict[str, list[Remark]] = {}
    for remark in listed:
        kinds.setdefault(remark.kind, []).append(remark)
    width = shutil.get_terminal_size().columns
    lines = [line for members in kinds.values() for line in _group(members, width)]
    more = len(listed) - len(kinds)
    return [*lines, f"`--all` lists all {len(listed)} of them, one on each line"] if more > 0 else lines


def _group(members: Sequence[Remark], width: int) -> Iterator[str]:
    first = members[0]
    what = _short(f"{first.where}: {first.what}" if first.where else first.what)
    alike = f" (and {len(members) - 1} more like it)" if len(members) > 1 else ""
    targets = Counter(member.target for member in members)
    places = [f"{target} ({count})" if count > 1 else target for target, count in targets.items()]
    if len(places) > _MOST_PLACES:
        places = [*places[:_MOST_PLACES], f"{len(places) - _MOST_PLACES} more"]
    on = f"on {', '.join(places)}" + (f" -> {first.remedy}" if first.remedy else "")
    yield from textwrap.wrap(
        printable(what + alike), width, initial_indent=f"{len(members):>4}  ", subsequent_indent="      "
    )
    yield from textwrap.wrap(printable(on), width, initial_indent="      ", subsequent_indent="      ")


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
