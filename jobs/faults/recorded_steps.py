"""The steps of a recording in words."""

from __future__ import annotations

from jobs.faults.recording import Operation, Recording, Sync


def described(recording: Recording) -> list[str]:
    """Describe every step: `the rename of a to b`. Files and directories have the names that they had then."""
    names = {node: name for entries in recording.entries.values() for name, node in entries.items()}
    return [_in_words(step, names) for step in recording.steps]


def _in_words(step: Operation | Sync | str, names: dict[int, str]) -> str:
    if isinstance(step, str):
        return {"begin": "the beginning of the save", "returned": "the return of the save"}.get(step, step)
    name = _name(step.node, names)
    if isinstance(step, Sync):
        return f"the sync of {name}"
    if step.is_of_names:
        return _change_of_names(step, names)
    if step.kind == "write":
        return f"a write of {len(step.data):,} bytes to {name}"
    return f"the change of the size of {name} to {step.offset:,} bytes"


def _change_of_names(step: Operation, names: dict[int, str]) -> str:
    if step.kind == "remove":
        return f"the removal of {step.name}"
    names[step.child] = step.new_name or step.name
    if step.kind == "add":
        return f"the creation of {step.name}"
    if step.kind == "exchange" and step.replaced is not None:
        names[step.replaced] = step.name
        return f"the exchange of {step.name} and {step.new_name}"
    return f"the rename of {step.name} to {step.new_name}"


def _name(node: int | None, names: dict[int, str]) -> str:
    return "everything" if node is None else names.get(node, "the run's directory")
