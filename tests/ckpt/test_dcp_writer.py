"""`DirectWriter` in a single process: files that PyTorch reads, and a commit that keeps what was there on errors."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.planner import SavePlan

from ckpt.dcp import DirectWriter
from ckpt.disk.direct_io import ALIGNMENT, DATA_OFFSET
from ckpt.formats import dcp_files, torch_archives
from support import dcp_states

OPTIONS: list[dict[str, Any]] = [
    {},
    {"files": 3, "threads": 2, "block_mib": 1},
    {"direct": False, "checksum": False},
    {"direct": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_torch_reads_what_it_wrote(tmp_path: Path, options: dict[str, Any]) -> None:
    """PyTorch's reader loads every kind of tensor and value, bit for bit."""
    state = dcp_states.every_kind()
    dcp_states.save(state, tmp_path, DirectWriter(tmp_path / "it", **options))
    assert dcp_states.flat(dcp_states.load(state, tmp_path / "it")) == dcp_states.flat(state)
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


@pytest.mark.every_filesystem
def test_on_every_filesystem(tmp_path: Path) -> None:
    """The checkpoint is written, replaced and read wherever files can be kept."""
    for value in (1.0, 2.0):
        state = {"w": torch.full((300, 300), value), "step": int(value)}
        dcp_states.save(state, tmp_path, DirectWriter(tmp_path / "it"))
        assert dcp_states.flat(dcp_states.load(state, tmp_path / "it")) == dcp_states.flat(state)


def test_torch_converts_it(tmp_path: Path) -> None:
    """`dcp_to_torch_save` makes an ordinary file of it, as torchtitan's conversions do."""
    state = dcp_states.every_kind()
    dcp_states.save(state, tmp_path, DirectWriter(tmp_path / "it"))
    dcp_to_torch_save(tmp_path / "it", tmp_path / "it.pt")
    assert dcp_states.flat(torch.load(tmp_path / "it.pt", weights_only=True)) == dcp_states.flat(state)


@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (3, 1, 4)], ids=str)
def test_an_archive_is_what_torch_saves(shape: tuple[int, ...]) -> None:
    """Its records are those of `torch.save`, and `torch.load` reads it, for every dtype."""
    for dtype in dcp_states.dtypes():
        compare_archives(dtype, shape)


def compare_archives(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Compare an archive with that of `torch.save`."""
    tensor = dcp_states.random(dtype, *shape)
    by_torch = zipfile.ZipFile(io.BytesIO(torch_archives.saved(tensor)))
    archive = torch_archives.around(shape, dtype, 4096)
    raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    whole = io.BytesIO(archive.head + raw + archive.tail)
    ours = zipfile.ZipFile(whole)
    for name in ("data.pkl", "byteorder", "version", ".format_version"):
        assert ours.read(f"archive/{name}") == by_torch.read(f"archive/{name}")
    assert len(archive.head) % 4096 == 0
    whole.seek(0)
    assert dcp_states.bits(torch.load(whole, weights_only=True)) == dcp_states.bits(tensor)


def test_an_archive_of_more_than_four_gigabytes(tmp_path: Path) -> None:
    """Sizes that 32 bits can't hold are stored in 64; the file is a hole."""
    elements = 5 * 2**30
    archive = torch_archives.around((elements,), torch.uint8, 4096)
    with (tmp_path / "large").open("wb") as file:
        file.write(archive.head)
        file.seek(elements - 1, io.SEEK_CUR)
        file.write(b"x" + archive.tail)
    tensor = torch.load(tmp_path / "large", mmap=True, weights_only=True)
    assert (tensor.shape, tensor[0], tensor[-1]) == ((elements,), 0, ord("x"))
    assert zipfile.ZipFile(tmp_path / "large").getinfo("archive/data/0").file_size == elements


def test_where_tensors_begin(tmp_path: Path) -> None:
    """The bytes of a large tensor begin where large memory does in a page, those of small ones close together."""
    state = {f"large{n}": torch.randn(100, 333) for n in range(3)} | {f"small{n}": torch.ones(7) for n in range(20)}
    metadata = dcp_states.save(state, tmp_path, DirectWriter(tmp_path / "it"))
    infos = {index.fqn: info for index, info in metadata.storage_data.items()}
    content = (tmp_path / "it" / "__0_0.distcp").read_bytes()
    for name, tensor in state.items():
        start = infos[name].offset + infos[name].data_start
        assert content[start : start + tensor.nbytes] == tensor.numpy().tobytes()
        assert start % ALIGNMENT == DATA_OFFSET if name.startswith("large") else start % 64 == 0
    assert len(content) < 3 * (100 * 333 * 4 + 3 * ALIGNMENT) + 20 * 1200


def test_checksums_survive_pickling(tmp_path: Path) -> None:
    """They are in `.metadata`, which PyTorch reads as ever."""
    dcp_states.save({"w": torch.ones(9), "step": 1}, tmp_path, DirectWriter(tmp_path / "it"))
    stored = pickle.loads((tmp_path / "it" / ".metadata").read_bytes()).storage_data
    assert all(len(info.xxh3) == 16 for info in stored.values())


def failing(*_: object) -> None:
    """Stand for a disk that fails."""
    raise OSError(5, "Input/output error")


def test_a_failing_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread's error fails the save; the earlier checkpoint stays, and nothing lies beside it."""
    dcp_states.save({"w": torch.ones(9)}, tmp_path, DirectWriter(tmp_path / "it"))
    state = {f"w{n}": torch.randn(300, 300) for n in range(4)}
    with monkeypatch.context() as patch:
        patch.setattr(dcp_files.DirectFile, "write", failing)
        with pytest.raises(CheckpointException, match="Input/output error"):
            dcp_states.save(state, tmp_path, DirectWriter(tmp_path / "it", files=2))
    assert dcp_states.load({"w": torch.zeros(9)}, tmp_path / "it")["w"].tolist() == [1] * 9
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


FILLING = """
import os, sys, warnings, torch
import torch.distributed.checkpoint as dcp
from ckpt.dcp import DirectWriter
warnings.simplefilter("ignore")
path = sys.argv[1] + "/latest"
assert os.system(f"mount -t tmpfs -o size=12m none {sys.argv[1]}") == 0
dcp.save({"w": torch.ones(10)}, storage_writer=DirectWriter(path), no_dist=True)
try:
    state = {f"w{i}": torch.randn(2 << 20) for i in range(2)}
    dcp.save(state, storage_writer=DirectWriter(path, files=2), no_dist=True)
except BaseException as error:
    assert "No space left on device" in str(error), error
else:
    sys.exit("it saved 16 MiB in 12")
into = {"w": torch.zeros(10)}
dcp.load(into, checkpoint_id=path, no_dist=True)
assert into["w"].tolist() == [1] * 10
assert os.listdir(sys.argv[1]) == ["latest"], os.listdir(sys.argv[1])
"""


def test_a_full_filesystem(tmp_path: Path) -> None:
    """It is named; the earlier checkpoint stays, and what was written is removed."""
    if os.geteuid() or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        if os.environ.get("CKPT_REQUIRE_ALL"):
            pytest.fail("mounting needs root")
        pytest.skip("mounting needs root")
    command = ["unshare", "--mount", sys.executable, "-c", FILLING, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_it_does_not_replace(tmp_path: Path) -> None:
    """A directory with other files, a file, and with `overwrite=False` any checkpoint are refused and stay."""
    state = {"w": torch.ones(9)}
    (tmp_path / "file").write_text("a file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("notes")
    dcp_states.save(state, tmp_path, DirectWriter(tmp_path / "it"))
    before = (tmp_path / "it" / ".metadata").read_bytes()
    for name, overwrite, message in (
        ("file", True, "is no directory"),
        ("other", True, r"has other files \(notes.txt\)"),
        ("it", False, "overwrite is false"),
    ):
        with pytest.raises(CheckpointException, match=message):
            dcp_states.save(state, tmp_path, DirectWriter(tmp_path / name, overwrite=overwrite))
    assert (tmp_path / "other" / "notes.txt").read_text() == "notes"
    assert (tmp_path / "it" / ".metadata").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "it", "other"]


def test_an_empty_directory_is_replaced(tmp_path: Path) -> None:
    """Many programs make the directory before they save."""
    (tmp_path / "it").mkdir()
    dcp_states.save({"w": torch.ones(9)}, tmp_path, DirectWriter(tmp_path / "it"))
    assert (tmp_path / "it" / ".metadata").exists()


def test_a_writer_is_used_again(tmp_path: Path) -> None:
    """`dcp.save(checkpoint_id=…)` gives the same writer another path; other ranks' errors leave nothing of it."""
    writer = DirectWriter(tmp_path / "first")
    for name in ("first", "second"):
        writer.reset(tmp_path / name)
        dcp_states.save({"w": torch.ones(9)}, tmp_path, writer)
    writer.prepare_global_plan([])  # and no `finish`: another rank failed
    assert len(list(tmp_path.iterdir())) == 3
    del writer
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


def test_a_rank_without_items(tmp_path: Path) -> None:
    """It leaves nothing beside the checkpoint, though other ranks save."""
    writer = DirectWriter(tmp_path / "it")
    writer.set_up_storage_writer(False, rank=1)
    assert writer.write_data(SavePlan([]), DefaultSavePlanner()).value() == []
    assert not list(tmp_path.iterdir())


def test_ranks_that_do_not_agree_are_refused(tmp_path: Path) -> None:
    """Without collectives nobody knows that all files are complete."""
    with pytest.raises(Exception, match="use_collectives=False"):
        DirectWriter(tmp_path / "it").set_up_storage_writer(True, rank=0, use_collectives=False)
