"""How programs other than this package read what its strategies write."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def zarr_arrays(suffix: str) -> Callable[[Path], dict[str, Any]]:
    """Read the arrays `a.b` and `c` of a directory with zarr-python."""

    def read(directory: Path) -> dict[str, Any]:
        import zarr

        return {name: zarr.open_array(directory / f"{name}{suffix}", mode="r")[:] for name in ("a.b", "c")}

    return read


def read_safetensors(directory: Path) -> dict[str, Any]:
    """Read a directory with safetensors, its index as transformers does."""
    from safetensors.torch import load_file

    index = directory / "model.safetensors.index.json"
    files = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    return {name: tensor for file in files for name, tensor in load_file(directory / file).items()}


def dcp_files(directory: Path) -> dict[str, Any]:
    """Read a directory with DCP's own converter, or its safetensors with safetensors."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    if (directory / "model.safetensors.index.json").exists():
        return read_safetensors(directory)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is unavailable", UserWarning)
        dcp_to_torch_save(directory, directory / "converted")
    state: dict[str, Any] = torch.load(directory / "converted", weights_only=True)
    return state


def ocdbt_arrays(directory: Path) -> dict[str, Any]:
    """Read the arrays `a.b` and `c` of a database with TensorStore."""
    import tensorstore as ts

    def read(name: str) -> Any:
        database = {"driver": "ocdbt", "base": f"file://{directory}/", "path": f"{name}/"}
        return ts.open({"driver": "zarr3", "kvstore": database}).result().read().result()

    return {name: read(name) for name in ("a.b", "c")}


def hdf5_file(directory: Path) -> dict[str, Any]:
    """Read the datasets of a file with h5py."""
    import h5py

    with h5py.File(directory / "state.h5") as file:
        return {name: dataset[()] for name, dataset in file.items()}


def orbax_tree(directory: Path) -> dict[str, Any]:
    """Read a tree with orbax."""
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        state: dict[str, Any] = checkpointer.restore(directory / "tree")["state"]
    return state


READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "torch_save": lambda directory: torch.load(directory / "state.pth", weights_only=True),
    "safetensors_tuned": read_safetensors,
    "safetensors_file": read_safetensors,
    "torch_dcp": dcp_files,
    "torch_dcp_direct": dcp_files,
    "tensorstore_basic": zarr_arrays(".zarr"),
    "tensorstore_t5x": zarr_arrays(".zarr"),
    "tensorstore_t5x_real": zarr_arrays(".zarr"),
    "hdf5": hdf5_file,
    "orbax": orbax_tree,
    "fastsafetensors": read_safetensors,
    "zarr_python": zarr_arrays(""),
    "torch_checkpointing": lambda directory: torch.load(directory / "state_0.pt", weights_only=True),
    "tensorstore_ocdbt": ocdbt_arrays,
    "tensorstore_tuned": zarr_arrays(""),
}
"""How other programs read what a strategy wrote, without this package."""
