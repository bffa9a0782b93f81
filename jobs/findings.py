"""What a check of a study has found, as text: what holds of several things, or on several nodes, is one line."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from shutil import get_terminal_size
from typing import Literal

_MOST_HOSTS = 4


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked: ok, not known, or a problem; and what to do about it.

    Attributes:
        about: what it holds of, where others may find the same: a target, a strategy.
        host: the compute node that found it.
    """

    level: Literal["ok", "unknown", "problem"]
    what: str
    remedy: str = ""
    about: str = ""
    host: str = ""


def shown(findings: Sequence[Finding]) -> str:
    """Format findings as text, the problems last, next to the prompt."""
    order = {"ok": 0, "unknown": 1, "problem": 2}
    together: dict[tuple[str, str, str], dict[str, set[str]]] = {}
    for finding in sorted(findings, key=lambda finding: order[finding.level]):
        hosts = together.setdefault((finding.level, finding.what, finding.remedy), {})
        hosts.setdefault(finding.about, set()).update({finding.host} - {""})
    lines = []
    for (level, what, remedy), hosts in together.items():
        for names, where in _same_hosts(hosts):
            text = ": ".join(filter(None, [what, ", ".join(filter(None, names))])) + where
            lines += _wrapped(f"{level:>8}  ", text)
            lines += _wrapped(f"{'->':>13} ", remedy) if remedy else []
    return "\n".join(lines)


def _same_hosts(hosts: dict[str, set[str]]) -> Iterable[tuple[list[str], str]]:
    """What holds on the same nodes, and these nodes."""
    by_hosts: dict[tuple[str, ...], list[str]] = {}
    for name, where in hosts.items():
        by_hosts.setdefault(tuple(sorted(where)), []).append(name)
    for nodes, names in by_hosts.items():
        more = f" and {len(nodes) - _MOST_HOSTS} more" if len(nodes) > _MOST_HOSTS else ""
        yield names, f" (on {', '.join(nodes[:_MOST_HOSTS])}{more})" if nodes else ""


def _wrapped(begin: str, text: str) -> list[str]:
    """A text in lines no longer than the terminal; in one, for programs that look for something in it."""
    if not sys.stdout.isatty():
        return [begin + text]
    return textwrap.wrap(
        text,
        get_terminal_size().columns,
        initial_indent=begin,
        subsequent_indent=" " * len(begin),
        break_long_words=False,
        break_on_hyphens=False,
    )
