"""The report of a study with a training loop begins with what checkpoints cost it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from analysis.advice.assumptions import USUAL
from analysis.logs.load import load_results
from analysis.report import report
from support.loops import Costs, LoopSimulation

SHORT = {"blocks": 3, "saves": 2}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report about one strategy that saves in two ways, beside two kinds of steps."""
    directory = tmp_path_factory.mktemp("loops") / "tiny"
    for step in ("compute", "idle"):
        for way, costs in (
            ("sync", Costs(call_s=3.0, latency_s=3.0)),
            ("thread", Costs(snapshot_s=0.5, latency_s=5.0)),
        ):
            LoopSimulation(way=way, costs=costs, spec={**SHORT, "step": step}).write(directory)
    return report.report(load_results([directory]), USUAL)


def test_lost_time_comes_first(page: str) -> None:
    """Before the targets and the answer: of each kind of step the figures, and the table of lost time beside them."""
    [section] = re.findall(r'<main>\s*<section id="lost".*?</section>', page, re.DOTALL)
    elsewhere = page.replace(section, "")
    titles = [re.sub(r"\s+", " ", title) for title in re.findall("<h3>(.*?)</h3>", section)]

    assert [title.rpartition(": ")[2] for title in titles] == [
        f"{step} steps of 1 s on 2 cores, a save every 10 steps" for step in ("compute", "idle")
    ]
    assert section.count("<svg") == 6
    assert section.count('class="table lost"') == 2
    assert section.index('class="table lost"') < section.index("Parts of the lost time of a save, stacked")
    assert "<svg" not in elsewhere
    assert 'class="table lost"' not in elsewhere
    assert 'class="table lost_parts"' in elsewhere
    assert '<li><a href="#lost">' in page


def test_saves_are_counted_and_samples_that_nothing_took_are_not_named(page: str) -> None:
    """Four jobs have three blocks of two saves; each process's first block has one before them."""
    assert re.search(r"<p>4 of 4 jobs complete; 28 saves beside a loop; jobs from ", page)


def test_figures_of_loops_have_words_with_their_numbers(page: str) -> None:
    """For those who don't see them."""
    words = re.findall(r'<svg[^>]*aria-label="([^"]*)"', page)

    assert len(words) == 6
    assert (
        sum(text.startswith("Training time lost over the checkpoint interval. torch_save+way=sync: ") for text in words)
        == 2
    )
    assert sum(text.startswith("Lost time per save with its parts. ") for text in words) == 2
    assert sum(text.startswith("Step times over time. ") for text in words) == 2


def test_a_study_without_a_loop_has_no_such_section(three_methods_page: Callable[[str], str]) -> None:
    """Its report begins with the targets."""
    without = three_methods_page("plain")

    assert re.search(r'<main>\s*<section id="targets"', without)
    assert "#lost" not in without
    assert re.search(r"jobs complete; \d+ samples; jobs from ", without)
