#!/bin/bash
# The one place for a site's modules and environment: both sbatch scripts source it before Python starts.
#
# Adapt it, for example:   module load python/3.11
#                          export CKPT_STUDY_PYTHON=/path/to/venv/bin/python

# Where this checkout lies. Slurm copies a batch script before it runs it, so $0 doesn't tell;
# the directory in which sbatch was typed does, unless CKPT_STUDY_HOME says otherwise.
export CKPT_STUDY_HOME=${CKPT_STUDY_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}

# The interpreter that has the package: the checkout's .venv if there is one.
if [ -z "${CKPT_STUDY_PYTHON:-}" ]; then
  CKPT_STUDY_PYTHON=python3
  if [ -x "$CKPT_STUDY_HOME/.venv/bin/python" ]; then CKPT_STUDY_PYTHON=$CKPT_STUDY_HOME/.venv/bin/python; fi
fi
export CKPT_STUDY_PYTHON

# HDF5's file locks fail on some Lustre and NFS mounts; each log has one writer, so none is needed.
export HDF5_USE_FILE_LOCKING=${HDF5_USE_FILE_LOCKING:-BEST_EFFORT}

# Since Slurm 22.05 srun doesn't take the number of CPUs from sbatch.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi
