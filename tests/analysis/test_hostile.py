"""Logs and merged files of someone who means harm, sealed as ours are: refused in one line, the rest is read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import analysis
from analysis.errors import ResultsError
from analysis.logs.load import entries
from analysis.logs.merged import write_merged
from jobs import timing_log
from jobs.timing_log.seal import sealed
from support.hostile import (
    TEXT,
    attribute,
    cycle,
    dataset_for_group,
    external_group,
    external_link,
    external_numbers,
    external_storage,
    filtered,
    in_place,
    large_chunk,
    long_text,
    many_attributes,
    named_type,
    of_a_named_type,
    plugin_filter,
    references,
    replaced,
    soft_link,
    unallocated,
    virtual,
    without,
)
from support.studies import Show, StudyOnDisk

REPOSITORY = Path(analysis.__file__).parents[1]


LOGS: dict[str, tuple[Callable[[h5py.File, Path], None], str]] = {
    "external link": (external_link, "'/samples/duration_s' is a link to elsewhere"),
    "external group": (external_group, "'/state' is a link to elsewhere"),
    "soft link": (soft_link, "'/samples/duration_s' is a link to elsewhere"),
    "external storage": (external_storage, "'/samples/reason' is stored in another file"),
    "external numbers": (external_numbers, "'/samples/duration_s' is stored in another file"),
    "virtual": (virtual, "'/samples/duration_s' is a view of other datasets"),
    "gzip": (filtered("duration_s", compression="gzip"), "'/samples/duration_s' lies in chunks"),
    "checksums": (filtered("duration_s", fletcher32=True), "'/samples/duration_s' lies in chunks"),
    "plugin": (plugin_filter, "'/samples/duration_s' lies in chunks"),
    "2-D": (in_place("duration_s", lambda n: np.ones((n, 2))), "has 2 dimensions"),
    "scalar": (in_place("duration_s", lambda _: 1.0), "has 0 dimensions"),
    "compound": (in_place("duration_s", lambda n: np.zeros(n, "f8,f8")), "neither a column of numbers nor"),
    "complex": (in_place("duration_s", lambda n: np.ones(n, "c16")), "neither a column of numbers nor"),
    "references": (references, "neither a column of numbers nor"),
    "named type": (named_type, "'/samples/kind' is a named type"),
    "of a named type": (of_a_named_type, "named type"),
    "cycle": (cycle, "'/samples/again' has another name as well"),
    "1e8 rows": (unallocated(10**8), "claims 100,000,000 rows, and 4,000,000 are the most"),
    "unallocated rows": (unallocated(999_999), "bytes that the file doesn't hold"),
    "a chunk of 1.6 GB": (large_chunk, "'/samples/duration_s' lies in chunks"),
    "many attributes": (many_attributes, "'/provenance' has more than 500 attributes"),
    "long text": (long_text, "holds a text of 1,000,000 bytes, and ours have at most 65,536"),
    "numbers as texts": (in_place("duration_s", lambda n: ["1.0"] * n, TEXT), "'duration_s' holds no float"),
    "texts as numbers": (in_place("phase", np.ones), "'phase' holds no str"),
    "floats as integers": (in_place("trial", np.ones), "'trial' holds no int"),
    "ragged": (in_place("rank", lambda _: np.array([0], "<i8")), "damaged timing log"),
    "bad UTF-8": (in_place("reason", lambda n: np.array([b"\xff"] * n, object), TEXT), "damaged timing log"),
    "bad UTF-8 in the header": (attribute("/", "error", b"\xff\xfe"), "damaged timing log"),
    "nodes is a text": (attribute("/", "nodes", "four"), "'nodes' is 'four', and no int"),
    "nodes is a float": (attribute("/", "nodes", 1.5), "'nodes' is '1.5', and no int"),
    "nodes is a list": (attribute("/", "nodes", [1, 2]), "'nodes' is '[1, 2]', and no int"),
    "label is a number": (attribute("/", "label", 1), "'label' is '1', and no str"),
    "texts in the state": (attribute("state", "digest", ["a", "b"]), "neither a number nor a text"),
    "an array in the state": (attribute("state", "digest", [1, 2]), "neither a number nor a text"),
    "nothing in the state": (attribute("state", "digest", h5py.Empty("f")), "damaged timing log"),
    "no state": (without("state"), "damaged timing log"),
    "no samples": (without("samples"), "damaged timing log"),
    "no column": (without("samples/duration_s"), "damaged timing log"),
    "a dataset for a group": (dataset_for_group, "'state' is no group"),
}


def changed(path: Path, change: Callable[[h5py.File, Path], None], other: Path, *, seal: bool) -> None:
    """Change a file's content on purpose, and seal it anew, or leave it without a seal."""
    with h5py.File(path, "a") as file:
        change(file, other)
    image = path.read_bytes()[512:]
    path.write_bytes(sealed(image) if seal else image)


@pytest.mark.parametrize("seal", [True, False], ids=["sealed", "bare"])
@pytest.mark.parametrize(("change", "message"), LOGS.values(), ids=LOGS)
def test_a_hostile_log_is_one_line(
    change: Callable[[h5py.File, Path], None],
    message: str,
    seal: bool,  # a parameter of pytest's
    three_methods: StudyOnDisk,
    tmp_path: Path,
) -> None:
    """It is unreadable, its line names the file and what is wrong, and the other logs are read."""
    path = three_methods.paths.log("r01-torch_save-disk-1x1")
    other = three_methods.paths.log("r01-tensorstore_t5x-disk-1x1")
    changed(path, change, tmp_path / "secret" if change is external_storage else other, seal=seal)

    found = {entry.job_id: entry for entry in entries(three_methods.root)}

    bad = found["r01-torch_save-disk-1x1"]
    assert (bad.status, bad.log) == ("unreadable", None)
    assert message in bad.error
    assert str(path) in bad.error
    assert len(bad.error.splitlines()) == 1
    assert {entry.status for entry in found.values()} == {"unreadable", "complete"}
    with pytest.raises(timing_log.TimingLogError):
        timing_log.read(path)


def test_no_text_of_another_file_is_shown(three_methods: StudyOnDisk, tmp_path: Path, show: Show) -> None:
    """A file's lines, taken for reasons by external storage, are in no table."""
    path = three_methods.paths.log("r01-torch_save-disk-1x1")
    changed(path, external_storage, tmp_path / "secret", seal=True)

    for style in ("text", "csv", "html", "latex", "markdown"):
        assert "PRIVATE KEY" not in show(three_methods.root, style)


def test_what_is_refused_takes_no_memory(three_methods: StudyOnDisk, tmp_path: Path) -> None:
    """Logs that claim gigabytes are refused where 300 MB more than the libraries are too much."""
    paths = []
    for number, name in enumerate(("1e8 rows", "unallocated rows", "a chunk of 1.6 GB", "many attributes")):
        path = tmp_path / f"{number}.h5"
        path.write_bytes(three_methods.paths.log("r01-torch_save-disk-1x1").read_bytes())
        changed(path, LOGS[name][0], tmp_path, seal=True)
        paths.append(str(path))
    program = (
        "import resource, sys, pathlib\n"
        "from analysis.logs import columns\n"
        "used = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000,) * 2)\n"
        "for found in columns.read_many(list(map(pathlib.Path, sys.argv[1:]))): print(found)"
    )

    ended = subprocess.run(
        [sys.executable, "-c", program, *paths],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )

    assert (ended.returncode, ended.stderr) == (0, "")
    assert [line.split(" is refused: ")[0] for line in ended.stdout.splitlines()] == paths


def test_a_text_of_no_size_does_not_stop_the_reader(three_methods: StudyOnDisk) -> None:
    """HDF5 walks for ever through a collection of texts where one takes no room: it isn't asked to."""
    path = three_methods.paths.log("r01-torch_save-disk-1x1")
    image = bytearray(path.read_bytes()[512:])
    start = image.index(b"GCOL\x01\0\0\0")
    image[start + 16 : start + 32] = bytes(16)  # the first text is free space of no bytes
    for content in (bytes(image), sealed(bytes(image))):
        path.write_bytes(content)

        with pytest.raises(timing_log.TimingLogError, match="its texts at byte"):
            timing_log.read(path)


def test_what_is_no_file_is_not_opened(three_methods: StudyOnDisk) -> None:
    """A named pipe in a log's place would be waited for without end."""
    path = three_methods.paths.log("r01-torch_save-disk-1x1")
    path.unlink()
    os.mkfifo(path)

    with pytest.raises(timing_log.TimingLogError, match="no regular file"):
        timing_log.read(path)


def longer(file: h5py.File, _: Path) -> None:
    """A column that claims rows, and has no data."""
    replaced(
        file["samples"], "duration_s", shape=(3 * 10**6,), chunks=(1000,), dtype="<f8", shuffle=True, compression=1
    )


def out_of_place(file: h5py.File, _: Path) -> None:
    """Texts that are in no list."""
    values = file["samples/phase"][()] + 10**6
    replaced(file["samples"], "phase", data=values)


def negative_places(file: h5py.File, _: Path) -> None:
    """Texts before the first of their list."""
    replaced(file["jobs"], "study", data=-np.ones(len(file["jobs/study"]), "<i8"))


def planned(text: str) -> Callable[[h5py.File, Path], None]:
    """Another text for each job's plan."""

    def change(file: h5py.File, _: Path) -> None:
        words = file["jobs/planned_values"]
        replaced(file["jobs"], "planned_values", data=[text] * len(words), dtype=TEXT)

    return change


MERGED: dict[str, tuple[Callable[[h5py.File, Path], None], str]] = {
    "external link": (external_link, "'/samples/duration_s' is a link to elsewhere"),
    "external storage": (external_storage, "'/samples/reason' is stored in another file"),
    "virtual": (virtual, "'/samples/duration_s' is a view of other datasets"),
    "another filter": (filtered("duration_s", compression="lzf"), "is filtered by"),
    "one filter": (filtered("duration_s", compression="gzip"), "is filtered by"),
    "plugin": (plugin_filter, "is filtered by [32001]"),
    "a chunk of 1.6 GB": (large_chunk, "claims 200,000,000 rows"),
    "rows without data": (longer, "claims 24,000,000 bytes"),
    "2-D": (in_place("duration_s", lambda n: np.ones((n, 2))), "has 2 dimensions"),
    "ragged": (in_place("rank", lambda _: np.array([0], "<i8")), "of another length than others"),
    "places beyond the texts": (out_of_place, "is in no list"),
    "places before the texts": (negative_places, "is in no list"),
    "texts for numbers": (in_place("duration_s", lambda n: ["1.0"] * n, TEXT), "'duration_s' holds no float"),
    "nonsense for a plan": (planned("{nonsense"), "neither a timing log nor a merged file"),
    "a deep plan": (planned("[" * 50_000), "neither a timing log nor a merged file"),
    "a list for a plan": (planned("[]"), "neither a timing log nor a merged file"),
    "rows of no job": (in_place("job", lambda n: np.full(n, -1, "<i8")), "belong to no jobs"),
    "no attributes": (without("attributes"), "neither a timing log nor a merged file"),
}


@pytest.mark.parametrize(("change", "message"), MERGED.values(), ids=MERGED)
def test_a_hostile_merged_file_is_one_message(
    change: Callable[[h5py.File, Path], None], message: str, three_methods: StudyOnDisk, tmp_path: Path
) -> None:
    """It is an error of one line that names the file, and no traceback."""
    path = tmp_path / "merged.h5"
    write_merged(entries(three_methods.root), path)
    changed(path, change, tmp_path / "secret", seal=True)

    with pytest.raises(ResultsError) as caught:
        entries(path)

    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
