#!/bin/bash
# launch/xpk.sh --cluster NAME --workload NAME --type v5litepod-256 --image IMAGE --zone ZONE --project PROJECT
#               [--slices 1] [--restarts 100] [--grace 600] [--dry_run] -- vpp arguments
#
# A job on a GKE cluster, through XPK (https://github.com/AI-Hypercomputer/xpk). The cluster mounts the shared folder at /mnt/vpp.
# A preempted job has --grace seconds to save and exits with 143, one that lost another host with 75; GKE then restarts the same command,
# which resumes. An exit code that needs a person (1: an error, 2: invalid arguments) ends the job. XPK mounts memory at /dev/shm.
source "$(dirname "$0")/common.sh"
slices=1 restarts=100 grace=600
read_options cluster workload type image zone project slices restarts grace -- "$@"
need cluster workload type image zone project
[ ${#REST[@]} -gt 0 ] || fail "nothing to do: put the arguments of vpp after --, e.g. -- train --config=configs/svd_calvin_video.py ..."
run xpk workload create "--cluster=$cluster" "--workload=$workload" "--tpu-type=$type" "--num-slices=$slices" "--docker-image=$image" \
  "--zone=$zone" "--project=$project" "--max-restarts=$restarts" --restart-on-exit-codes=75,134,137,139,143 \
  "--termination-grace-period-seconds=$grace" "--command=exec vpp $(quote "${REST[@]}")"
