#!/bin/bash
# The only place for a site's modules and environment: all batch scripts source it before they start Python.
#
# Adapt it, for example:   module load python/3.11
#                          export CKPT_STUDY_PYTHON=/path/to/venv/bin/python
#                          export CKPT_STUDY_PYTHON="apptainer exec /path/to/image.sif python3"

# The directory of this checkout. Slurm runs a copy of a batch script, so $0 can't be used; by default it is the
# directory where sbatch or qsub was called. Set CKPT_STUDY_HOME for any other.
export CKPT_STUDY_HOME=${CKPT_STUDY_HOME:-${SLURM_SUBMIT_DIR:-${PBS_O_WORKDIR:-$PWD}}}

# How Python with this package starts: a path, or a command in several words. By default the checkout's .venv, if it
# exists. `python -m jobs` starts the jobs that it submits in the same way.
if [ -z "${CKPT_STUDY_PYTHON:-}" ]; then
  CKPT_STUDY_PYTHON=python3
  if [ -x "$CKPT_STUDY_HOME/.venv/bin/python" ]; then CKPT_STUDY_PYTHON=$CKPT_STUDY_HOME/.venv/bin/python; fi
fi
export CKPT_STUDY_PYTHON
# shellcheck disable=SC2034  # the scripts that source this use it
if [ -x "$CKPT_STUDY_PYTHON" ]; then python=("$CKPT_STUDY_PYTHON"); else read -ra python <<<"$CKPT_STUDY_PYTHON"; fi

# HDF5's file locks fail on some Lustre and NFS mounts, and aren't needed: each log has one writer.
export HDF5_USE_FILE_LOCKING=${HDF5_USE_FILE_LOCKING:-BEST_EFFORT}

# Since Slurm 22.05, srun no longer inherits the number of CPUs from sbatch.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi

start_ranks() { # NODES TASKS_PER_NODE COMMAND...: by the launcher of the batch system that this runs in
  local nodes=$1 tasks=$2 count=$(($1 * $2)); shift 2
  if [ -n "${SLURM_JOB_ID:-}" ]; then
    # --export=ALL: the variables of this script reach the ranks also after `sbatch --export=NONE`.
    srun --export=ALL --nodes="$nodes" --ntasks-per-node="$tasks" --ntasks="$count" --distribution=block \
      --kill-on-bad-exit=0 --wait=0 "$@"
  elif [ -n "${FLUX_URI:-}" ]; then
    flux run --nodes="$nodes" --tasks-per-node="$tasks" "$@"
  elif [ "$count" = 1 ]; then
    "$@"
  elif mpiexec --version 2>&1 | grep -qE 'Open MPI|OpenRTE|PRRTE'; then
    mpiexec -n "$count" --map-by "ppr:$tasks:node" "$@"
  else # MPICH, Intel MPI, HPE Cray PALS
    mpiexec -n "$count" -ppn "$tasks" "$@"
  fi
}
