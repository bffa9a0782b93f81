#!/bin/bash
# Runs a whole study in the allocation that it is in, one job after the other: study.sbatch and study.pbs source it.
# Safe to run again: it runs the jobs that are missing. The output ends with the tables.

source "${CKPT_STUDY_HOME:-${SLURM_SUBMIT_DIR:-${PBS_O_WORKDIR:-$PWD}}}/slurm/env.sh"
cd "$CKPT_STUDY_HOME" || exit
study=$("${python[@]}" -m jobs prepare "$@") || exit
failed=0
while read -r job nodes tasks; do
  # </dev/null: otherwise the launcher reads the list of jobs
  start_ranks "$nodes" "$tasks" "${python[@]}" -u -m jobs job "$study" "$job" </dev/null && continue
  code=$? failed=1
  if [ $code = 75 ]; then   # the allocation ends
    echo "interrupted: run this again for the jobs that are missing"
    break
  fi
done < <("${python[@]}" -m jobs plan "$1" --ids)
"${python[@]}" -m analysis table "$study"
exit $failed
