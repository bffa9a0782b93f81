#!/bin/bash
# The only place for a site's modules and environment: both sbatch scripts source it before they start Python.
#
# Adapt it, for example:   module load python/3.11
#                          export CKPT_STUDY_PYTHON=/path/to/venv/bin/python

# The directory of this checkout. Slurm runs a copy of a batch script, so $0 can't be used; by default it is the
# directory where sbatch was called. Set CKPT_STUDY_HOME for any other.
export CKPT_STUDY_HOME=${CKPT_STUDY_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}

# The Python interpreter with this package: the one in the checkout's .venv, if that exists.
if [ -z "${CKPT_STUDY_PYTHON:-}" ]; then
  CKPT_STUDY_PYTHON=python3
  if [ -x "$CKPT_STUDY_HOME/.venv/bin/python" ]; then CKPT_STUDY_PYTHON=$CKPT_STUDY_HOME/.venv/bin/python; fi
fi
export CKPT_STUDY_PYTHON

# HDF5's file locks fail on some Lustre and NFS mounts, and aren't needed: each log has one writer.
export HDF5_USE_FILE_LOCKING=${HDF5_USE_FILE_LOCKING:-BEST_EFFORT}

# Since Slurm 22.05, srun no longer inherits the number of CPUs from sbatch.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi
