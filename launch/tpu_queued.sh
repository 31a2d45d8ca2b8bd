#!/usr/bin/env bash
# Trains on Cloud TPU VMs through a queued resource: requests it, waits, sets up every host, trains, and restarts into
# the same run folder when hosts are preempted or a process dies, until training has finished; then deletes it.
#
#   launch/tpu_queued.sh --name=fuse-1 --project=my-project --zone=us-west4-a --accelerator_type=v5litepod-64 --spot \
#     --package=dist/zipper_jax-0.1.0-py3-none-any.whl -- \
#     train --gin_file=runs/paper/gecko_1b.gin --gin.FSDP=64 --gin.DATA=gs://my-bucket/prepared \
#     --gin.MODEL_DIR=gs://my-bucket/runs/fuse-1 --gin.TEXT_RUN=gs://my-bucket/towers/text \
#     --gin.SPEECH_RUN=gs://my-bucket/runs/speech
#
# Training runs detached on the hosts. Ctrl-C only stops watching; the same command watches again, and --stop saves and
# ends training and deletes the TPUs. The run folder is in a bucket (gs://), or with --nfs on a share (Filestore) that every
# host mounts; not on gcsfuse, which has neither locks nor atomic renames.
# shellcheck disable=SC2154,SC2317 # options become variables by their names; functions are called by theirs
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$here/lib.sh"

option name required fuse-1 "names the queued resource; the same name resumes"
option project required my-project "the Google Cloud project"
option zone required us-west4-a "where the TPUs are"
option accelerator_type required v5litepod-64 "v5litepod-N (v5e), v5p-N, v6e-N"
option runtime_version optional v2-alpha-tpuv5-lite "the VM's image (default: by accelerator type)"
option num_slices default 1 "number of slices of that type, connected over the data center network"
option spot switch "" "cheaper, may be preempted at any time"
option reserved switch "" "use your reservation"
option network optional my-network "VPC network (default: the project's default)"
option subnetwork optional my-subnetwork "VPC subnetwork"
option internal_ip switch "" "reach the hosts by internal address (from a VM in the same network)"
option existing optional my-tpu "an existing TPU VM instead of a queued resource; never re-created or deleted"
option nfs optional 10.0.0.2:/zipper "a share for the run folder, ADDRESS:/NAME (default: none, it is in a bucket)"
option mount default /mnt/zipper "where the hosts mount it"
option nfs_options default vers=4.1,hard,timeo=600 "mount options (NFSv3 never frees the lock of a lost VM)"
option package required dist/zipper_jax-0.1.0-py3-none-any.whl "wheel or source archive; a path in --mount is used there"
option lock default "$(dirname "$here")/requirements.lock" "versions of all dependencies, the same on re-created hosts"
option restarts default 1000 "maximum number of restarts"
option poll_seconds default 30 "seconds between checks of the hosts"
option pause_seconds default 10 "first pause after an attempt that did no work; it doubles up to 5 minutes"
option stop_seconds default 600 "with --stop: maximum wait for the checkpoint"
option keep switch "" "do not delete the TPUs at the end"
option stop switch "" "save, stop, delete, and end"
parse_options "$@"
number num_slices 1 restarts 0 poll_seconds 0 pause_seconds 0 stop_seconds 0

# --- the commands ----------------------------------------------------------------------------------------------------
if [ -n "$existing" ]; then
  [ -z "$name$accelerator_type$spot$reserved" ] || fail "--existing=$existing is used as it is: remove --name, --accelerator_type, --spot, --reserved"
  ((num_slices == 1)) || fail "--existing is one slice: remove --num_slices"
  require project zone
  name=$existing ready=READY
  place=("--zone=$zone" "--project=$project")
  tpus=(gcloud compute tpus tpu-vm)
  all=(--worker=all)
  describe=("${tpus[@]}" describe "$name" "${place[@]}" "--format=value(state)")
else
  require name project zone
  [ -n "$stop" ] || require accelerator_type
  [ -z "$spot" ] || [ -z "$reserved" ] || fail "--spot and --reserved: give one of them"
  ready=ACTIVE
  place=("--zone=$zone" "--project=$project")
  tpus=(gcloud compute tpus queued-resources)
  all=(--node=all --worker=all)
  describe=("${tpus[@]}" describe "$name" "${place[@]}" "--format=value(state.state)")
fi
[[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] || fail "--name=$name: lower-case letters, digits and -, a letter first"
[ -z "$internal_ip" ] || all+=(--internal-ip)

known_runtime() { # the page "TPU software versions" of the Cloud TPU documentation
  case $accelerator_type in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5e-*) fail "--accelerator_type=$accelerator_type: v5e is called v5litepod-${accelerator_type#v5e-} here" ;;
    tpu7* | v7*) fail "--accelerator_type=$accelerator_type: Ironwood is reached through GKE: launch/xpk.sh" ;;
    *) fail "--accelerator_type=$accelerator_type is not known: give --runtime_version, too" ;;
  esac
}

create() {
  local words=("${tpus[@]}" create "$name" "${place[@]}" "--accelerator-type=$accelerator_type"
    "--runtime-version=$runtime_version")
  if ((num_slices > 1)); then
    words+=("--node-count=$num_slices" "--node-prefix=$name")
  else
    words+=("--node-id=$name")
  fi
  [ -z "$spot" ] || words+=(--spot)
  [ -z "$reserved" ] || words+=(--reserved)
  [ -z "$network" ] || words+=("--network=$network")
  [ -z "$subnetwork" ] || words+=("--subnetwork=$subnetwork")
  run "${words[@]}"
}

delete() { run "${tpus[@]}" delete "$name" "${place[@]}" --force --quiet; }

on_hosts() { # on_hosts WORD...: worker.sh on every host
  run "${tpus[@]}" ssh "$name" "${place[@]}" "${all[@]}" --quiet --ssh-flag=-oConnectTimeout=20 \
    "--command=$(quoted bash zipper/worker.sh "$@")"
}

copy_files() {
  local files=("$here/worker.sh" "$lock")
  run "${tpus[@]}" ssh "$name" "${place[@]}" "${all[@]}" --quiet --ssh-flag=-oConnectTimeout=20 "--command=mkdir -p zipper" || return
  [[ $package == "${mount%/}"/* ]] || files+=("$package")
  run "${tpus[@]}" scp "${files[@]}" "$name:zipper/" "${place[@]}" "${all[@]}" --quiet
}

set_up() {
  local there=zipper/${package##*/}
  [[ $package != "${mount%/}"/* ]] || there=$package
  copy_files || return
  on_hosts setup "$nfs" "$mount" "$nfs_options" "$there" "zipper/${lock##*/}"
}

# --- one attempt -----------------------------------------------------------------------------------------------------
LOST=75     # the hosts are gone or do not answer: not training's own exit status
STOPPED=130 # training was asked to stop
created=""  # set once a creation has worked: a later refusal is then a lack of TPUs, not a user error
failed_setups=0
hosts=0

# Sets state to the resource's state, ABSENT, or UNKNOWN (asking failed).
ask_state() {
  if state=$("${describe[@]}" 2>"$scratch/errors"); then
    [ -n "$state" ] || state=UNKNOWN
  elif grep -qi 'not.\?found' "$scratch/errors"; then
    state=ABSENT
  else
    state=UNKNOWN
    cat "$scratch/errors" >&2
  fi
}

# Waits for the TPUs. A resource that failed or was preempted must be deleted before it can be requested again.
bring_up() {
  local last="" silent=0
  while :; do
    ask_state
    [ "$state" = "$last" ] || say "$name: $state"
    last=$state
    if [ -n "$existing" ] && [[ ! $state =~ ^($ready|CREATING|STARTING|RESTARTING|REPAIRING|UNKNOWN)$ ]]; then
      say "--existing=$existing is $state, and this script does not create it"
      return "$USER_ERROR"
    fi
    case $state in
      "$ready")
        return
        ;;
      ABSENT)
        if ! create; then
          [ -z "$created" ] || return 1
          say "the request was refused: see above (quota, zone and type, permissions)"
          return "$USER_ERROR"
        fi
        created=1
        ;;
      FAILED)
        "${describe[@]}" --format=json >&2 || true # the reason
        delete || true
        return 1
        ;;
      SUSPENDING | SUSPENDED)
        created=1
        delete || return 1
        continue
        ;;
      UNKNOWN)
        silent=$((silent + 1))
        ((silent < 5)) || return 1
        ;;
    esac
    sleep "$poll_seconds"
  done
}

look() { # sets lines and answers: the status that the hosts report
  lines=$(quiet=1 on_hosts status 2>"$scratch/errors" | tr -d '\r') || return 1
  answers=$(grep '^zipper-worker ' <<<"$lines" | cut -d' ' -f3-) || return 1
}

count() { grep -c "$1" <<<"$answers" || true; }

# Waits until training has ended on all hosts, or failed on one.
watch() {
  local silent=0 patience=10 shown="" newest worst
  while :; do
    sleep "$poll_seconds"
    if look && (($(count .) >= hosts)); then
      silent=0
    else
      silent=$((silent + 1))
      ask_state
      if [ "$state" != "$ready" ] && [ "$state" != UNKNOWN ]; then
        say "$name is $state: its hosts were preempted"
        return "$LOST"
      fi
      say "not all of the $hosts hosts answer ($silent of 3)"
      ((silent < 3)) || return "$LOST"
      continue
    fi
    newest=$(sed -n 's/^zipper-log //p' <<<"$lines" | head -n 1)
    [ "$newest" = "$shown" ] || printf '%s\n' "$newest" >&2
    shown=$newest
    if (($(count '^exited 0$') == hosts)); then
      return 0
    elif (($(count '^stopped$') > 0 && $(count '^running$') == 0)); then
      stop_asked=1
      return "$STOPPED"
    elif (($(count '^running$') == hosts)); then
      continue
    fi
    # One has ended. The others get a moment to end by themselves; after that they would wait for it forever.
    worst=$(grep -E '^(exited [1-9]|idle)' <<<"$answers" | head -n 1 || true)
    if [ -n "$worst" ] && ((patience > 1)); then
      patience=1
      continue
    fi
    patience=$((patience - 1))
    ((patience <= 0)) || continue
    (($(count '^exited 2$') == 0)) || return "$USER_ERROR"
    worst=${worst#exited }
    [[ $worst =~ ^[0-9]+$ ]] || worst=1
    say "a process ended with status $worst"
    return "$worst"
  done
}

attempt() {
  local status=0
  bring_up || return
  if look && (($(count .) > 0 && $(count '^running$') == $(count .))); then
    hosts=$(count .)
    say "training already runs on $hosts hosts: watching"
  else
    if ! set_up; then
      failed_setups=$((failed_setups + 1))
      ((failed_setups < 3)) || {
        say "setting up the hosts failed three times: see above"
        return "$USER_ERROR"
      }
      return 1
    fi
    failed_setups=0
    lines=$(on_hosts start "$(date +%s)-$RANDOM" "${rest[@]}" | tr -d '\r') || return 1
    hosts=$(grep -c '^zipper-worker ' <<<"$lines") || return 1
    say "training on $hosts hosts"
  fi
  watch || status=$?
  # When one process has failed, the others are killed, and all restart together from the newest checkpoint.
  ((status == 0 || status == STOPPED)) || on_hosts stop KILL || true
  return "$status"
}

finish() { # finish STATUS
  if [ -z "$existing$keep" ] && [ "${state:-ABSENT}" != ABSENT ]; then
    delete || say "not deleted: it costs money until you delete it"
  fi
  exit "$1"
}

# --- main ------------------------------------------------------------------------------------------------------------
if [ -n "$stop" ]; then
  note "training saves and stops"
  on_hosts stop TERM || say "the hosts do not answer"
  note "every $poll_seconds s, until no host reports running"
  if [ -n "$dry_run" ]; then
    on_hosts status
  else
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    began=$SECONDS
    while look && (($(count '^running$') > 0)) && ((SECONDS - began < stop_seconds)); do
      sleep "$poll_seconds"
    done
  fi
  [ -n "$existing$keep" ] || delete
  exit
fi

require package
[[ -z $nfs || $nfs == ?*:/* ]] || fail "--nfs=$nfs: give ADDRESS:/NAME, for example 10.0.0.2:/zipper"
[[ $mount == /?* ]] || fail "--mount=$mount: give an absolute path"
train_command "$mount"
[[ -n $nfs || $model_dir == gs://* ]] || fail "--gin.MODEL_DIR=$model_dir is on a share: give --nfs=ADDRESS:/NAME"
[ -n "$existing" ] || [ -n "$runtime_version" ] || runtime_version=$(known_runtime)
if [ -z "$dry_run" ]; then
  command -v gcloud >/dev/null || fail "no gcloud on PATH: install the Google Cloud CLI"
  [ -f "$lock" ] || fail "--lock=$lock: no such file"
  [[ $package == "${mount%/}"/* ]] || [ -f "$package" ] ||
    fail "--package=$package: no such file (build it: python -m pip wheel --no-deps --wheel-dir dist .)"
fi

if [ -n "$dry_run" ]; then
  note "until it is $ready, every $poll_seconds s"
  run "${describe[@]}"
  if [ -z "$existing" ]; then
    note "when there is none"
    create
    note "when it is FAILED, SUSPENDING or SUSPENDED (preempted): deleted, and requested again"
    delete
  fi
  note "every host: files, share, Python environment"
  set_up
  note "training, detached, the same run folder every time"
  on_hosts start ATTEMPT "${rest[@]}"
  note "every $poll_seconds s, until all exited 0, or one failed"
  on_hosts status
  note "when one process failed: the others are killed, and all is repeated from the top (not after status 2)"
  on_hosts stop KILL
  if [ -z "$existing$keep" ]; then
    note "at the end"
    delete
  fi
  exit
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'say "stopped watching, training continues: rerun to watch again, or with --stop to end it"; exit 130' INT TERM
retry_pause=$pause_seconds
status=0
retry_until_done "$restarts" attempt || status=$?
case $status in
  0) say "training has finished: $model_dir" ;;
  "$USER_ERROR") say "a restart cannot fix this (status 2): see above" ;;
  "$STOPPED")
    say "training was asked to stop, and has saved"
    exit "$STOPPED"
    ;;
esac
finish "$status"
