"""How large should requests be, and how many in flight? The package's own writer and reader, in turns, on directories.

    python tests/benchmarks/request_sizes.py DIRECTORY... [--mb 1000] [--rounds 7] [--kib 256,1024,4096,16384]
                                             [--threads 1,4,8,16]

Writes one safetensors file until it is synced, and reads it back after its pages were dropped from the page cache, by
direct I/O and through the page cache. In each round all combinations come once, in a random order. The tables have the
median, over the rounds, of a combination's time as a multiple of the default's in the same round: below 1 is faster.
The default comes twice: how far the second one is from 1.00 shows the noise.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from ckpt.disk import durable, io_plan, page_cache, ranges
from ckpt.disk.io_plan import IoPlan
from ckpt.formats import safetensors_files, safetensors_plan, safetensors_reading, safetensors_writing
from ckpt.state.layout import State, layout_of_state
from ckpt.state.sharding import RankShards
from ckpt.strategies.safetensors_tuned import SafetensorsTuned

MIB = 2**20
TENSOR_BYTES = 64 * MIB
NOISE = "default, again"


@dataclass(frozen=True)
class Cell:
    """One combination of what is compared."""

    operation: str
    direct: bool
    request_bytes: int
    threads: int
    again: bool = False
    """Whether it is the default's second measurement."""

    @property
    def series(self) -> tuple[str, bool]:
        """What shares a table."""
        return self.operation, self.direct


def default_of(operation: str, *, direct: bool) -> Cell:
    """What the package does by itself."""
    usual = SafetensorsTuned()
    request_bytes = usual.block_mib * MIB if operation == "write" else ranges.BLOCK_BYTES
    return Cell(operation, direct, request_bytes, usual.threads)


def cells_of(sizes_bytes: Sequence[int], threads: Sequence[int]) -> Iterator[Cell]:
    """All combinations, and the defaults twice."""
    for operation, direct in product(("write", "read"), (True, False)):
        usual = default_of(operation, direct=direct)
        yield usual
        yield Cell(operation, direct, usual.request_bytes, usual.threads, again=True)
        for size_bytes, count in product(sizes_bytes, threads):
            if (size_bytes, count) != (usual.request_bytes, usual.threads):
                yield Cell(operation, direct, size_bytes, count)


class Bench:
    """A directory with one file to read, and a state to write."""

    def __init__(self, directory: Path, state: State) -> None:
        self._state = state
        self._shards = RankShards.single(layout_of_state(state))
        self._read_from, self._write_to = directory / "read", directory / "write"
        self._read_from.mkdir()
        self._write_to.mkdir()
        self._write(self._read_from, default_of("write", direct=False))
        self._headers = safetensors_files.headers_of(self._read_from)
        page_cache.evict(self._read_from)
        self.resident_fraction = page_cache.resident_fraction(self._read_from)
        """What can't be dropped from the page cache."""

    def time(self, cell: Cell) -> float:
        """Seconds that a combination takes."""
        if cell.operation == "read":
            page_cache.evict(self._read_from)
            start_s = time.perf_counter()
            self._read(cell)
            return time.perf_counter() - start_s
        for path in self._write_to.iterdir():
            path.unlink()
        start_s = time.perf_counter()
        self._write(self._write_to, cell)
        return time.perf_counter() - start_s

    def _write(self, directory: Path, cell: Cell) -> None:
        for name, content in safetensors_plan.plan_files(self._shards, 0).items():
            safetensors_writing.write(
                directory / name, content, self._state, _plan(cell),
                checksum=False, threads=cell.threads, block_bytes=cell.request_bytes,
            )  # fmt: skip
        durable.flush(directory)

    def _read(self, cell: Cell) -> None:
        usual = ranges.BLOCK_BYTES
        ranges.BLOCK_BYTES = cell.request_bytes
        try:
            for path, header in self._headers.items():
                safetensors_reading.read(path, header.tensors, header.data_start, _plan(cell), cell.threads)
        finally:
            ranges.BLOCK_BYTES = usual


def _plan(cell: Cell) -> IoPlan:
    return IoPlan(cell.direct, cell.direct, preallocate=cell.direct, why="the benchmark")


def main() -> None:
    """Measure each directory, and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", type=Path, nargs="+", metavar="DIRECTORY")
    parser.add_argument("--mb", type=float, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--kib", default="256,1024,4096,16384")
    parser.add_argument("--threads", default="1,4,8,16")
    arguments = parser.parse_args()
    sizes_bytes = [int(size) * 1024 for size in arguments.kib.split(",")]
    threads = [int(count) for count in arguments.threads.split(",")]
    state = _state(round(arguments.mb * 1e6))
    for directory in arguments.directories:
        with tempfile.TemporaryDirectory(prefix="request-sizes-", dir=directory) as scratch:
            bench = Bench(Path(scratch), state)
            seconds = _measure(bench, list(cells_of(sizes_bytes, threads)), arguments.rounds)
        print(f"\n{directory}: {arguments.mb:g} MB, {arguments.rounds} rounds; here the package uses")
        print(f"  {io_plan.plan_for(directory)}")
        if bench.resident_fraction > 0.01:
            print(
                f"  {bench.resident_fraction:.0%} of the file stayed in the page cache: reads are not from the device"
            )
        _print(seconds, sizes_bytes, threads, arguments.mb)


def _state(size_bytes: int) -> State:
    sizes = [min(TENSOR_BYTES, size_bytes - start) for start in range(0, size_bytes, TENSOR_BYTES)]
    return {f"w{number}": torch.randint(256, (size,), dtype=torch.uint8) for number, size in enumerate(sizes)}


def _measure(bench: Bench, cells: list[Cell], rounds: int) -> dict[Cell, list[float]]:
    """Measure every cell once a round; returns the seconds, in the order of the rounds."""
    for usual in (cell for cell in cells if cell.again):  # the memory was never used
        bench.time(usual)
    seconds: dict[Cell, list[float]] = {cell: [] for cell in cells}
    for _ in range(rounds):
        for cell in random.sample(cells, len(cells)):
            seconds[cell].append(bench.time(cell))
    return seconds


def _print(seconds: dict[Cell, list[float]], sizes_bytes: list[int], threads: list[int], mb: float) -> None:
    for operation, direct in dict.fromkeys(cell.series for cell in seconds):
        usual = default_of(operation, direct=direct)

        def ratio(cell: Cell, usual: Cell = usual) -> float:
            return statistics.median(one / other for one, other in zip(seconds[cell], seconds[usual], strict=True))

        again = ratio(Cell(operation, direct, usual.request_bytes, usual.threads, again=True))
        rate = mb / 1000 / statistics.median(seconds[usual])
        print(f"{'direct' if direct else 'buffered'} {operation}s, time relative to the default:")
        print(f"  {'default':16} 1.00  ({usual.request_bytes // 1024} KiB, {usual.threads} threads, {rate:.2f} GB/s)")
        print(f"  {NOISE:16} {again:.2f}")
        print(f"  {'KiB':16}" + "".join(f"{f'{count} threads':>12}" for count in threads))
        for size_bytes in sizes_bytes:
            row = [ratio(Cell(operation, direct, size_bytes, count)) for count in threads]
            print(f"  {size_bytes // 1024:<16}" + "".join(f"{value:>12.2f}" for value in row))


if __name__ == "__main__":
    main()
