#!/usr/bin/env bash
# Trains on Cloud TPU VMs through a queued resource: asks for it, waits, sets up every host, trains, and when hosts are
# taken away or a process dies starts again into the same run folder, until training has finished; then deletes it.
#
#   launch/tpu_queued.sh --name=fuse-1 --project=my-project --zone=us-west4-a --accelerator_type=v5litepod-64 --spot \
#     --nfs=10.0.0.2:/zipper --package=dist/zipper_jax-0.1.0-py3-none-any.whl -- \
#     train --gin_file=runs/paper/gecko_1b.gin --gin.FSDP=64 --gin.DATA=/mnt/zipper/prepared \
#     --gin.MODEL_DIR=/mnt/zipper/runs/fuse-1 --gin.TEXT_RUN=/mnt/zipper/towers/text --gin.SPEECH_RUN=/mnt/zipper/runs/speech
#
# Training runs detached on the hosts. Ctrl-C ends the watching only; the same command watches again, and --stop makes
# training save, ends it and deletes the TPUs. The run folder lies on an NFS share (Filestore) that every host mounts:
# locks and renames need a POSIX file system, so buckets (gs://, gcsfuse) are not supported.
# shellcheck disable=SC2154,SC2317 # options become variables by their names; functions are called by theirs
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$here/lib.sh"

option name required fuse-1 "names the queued resource; the same name goes on"
option project required my-project "the Google Cloud project"
option zone required us-west4-a "where the TPUs are"
option accelerator_type required v5litepod-64 "v5litepod-N (v5e), v5p-N, v6e-N"
option runtime_version optional v2-alpha-tpuv5-lite "the VM's image (default: what fits the type)"
option num_slices default 1 "so many slices of that type, joined over the data center network"
option spot switch "" "cheaper, and may be taken away at any time"
option reserved switch "" "from your reservation"
option network optional my-network "VPC network (default: the project's default)"
option subnetwork optional my-subnetwork "and its subnetwork"
option internal_ip switch "" "reach the hosts by internal address (from a VM in the same network)"
option existing optional my-tpu "a TPU VM that exists, instead of a queued resource; never re-created nor deleted"
option nfs required 10.0.0.2:/zipper "the share, ADDRESS:/NAME"
option mount default /mnt/zipper "where the hosts mount it"
option nfs_options default vers=4.1,hard,timeo=600 "mount options (NFSv3 never frees the lock of a VM that is gone)"
option package required dist/zipper_jax-0.1.0-py3-none-any.whl "wheel or source archive; a path in --mount is used there"
option lock default "$(dirname "$here")/requirements.lock" "versions of everything else, so that a re-created host gets the same"
option restarts default 1000 "start again at most so often"
option poll_seconds default 30 "look after the hosts so often"
option pause_seconds default 10 "first pause after an attempt that did no work; it doubles up to 5 minutes"
option stop_seconds default 600 "with --stop: wait so long for the checkpoint"
option keep switch "" "do not delete the TPUs at the end"
option stop switch "" "save, stop, delete, and end"
parse_options "$@"
number num_slices 1 restarts 0 poll_seconds 0 pause_seconds 0 stop_seconds 0

# --- what the commands are -------------------------------------------------------------------------------------------
if [ -n "$existing" ]; then
  [ -z "$name$accelerator_type$spot$reserved" ] || fail "--existing=$existing is as it is: leave out --name, --accelerator_type, --spot, --reserved"
  ((num_slices == 1)) || fail "--existing is one slice: leave out --num_slices"
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
STOPPED=130 # somebody asked training to stop
created=""  # a creation has worked once, so that a later refusal is a lack of TPUs and not a mistake
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

# Until the TPUs are there. A resource that failed or was taken away must be deleted before it can be asked for again.
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

look() { # sets lines and answers: what the hosts say of themselves
  lines=$(quiet=1 on_hosts status 2>"$scratch/errors" | tr -d '\r') || return 1
  answers=$(grep '^zipper-worker ' <<<"$lines" | cut -d' ' -f3-) || return 1
}

count() { grep -c "$1" <<<"$answers" || true; }

# Until training has ended on all hosts, or on one of them badly.
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
        say "$name is $state: its hosts were taken away"
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
    # One has ended. The others get a moment to end by themselves; what then still runs waits for it in vain.
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
    say "training runs already on $hosts hosts: watching"
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
  # The group rule: where one process is gone, the rest is killed, and all start together from the newest checkpoint.
  ((status == 0 || status == STOPPED)) || on_hosts stop KILL || true
  return "$status"
}

finish() { # finish STATUS
  if [ -z "$existing$keep" ] && [ "${state:-ABSENT}" != ABSENT ]; then
    delete || say "not deleted: it goes on costing money until you do"
  fi
  exit "$1"
}

# --- what to do ------------------------------------------------------------------------------------------------------
if [ -n "$stop" ]; then
  note "training saves and stops"
  on_hosts stop TERM || say "the hosts do not answer"
  note "every $poll_seconds s, until no host says running"
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

require nfs package
[[ $nfs == ?*:/* ]] || fail "--nfs=$nfs: give ADDRESS:/NAME, for example 10.0.0.2:/zipper"
[[ $mount == /?* ]] || fail "--mount=$mount: give an absolute path"
train_command "$mount"
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
    note "when it is FAILED, SUSPENDING or SUSPENDED (taken away): deleted, and asked for again"
    delete
  fi
  note "every host: files, share, Python environment"
  set_up
  note "training, detached, the same run folder every time"
  on_hosts start ATTEMPT "${rest[@]}"
  note "every $poll_seconds s, until all exited 0, or one of them badly"
  on_hosts status
  note "when one process ended badly: the rest is killed, and it goes on from the top (not after status 2)"
  on_hosts stop KILL
  if [ -z "$existing$keep" ]; then
    note "at the end"
    delete
  fi
  exit
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'say "watching ended, training goes on: the same command watches again, with --stop it ends"; exit 130' INT TERM
retry_pause=$pause_seconds
status=0
retry_until_done "$restarts" attempt || status=$?
case $status in
  0) say "training has finished: $model_dir" ;;
  "$USER_ERROR") say "no restart mends this (status 2): see above" ;;
  "$STOPPED")
    say "training was asked to stop, and has saved"
    exit "$STOPPED"
    ;;
esac
finish "$status"
