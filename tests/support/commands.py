"""Commands such as Slurm's that answer what a test says."""

from __future__ import annotations

from pathlib import Path


class Commands:
    """Commands that print what a test says, and note how they were called."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.notes = directory, directory / "notes"

    def add(self, name: str, body: str) -> None:
        """A command of that name: lines of shell."""
        path = self.directory / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>{self.notes}\n{body}\n')
        path.chmod(0o755)

    def calls(self, name: str = "") -> list[str]:
        """The calls so far; of one command, or of all."""
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        return [line for line in lines if line.startswith(name)]
