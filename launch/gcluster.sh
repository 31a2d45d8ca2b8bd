#!/usr/bin/env bash
# Trains on TPUs of a Google Kubernetes Engine cluster through Cluster Toolkit's gcluster: v5e, v5p, v6e and Ironwood
# (tpu7x). It takes the place of xpk.sh, whose xpk its owners call deprecated.
#
#   launch/gcluster.sh --cluster=zipper --project=my-project --location=us-central1 --compute_type=tpu7x-standard-4t \
#     --topology=4x4x4 --name=fuse-1 --image=REGION-docker.pkg.dev/my-project/zipper/tpu:1 -- \
#     train --gin_file=runs/paper/gecko_1b.gin --gin.FSDP=128 --gin.DATA=gs://my-bucket/prepared \
#     --gin.MODEL_DIR=gs://my-bucket/runs/fuse-1 --gin.TEXT_RUN=gs://my-bucket/towers/text --gin.SPEECH_RUN=gs://my-bucket/runs/speech
#
# Kubernetes supervises: when a pod fails, the JobSet restarts all pods, and training resumes from its newest checkpoint,
# at most --restarts times; not after exit status 2. --build_image builds the image and pushes it first; it can be given
# alone, then without a command after --.
# shellcheck disable=SC2154 # options become variables by their names
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$here/lib.sh"

option cluster required zipper "the GKE cluster, deployed from a blueprint of Cluster Toolkit"
option project required my-project "the Google Cloud project"
option location required us-central1 "region or zone of the cluster"
option compute_type required tpu7x-standard-4t "machine type of the TPU nodes, or v5litepod-256, v5p-128, v6e-256"
option topology optional 4x4x4 "the slice's topology; tpu7x needs it"
option num_slices default 1 "number of slices of that type"
option name required fuse-1 "names the job; after the last restart cancel it, or give another name; at most 28 letters"
option image required REGION-docker.pkg.dev/my-project/zipper/tpu:1 "built from container/tpu.Dockerfile"
option mount optional my-share:/mnt/zipper:rw "SOURCE:FOLDER:rw, a share for the run folder (default: none, it is in a bucket)"
option service_account optional zipper "Kubernetes service account of the pods, with rights on the bucket"
option queue optional multislice-queue "Kueue's queue (default: the cluster's)"
option priority optional medium "priority class"
option restarts default 100 "maximum number of restarts of all pods"
option grace_seconds default 180 "seconds that a terminated pod has to save"
option build_image switch "" "first build the image and push it"
option wait switch "" "then wait until it has ended"
parse_options "$@"
number num_slices 1 restarts 0 grace_seconds 0

if ((${#rest[@]} > 0)) || [ -z "$build_image" ]; then
  require cluster project location compute_type name image
  folder=${mount%:rw}
  train_command "${folder##*:}"
  [[ -n $mount || $model_dir == gs://* ]] || fail "--gin.MODEL_DIR=$model_dir is on a share: give --mount=SOURCE:FOLDER:rw"
  [[ -z $mount || $mount == *:/*:rw ]] || fail "--mount=$mount: give SOURCE:FOLDER:rw, for example my-share:/mnt/zipper:rw"
  [[ $compute_type != tpu7x* || -n $topology ]] || fail "--topology is missing: --compute_type=$compute_type needs it"
  ((${#name} <= 28)) || fail "--name=$name: gcluster takes at most 28 letters"
  [ -n "$dry_run" ] || command -v gcluster >/dev/null || fail "no gcluster on PATH: build it in a clone of cluster-toolkit with make"
else
  require image
fi
if [ -n "$build_image" ]; then
  [ -n "$dry_run" ] || command -v docker >/dev/null || fail "no docker on PATH: --build_image needs it"
  note "the image"
  run docker build "--file=$here/container/tpu.Dockerfile" "--tag=$image" "$(dirname "$here")"
  run docker push "$image"
fi
((${#rest[@]} > 0)) || exit 0

place=("--cluster=$cluster" "--project=$project" "--location=$location")
submit=(gcluster job submit "--name=$name" "${place[@]}" "--compute-type=$compute_type")
[ -z "$topology" ] || submit+=("--topology=$topology")
# One process for all chips of a host; by default gcluster starts two containers on a host of tpu7x.
[[ $compute_type != tpu7x* ]] || submit+=(--gke-disable-parallel-containers)
submit+=("--num-slices=$num_slices" "--image=$image" "--restarts=$restarts" "--grace-period=${grace_seconds}s")
[ -z "$mount" ] || submit+=("--mount=$mount")
[ -z "$service_account" ] || submit+=("--service-account=$service_account")
[ -z "$queue" ] || submit+=("--queue=$queue")
[ -z "$priority" ] || submit+=("--priority=$priority")
[ -z "$wait" ] || submit+=(--await-job-completion)
# zipper's rule: every status but 2 starts all pods again.
submit+=("--restart-on-exit-codes=1,$(printf '%s,' {3..254})255")
note "training"
run "${submit[@]}" "--command=exec $(quoted zipper "${rest[@]}" --coordinator=auto)"
note "status"
run gcluster job list "${place[@]}" "--name-contains=$name"
note "watch:"
note "  gcluster job logs $name $(quoted "${place[@]}") --follow"
