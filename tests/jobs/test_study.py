"""Study files: what is wrong with one is told so that a person can correct it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ckpt import registry
from ckpt.errors import CheckpointError
from jobs.errors import StudyError
from jobs.plan import plan, study_file
from support.study_files import GOOD, write

WRONG = {
    "unknown top-level key": (
        {"top": GOOD["top"] + "\nround = 2"},
        ["'round'", "name", "state", "strategies", "targets", "trials", "rounds"],
    ),
    "misspelt key of trials": ({"rest": "[trials]\nrepeat = 3"}, ["'trials.repeat'", "repeats", "warmups"]),
    "misspelt key of a target": ({"targets": '[targets.here]\npth = "."'}, ["'targets.here.pth'", "path"]),
    "misspelt key of slurm": ({"rest": "[slurm]\ntime_min = 3"}, ["'slurm.time_min'", "timeout_min"]),
    "missing name": ({"top": 'strategies = ["torch_save"]'}, ["'name'", "missing", "strategies"]),
    "missing strategies": ({"top": 'name = "tiny"'}, ["'strategies'", "missing"]),
    "missing table": ({"state": ""}, ["'state'", "missing", "targets"]),
    "missing model": ({"state": "[state]\ntensors = 3"}, ["'state.model'", "missing", "tensors"]),
    "no target": ({"targets": "[targets]"}, ["targets", "at least 1"]),
    "no strategy": ({"top": 'name = "tiny"\nstrategies = []'}, ["strategies", "names no strategy", *registry.names()]),
    "string for a number": ({"rest": '[trials]\nrepeats = "many"'}, ["trials.repeats", "'many'", "integer"]),
    "fraction for an integer": (
        {"state": '[state]\nmodel = "openllama-3b"\ntensors = 1.5'},
        ["state.tensors", "1.5", "integer"],
    ),
    "number for a table": ({"top": GOOD["top"] + "\ntrials = 5"}, ["trials", "5", "Trials"]),
    "number for a path": ({"targets": "[targets.here]\npath = 3"}, ["targets.here.path", "3", "string"]),
    "string for a list": ({"top": 'name = "tiny"\nstrategies = "torch_save"'}, ["strategies", "'torch_save'"]),
    "no node": ({"rest": "[slurm]\nnodes = 0"}, ["slurm.nodes", "0", "greater than or equal to 1"]),
    "no scale": ({"rest": "[slurm]\nnodes = []"}, ["slurm.nodes", "[]", "greater than or equal to 1"]),
    "a scale that is no number": ({"rest": "[slurm]\ntasks_per_node = [1, 2.5]"}, ["tasks_per_node", "2.5", "integer"]),
    "shift and other ranks": (
        {"rest": "[trials]\nread_shift = 1\nload_ranks = 2"},
        ["read_shift", "load_ranks", "leave one of them out"],
    ),
    "shift with fewer nodes": (
        {"rest": "[trials]\nread_shift = 2\n[slurm]\nnodes = [2, 4]"},
        ["read_shift = 2", "2 node(s)", "`nodes = 3` or more"],
    ),
    "shift on a node-local target": (
        {"targets": '[targets.here]\npath = "."\nnode_local = true', "rest": "[trials]\nread_shift = 1"},
        ["trials.read_shift", "'here' is node-local"],
    ),
    "shift where $TMPDIR is the target": (
        {"targets": "[targets.here]", "rest": "[trials]\nread_shift = 1"},
        ["trials.read_shift", "'here' is node-local"],
    ),
    "other ranks on a node-local target": (
        {"targets": '[targets.here]\npath = "."\nnode_local = true', "rest": "[trials]\nload_ranks = 2"},
        ["trials.load_ranks", "'here' is node-local"],
    ),
    "shift where every rank loads everything": (
        {"state": GOOD["state"] + '\nsharding = "replicated"', "rest": "[trials]\nread_shift = 1\n[slurm]\nnodes = 2"},
        ["read_shift", "replicated"],
    ),
    "no repeats": ({"rest": "[trials]\nrepeats = 0"}, ["trials.repeats", "0", "greater than or equal to 1"]),
    "no rounds": ({"top": GOOD["top"] + "\nrounds = 0"}, ["rounds", "0", "greater than or equal to 1"]),
    "name that is no file name": (
        {"top": 'name = "a/b"\nstrategies = ["torch_save"]'},
        ["name", "'a/b'", "[A-Za-z0-9]"],
    ),
    "target that is no file name": ({"targets": '[targets."a b"]'}, ["targets.a b", "[A-Za-z0-9]"]),
    "unknown dtype": (
        {"state": '[state]\nmodel = "openllama-3b"\ndtype = "float64"'},
        ["state.dtype", "'float64'", "'float16', 'bfloat16' or 'float32'"],
    ),
    "unknown values": (
        {"state": '[state]\nmodel = "openllama-3b"\nvalues = "zeros"'},
        ["state.values", "'zeros'", "'normal-bfloat16' or 'normal'"],
    ),
    "unknown sharding": (
        {"state": '[state]\nmodel = "openllama-3b"\nsharding = "dim1"'},
        ["state.sharding", "'dim1'", "'dim0', 'tensors' or 'replicated'"],
    ),
    "unknown contents": (
        {"state": '[state]\nmodel = "openllama-3b"\ncontents = "optimizer"'},
        ["state.contents", "'optimizer'", "'weights' or 'training'"],
    ),
    "more than all": (
        {"state": '[state]\nmodel = "openllama-3b"\nfraction = 1.5'},
        ["state.fraction", "1.5", "less than or equal to 1"],
    ),
    "unknown strategy": (
        {"top": 'name = "tiny"\nstrategies = ["torch_sav"]'},
        ["strategies", "'torch_sav'", *registry.names()],
    ),
    "unknown option": (
        {"top": 'name = "tiny"\nstrategies = [{name = "tensorstore_basic", chunk = 64}]'},
        ["strategies", "tensorstore_basic", "chunk", "64", "compressor"],
    ),
    "unknown value of an option": (
        {"top": 'name = "tiny"\nstrategies = [{name = "tensorstore_basic", compressor = "zip"}]'},
        ["strategies", "compressor", "'zip'", "'default' or 'none'"],
    ),
    "option of a strategy without options": (
        {"top": 'name = "tiny"\nstrategies = [{name = "tensorstore_t5x", fast = true}]'},
        ["strategies", "tensorstore_t5x", "fast", "True", "none"],
    ),
    "strategy twice": (
        {"top": 'name = "tiny"\nstrategies = ["torch_save", {name = "torch_save"}]'},
        ["strategies", "torch_save", "more than once"],
    ),
    "strategy twice, once with its default spelt out": (
        {
            "top": 'name = "tiny"\n'
            'strategies = ["tensorstore_basic", {name = "tensorstore_basic", compressor = "default"}]'
        },
        ["strategies", "tensorstore_basic", "more than once"],
    ),
    "number for a strategy": ({"top": 'name = "tiny"\nstrategies = ["torch_save", 7]'}, ["strategies.1", "7"]),
    "another version": ({"top": GOOD["top"] + "\nschema_version = 2"}, ["schema_version", "2", "1"]),
    "misspelt key of the state": (
        {"state": '[state]\nmodel = "openllama-3b"\ntensor = 3'},
        ["state.tensor", "model", "tensors", "dtype", "values", "seed", "sharding", "contents", "fraction"],
    ),
    "key beside a strategy's options": (
        {"top": 'name = "tiny"\nstrategies = [{name = "torch_save", options = {}, fast = true}]'},
        ["strategies.0.fast", "name", "options"],
    ),
    "strategy without a name": (
        {"top": 'name = "tiny"\nstrategies = [{compressor = "none"}]'},
        ["strategies.0.name", "missing"],
    ),
    "string for a number that looks like one": ({"rest": '[trials]\nrepeats = "3"'}, ["trials.repeats", "'3'"]),
    "boolean for a number": ({"rest": "[trials]\nrepeats = true"}, ["trials.repeats", "True"]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "told"),
    [pytest.param(*case, id=name) for name, case in WRONG.items()],
)
def test_wrong_study(changed: dict[str, str], told: list[str], tmp_path: Path) -> None:
    """What is wrong in a study file is told in one line: the file, the key, what was found, what is valid."""
    path = write(tmp_path, **changed)

    with pytest.raises(StudyError) as caught:
        study_file.read(path)

    message = str(caught.value)
    assert [each for each in [str(path), *told] if each not in message] == [], message
    assert len(message.splitlines()) == 1, message


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    """Several mistakes are told together, a line for each."""
    path = write(tmp_path, top="strategies = []", rest="[trials]\nrepeat = 3\nwarmups = -1")

    with pytest.raises(StudyError) as caught:
        study_file.read(path)

    lines = str(caught.value).splitlines()
    mistakes = ("'name'", "strategies: ", "trials.warmups = -1", "'trials.repeat'")
    assert [1] * 4 == [sum(mistake in line for line in lines) for mistake in mistakes], lines
    assert len(lines) == 4, lines


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"name =\n", "line 1"), (b'name = "\xff"', "utf-8"), (b"[state]\n[state]\n", "line 2")],
    ids=["syntax", "not UTF-8", "table twice"],
)
def test_unreadable_file(content: bytes, told: str, tmp_path: Path) -> None:
    """A file that is no TOML is named, with the place or the reason."""
    path = tmp_path / "study.toml"
    path.write_bytes(content)

    with pytest.raises(StudyError) as caught:
        study_file.read(path)

    assert str(path) in str(caught.value)
    assert told in str(caught.value)


def test_missing_file_lists_shipped_studies() -> None:
    """A study that is neither a file nor shipped is told with the names of the shipped ones."""
    with pytest.raises(StudyError) as caught:
        study_file.find("quik")

    assert [each for each in ["'quik'", *study_file.SHIPPED] if each not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ('model = "openlama-3b"', ["'openlama-3b'", "openllama-3b", "config.json"]),
        ('model = "openllama-3b"\ntensors = 0', ["state.tensors = 0", "1 to 237"]),
        ('model = "openllama-3b"\ntensors = 238', ["state.tensors = 238", "1 to 237"]),
    ],
    ids=["unknown model", "no tensors", "more tensors than there are"],
)
def test_state_that_does_not_exist(state: str, told: list[str], tmp_path: Path) -> None:
    """A model that nobody knows, or more tensors than it has, is told when the study is planned."""
    valid = study_file.read(write(tmp_path, state=f"[state]\n{state}"))

    with pytest.raises(CheckpointError) as caught:
        plan.make_plan(valid)

    assert [each for each in told if each not in str(caught.value)] == [], str(caught.value)


@pytest.mark.parametrize(
    ("found", "labels"),
    [
        ('["torch_save", "tensorstore_t5x"]', ["torch_save", "tensorstore_t5x"]),
        ('[{name = "torch_save"}]', ["torch_save"]),
        (
            '["tensorstore_basic", {name = "tensorstore_basic", compressor = "none"}]',
            ["tensorstore_basic", "tensorstore_basic+compressor=none"],
        ),
        (
            '[{name = "tensorstore_basic", options = {compressor = "none"}}]',
            ["tensorstore_basic+compressor=none"],
        ),
    ],
    ids=["strings", "table", "both", "options in a table of their own"],
)
def test_strategies_as_strings_and_tables(found: str, labels: list[str], tmp_path: Path) -> None:
    """A strategy is a name, or a table of its name and options; one strategy may come with several options."""
    read = study_file.read(write(tmp_path, top=f'name = "tiny"\nstrategies = {found}'))

    assert labels == [each.label for each in read.methods()]


@pytest.mark.parametrize("name", study_file.SHIPPED)
def test_shipped_study(name: str) -> None:
    """Every shipped study has the name of its file, is valid, and can be planned without torch or a cluster."""
    read = study_file.read(study_file.find(name))

    assert name == read.name
    assert len(plan.make_plan(read).jobs) >= len(read.strategies)


def test_a_study_is_frozen(tmp_path: Path) -> None:
    """Nothing changes a study that was validated."""
    read: Any = study_file.read(write(tmp_path))

    with pytest.raises(ValueError, match="frozen"):
        read.rounds = 7

    assert read.rounds == 1
