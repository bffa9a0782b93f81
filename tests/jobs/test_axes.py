"""List-valued options as axes of a study."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt.errors import ContradictionError, UnknownStrategyError
from jobs.errors import StudyError
from jobs.plan import plan, study_file
from jobs.plan.strategy_choice import StrategyChoice


def test_every_combination() -> None:
    """The product of the lists, the first changing slowest; what is no list is the same in all."""
    choice = StrategyChoice(
        name="tensorstore_tuned", options={"chunk_mib": [16, 32], "concurrency": [4, 8], "crc32c": True}
    )
    found, dropped = choice.methods, choice.dropped
    assert [(16, 4), (16, 8), (32, 4), (32, 8)] == [
        (each.options["chunk_mib"], each.options["concurrency"]) for each in found
    ]
    assert all(each.options["crc32c"] for each in found)
    assert dropped == ()


def test_nonsense_is_dropped_and_told() -> None:
    """Combinations that make no sense together are left out, each with its reason; alone, they are a mistake."""
    choice = StrategyChoice(name="tensorstore_tuned", options={"compression": ["none", "zstd"], "level": [1, 5]})
    found, dropped = choice.methods, choice.dropped
    assert [("none", 1), ("zstd", 1), ("zstd", 5)] == [
        (each.options["compression"], each.options["level"]) for each in found
    ]
    assert len(dropped) == 1
    assert "level has no effect" in dropped[0]
    with pytest.raises(ContradictionError, match="level has no effect"):
        _ = StrategyChoice(name="tensorstore_tuned", options={"level": 5}).methods


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"level": [2, 5]}, "no combination"),
        ({"chunk_mib": []}, "axis is empty.*chunk_mib"),
        ({"chunk_mib": [16, 0]}, "chunk_mib = 0"),
        ({"chunk_mib": [[16]]}, "chunk_mib"),
    ],
)
def test_mistakes(options: dict[str, object], told: str) -> None:
    """An axis without a valid value, or with an invalid one, is refused."""
    with pytest.raises(UnknownStrategyError, match=told):
        _ = StrategyChoice(name="tensorstore_tuned", options=options).methods


def test_in_a_study(tmp_path: Path) -> None:
    """Each combination is a job of its own; the plan keeps the study as it was written."""
    file = tmp_path / "study.toml"
    file.write_text(
        'name = "sweep"\nstrategies = [{name = "tensorstore_tuned", compression = ["none", "zstd"], level = [1, 3]}]\n'
        '[state]\nmodel = "llama-15m"\n[targets.here]\npath = "."\n'
    )
    planned = plan.make_plan(study_file.read(file))
    labels = ["", "+compression=zstd", "+compression=zstd+level=3"]
    assert {f"tensorstore_tuned{label}" for label in labels} == {job.label for job in planned.jobs}
    assert len(planned.study.dropped()) == 1
    assert planned == plan.from_json(plan.to_json(planned), "plan.json")


def test_twice_the_same(tmp_path: Path) -> None:
    """A combination that another entry has already is refused by its label."""
    file = tmp_path / "study.toml"
    file.write_text(
        'name = "sweep"\nstrategies = ["tensorstore_tuned", {name = "tensorstore_tuned", chunk_mib = [16, 64]}]\n'
        '[state]\nmodel = "llama-15m"\n[targets.here]\npath = "."\n'
    )
    with pytest.raises(StudyError, match="tensorstore_tuned is listed more than once"):
        study_file.read(file)
