"""The timing log that the writer of version 1 wrote."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from jobs.timing_log import DiskUse, Header, Sample, TimingLog

V1 = Path(__file__).parents[1] / "jobs" / "data" / "v1.h5"


def version_1() -> TimingLog:
    """What stands in `data/v1.h5`, which the writer of version 1 wrote."""
    total = Sample(
        trial=0,
        warmup=True,
        rank=0,
        operation="save",
        phase="total",
        start_s=0.5,
        duration_s=0.1,
        state_bytes=2**40 + 1,
        durability="committed",
        cache="n/a",
        resident_fraction=math.nan,
        cpu_s=0.3,
        peak_rss_bytes=3 * 2**30,
        valid=True,
        reason="",
    )
    call = replace(total, phase="call", durability="returned", cpu_s=math.nan, peak_rss_bytes=-1)
    load = replace(
        total, trial=1, warmup=False, operation="load", durability="n/a", cache="cold", resident_fraction=0.0
    )
    wrong = replace(load, cache="warm", resident_fraction=1.0, valid=False, reason="differs:\n“größer” — 3 bytes ✓")
    return TimingLog(
        header=Header(
            study="frozen",
            job_id="r01-torch_save-nvme-1x1",
            strategy="torch_save",
            label="torch_save",
            strategy_options="{}",
            strategy_facts='{"files": "1"}',
            target="nvme",
            round=1,
            nodes=1,
            tasks_per_node=1,
            trials_planned=1,
            created_utc="2026-01-02T03:04:05+00:00",
            clock_zero_unix_s=1767323045.25,
            status="complete",
        ),
        samples=[call, total, load, wrong],
        disk=[
            DiskUse(
                trial=0,
                file_count=2,
                apparent_bytes=2**40 + 900,
                allocated_bytes=2**40 + 4096,
                small_file_count=1,
                largest_file_bytes=2**40,
            )
        ],
        state={"model": "frozen", "state_bytes": 2**40 + 1, "digest": "0123"},
        storage={"filesystem": "ext4", "path": "/nvme/a b", "free_bytes": 5 * 2**40},
        provenance={"host": "node1", "clock_resolution_s": 1e-9},
    )


def exactly(log: TimingLog) -> str:
    """Everything in a log as text, so that a NaN equals itself and True isn't 1."""
    tables = {name: dict(sorted(getattr(log, name).items())) for name in ("state", "storage", "provenance")}
    rows = (log.samples, log.disk, log.ceiling, log.ranks, log.metadata, log.hooks)
    return repr((log.header, *rows, tables))
