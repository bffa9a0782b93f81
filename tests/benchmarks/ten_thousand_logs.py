"""How long do ten thousand logs of a hundred samples take? Merging and tabulating them; and xarray on the same files.

    python tests/benchmarks/ten_thousand_logs.py DIRECTORY [LOGS] [LOGS FOR XARRAY]

A benchmark, not a test: it prints times and memory, and asserts nothing. It needs 75 KB for each log below DIRECTORY,
and removes what it wrote. xarray, which needs dask for this, gets fewer logs: it would take very long.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jobs.timing_log import Ceiling, DiskUse, Header, Sample, TimingLog

METHODS, TARGETS, TRIALS = 10, 5, 17

XARRAY = """
import sys, xarray
found = xarray.open_mfdataset(
    open(sys.argv[1]).read().splitlines(), group="/samples", engine="h5netcdf", combine="nested", concat_dim="sample",
    data_vars="all", coords="minimal", compat="override", join="outer",
)
print(found.load().sizes)
"""

WRITE = """
import pathlib, sys, ten_thousand_logs
ten_thousand_logs.write_logs(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
"""

READ = "import sys, analysis; print(len(analysis.load(sys.argv[1])))"


def made(number: int) -> TimingLog:
    """One job's log: a hundred samples, and all that a real one says."""
    method, target, round_number = number % METHODS, number // METHODS % TARGETS, number // (METHODS * TARGETS) + 1
    label = "torch_save" if method == 0 else f"strategy_{method}"
    draw = np.random.default_rng(number)
    samples = []
    for trial in range(TRIALS):
        seconds = float((1 + method / 10) * np.exp(draw.normal(0, 0.05)))
        parts = [("save", "call", 0.5, "n/a"), ("save", "sync", 0.25, "n/a"), ("save", "commit", 0.25, "n/a")]
        parts += [("save", "total", 1.0, "n/a"), ("load", "total", 0.5, "cold"), ("load", "total", 0.25, "warm")]
        samples += [
            Sample(
                trial=trial, warmup=trial == 0, rank=0, operation=operation, phase=phase, start_s=3.0 * trial,
                duration_s=seconds * share, state_bytes=2**30, durability="committed", cache=cache,
                resident_fraction=0.0, cpu_s=seconds / 2, peak_rss_bytes=2**30, valid=True, reason="",
                peak_extra_bytes=2**28, device_read_bytes=2**30, device_write_bytes=2**30,
            )
            for operation, phase, share, cache in parts
        ]  # fmt: skip
    disk = {"apparent_bytes": 2**30, "allocated_bytes": 2**30, "small_file_count": 0, "largest_file_bytes": 2**30}
    return TimingLog(
        header=Header(
            study="ten-thousand", job_id=f"r{round_number:03}-{label}-target{target}-1x1", strategy=label, label=label,
            strategy_options="{}", strategy_facts='{"best_for": "this"}', target=f"target{target}", round=round_number,
            nodes=1, tasks_per_node=1, trials_planned=TRIALS - 1, created_utc="2026-01-02T03:04:05+00:00",
            clock_zero_unix_s=1.75e9 + 100.0 * number, status="complete",
        ),
        samples=samples[:100],
        disk=[DiskUse(trial=trial, file_count=1, **disk) for trial in range(TRIALS)],
        ceiling=[
            Ceiling(when=when, operation=operation, size_bytes=2**30, start_s=0.0, duration_s=0.4, direct=True)
            for when in ("before", "after")
            for operation in ("write", "read", "copy")
        ],
        state={
            "model": "openllama-3b", "tensors": 100, "parameters": 5 * 10**8, "state_bytes": 2**30, "seed": 0,
            "dtypes": "float16", "values": "normal-bfloat16", "digest": "0123456789abcdef" * 4,
        },
        storage={"path": "/scratch", "filesystem": "ext4", "source": "/dev/vda", "options": "rw", "cache_caveat": ""},
        provenance={
            "host": f"node{number % 4}", "kernel": "6.1", "cpu": "CPU", "cpus_usable": 2, "memory_bytes": 2**34,
            "packages": '{"torch": "2.6"}', "python": "3.11", "mounts": "x" * 2000, "slurm": "{}", "node_local": True,
            "steal_share": 0.0, "dirty_bytes_before": 0,
        },
    )  # fmt: skip


def write_logs(directory: Path, first: int, last: int) -> None:
    """Write some of the logs."""
    for number in range(first, last):
        log = made(number)
        # Without a sync of each: it is not the writing that is measured.
        (directory / f"{log.header.job_id}.h5").write_bytes(log._image("log"))


def timed(command: Sequence[str]) -> tuple[float, float]:
    """Seconds that a command takes, and the peak of its memory in MB, of its largest process."""
    start = time.perf_counter()
    pid = os.posix_spawn(
        command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
    )
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise subprocess.CalledProcessError(status, command)
    return time.perf_counter() - start, usage.ru_maxrss / 1e3


def linked(paths: Sequence[Path], study: Path) -> Path:
    """A study that holds these logs only."""
    (study / "logs").mkdir(parents=True)
    for path in paths:
        (study / "logs" / path.name).hardlink_to(path)
    return study


def main() -> None:
    """Write the logs, run both, and print what each took."""
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
    fewer = int(sys.argv[3]) if len(sys.argv) > 3 else 300
    root = Path(tempfile.mkdtemp(prefix="ten-thousand-", dir=sys.argv[1]))
    try:
        logs = root / "all"
        logs.mkdir()
        writers = [
            subprocess.Popen([sys.executable, "-c", WRITE, str(logs), str(a), str(b)], cwd=Path(__file__).parent)
            for a, b in ((0, count // 2), (count // 2, count))
        ]
        assert [writer.wait() for writer in writers] == [0, 0]
        os.sync()  # what is still to be written would disturb what is measured
        paths = sorted(logs.iterdir())
        analysis, merged = [sys.executable, "-m", "analysis"], root / "merged.h5"
        for share in (4, 1):
            study = linked(paths[: count // share], root / f"part{share}")
            merging = timed([*analysis, "merge", str(study), "-o", str(merged)])
            table = timed([*analysis, "table", str(merged)])
            direct = timed([*analysis, "table", str(study)])
            print(f"{count // share} logs, merged: {merging[0]:.1f} s, {merging[1]:.0f} MB, then", end=" ")
            print(f"tabulated: {table[0]:.1f} s, {table[1]:.0f} MB")
            print(f"{count // share} logs, tabulated as they are: {direct[0]:.1f} s, {direct[1]:.0f} MB", flush=True)
        few = linked(paths[:fewer], root / "few")
        (root / "paths").write_text("\n".join(map(str, sorted((few / "logs").iterdir()))))
        theirs = timed([sys.executable, "-c", XARRAY, str(root / "paths")])
        ours = timed([sys.executable, "-c", READ, str(few)])
        print(f"{fewer} logs into memory, one process each: open_mfdataset {theirs[0]:.1f} s, {theirs[1]:.0f} MB;")
        print(f"analysis.load {ours[0]:.1f} s, {ours[1]:.0f} MB: {theirs[0] / ours[0]:.0f} times as fast")
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
