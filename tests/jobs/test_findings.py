"""What `check` prints: a screen, whatever a study has of targets, strategies and nodes."""

from __future__ import annotations

import os
import sys

import pytest

from jobs import findings
from jobs.findings import Finding, shown

LIBRARIES = "strategies find their libraries"


def test_what_holds_of_several_is_one_line() -> None:
    """Each line is there once, with all that it holds of, and the nodes where all of these were seen."""
    asked = [Finding("ok", LIBRARIES, about=name, host=host) for name in ("hdf5", "orbax") for host in ("n2", "n1")]
    asked += [
        Finding("ok", LIBRARIES, about="orbax", host="n1"),
        Finding("ok", LIBRARIES, about="torch_dcp", host="n1"),
    ]
    asked += [Finding("ok", "Slurm would take the array of 6 jobs")] * 3

    assert shown(asked).splitlines() == [
        "      ok  strategies find their libraries: hdf5, orbax (on n1, n2)",
        "      ok  strategies find their libraries: torch_dcp (on n1)",
        "      ok  Slurm would take the array of 6 jobs",
    ]


def test_problems_come_last_with_what_to_do() -> None:
    """Two targets with the same problem share its remedy; other problems stay apart."""
    asked = [
        Finding("problem", "no room", "make some", about="target 'a'"),
        Finding("problem", "no room", "make some", about="target 'b'"),
        Finding("problem", "no room", "take another"),
        Finding("unknown", "no node was free", "try again"),
        Finding("ok", "fine"),
    ]

    assert shown(asked).splitlines() == [
        "      ok  fine",
        " unknown  no node was free",
        "           -> try again",
        " problem  no room: target 'a', target 'b'",
        "           -> make some",
        " problem  no room",
        "           -> take another",
    ]


def test_many_nodes_are_counted() -> None:
    """A study with a hundred requests has a hundred nodes answer."""
    asked = [Finding("ok", "Python starts", host=f"n{number:03}") for number in range(100)]

    assert shown(asked) == "      ok  Python starts (on n000, n001, n002, n003 and 96 more)"


def test_lines_are_no_longer_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal of 80 columns nothing wraps in the middle of a word, and a remedy stays below its problem."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(findings, "get_terminal_size", lambda: os.terminal_size((80, 24)))
    asked = [Finding("ok", LIBRARIES, about=f"strategy_{number}") for number in range(12)]
    asked += [Finding("problem", "word " * 30, "do " * 40)]

    lines = shown(asked).splitlines()

    assert max(map(len, lines)) <= 80
    assert len(lines) == 3 + 3 + 2
    assert [line[:14] for line in lines[-2:]] == ["           -> ", " " * 14]
    assert " ".join(shown(asked).split()).count("strategy_11") == 1
