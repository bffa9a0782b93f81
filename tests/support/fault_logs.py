"""What came of the faults of studies, as `python -m jobs faults` writes it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.faults.outcomes import (
    ALONE,
    BIT_ROT,
    COMMITTED,
    FAILED_CALL,
    FILE,
    KILL,
    POWER_CUT,
    Cell,
    FaultLog,
)

TORN = "power cut after step 17 of 31, journalled: the restart has another state (layers.0.mlp.weight[5]: 0 for 0.25)"
EARLY = "killed after 2 of 9 calls: the restart ends with CheckpointError: there is no checkpoint in /mnt/disk/r"

TYPICAL = (
    Cell("torch_save", ALONE, POWER_CUT, 378, 31, 3, TORN),
    Cell("torch_save", ALONE, FAILED_CALL, 44, 8, 0, "write(2) fails with ENOSPC: the restart ends with EOFError: eof"),
    Cell("torch_save", ALONE, KILL, 7, 2, 0, EARLY),
    Cell("torch_save", ALONE, BIT_ROT, 12, 4, 84, "bit 3 of byte 512 of data.pkl flips: the restart has another state"),
    Cell("torch_save", COMMITTED, POWER_CUT, 4120),
    Cell("torch_save", COMMITTED, FAILED_CALL, 52),
    Cell("torch_save", COMMITTED, KILL, 9),
    Cell("torch_save", COMMITTED, BIT_ROT, 0, 100, 0, "bit 0 of byte 0 of data.pkl flips: the restart ends with error"),
    Cell("safetensors_tuned+checksum=False", ALONE, POWER_CUT, 210),
    Cell("safetensors_tuned+checksum=False", ALONE, FAILED_CALL, skipped="strace is not installed"),
    Cell("safetensors_tuned+checksum=False", ALONE, BIT_ROT, 100),
)
"""Every verdict, a fault that was skipped and one that was not tried."""


def fault_log(*cells: Cell, **fields: Any) -> FaultLog:
    """What came of a study's faults: these cells, or the typical ones."""
    log = FaultLog(
        "durable", "python -m jobs faults studies/durable.toml", "disk", "ext4", 101_632, 7,
        {"python": "3.12.3", "kernel": "6.8.0-45-generic", "torch": "2.9.1", "safetensors": "0.8.0"},
        list(cells or TYPICAL),
    )  # fmt: skip
    return replace(log, **fields)


def write_fault_log(log: FaultLog, study: Path) -> Path:
    """Write the file into a study's directory, which is made; returns its path."""
    study.mkdir(parents=True, exist_ok=True)
    log.write(study / FILE)
    return study / FILE
