"""Files of `torch.save`, read without running anything that they name."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np

from ckpt.errors import CheckpointError


def read(file: Path | IO[bytes], shown: str = "", *, mmap: bool = False) -> Any:
    """What a file holds: tensors, containers, plain values and numpy arrays, on the CPU.

    Args:
        file: its path, or the open file.
        shown: how an error names it.
        mmap: leave the tensors' bytes in the file.

    Raises:
        CheckpointError: if it is damaged, no file of `torch.save`, or would make an object of any other class; then
            with that class's name.
    """
    import torch

    what = shown or "it"
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_numpy_globals()):
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)  # what comes of it is told below
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise CheckpointError(f"{what} doesn't exist") from None
    except Exception as error:  # torch raises one of many kinds, not all with a text
        named = _names_in(file, str(error))
        if named:
            raise CheckpointError(
                f"{what} holds {', '.join(named)}, which can't be read without running what the file says; nothing was "
                "run. If you trust whoever wrote it, load it by torch.load(..., weights_only=False)"
            ) from error
        reason = str(error).partition("WeightsUnpickler error:")[2].strip() or str(error)
        raise CheckpointError(
            f"can't read {what}: it is damaged, or no file of torch.save that holds but tensors, arrays and plain "
            f"values ({type(error).__name__}: {reason.partition(chr(10))[0][:200]})"
        ) from error


def _numpy_globals() -> list[Any]:
    """What numpy pickles arrays, scalars and dtypes of numbers with, by the names of numpy 1 and 2; it runs nothing.

    Arrays of objects are left out.
    """
    reconstruct, scalar = np._core.multiarray._reconstruct, np._core.multiarray.scalar  # noqa: SLF001
    names = ["numpy.core.multiarray", "numpy._core.multiarray"]
    return [
        *((reconstruct, f"{name}._reconstruct") for name in names),
        *((scalar, f"{name}.scalar") for name in names),
        np.ndarray,
        np.dtype,
        *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdFD"},
    ]


def _names_in(file: Path | IO[bytes], message: str) -> list[str]:
    """The classes and functions that a file names and that are not made."""
    import torch

    try:
        if not isinstance(file, Path):
            file.seek(0)
        with torch.serialization.safe_globals(_numpy_globals()):
            named = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # of an older format  # noqa: BLE001
        named = []
    return sorted(named) or re.findall(r"(?:Unsupported global: GLOBAL|Unsupported class) ([\w.]+)", message)
