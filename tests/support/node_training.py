"""A rank of a training on several nodes of a real Slurm, with node-local storage: `python -m support.node_training`.

Its arguments are the shared directory and the last step. It resumes, checks what it resumed from, and saves every step.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch.distributed as dist

from support.series_ranks import train_on_two_levels


def main(run: Path, last: int) -> None:
    """Train; rank 0 prints the step that was restored, and what stays."""
    rank, ranks = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    meeting = run.with_name(f"meeting-{os.environ['SLURM_JOB_ID']}")
    store = dist.FileStore(str(meeting), ranks)  # type: ignore[attr-defined]  # it is documented all the same
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    restored, kept = train_on_two_levels(run, last, Path(os.environ["DEVCLUSTER_NVME"]) / "series")
    if rank == 0:
        print(restored, *kept)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
