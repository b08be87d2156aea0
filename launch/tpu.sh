#!/bin/bash
# launch/tpu.sh VERB --name NAME --zone ZONE [--project PROJECT] [options] [--dry_run] [-- vpp arguments]
#
# One TPU VM or a slice of many hosts: the same commands, which address --worker=all.
#
#   create  --type v5litepod-16 [--version SOFTWARE] [--spot]   makes the slice
#   mount   --share SERVER:/EXPORT                              mounts a Filestore share at /mnt/vpp on every host
#   start   --image IMAGE [--container vpp] [--grace 600] [--shm 16g] -- train ...    starts `vpp train ...` on every host and returns
#   logs    [--container vpp] [--worker 0]                      follows the log of one host
#   stop    [--container vpp] [--grace 600]                     SIGTERM: saves and exits with 143; `start` resumes
#   delete                                                      deletes the slice
#
# Every host runs the same command on the same /mnt/vpp; JAX discovers the other hosts. In its container launch/restarting.sh starts a
# process again that another host or the system ended, but not after an error that a person must see to. A host that shuts down, as a spot
# VM does when it is preempted, gives its container --grace seconds to save, as far as the cloud lets it. After a slice was preempted,
# `create` and `start` resume the run. --shm: shared memory, through which the worker processes of data.workers hand over batches.
source "$(dirname "$0")/common.sh"
verb="${1:-}"
[ $# -gt 0 ] && shift
container=vpp grace=600 shm=16g worker=0 version='' project=''
case "$verb" in
  create|mount|start|logs|stop|delete) ;;
  -h|--help|'') usage; exit 0 ;;
  *) fail "there is no '$verb'; one of create, mount, start, logs, stop, delete" ;;
esac
read_options name zone project type version share image container worker grace shm -- "$@"
need name zone
where=("$name" "--zone=$zone")
[ -n "$project" ] && where+=("--project=$project")

# The software that goes with a TPU generation
software() {
  case "$type" in
    v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) fail "no software version is known for --type $type; give it with --version" ;;
  esac
}

# on WORKER COMMAND: through ssh; the command is one string that the remote shell reads
on() { run gcloud compute tpus tpu-vm ssh "${where[@]}" "--worker=$1" "--command=$2"; }

case "$verb" in
  create)
    need type
    [ -n "$version" ] || version="$(software)"
    run gcloud compute tpus tpu-vm create "${where[@]}" "--accelerator-type=$type" "--version=$version" ${SPOT:+--spot}
    ;;
  mount)
    need share
    packages="sudo apt-get update -qq && sudo apt-get install -y -qq nfs-common"
    on all "$packages && sudo mkdir -p /mnt/vpp && sudo mount -t nfs $(quote "$share") /mnt/vpp"
    ;;
  start)
    need image
    [ ${#REST[@]} -gt 0 ] || fail "nothing to do: put the arguments of vpp after --, e.g. -- train --config=configs/svd_calvin_video.py ..."
    docker=(sudo docker run --detach --name "$container" --stop-timeout "$grace" --shm-size "$shm" --privileged --network host
            --volume /mnt/vpp:/mnt/vpp --entrypoint restarting "$image" vpp "${REST[@]}")
    on all "sudo docker rm --force $(quote "$container") >/dev/null 2>&1; $(quote "${docker[@]}")"
    ;;
  logs) on "$worker" "sudo docker logs --follow $(quote "$container")" ;;
  stop) on all "sudo docker stop --time $(quote "$grace") $(quote "$container")" ;;
  delete) run gcloud compute tpus tpu-vm delete "${where[@]}" --quiet ;;
esac
