#!/usr/bin/env bash
# Trains on TPUs of a Google Kubernetes Engine cluster through xpk: v5e, v5p, v6e and Ironwood (tpu7x).
#
#   launch/xpk.sh --cluster=zipper --project=my-project --zone=us-central1-c --tpu_type=tpu7x-4x4x4 --workload=fuse-1 \
#     --docker_image=REGION-docker.pkg.dev/my-project/zipper/tpu:1 --storage=zipper-share --mount=/mnt/zipper -- \
#     train --gin_file=runs/paper/gecko_1b.gin --gin.FSDP=64 --gin.DATA=/mnt/zipper/prepared \
#     --gin.MODEL_DIR=/mnt/zipper/runs/fuse-1 --gin.TEXT_RUN=/mnt/zipper/towers/text --gin.SPEECH_RUN=/mnt/zipper/runs/speech
#
# The first time, add --create_cluster --capacity=spot --create_storage --build_image (each can be given alone, then
# without a command after --). Kubernetes supervises: when a pod fails, the JobSet restarts all pods, and training
# resumes from its newest checkpoint, at most --max_restarts times; not after exit status 2.
# shellcheck disable=SC2154 # options become variables by their names
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$here/lib.sh"

option cluster required zipper "the cluster, created by xpk"
option project required my-project "the Google Cloud project"
option zone required us-central1-c "where the TPUs are"
option tpu_type required tpu7x-4x4x4 "v5litepod-256, v5p-128, v6e-256, tpu7x-4x4x4, ..."
option num_slices default 1 "number of slices of that type"
option workload required fuse-1 "names the job; after the last restart delete it, or give another name"
option docker_image required REGION-docker.pkg.dev/my-project/zipper/tpu:1 "built from container/tpu.Dockerfile"
option storage optional zipper-share "the Filestore share's name in xpk (default: none, the run folder is in a bucket)"
option mount default /mnt/zipper "where containers mount it"
option max_restarts default 100 "maximum number of restarts of all pods"
option priority default medium "very-low, low, medium, high or very-high"
option grace_seconds default 180 "seconds that a terminated pod has to save"
option create_cluster switch "" "first create the cluster"
option capacity optional spot "for --create_cluster: spot, on-demand, flex, or reservation=NAME"
option cluster_flag repeated --cpu-limit=112 "for --create_cluster: passed to xpk"
option create_storage switch "" "first create the share and attach it"
option storage_size default 1024 "for --create_storage: GiB"
option build_image switch "" "first build the image and push it"
option wait switch "" "then wait until it has ended"
parse_options "$@"
number num_slices 1 max_restarts 0 grace_seconds 0 storage_size 1024

place=("--project=$project" "--zone=$zone")
needs=()
[ -z "$create_cluster" ] || needs+=(cluster project zone tpu_type capacity)
[ -z "$create_storage" ] || needs+=(cluster project zone storage)
[ -z "$build_image" ] || needs+=(docker_image)
if ((${#rest[@]} > 0)) || ((${#needs[@]} == 0)); then
  needs+=(cluster project zone tpu_type workload docker_image)
  train_wanted=1
fi
mapfile -t needs < <(printf '%s\n' "${needs[@]}" | awk '!seen[$0]++')
require "${needs[@]}"
if [ -n "${train_wanted:-}" ]; then
  train_command "$mount"
  [[ -n $storage || $model_dir == gs://* ]] || fail "--gin.MODEL_DIR=$model_dir is on a share: give --storage=NAME"
fi
if [ -z "$dry_run" ]; then
  [ "${needs[*]}" = docker_image ] || command -v xpk >/dev/null || fail "no xpk on PATH: pip install xpk"
  [ -z "$build_image" ] || command -v docker >/dev/null || fail "no docker on PATH: --build_image needs it"
fi

if [ -n "$create_cluster" ]; then
  case $capacity in
    spot | on-demand | flex | reservation=?*) ;;
    *) fail "--capacity=$capacity: give spot, on-demand, flex or reservation=NAME" ;;
  esac
  note "the cluster, with its TPU nodes"
  run xpk cluster create "--cluster=$cluster" "${place[@]}" "--tpu-type=$tpu_type" "--num-slices=$num_slices" \
    "--$capacity" --enable-gcpfilestore-csi-driver "${cluster_flag[@]}"
fi
if [ -n "$create_storage" ]; then
  note "the share: a Filestore instance, attached to the cluster"
  run xpk storage create "$storage" --type=gcpfilestore "--size=$storage_size" --tier=ZONAL --vol=zipper \
    --access-mode=ReadWriteMany --auto-mount=false "--mount-point=$mount" --readonly=false \
    "--cluster=$cluster" "${place[@]}"
fi
if [ -n "$build_image" ]; then
  note "the image"
  run docker build "--file=$here/container/tpu.Dockerfile" "--tag=$docker_image" "$(dirname "$here")"
  run docker push "$docker_image"
fi
[ -n "${train_wanted:-}" ] || exit 0

note "training"
# xpk's own list of statuses that allow a restart is 42 and 127-255; zipper's rule is all but 2.
run xpk workload create "--workload=$workload" "--cluster=$cluster" "${place[@]}" "--tpu-type=$tpu_type" \
  "--num-slices=$num_slices" "--docker-image=$docker_image" ${storage:+"--storage=$storage"} "--priority=$priority" \
  "--max-restarts=$max_restarts" --restart-on-exit-codes=1,3-126 "--termination-grace-period-seconds=$grace_seconds" \
  "--command=exec $(quoted zipper "${rest[@]}" --coordinator=auto)"
note "status"
if [ -n "$wait" ]; then
  run xpk workload list "--cluster=$cluster" "${place[@]}" "--wait-for-job-completion=$workload"
else
  run xpk workload list "--cluster=$cluster" "${place[@]}" "--filter-by-job=$workload"
fi
