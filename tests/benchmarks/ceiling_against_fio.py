"""Is our ceiling the disk's? Direct sequential write and read, by this package and by fio, in turns.

    python tests/benchmarks/ceiling_against_fio.py DIRECTORY [ROUNDS] [MEGABYTES]

Needs fio (a Debian package). A benchmark, not a test: it prints medians and ratios, and asserts nothing.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ckpt.disk import direct_io, sequential


def fio(path: Path, operation: str, size_bytes: int, *, threads: int) -> float:
    """Seconds that fio takes with blocks of our size: one thread with several in flight, or as many threads as we."""
    share = size_bytes // threads
    engine = ["--ioengine=psync", "--thread", f"--numjobs={threads}", f"--offset_increment={share}"]
    if threads == 1:
        engine = ["--ioengine=libaio", f"--iodepth={sequential.THREADS}"]
    command = [
        "fio", f"--name={operation}", f"--filename={path}", f"--rw={operation}", f"--size={share}", *engine,
        f"--bs={sequential.BLOCK_BYTES}", "--direct=1", "--end_fsync=1", "--group_reporting", "--output-format=json",
    ]  # fmt: skip
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    rate: float = found["jobs"][0][operation]["bw_bytes"]
    return size_bytes / rate


def timed(work: Callable[[], object]) -> float:
    """Seconds that the work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Run both in turns, and print what each did."""
    directory = Path(sys.argv[1])
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 7
    size_bytes = direct_io.round_up(int(sys.argv[3]) * 10**6 if len(sys.argv) > 3 else 3 * 10**9)
    ours, theirs = directory / "ceiling-ours", directory / "ceiling-fio"
    who = ["ours", "fio, 4 threads", "fio, 1 thread, 4 in flight"]
    seconds: dict[tuple[str, str], list[float]] = {}
    try:
        for number in range(rounds):
            for path in (ours, theirs):
                path.unlink(missing_ok=True)
            for operation in ("write", "read"):
                own = sequential.write_sequentially if operation == "write" else sequential.read_sequentially
                arguments = (ours, size_bytes) if operation == "write" else (ours,)
                cells: dict[str, Callable[[], float]] = {
                    who[0]: lambda own=own, arguments=arguments: timed(lambda: own(*arguments)),
                    who[1]: lambda operation=operation: fio(theirs, operation, size_bytes, threads=4),
                    who[2]: lambda operation=operation: fio(theirs, operation, size_bytes, threads=1),
                }
                for turn in range(len(who)):
                    name = who[(turn + number) % len(who)]
                    seconds.setdefault((operation, name), []).append(cells[name]())
    finally:
        for path in (ours, theirs):
            path.unlink(missing_ok=True)
    print(f"{size_bytes / 1e9:.2f} GB, {rounds} rounds in turns, medians (smallest - largest):")
    for operation in ("write", "read"):
        for name in who:
            rates = [size_bytes / each / 1e9 for each in seconds[operation, name]]
            paired = [a / b for a, b in zip(seconds[operation, name], seconds[operation, who[0]], strict=True)]
            print(
                f"  {operation:5} {name:26} {statistics.median(rates):.2f} GB/s ({min(rates):.2f} - {max(rates):.2f}), "
                f"ours is {statistics.median(paired):.2f} times as fast"
            )


if __name__ == "__main__":
    main()
