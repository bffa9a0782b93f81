"""The installed command: `ckpt-study jobs …` does what `python -m jobs …` does, and so on for the other rooms."""

from __future__ import annotations

import runpy
import sys
from importlib import metadata

_ROOMS = {
    "jobs": "plan, submit and follow studies",
    "analysis": "turn timing logs into tables, figures, advice and reports",
    "ckpt": "list strategies; save, load, inspect and convert checkpoints",
}


def main() -> None:
    """Run `ckpt-study`; a room is loaded only when it is asked for.

    Raises:
        SystemExit: with the exit code.
    """
    room, *arguments = sys.argv[1:] or ["--help"]
    if room == "--version":
        print(f"ckpt-study {metadata.version('ckpt-study')}")
    elif room in {"--help", "-h"}:
        print("Usage: ckpt-study ROOM COMMAND …, or --version; `ckpt-study ROOM --help` lists a room's commands.\n")
        print("\n".join(f"  {name:<10}{what}" for name, what in _ROOMS.items()))
    elif room in _ROOMS:
        sys.argv = [sys.argv[0], *arguments]
        runpy.run_module(room, run_name="__main__", alter_sys=True)
    else:
        print(f"error: there is no room {room!r} of ckpt-study; there are {', '.join(_ROOMS)}", file=sys.stderr)
        sys.exit(2)
