# shellcheck shell=bash
# Shared by local_smoke.sh and local_real.sh, which set `out`: stages that are skipped when they have finished before.
# Sourced, not run.

number=0
# stage NAME COMMAND...: runs the command, unless the same command has finished before, and stores its seconds.
stage() {
  local name=$1 began=$SECONDS
  shift
  number=$((number + 1))
  local done
  done="$out/stages/$(printf '%02d' "$number")_$name"
  if [ "$(cat "$done.command" 2>/dev/null)" = "$*" ]; then
    echo "== $number $name: finished before ($(cat "$done.seconds") s)"
    return
  fi
  echo "== $number $name: zipper $*"
  mkdir -p "$out/stages"
  zipper "$@"
  echo "$((SECONDS - began))" > "$done.seconds"
  echo "$*" > "$done.command"
}

train() { # train NAME RUN STEPS GIN_FLAGS...
  local name=$1 run=$2 steps=$3
  shift 3
  stage "$name" train "--gin_file=runs/$run.gin" "--gin.DATA=$out/prepared" "--gin.MODEL_DIR=$out/$name" \
    "--gin.TRAIN_STEPS=$steps" "$@"
}
