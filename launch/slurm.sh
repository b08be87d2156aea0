#!/bin/bash
# launch/slurm.sh --nodes 4 [--gpus 8] [--time 24:00:00] [--grace 600] [--name vpp] [--partition P] [--account A] [--dry_run]
#                 -- vpp arguments
#
# A job on a SLURM cluster of machines with GPUs: one process of `vpp` per node, with all of its GPUs. --grace seconds before the time is
# over every process gets SIGTERM and saves; the job then queues itself again, as after any end that a restart mends
# (launch/slurm_job.sh), and resumes. `scancel --full JOB` saves and ends. The environment of this shell, in which `vpp` must be, is that of
# the job; the work directory must be one that all nodes see.
source "$(dirname "$0")/common.sh"
nodes='' gpus=8 time=24:00:00 grace=600 name=vpp partition='' account=''
read_options nodes gpus time grace name partition account -- "$@"
need nodes
[ ${#REST[@]} -gt 0 ] || fail "nothing to do: put the arguments of vpp after --, e.g. -- train --config=configs/svd_calvin_video.py ..."
run sbatch "--job-name=$name" "--nodes=$nodes" --ntasks-per-node=1 "--gpus-per-node=$gpus" --exclusive "--time=$time" \
  "--signal=TERM@$grace" --requeue --open-mode=append "--output=$name-%j.log" --export=ALL \
  ${partition:+"--partition=$partition"} ${account:+"--account=$account"} \
  "$(cd "$(dirname "$0")" && pwd)/slurm_job.sh" "${REST[@]}"
