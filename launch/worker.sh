#!/usr/bin/env bash
# Runs on every host of a TPU slice. tpu_queued.sh copies this file there and calls it over ssh; every call is short,
# because an ssh connection may break long before training ends.
#
#   worker.sh setup NFS MOUNT OPTIONS PACKAGE LOCK   mount the share (NFS is not empty), install zipper
#   worker.sh start ATTEMPT train ...                start training, detached; at most once per ATTEMPT
#   worker.sh status                                 one line: `zipper-worker HOST idle|running|stopped|exited N`
#   worker.sh stop TERM|KILL                         TERM: save, and stay stopped; KILL: at once, and wait until all are gone
set -euo pipefail

home=$HOME/zipper
state=$home/state
mkdir -p "$state"

packages() { # packages NAME...: a VM that has just started may still be installing updates: wait for that
  sudo apt-get -qq -o DPkg::Lock::Timeout=600 update
  sudo apt-get -qq -y -o DPkg::Lock::Timeout=600 install "$@" >/dev/null
}

setup() {
  local nfs=$1 mount=$2 options=$3 package=$4 lock=$5 wanted
  if [ -n "$nfs" ]; then
    sudo mkdir -p "$mount"
    if ! mountpoint -q "$mount"; then
      packages nfs-common python3-venv
      sudo mount -t nfs -o "$options" "$nfs" "$mount"
    fi
    [ -w "$mount" ] || sudo chmod 0777 "$mount"
  fi
  package=$(realpath "$package")
  wanted=$(cat "$package" "$lock" | sha256sum)
  if [ "$(cat "$home/installed" 2>/dev/null)" = "$wanted" ]; then
    return
  fi
  # The VM's Python is older than zipper needs: uv installs one.
  [ -x "$home/uv/bin/uv" ] || {
    python3 -c 'import ensurepip' 2>/dev/null || packages python3-venv
    python3 -m venv "$home/uv"
    "$home/uv/bin/python" -m pip install --quiet uv
  }
  "$home/uv/bin/uv" venv --quiet --clear --python 3.12 "$home/venv"
  # espeak is GPL and only needed to synthesise the demonstration corpus (see the Makefile).
  awk '/^[^ ]/ { keep = !/^espeakng-loader==/ } keep' "$lock" >"$home/locked.txt"
  "$home/uv/bin/uv" pip install --quiet --python "$home/venv/bin/python" --require-hashes -r "$home/locked.txt"
  "$home/uv/bin/uv" pip install --quiet --python "$home/venv/bin/python" "zipper-jax[tpu] @ file://$package"
  echo "$wanted" >"$home/installed"
}

# A process group of an earlier boot is gone, though its id may be in use again.
boot_id() { cat /proc/sys/kernel/random/boot_id; }

alive() {
  [ -e "$state/group" ] || return 1
  local group boot
  read -r group boot <"$state/group"
  [ "$boot" = "$(boot_id)" ] && kill -0 -- "-$group" 2>/dev/null
}

status() {
  local word=idle
  if [ -e "$state/exit" ]; then
    word="exited $(cat "$state/exit")"
  elif alive; then
    word=running
  elif [ -e "$state/group" ]; then
    word="exited 137" # no status was written: killed, or the VM rebooted
  fi
  # Stopped by a user, so not a failure; a run that had finished before counts as finished.
  if [[ -e $state/asked && $word == exited* && $word != "exited 0" ]]; then
    word=stopped
  fi
  echo "zipper-worker $(hostname) $word"
  # The first host's newest line, as progress for the watcher.
  if [[ $(hostname) == *-w-0 && -s $state/log ]]; then
    echo "zipper-log $(tail -c 2000 "$state/log" | tr '\r' '\n' | tail -n 1)"
  fi
}

start() {
  local attempt=$1
  shift
  if [ "$(cat "$state/attempt" 2>/dev/null)" = "$attempt" ]; then
    status # gcloud repeats a command whose connection broke
    return
  fi
  stop KILL
  rm -f "$state/exit" "$state/group" "$state/asked"
  echo "$attempt" >"$state/attempt"
  echo "=== attempt $attempt on $(hostname)" >>"$state/log"
  setsid bash "$0" run "$@" >>"$state/log" 2>&1 </dev/null &
  echo "$! $(boot_id)" >"$state/group"
  status
}

run() {
  local status=0 word model_dir=""
  umask 000 # the next VM may have another uid for this user, and must be able to write here
  trap : TERM INT # so that this shell survives a signal to the group and can report training's status
  for word in "$@"; do
    [[ $word != --gin.MODEL_DIR=* ]] || model_dir=${word#*=}
  done
  model_dir=${model_dir//[\"\']/}
  # A preempted VM cannot release the run folder's lock; the server does so when its lease ends.
  if [ -e "$model_dir/.lock" ]; then
    flock --wait 300 "$model_dir/.lock" true || echo "$model_dir is still locked after 300 s: if its host is gone, delete $model_dir/.lock"
  fi
  "$home/venv/bin/zipper" "$@" --coordinator=auto || status=$?
  echo "$status" >"$state/exit.new"
  mv "$state/exit.new" "$state/exit"
}

stop() {
  local signal=$1 group
  [ "$signal" = KILL ] || : >"$state/asked"
  alive || return 0
  read -r group _ <"$state/group"
  kill "-$signal" -- "-$group" 2>/dev/null || true
  [ "$signal" = KILL ] || return 0
  local tries
  for ((tries = 0; tries < 300; tries++)); do
    alive || return 0
    sleep 0.1
  done
  echo "the processes of group $group survive SIGKILL" >&2
  return 1
}

"$@"
