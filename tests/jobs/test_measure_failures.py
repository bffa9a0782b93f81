"""What becomes of strategies that fail, and of loads and saves that are not what they should be."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt.disk import commit, durable, writeback
from ckpt.state.layout import State
from ckpt.strategy import Capabilities, Syncs
from jobs.node.recorder import finished_trials
from jobs.node.trial import TrialError
from support.bench import Bench


@pytest.mark.parametrize(
    ("fails", "phases"),
    [
        ("save", [("save", "call"), ("save", "total")]),
        ("flush", [("save", "call"), ("save", "sync"), ("save", "total")]),
        ("publish", [("save", "call"), ("save", "sync"), ("save", "commit"), ("save", "total")]),
        ("load", [("load", "total")]),
    ],
)
def test_failure(fails: str, phases: Sequence[tuple[str, str]], bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails in the second of three trials ends the job; its samples stay, marked with the reason.

    The log is written, the scratch directory is empty, and a later run does the trials that are missing.
    """
    owner = {"flush": durable, "publish": commit.Staging}.get(fails, bench.strategy)
    real, calls = getattr(owner, fails), [0]

    def fail(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise OSError(28, "No space left on device")
        return real(*arguments, **named)

    monkeypatch.setattr(owner, fails, fail)
    where = "cold load" if fails == "load" else f"save, {phases[-2][1]}"
    with pytest.raises(TrialError, match=f"^trial 1, {where}: .*No space left on device"):
        bench.run(repeats=3, warm_load=False)

    invalid = [s for s in bench.log.samples if not s.valid]
    assert phases == [(s.operation, s.phase) for s in invalid]
    assert {(1, "OSError: [Errno 28] No space left on device")} == {(s.trial, s.reason) for s in invalid}
    assert bench.events[-1] == "log"
    assert list(bench.scratch.iterdir()) == []
    assert {0} == finished_trials(bench.log.samples, bench.trials)

    bench.run()
    assert {0, 2, 3} == finished_trials(bench.log.samples, bench.trials)


def test_a_full_disk_that_a_library_does_not_name(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample has the reason all the same, since the filesystem takes no more."""

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bench.strategy, "save", fail)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        TrialError, match=r"^trial 0, save, call: No space left on device, .* free: RuntimeError: .*pos"
    ):
        bench.run(repeats=1)
    assert all(s.reason.startswith("No space left on device") for s in bench.log.samples if not s.valid)
    assert not any(s.valid for s in bench.log.samples)


def _one_bit_wrong(state: State) -> Any:
    state["b"].view(torch.int32)[-1] ^= 1
    return state


WRONG = {
    "one bit": (_one_bit_wrong, "b: 1 of 1048576 bytes differ"),
    "a tensor missing": (lambda state: {"a": state["a"]}, "missing ['b']"),
    "a tensor too many": (lambda state: state | {"c": state["a"]}, "not expected ['c']"),
    "another dtype": (lambda state: {name: each.double() for name, each in state.items()}, "found torch.float64"),
    "another shape": (
        lambda state: {name: each.reshape(2, -1) for name, each in state.items()},
        "found torch.float32 [2,",
    ),
    "nothing": (lambda state: None if state else state, "no dict of tensors"),
    "numpy arrays": (lambda state: {name: each.numpy() for name, each in state.items()}, "no dict of tensors"),
}


@pytest.mark.parametrize(("spoil", "told"), WRONG.values(), ids=WRONG)
def test_wrong_answer(spoil: Callable[[State], Any], told: str, bench: Bench) -> None:
    """A load that isn't the saved state, bit for bit, is an invalid sample that says where; measuring goes on."""
    right = bench.strategy.load
    bench.strategy.load = lambda directory: spoil(right(directory))
    bench.run(repeats=2)

    assert [s.valid for s in bench.samples("load")] == [False] * 4
    assert all(s.reason.startswith("loaded state differs: ") and told in s.reason for s in bench.samples("load"))
    assert all(s.valid for s in bench.samples("save"))
    assert {0, 1} == finished_trials(bench.log.samples, bench.trials)


def test_recycled_memory_is_no_load(bench: Bench) -> None:
    """A strategy that reads once and hands out the same memory again is found out: that memory was poisoned."""
    read, kept = bench.strategy.load, []

    def lazy(directory: Path) -> State:
        kept[:] = kept or [read(directory)]
        return dict(kept[0])

    bench.strategy.load = lazy
    bench.run()

    assert [s.valid for s in bench.samples("load")] == [True, False]
    assert bench.samples("load")[1].reason.startswith("loaded state differs: a: ")


def test_the_saved_state_itself_is_no_load(bench: Bench) -> None:
    """A strategy that hands out the very tensors that were saved is found out, and the state stays as it was."""
    before = {name: tensor.clone() for name, tensor in bench.state.items()}
    bench.strategy.load = lambda _: {name: tensor[:] for name, tensor in bench.state.items()}
    bench.run(repeats=2)

    assert [s.valid for s in bench.samples("load")] == [False] * 4
    assert {"loaded state differs: it is the saved one itself, and nothing was read"} == {
        s.reason for s in bench.samples("load")
    }
    assert all(torch.equal(before[name], bench.state[name]) for name in before)


def test_a_write_error_that_reaches_no_file_makes_a_save_invalid(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What only the filesystem remembers of a failed write counts, too. (The kernel's error is played here.)"""

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(writeback, "raise_errors", fail)
    bench.run()

    (total,) = bench.samples("save", "total")
    assert total.reason.startswith("not durable: ")
    assert "Input/output error" in total.reason
    assert not total.valid


def test_files_that_are_not_on_storage_make_a_save_invalid(bench: Bench) -> None:
    """A strategy that says that it has synced its files, and has not."""
    bench.strategy.capabilities = Capabilities(syncs=Syncs.ALL_FILES)
    bench.run()

    (total,) = bench.samples("save", "total")
    if total.dirty_pages == -1:
        pytest.skip("this kernel has no cachestat: it can't be known")
    assert total.dirty_pages > 0
    assert not total.valid
    assert total.reason.startswith("not durable: ")


def test_a_mapped_file_is_not_a_load(bench: Bench) -> None:
    """Memory that is mapped from the checkpoint has not been read, and is invalid."""

    def lazy(directory: Path) -> State:
        return {
            file.name: torch.from_file(str(file), size=file.stat().st_size // 4, dtype=torch.float32)
            for file in sorted(directory.iterdir())
        }

    bench.strategy.load = lazy
    bench.run()

    assert {False} == {sample.valid for sample in bench.samples("load")}
    assert all(sample.reason.startswith("not in memory of its own: ") for sample in bench.samples("load"))
