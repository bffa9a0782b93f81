"""Analyse a merged file in pandas: `python examples/analyse.py merged.h5`.

`python -m analysis merge results/my-study -o merged.h5` makes one. Any result does: a study's directory, or one log.
"""

from __future__ import annotations

import sys

import pandas as pd

import analysis


def save_bandwidths(results: str) -> pd.DataFrame:
    """The median duration of durable saves, and their bandwidth, of each method on each target."""
    samples = analysis.load(results)  # one row for each measured phase of a trial on a rank
    totals = samples.query("operation == 'save' and phase == 'total' and valid and not warmup")
    totals = totals.assign(end_s=totals["start_s"] + totals["duration_s"])
    trials = totals.groupby(["target", "label", "job_id", "trial"]).agg(
        start_s=("start_s", "min"),  # with several ranks, from the first start to the last end
        end_s=("end_s", "max"),
        moved_bytes=("state_bytes", "sum"),
    )
    trials["duration_s"] = trials["end_s"] - trials["start_s"]
    trials["gbps"] = trials["moved_bytes"] / trials["duration_s"] / 1e9
    return trials.groupby(["target", "label"])[["duration_s", "gbps"]].median()


if __name__ == "__main__":
    print(save_bandwidths(sys.argv[1]).round(3).to_string())
