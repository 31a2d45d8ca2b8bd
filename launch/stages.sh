# shellcheck shell=bash disable=SC2034
# Shared by local_smoke.sh and local_real.sh, which set `out`: stages that are skipped when they have finished before, and
# what their fusions have in common. Sourced, not run.

towers=("--gin.TEXT_RUN=$out/text" "--gin.SPEECH_RUN=$out/speech")
# At this size more steps of fewer rows learn more from the same tokens. The speech tower learns to say the text sooner at
# the full rate, and where it cannot trust its own last units (token noise); compared in docs/smoke.md. Without a projection
# at its input the frozen text tower keeps its outputs on text alone.
fusion=("--gin.BATCH_SIZE=4" "--gin.OptimizerConfig.learning_rate_multipliers={\".*_gate\": 3.0}"
  "--gin.TrainConfig.token_noise={\"speech\": 0.3}" "--gin.text/ProjectionConfig.form='none'")

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
