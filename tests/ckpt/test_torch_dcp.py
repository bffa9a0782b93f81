"""What `torch_dcp` keeps DCP from doing, and what several ranks do with it."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from ckpt.errors import CheckpointError
from ckpt.process_group.group import SingleProcess
from ckpt.state import compare
from ckpt.state.layout import TensorLayout, layout_of_state
from ckpt.state.sharding import Partition, RankShards
from ckpt.strategies.torch_dcp import TorchDcp


class Trap:
    """What a pickle can do to whoever reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


def test_metadata_is_never_executed(tmp_path: Path) -> None:
    """DCP would run whatever its `.metadata` says; a load here refuses it, and nothing has run."""
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(CheckpointError, match=r"it names pathlib.*which no checkpoint should"):
        TorchDcp().load(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_metadata_that_points_elsewhere(tmp_path: Path) -> None:
    """Metadata can't make us read a file outside the directory."""
    TorchDcp().save({"a": torch.ones(3)}, tmp_path)
    metadata = (tmp_path / ".metadata").read_bytes()
    (tmp_path / ".metadata").write_bytes(metadata.replace(b"__0_0.distcp", b"../_0.distcp"))
    with pytest.raises(CheckpointError, match="names a file outside its directory"):
        TorchDcp().load(tmp_path)


def test_an_interrupt_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DCP wraps what it catches, Ctrl-C as well: that goes on as what it was."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        TorchDcp().save({"a": torch.ones(3)}, tmp_path)


def test_a_thread_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DCP loses the error of a thread, and commits a checkpoint without its tensors; a save here says so."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # stderr, that is
    save = torch.save

    def save_in_main_thread(*arguments: object, **options: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise OSError(28, "No space left on device")
        save(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "save", save_in_main_thread)
    state = {str(number): torch.ones(1000) for number in range(100)}
    with pytest.raises(CheckpointError, match="a thread of DCP failed"):
        TorchDcp(thread_count=4).save(state, tmp_path)


STATE = {"a": torch.arange(70.0).reshape(10, 7), "b": torch.tensor(5), "c": torch.arange(4).to(torch.bfloat16)}
"""Cut unevenly: ten rows on three ranks are four, four and two."""

RANK = """
import os, sys
from pathlib import Path
import torch, torch.distributed as dist
from ckpt.errors import CheckpointError
from ckpt.state.layout import TensorLayout
from ckpt.process_group.store_group import StoreGroup
from ckpt.state.sharding import Partition, RankShards
from ckpt.strategies.torch_dcp import TorchDcp

directory, rank, size, lost = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
state = {"a": torch.arange(70.0).reshape(10, 7), "b": torch.tensor(5), "c": torch.arange(4).to(torch.bfloat16)}
layout = (TensorLayout("a", (10, 7), "float32"), TensorLayout("b", (), "int64"), TensorLayout("c", (4,), "bfloat16"))
store = dist.FileStore(str(directory.with_name("store")), size)
ranks = StoreGroup(store, [(each, f"host-{each}") for each in range(size)], rank, 60, "all")
ranks.init_torch_distributed()
if rank == lost:
    os._exit(0)
part = RankShards(Partition.of(layout, "dim0", size), rank)
own = {each.whole.name: state[each.whole.name][each.start : each.stop] if each.whole.shape else state["b"]
       for each in part.owned}
try:
    print(sorted(path.name for path in TorchDcp().write(own, directory, part, ranks)))
except CheckpointError as error:
    print("caught", error)
os._exit(0) if lost >= 0 else dist.destroy_process_group()
"""


def save_on(ranks: int, directory: Path, lost: int = -1) -> list[str]:
    """Save with so many processes, of which one may die; returns what each prints."""
    directory.mkdir()
    commands = [[sys.executable, "-c", RANK, str(directory), str(rank), str(ranks), str(lost)] for rank in range(ranks)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    return [process.communicate()[0].strip() for process in started]


def layout() -> tuple[TensorLayout, ...]:
    """Of the state."""
    return layout_of_state(STATE)


def test_several_ranks_make_one_checkpoint(tmp_path: Path) -> None:
    """Each rank writes its files, the first one the metadata, and DCP in one process reads whole tensors of it; so do
    other numbers of ranks, each its rows.
    """
    directory = tmp_path / "checkpoint"
    printed = save_on(3, directory)
    assert ["['.metadata', '__0_0.distcp']", "['__1_0.distcp']", "['__2_0.distcp']"] == printed
    assert compare.first_difference(STATE, TorchDcp().load(directory)) is None
    theirs = {name: torch.zeros_like(tensor) for name, tensor in STATE.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        dcp.load(theirs, checkpoint_id=directory, no_dist=True)
    assert compare.first_difference(STATE, theirs) is None
    saved, alone = Partition.of(layout(), "dim0", 3), Partition.of(layout(), "dim0", 1)
    loaded = TorchDcp().read(directory, RankShards(alone, 0).wanted, saved, SingleProcess())
    assert compare.first_difference(STATE, loaded) is None


def test_a_rank_that_dies(tmp_path: Path) -> None:
    """What gloo says when a rank is gone comes out as an error of the save on the others, who don't wait for ever."""
    printed = save_on(2, tmp_path / "checkpoint", lost=1)
    assert printed[0].startswith(f"caught can't save to {tmp_path / 'checkpoint'}: ")


def test_metadata_of_another_checkpoint(tmp_path: Path) -> None:
    """Metadata that lack rows, or tell of other tensors, are an error, and no tensor is left as it was allocated."""
    directory = tmp_path / "checkpoint"
    save_on(2, directory)
    saved = Partition.of(layout(), "dim0", 2)
    wanted = RankShards(Partition.of(layout(), "dim0", 1), 0)
    other = Partition.of((TensorLayout("a", (11, 7), "float32"), *layout()[1:]), "dim0", 1)
    with pytest.raises(
        CheckpointError, match=r"'a' is float32 \[10, 7\] in the checkpoint, expected float32 \[11, 7\]"
    ):
        TorchDcp().read(directory, RankShards(other, 0).wanted, saved, SingleProcess())
    with (directory / ".metadata").open("rb") as file:
        metadata = pickle.load(file)
    del metadata.state_dict_metadata["a"].chunks[1]
    (directory / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="tensor 'a': its chunks have 35 elements, expected 70"):
        TorchDcp().read(directory, wanted.wanted, saved, SingleProcess())
    (directory / ".metadata").unlink()
    with pytest.raises(CheckpointError, match=r"it has neither \.metadata"):
        TorchDcp().read(directory, wanted.wanted, saved, SingleProcess())


def test_safetensors_are_for_one_rank(tmp_path: Path) -> None:
    """DCP writes no index of what several ranks save as safetensors: that is refused when it is planned, and said."""
    strategy = TorchDcp(serialization="safetensors")
    assert strategy.describe().ranks == "one rank only"
    with pytest.raises(CheckpointError, match="take serialization = torch_save, or one rank"):
        strategy.footprint(Partition.of(layout(), "dim0", 2))
    partition = Partition.of(layout(), "dim0", 1)
    strategy.write(STATE, tmp_path, RankShards(partition, 0), SingleProcess())
    assert (
        compare.first_difference(
            STATE, strategy.read(tmp_path, RankShards(partition, 0).wanted, partition, SingleProcess())
        )
        is None
    )
