"""`merge`: many logs in one file, whatever their order, however often."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import analysis
from analysis.__main__ import merge
from analysis.errors import ResultsError
from analysis.logs.frames import frames
from analysis.logs.load import entries
from analysis.measures.comparison import compare
from analysis.measures.operation import Operation
from analysis.measures.setting import settings as all_settings
from analysis.tables.methods import original_tables
from analysis.tables.render import render
from support.logs import LogBuilder, job
from support.studies import MakeStudy, StudyOnDisk

REPOSITORY = Path(analysis.__file__).parents[1]

LABELS = ["torch_save", "tensorstore_basic"]

CELLS = [(label, number) for number in (1, 2) for label in LABELS]

SECONDS = st.lists(st.floats(0, 1e6), max_size=2)

# What may have become of a job: nothing, a log that can't be read, or one with some trials.
FATES = st.one_of(
    st.just("no log"),
    st.just("unreadable"),
    st.fixed_dictionaries(
        {
            "save": SECONDS,
            "cold": SECONDS,
            "status": st.sampled_from(["complete", "failed", "running", "interrupted"]),
            "error": st.text(max_size=20),
        }
    ),
)

STUDIES = st.tuples(*[FATES] * len(CELLS))

# An example is small as it is, and writes to a disk: shrinking it would take minutes.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)


def shown(*results: Path) -> str:
    """All tables of these results."""
    return "".join(render(original_tables(each), "csv") for each in compare(frames(entries(results))))


def told(results: Path) -> list[tuple[Any, ...]]:
    """Every job of the results; its log as text, since NaN stands there and is equal to nothing."""
    return [(e.study, e.job_id, e.planned, e.status, e.error, repr(e.log)) for e in entries(results)]


def write_study(make_study: MakeStudy, below: Path, fates: tuple[Any, ...]) -> tuple[Any, list[Path]]:
    """A study whose jobs met these fates, and the logs that can be read."""
    study = make_study(below=below, rounds=2, strategies=LABELS)
    readable = []
    for (label, number), fate in zip(CELLS, fates, strict=True):
        if fate == "no log":
            continue
        log = study.log(label, number=number, **({"save": [1]} if fate == "unreadable" else fate))
        if fate == "unreadable":
            log.write_bytes(log.read_bytes()[:2000])
        else:
            readable.append(log)
    return study, readable


@settings(max_examples=12, phases=PHASES)
@given(fates=STUDIES, data=st.data())
def test_order_and_repetition_change_nothing(
    fates: tuple[Any, ...], data: st.DataObject, make_study: MakeStudy, tmp_path: Path
) -> None:
    """Merged files are the same byte for byte, in whatever order the parts were named and however often merged."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as name:
        below = Path(name)
        study, readable = write_study(make_study, below, fates)
        output, again, both = below / "merged.h5", below / "again.h5", below / "both.h5"
        merge(study.root, output=output)
        parts = data.draw(st.permutations([study.root, *readable, output]))

        merge(output, output=again)
        merge(*parts, output=both)

        assert output.read_bytes() == again.read_bytes()
        assert output.read_bytes() == both.read_bytes()


@settings(max_examples=8, phases=PHASES)
@given(fates=STUDIES)
def test_a_merged_file_says_what_its_parts_said(fates: tuple[Any, ...], make_study: MakeStudy, tmp_path: Path) -> None:
    """The tables, the jobs that never reported, and the plan's word on them survive a merge."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as name:
        study, _ = write_study(make_study, Path(name), fates)
        output = Path(name) / "merged.h5"
        merge(study.root, output=output)

        assert shown(study.root) == shown(output)
        assert told(study.root) == told(output)


def test_studies_stay_apart_in_one_file(make_study: MakeStudy, tmp_path: Path) -> None:
    """Two studies with the same job ids go into one file and come out as two."""
    studies = [make_study(name) for name in ("first", "second")]
    for study, seconds in zip(studies, (1, 2), strict=True):
        study.log("torch_save", save=[seconds])
    roots = [study.root for study in studies]
    output = tmp_path / "merged.h5"
    merge(*reversed(roots), output=output)

    assert shown(*roots) == shown(output)
    assert [
        (each.study, each.methods[0][Operation.SAVE].median_s) for each in all_settings(analysis.load_results(output))
    ] == [
        ("first", 1.0),
        ("second", 2.0),
    ]


def test_small_files_and_commands_go_through_a_merge(tmp_path: Path) -> None:
    """What a target does with small files, and the commands of the study, stand in frames after a merge as before."""
    built = LogBuilder(job("torch_save")).trial(save=1.0).metadata({"mkdir": 50.0, "create": 200.0}, ranks=2)
    log = (
        built.hook("lfs setstripe -c 4 /scratch")
        .hook("drop", 2.5, trial=0, exit_code=0, output="done\n")
        .write(tmp_path / "log.h5")
    )
    merge(log, output=tmp_path / "merged.h5")

    for path in (log, tmp_path / "merged.h5"):
        results = analysis.load_results(path)
        small = results.metadata
        assert [(row.operation, row.rank, row.made_by, row.count / row.duration_s) for row in rows(small)] == [
            ("mkdir", 0, 1, 50.0),
            ("mkdir", 1, 0, 50.0),
            ("create", 0, 1, 200.0),
            ("create", 1, 0, 200.0),
        ]
        hooks = rows(results.hooks)
        assert [(row.when, row.trial, row.command, row.output) for row in hooks] == [
            ("prepare", -1, "lfs setstripe -c 4 /scratch", ""),
            ("between", 0, "drop", "done\n"),
        ]


def rows(frame: pd.DataFrame) -> list[SimpleNamespace]:
    """A frame's rows by column."""
    return [SimpleNamespace(**row) for row in frame.to_dict("records")]


def test_an_output_may_be_one_of_the_inputs(three_methods: StudyOnDisk, tmp_path: Path) -> None:
    """A merged file grows by merging into itself."""
    output = tmp_path / "merged.h5"
    merge(three_methods.paths.log("r01-torch_save-disk-1x1"), output=output)

    merge(output, three_methods.root, output=output)

    assert shown(three_methods.root) == shown(output)
    assert [output] == list(tmp_path.glob("*.h5"))


def test_the_summary_counts_what_is_missing(
    make_study: MakeStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A merge says how many logs it found, and how many planned jobs have none."""
    study = make_study()
    study.log("torch_save", save=[1])
    output = tmp_path / "merged.h5"

    merge(study.root, output=output)

    assert capsys.readouterr().out == f"{output}: 1 logs, 2 planned jobs without one\n"


def test_a_write_that_fails_leaves_the_old_file(three_methods: StudyOnDisk, tmp_path: Path) -> None:
    """A full disk, here a limit on file sizes, is one message; the old output stays and nothing else does."""
    output = tmp_path / "merged.h5"
    output.write_text("what was there before")
    program = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
        "runpy.run_module('analysis', run_name='__main__', alter_sys=True)"
    )
    arguments = ["merge", str(three_methods.root), "--output", str(output)]

    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )

    assert ended.stderr.startswith(f"error: can't write {output}: ")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert output.read_text() == "what was there before"
    assert {"config.json", "merged.h5", "results"} == {path.name for path in tmp_path.iterdir()}


def test_an_output_that_cannot_be_written_is_one_message(three_methods: StudyOnDisk, tmp_path: Path) -> None:
    """No such directory, or a directory in the output's place: the message names the output."""
    (tmp_path / "taken").mkdir()
    for output in (tmp_path / "absent" / "merged.h5", tmp_path / "taken"):
        with pytest.raises(ResultsError, match=f"can't write {output}"):
            merge(three_methods.root, output=output)
    assert {"config.json", "results", "taken"} == {path.name for path in tmp_path.iterdir()}
