"""What the tests of ckpt/ share."""

from __future__ import annotations

import errno
import importlib.util
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt.disk import renames
from ckpt.registry import create, names
from ckpt.state.compare import first_difference
from ckpt.state.dtypes import BYTES_PER_ELEMENT, torch_dtype
from ckpt.state.layout import State, layout_of_state
from ckpt.state.sharding import Partition, RankShards, Shard, Sharding
from ckpt.strategy import Strategy
from support import models
from support.faults import require_strace
from support.gloo_ranks import GlooRanks
from support.groups import UnaskedGroup

FreshPython = Callable[..., str]
WriteConfig = Callable[..., str]


@pytest.fixture(scope="module")
def ranks() -> Iterator[GlooRanks]:
    """Processes that are ranks."""
    with GlooRanks() as started:
        yield started


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory in which what a program does is recorded."""
    require_strace()
    path = tmp_path / "recorded"
    path.mkdir()
    return path


@pytest.fixture
def fresh_python() -> FreshPython:
    """Run code in a new interpreter, with these arguments and environment variables; returns what it prints."""

    def run(code: str, *arguments: str, **environment: str) -> str:
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def write_config(tmp_path: Path) -> WriteConfig:
    """Write the config.json of a tiny Llama, with other values for some keys; returns its path."""

    def write(**changes: Any) -> str:
        path = tmp_path / f"config-{len(list(tmp_path.glob('config-*')))}.json"
        return str(models.write_config(path, **changes))

    return write


@pytest.fixture
def without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem that knows no flag of renameat2(2), as GlusterFS, CephFS by FUSE, Lustre and NFS."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(renames, "renameat2", refuse)


SHARDINGS: tuple[Sharding, ...] = ("dim0", "tensors", "replicated")


@dataclass(frozen=True)
class Together:
    """Ranks of a strategy in one process, one after the other: for strategies whose ranks wait for nobody."""

    state: State

    def partition(self, sharding: Sharding, count: int) -> Partition:
        """The state among so many ranks."""
        return Partition.of(layout_of_state(self.state), sharding, count)

    def share(self, share: tuple[Shard, ...]) -> State:
        """What a rank has in memory of the state: copies, but tied tensors as one."""
        found: State = {}
        for each in share:
            name, owner = each.whole.name, each.whole.same_as
            rows = slice(each.start, each.stop) if each.whole.shape else ...
            found[name] = found[owner] if owner is not None else self.state[name][rows].clone()
        return found

    def save(self, strategy: Strategy, directory: Path, partition: Partition) -> list[list[Path]]:
        """Every rank's save; returns the files of each."""
        parts = [RankShards(partition, rank) for rank in range(partition.count)]
        return [
            strategy.write(self.share(part.owned), directory, part, UnaskedGroup(part.rank, partition.count))
            for part in parts
        ]

    def load(self, strategy: Strategy, directory: Path, saved: Partition, count: int) -> None:
        """Every rank's load, by so many ranks, compared with the state."""
        partition = Partition.of(saved.tensors, saved.sharding, count)
        for rank in range(count):
            part = RankShards(partition, rank)
            loaded = strategy.read(directory, part.wanted, saved, UnaskedGroup(rank, count))
            assert first_difference(self.share(part.held), loaded) is None


@pytest.fixture
def together() -> Together:
    """Ranks with a state of every kind of tensor."""
    random = torch.Generator().manual_seed(7)
    state: State = {}
    for number, (name, shape) in enumerate(itertools.product(BYTES_PER_ELEMENT, [(5, 3), (), (0, 2), (33,), (1, 4)])):
        count = math.prod(shape) * BYTES_PER_ELEMENT[name]
        bits = torch.randint(2 if name == "bool" else 256, (count,), generator=random, dtype=torch.uint8)
        state[f"{number}.{name}"] = bits.view(torch_dtype(name)).reshape(shape)
    state |= {
        "odd%/name": torch.arange(12.0).reshape(4, 3),
        "\ud800": torch.arange(7),
        "__metadata__": torch.ones(2, 2),
    }
    state["tied"] = state["odd%/name"]
    return Together(state)


@pytest.fixture(params=names())
def strategy(request: pytest.FixtureRequest) -> str:
    """Every strategy whose library is installed."""
    name = str(request.param)
    missing = [m for m in create(name).requires if importlib.util.find_spec(m.partition(".")[0]) is None]
    if missing:
        if os.environ.get("CKPT_REQUIRE_ALL"):
            pytest.fail(f"{missing} can't be imported")
        pytest.skip(f"{missing} can't be imported")
    return name


@pytest.fixture
def final(tmp_path: Path) -> Path:
    """A checkpoint's name, in a directory of its own."""
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "latest"
