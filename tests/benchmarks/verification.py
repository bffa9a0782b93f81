"""What it costs to compare checksums: cold loads with and without, in turns.

    python tests/benchmarks/verification.py DIRECTORY [--gb 2] [--rounds 8] [--strategies safetensors_tuned,torch_save]

Each round loads every checkpoint twice, cold, once with `verify=True` and once with `verify=False`, in a random order.
A row gives the medians, the median of the rounds' ratios with its range, and the CPU seconds per GB of either.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import time
from pathlib import Path

import torch

import ckpt
from ckpt.disk import page_cache

_TENSOR_ELEMENTS = 4096 * 4096


def main() -> None:
    """Save one state with each strategy, load it in turns, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--gb", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--strategies", default="safetensors_tuned,torch_save,tensorstore_tuned")
    arguments = parser.parse_args()
    count = max(1, round(arguments.gb * 1e9 / (2 * _TENSOR_ELEMENTS)))
    state = {f"w{number}": torch.randn(4096, 4096).half() for number in range(count)}
    size_gb = sum(tensor.nbytes for tensor in state.values()) / 1e9
    names = arguments.strategies.split(",")
    for name in names:
        ckpt.save(state, arguments.directory / name, name)
    state.clear()
    loads: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    for _ in range(arguments.rounds):
        for name in names:
            for verify in random.sample([True, False], 2):
                loads.setdefault((name, verify), []).append(_load(arguments.directory / name, verify=verify))
    print(f"{size_gb:.2f} GB, {arguments.rounds} rounds; seconds, ratio of the rounds, CPU seconds per GB")
    print(f"{'strategy':20} {'without':>8} {'with':>8} {'ratio':>24} {'CPU without':>12} {'CPU with':>9}")
    for name in names:
        without, checked = loads[name, False], loads[name, True]
        ratios = [one[0] / other[0] for one, other in zip(checked, without, strict=True)]
        wall = [statistics.median(seconds for seconds, _ in each) for each in (without, checked)]
        cpu = [statistics.median(cpu_s for _, cpu_s in each) / size_gb for each in (without, checked)]
        ratio = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        print(f"{name:20} {wall[0]:8.2f} {wall[1]:8.2f} {ratio:>24} {cpu[0]:12.2f} {cpu[1]:9.2f}")


def _load(directory: Path, *, verify: bool) -> tuple[float, float]:
    """Load a checkpoint that no cache holds: wall and CPU seconds."""
    page_cache.evict(directory)
    if page_cache.resident_fraction(directory) > 0.01:
        raise SystemExit(f"{directory} could not be evicted from the page cache")
    cpu_s, start_s = _cpu_s(), time.perf_counter()
    state = ckpt.load(directory, verify=verify)
    end_s = time.perf_counter()
    del state
    return end_s - start_s, _cpu_s() - cpu_s


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
