#!/usr/bin/env bash
# A group of processes on this machine. When one of them dies, all are killed and restarted, and training resumes from
# its newest checkpoint. A thin wrapper over `zipper launch`, with the options of the other launch scripts.
#
#   launch/local.sh --processes=4 -- train --gin_file=runs/fuse.gin --gin.DATA=data/prepared --gin.MODEL_DIR=runs/fused \
#     --gin.TEXT_RUN=runs/text --gin.SPEECH_RUN=runs/speech
# shellcheck disable=SC2154,SC2119 # options become variables by their names
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

option processes default 1 "number of processes"
option restarts default 100 "maximum number of restarts of the group"
option heartbeat_seconds default 10 "a process without a heartbeat for this long is considered dead"
parse_options "$@"
number processes 1 restarts 0 heartbeat_seconds 1
train_command

zipper=zipper
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if ! command -v zipper >/dev/null && [ -x "$here/.venv/bin/zipper" ]; then
  zipper="$here/.venv/bin/zipper" # made by `make venv`, not activated
fi
[ -n "$dry_run" ] || command -v "$zipper" >/dev/null || fail "no zipper on PATH: run \`make venv\`, then activate .venv"
run "$zipper" launch "--processes=$processes" "--restarts=$restarts" "--heartbeat_seconds=$heartbeat_seconds" \
  -- "${rest[@]}"
