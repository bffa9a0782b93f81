"""What `check` runs on a node, by a stand-in for Slurm's commands: as jobs will start, with `setup` and `srun_args`."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.cluster.node_probe import NodeError, ask_node
from jobs.plan.slurm_table import Slurm
from support.commands import Commands

_RUNS_COMMAND = 'while case $1 in --*) ;; *) false ;; esac; do shift; done\nexec "$@"'
_NOT_INTERACTIVE = """case "$*" in *--immediate*)
  echo 'srun: error: Unable to allocate resources: Interactive jobs are not allowed' >&2; exit 1 ;;
esac
"""

REQUEST = Slurm(
    setup=("#DW jobdw type=scratch", "echo loading; read -r line", "export MODULE='the module'"),
    srun_args=("--container-image=image.sqsh",),
)


@pytest.mark.parametrize("interactive", [True, False], ids=["srun", "a batch job"])
def test_a_node_is_asked_as_jobs_start(interactive: bool, commands: Commands, tmp_path: Path) -> None:
    """Where interactive jobs are allowed, and where not: a module is loaded, and a container named; what the setup
    prints isn't part of the answer, and it reads nothing of the question.
    """
    (commands.directory / "bash").symlink_to("/bin/bash")
    commands.add("srun", ("" if interactive else _NOT_INTERACTIVE) + _RUNS_COMMAND)
    commands.add("sbatch", 'for script; do :; done\necho 17; /bin/bash "$script" </dev/null')
    command = ["/bin/sh", "-c", 'read -r line; echo "$line: $MODULE"']

    assert ask_node(REQUEST, ["--partition=p"], command, "question\n", tmp_path) == "question: the module\n"
    assert " --partition=p " in commands.calls("srun")[0]
    assert " --container-image=image.sqsh " in commands.calls("srun")[-1]
    assert bool(commands.calls("sbatch")) is not interactive
    with pytest.raises(NodeError, match="no such image"):
        ask_node(REQUEST, [], ["/bin/sh", "-c", "echo 'no such image' >&2; exit 1"], "", tmp_path)
    assert list(tmp_path.glob(".ckpt-check*")) == []
