#!/bin/bash
# What launch/slurm.sh submits: `vpp ARGUMENT...` once per node. Queues the job again after the exit codes that a restart mends (75, 134,
# 137, 139: launch/restarting.sh) and after SIGTERM (143: the time is over), unless somebody cancelled it.
set -u
if [ "$SLURM_NNODES" -gt 1 ]; then
  first="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
  export VPP_COORDINATOR="$first:$((20000 + SLURM_JOB_ID % 10000))" VPP_NUM_SHARDS="$SLURM_NNODES"
fi
# SLURM_PROCID is the number of the task; a task that ends must not take the others with it while they save
task='if [ -n "${VPP_COORDINATOR:-}" ]; then export VPP_SHARD_INDEX="$SLURM_PROCID"; fi; exec vpp "$@"'
srun --kill-on-bad-exit=0 bash -c "$task" vpp "$@"
code=$?
case "$code" in
  75 | 134 | 137 | 139 | 143)
    if [ "$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)" = RUNNING ]; then
      echo "exit code $code: the job is queued again"
      scontrol requeue "$SLURM_JOB_ID"
    fi
    ;;
esac
exit "$code"
