"""What every strategy must do that loads into tensors that exist; and how every other one refuses."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from ckpt.errors import CheckpointError
from ckpt.process_group.group import SingleProcess
from ckpt.state import compare, ties
from ckpt.state.layout import State
from ckpt.strategy import Strategy
from ckpt.testing.states import exact, state_dicts


def targets_for(state: State) -> State:
    """Return contiguous tensors like those of a state, without tied ones, that hold something else."""
    owners = state.keys() - ties.tied(state).keys()
    targets = {name: torch.empty(t.shape, dtype=t.dtype) for name, t in state.items() if name in owners}
    compare.poison(targets)
    return targets


def fill(strategy: Strategy, directory: Path, targets: State) -> None:
    """Fill tensors from what a single process wrote."""
    strategy.fill(directory, targets, dict.fromkeys(targets), None, SingleProcess())


class InPlaceContract:
    """The tests of `Strategy.fill`."""

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(drawn=state_dicts())
    def test_fill(self, strategy: Strategy, tmp_path: Path, drawn: State) -> None:
        """Every bit arrives in the tensors that exist, whose memory stays where it is."""
        if not strategy.capabilities.loads_in_place:
            return  # the refusal is tested below
        targets = targets_for(drawn)
        addresses = [target.data_ptr() for target in targets.values()]
        with tempfile.TemporaryDirectory(dir=tmp_path) as directory:
            strategy.save(drawn, Path(directory))
            fill(strategy, Path(directory), targets)
        assert exact({name: drawn[name] for name in targets}) == exact(targets)
        assert addresses == [target.data_ptr() for target in targets.values()]

    def test_fill_some(self, strategy: Strategy, state: State, checkpoint: Path) -> None:
        """Only the given tensors are filled. A strategy that can't load in place raises an error that says so."""
        targets = {name: target for name, target in targets_for(state).items() if name in {"zeros", "embed", "scalar"}}
        if not strategy.capabilities.loads_in_place:
            with pytest.raises(CheckpointError, match=f"strategy {strategy.name}.* can't load into tensors that exist"):
                fill(strategy, checkpoint, targets)
            return
        fill(strategy, checkpoint, targets)
        assert exact({name: state[name] for name in targets}) == exact(targets)
        fill(strategy, checkpoint, {})

    @pytest.mark.parametrize("wrong", ["shape", "one row", "dtype", "name"])
    def test_fill_of_something_else(self, strategy: Strategy, state: State, checkpoint: Path, wrong: str) -> None:
        """A target that doesn't fit is named, and no target is changed."""
        if not strategy.capabilities.loads_in_place:
            return  # as above
        targets = targets_for(state)
        name = "no such" if wrong == "name" else "embed"
        shape = {"shape": (66, 130), "one row": (1, 66)}.get(wrong, (130, 66))
        targets[name] = torch.zeros(shape, dtype=torch.int16 if wrong == "dtype" else torch.half)
        before = exact(targets)
        with pytest.raises(CheckpointError, match=name):
            fill(strategy, checkpoint, targets)
        assert before == exact(targets)
