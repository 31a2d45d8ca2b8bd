#!/usr/bin/env bash
# Prepares a large corpus on a Google Kubernetes Engine cluster: a Job for `zipper data prepare --fit`, an Indexed Job with
# one pod per shard, and a Job for --finish, one after another, in kubectl's current context.
#
#   launch/prepare_gke.sh --name=prepare-1 --shards=64 --image=REGION-docker.pkg.dev/my-project/zipper/tpu:1 --claim=zipper -- \
#     data prepare --corpus=/mnt/zipper/corpus --out=/mnt/zipper/prepared --speech_length=512
#
# Kubernetes starts a failed pod again, --restarts times for each shard, not after exit status 2; a shard that is done does
# nothing. Where a step fails, the script ends and names the pod whose log tells why. The corpus is on a share (a
# PersistentVolumeClaim that many pods may mount, such as Filestore's); the output is there, too, or in a bucket
# (--out=gs://BUCKET/prepared) that the pods' service account may write.
# shellcheck disable=SC2154 # options become variables by their names
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$here/lib.sh"

option name required prepare-1 "names the jobs"
option shards required 64 "number of shards"
option at_once default 64 "maximum number of pods at the same time"
option image required REGION-docker.pkg.dev/my-project/zipper/tpu:1 "with zipper in it, such as container/tpu.Dockerfile's"
option claim required zipper "PersistentVolumeClaim of the share"
option mount default /mnt/zipper "where pods mount it"
option cpus default 4 "CPU cores per pod"
option memory default 4Gi "memory per pod"
option restarts default 3 "maximum number of restarts of each shard"
option timeout default 24h "how long each step may take"
parse_options "$@"
require name shards image claim
number shards 1 at_once 1 cpus 1 restarts 0
[[ $name =~ ^[a-z]([a-z0-9-]{0,40}[a-z0-9])?$ ]] || fail "--name=$name: small letters, digits and -, at most 42"
prepare_command
[ -n "$dry_run" ] || command -v kubectl >/dev/null || fail "no kubectl on PATH: gcloud components install kubectl"

manifest() { # manifest STEP PODS WORD...: the Job; a shard's index replaces $(JOB_COMPLETION_INDEX), as Kubernetes does
  local step=$1 pods=$2 word
  shift 2
  cat <<END
apiVersion: batch/v1
kind: Job
metadata:
  name: $name-$step
spec:
  completionMode: Indexed
  completions: $pods
  parallelism: $((pods < at_once ? pods : at_once))
  backoffLimitPerIndex: $restarts
  podFailurePolicy:
    rules:
      - action: FailIndex
        onExitCodes:
          operator: In
          values: [2]
  template:
    spec:
      restartPolicy: Never
      containers:
        - name: zipper
          image: $image
          command:
            - zipper
END
  for word in "$@"; do
    printf "            - '%s'\n" "${word//\'/\'\'}"
  done
  cat <<END
          resources:
            requests: {cpu: "$cpus", memory: $memory}
            limits: {memory: $memory}
          volumeMounts:
            - {name: share, mountPath: $mount}
      volumes:
        - name: share
          persistentVolumeClaim: {claimName: $claim}
END
}

# `kubectl wait` for one condition does not see the other. A Job fails once none of its shards can go on.
await() { # await JOB: returns when it is complete; one that failed ends the script with the command that shows why
  local waiting=() state index
  if [ -n "$dry_run" ]; then
    run kubectl wait --for=condition=complete "--timeout=$timeout" "job/$1"
    return
  fi
  for state in complete failed; do
    kubectl wait "--for=condition=$state" "--timeout=$timeout" "job/$1" >/dev/null &
    waiting+=($!)
  done
  wait -n "${waiting[@]}" || true
  kill "${waiting[@]}" 2>/dev/null || true
  state=$(kubectl get "job/$1" '--output=jsonpath={.status.conditions[?(@.status=="True")].type}')
  case " $state " in
    *" Complete "*) return ;;
    *" Failed "*) ;;
    *) fail "job $1 is neither complete nor failed after --timeout=$timeout: kubectl describe job/$1, then the same command again" ;;
  esac
  index=$(kubectl get "job/$1" '--output=jsonpath={.status.failedIndexes}')
  fail "job $1 failed, its pods ${index:-unknown}; why: kubectl logs --tail=50" \
    "--selector=batch.kubernetes.io/job-name=$1,batch.kubernetes.io/job-completion-index=${index%%[,-]*};" \
    "then kubectl delete job/$1, and the same command again: shards that are done do nothing"
}

step() { # step STEP PODS OPTION
  local file=$name-$1.yaml
  if [ -n "$dry_run" ]; then
    printf "cat >%s <<'END_OF_JOB'\n%s\nEND_OF_JOB\n" "$file" "$(manifest "$1" "$2" "${rest[@]}" "--processes=$cpus" "$3")"
  else
    manifest "$1" "$2" "${rest[@]}" "--processes=$cpus" "$3" >"$file"
  fi
  run kubectl apply "--filename=$file"
  await "$name-$1"
}

trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
note "units and vocabularies"
step fit 1 --fit
note "the shards"
# shellcheck disable=SC2016 # Kubernetes expands it
step shard "$shards" '--shard=$(JOB_COMPLETION_INDEX)/'"$shards"
note "the rows"
step finish 1 --finish
