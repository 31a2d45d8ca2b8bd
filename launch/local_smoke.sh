#!/usr/bin/env bash
# The whole job on a laptop CPU, from synthetic speech to word error rates: see docs/smoke.md.
#
#   make smoke              8 minutes on 2 quiet cores, writes runs/smoke/report.html
#   QUICK=1 make smoke      the same stages, smaller, 4 minutes, writes runs/smoke_quick/
#   LONG=1 make smoke       the same stages, trained six times as long, half an hour, writes runs/smoke_long/
#
# It can be interrupted and run again: finished stages are skipped, unfinished ones resume.
set -euo pipefail
cd "$(dirname "$0")/.."

zips="((2,1),(3,2),(4,3))" # (speech block, text block)
if [ -n "${QUICK:-}" ]; then
  out=runs/smoke_quick
  zips="((3,2),)" # half the time here is compiling
  sentences=600 shifts=1 test=24 units=256 text_steps=60 speech_steps=40 fuse_steps=160 paper_steps=60 judged=6
elif [ -n "${LONG:-}" ]; then
  out=runs/smoke_long
  sentences=8000 shifts=4 test=200 units=1024 text_steps=600 speech_steps=1500 fuse_steps=12000 paper_steps=400 judged=100
else
  out=runs/smoke
  sentences=4000 shifts=4 test=100 units=1024 text_steps=200 speech_steps=400 fuse_steps=2000 paper_steps=100 judged=50
fi
# Short rows: on a CPU, attention over long rows costs more than packing saves.
text_length=32 speech_length=128

source launch/stages.sh

stage synthesise data synth --out "$out/corpus" --sentences "$sentences" --validation "$test" --test "$test" \
  --test_other "$test"
stage prepare data prepare --corpus "$out/corpus" --out "$out/prepared" --num_units "$units" --unit_features log-mel \
  --shifts "$shifts" --text_length "$text_length" --speech_length "$speech_length"
train text pretrain_text "$text_steps"
train speech pretrain_speech "$speech_steps"
# The paper's input projection loses the frozen text tower's outputs at first, and recovering them takes longer than
# minutes. The zipper under test therefore has the identity-preserving form; the paper's form is trained briefly, for
# its perplexity rows.
train zipper fuse "$fuse_steps" "${towers[@]}" "${fusion[@]}" --gin_file=models/zipper_quick.gin \
  --gin_file=models/zipper_identity.gin "--gin.ZIP_PAIRS=$zips"
train single_decoder single_decoder "$fuse_steps" "--gin.TEXT_RUN=$out/text" "--gin.BATCH_SIZE=4"
train paper_form fuse "$paper_steps" "${towers[@]}" --gin_file=models/zipper_quick.gin "--gin.ZIP_PAIRS=$zips"
stage evaluate eval --run "$out/zipper" --single_decoder "$out/single_decoder" --other_form "$out/paper_form" \
  --data "$out/prepared" --corpus "$out/corpus" --out "$out" --sentences "$test" --speech_sentences "$judged" \
  --stages "$out/stages"
echo "open $out/report.html"
