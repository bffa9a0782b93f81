"""Reads files of `torch.save` without running any code that they name."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np

from ckpt.errors import CheckpointError


def read(file: Path | IO[bytes], shown: str = "", *, mmap: bool = False) -> Any:
    """Read a file of tensors, containers, plain values and numpy arrays, to the CPU.

    Args:
        file: its path, or the open file.
        shown: the name of the file in errors.
        mmap: leave the tensors' bytes in the file.

    Raises:
        CheckpointError: if it is damaged, no file of `torch.save`, or holds an object of any other class, whose name
            the message has.
    """
    import torch

    what = shown or "it"
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_numpy_globals()):
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)  # an error is reported below
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise CheckpointError(f"{what} doesn't exist") from None
    except Exception as error:  # torch raises one of many kinds, not all with a text
        classes = _classes_in(file, str(error))
        if classes:
            raise CheckpointError(
                f"{what} holds {', '.join(classes)}, which can't be read without running code that the file "
                "names; none was run. If you trust the file, load it by torch.load(..., weights_only=False)"
            ) from error
        reason = str(error).partition("WeightsUnpickler error:")[2].strip() or str(error)
        raise CheckpointError(
            f"can't read {what}: it is damaged, or not a torch.save file of tensors, arrays and plain values "
            f"({type(error).__name__}: {reason.partition(chr(10))[0][:200]})"
        ) from error


def _numpy_globals() -> list[Any]:
    """List what numpy pickles arrays, scalars and dtypes of numbers with, in numpy 1 and 2; none of it runs other code.

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


def _classes_in(file: Path | IO[bytes], message: str) -> list[str]:
    """List the classes and functions that a file names and torch doesn't create."""
    import torch

    try:
        if not isinstance(file, Path):
            file.seek(0)
        with torch.serialization.safe_globals(_numpy_globals()):
            unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # an older format  # noqa: BLE001
        unsafe = []
    return sorted(unsafe) or re.findall(r"(?:Unsupported global: GLOBAL|Unsupported class) ([\w.]+)", message)
