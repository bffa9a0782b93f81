"""A small training state for each step."""

from __future__ import annotations

from typing import Any

import torch


def some_state(step: int) -> dict[str, Any]:
    """A small training state that differs in every part from that of another step."""
    weight = torch.full((70, 3), float(step)).half()
    return {
        "model": {"embed": weight, "head": weight, "bias": torch.arange(5) + step},
        "step": step,
        "betas": (0.9, step),
    }


def step_of(state: dict[str, Any]) -> int:
    """The step that a state is of, if all of it is of one."""
    step = int(state["step"])
    assert state["betas"] == (0.9, step)
    assert torch.equal(state["model"]["embed"], torch.full((70, 3), float(step)).half())
    assert torch.equal(state["model"]["bias"], torch.arange(5) + step)
    return step
