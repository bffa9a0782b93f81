"""What faults are tried on: a method in one of its uses, which saves a small state, and restarts from what is left."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ckpt
from ckpt import registry
from ckpt.errors import CheckpointError
from ckpt.state.layout import state_bytes
from ckpt.workload.spec import StateSpec, layout_of
from jobs.errors import StudyError
from jobs.faults.outcomes import ALONE, DETECTED, RIGHT, SILENT, Outcome

if TYPE_CHECKING:
    from ckpt.state.layout import State
    from ckpt.strategy import Strategy

LARGEST_BYTES = 4 * 2**20
"""Of a state: thousands of copies of its checkpoint are made."""

OLD, NEW = 1, 2
"""The step that lies there, durable, before a fault; and the one that is saved meanwhile."""

_LATEST = "latest"


@dataclass(frozen=True, slots=True)
class Restart:
    """What a program has after a restart.

    Attributes:
        step: of the state, bit for bit; None if it is another state, or there is none.
        what: what happened, for people.
        is_error: whether the restart ended with an error, and so has no state.
    """

    step: int | None
    what: str
    is_error: bool = False


@dataclass(frozen=True, slots=True)
class Subject:
    """A method in one of its uses, and the state that it saves.

    A program that uses a library alone writes a new directory for every checkpoint, and restarts from the newest that
    is there. With this package's commit, it saves to one name, by `ckpt.save`, and restarts by `ckpt.load`.

    Attributes:
        strategy: the strategy's name.
        options: the strategy's.
        use: one of `outcomes.USES`.
        spec: of the state; its seed is that of step 0.
    """

    strategy: str
    options: dict[str, Any]
    use: str
    spec: StateSpec

    def __post_init__(self) -> None:
        size_bytes = state_bytes(layout_of(self.spec))
        if size_bytes > LARGEST_BYTES or self.spec.directory:
            raise StudyError(
                f"faults are tried on thousands of copies of a checkpoint with generated values, and this study's "
                f'state takes {size_bytes:,} bytes: give one of at most {LARGEST_BYTES:,}, such as model = "llama-50k"'
            )

    def to_json(self) -> str:
        """Write what `from_json` reads: for another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Subject:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        return cls(**values | {"spec": StateSpec(**values["spec"])})

    @property
    def method(self) -> Strategy:
        """The strategy with its options."""
        return registry.create(self.strategy, self.options)

    def state_at(self, step: int) -> State:
        """Build the state of a step, all of whose tensors differ from those of another step."""
        from ckpt.workload.building import filled

        return filled(replace(self.spec, seed=self.spec.seed + step))

    def save(self, state: State, step: int, root: Path) -> None:
        """Save a step's state below a directory.

        Raises:
            Exception: whatever the library raises.
        """
        if self.use == ALONE:
            directory = root / f"step-{step}"
            directory.mkdir(parents=True)
            self.method.save(state, directory)
        else:
            ckpt.save(state, root / _LATEST, self.strategy, **self.options)

    def restart(self, root: Path) -> Restart:
        """Load the newest checkpoint below a directory, and compare it with the states of both steps."""
        from ckpt.state.compare import first_difference

        try:
            state = self._load(root)
        except Exception as error:  # noqa: BLE001  # whatever a library raises is noticed
            return Restart(None, f"the restart ends with {type(error).__name__}: {_first_line(error)}", is_error=True)
        differences = {step: first_difference(self.state_at(step), state) for step in (OLD, NEW)}
        for step, difference in differences.items():
            if difference is None:
                return Restart(step, f"the restart has step {step}")
        return Restart(None, f"the restart has another state ({differences[NEW]})")

    def _load(self, root: Path) -> State:
        if self.use != ALONE:
            loaded: State = ckpt.load(root / _LATEST)
            return loaded
        newest = max(root.glob("step-*"), default=None)
        if newest is None:
            raise CheckpointError(f"there is no checkpoint in {root}")
        return self.method.load(newest)


def judge(restart: Restart, *, saved: bool | None, fault: str, size: int) -> Outcome:
    """Judge a case.

    Args:
        restart: what came after it.
        saved: whether the save returned without an error before the fault; None if it was under way, or raised one.
        fault: what happened, for people.
        size: as in `Outcome`.
    """
    if restart.is_error:
        verdict = DETECTED
    elif restart.step == NEW or (restart.step == OLD and not saved):
        verdict = RIGHT
    else:
        verdict = SILENT
    return Outcome(verdict, f"{fault}: {restart.what}", size)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
