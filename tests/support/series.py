"""States of a training loop that show their step, for series of checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

State = dict[str, Any]


def state_of(step: int, elements: int = 1000) -> State:
    """A state that shows its step in every kind of value."""
    weight = torch.full((elements,), float(step))
    return {
        "model": {"weight": weight, "tied": weight},
        "array": np.full(3, step),
        "step": step,
        "names": [f"step {step}"],
    }


def step_in(state: State) -> int:
    """The step of a state, whose values all agree."""
    (step,) = {
        state["step"],
        int(state["names"][0].removeprefix("step ")),
        *state["model"]["weight"].unique().int().tolist(),
        *state["array"].tolist(),
    }
    assert state["model"]["tied"] is state["model"]["weight"]
    return int(step)


def spoil(state: State) -> None:
    """Change every value of a state in its place."""
    state["model"]["weight"].fill_(-1)
    state["array"][:] = -1
    state["names"].append("later")
    state["step"] = -1
