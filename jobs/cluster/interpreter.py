"""How Python starts on a node: in a container, from a module, or as here."""

from __future__ import annotations

import os
import shutil
import sys

VARIABLE = "CKPT_STUDY_PYTHON"
"""slurm/env.sh reads the same variable in the same way."""


def node_python() -> list[str]:
    """Return the command that starts Python on a node: `$CKPT_STUDY_PYTHON`, else this interpreter's path.

    The variable holds a path, or several words such as `apptainer exec image.sif python3`.
    """
    command = os.environ.get(VARIABLE, "")
    if not command.strip():
        return [sys.executable]
    return [command] if shutil.which(command) else command.split()
