#!/usr/bin/env bash
# Prepares a large corpus on a SLURM cluster: one job for `zipper data prepare --fit`, an array of jobs, one per shard,
# and one for --finish, each started when the one before it has ended well.
#
#   launch/prepare_slurm.sh --job_name=prepare-1 --shards=64 --partition=cpu -- \
#     data prepare --corpus=/shared/corpus --out=/shared/prepared --speech_length=512
#
# A shard that failed is started again by itself (--restarts); a shard that is done does nothing, so the same command can
# be repeated. The corpus must be on the cluster's shared file system, the output there or in a bucket (gs://, s3://).
# shellcheck disable=SC2154 # options become variables by their names
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$here/lib.sh"

option job_name required prepare-1 "names the jobs and their logs"
option shards required 64 "number of shards"
option at_once default 64 "maximum number of shards that run at the same time"
option cpus_per_task default 4 "CPU cores per shard"
option time default 24:00:00 "time limit of each job"
option partition optional cpu "SLURM partition"
option account optional my-account "SLURM account"
option sbatch repeated --constraint=fast "further option of sbatch"
option zipper default zipper "the program, on every node: an absolute path to a virtual environment's, or on PATH"
option restarts default 3 "maximum number of restarts of a shard in its job"
parse_options "$@"
require job_name shards
number shards 1 at_once 1 cpus_per_task 1 restarts 0
[[ $job_name =~ ^[A-Za-z0-9._-]+$ ]] || fail "--job_name=$job_name: letters, digits, dots, - and _"
prepare_command
if [ -z "$dry_run" ]; then
  command -v sbatch >/dev/null || fail "no sbatch on PATH: run this on a login node of the cluster"
fi

wanted=(sbatch --parsable "--cpus-per-task=$cpus_per_task" "--time=$time")
[ -z "$partition" ] || wanted+=("--partition=$partition")
[ -z "$account" ] || wanted+=("--account=$account")
wanted+=("${sbatch[@]}")

submit() { # submit STEP COMMAND OPTION...: submits a job, and sets job to its number (in a dry run: JOBID)
  local step=$1 again
  # sbatch wraps it in a script for sh. Status 2 is an error that a restart would repeat.
  again="for try in \$(seq 0 $restarts); do $2 && exit 0; [ \$? != 2 ] || exit 2; done; exit 1"
  local words=("${wanted[@]}" "--job-name=$job_name-$step" "${@:3}" "--wrap=$again")
  if [ -n "$dry_run" ]; then
    run "${words[@]}"
    job=JOBID
  else
    job=$(run "${words[@]}")
    job=${job%%;*}
  fi
}

command=$(quoted "$zipper" "${rest[@]}" "--processes=$cpus_per_task")
note "units and vocabularies"
submit fit "$command --fit" "--output=$job_name-fit-%j.log"
# A job whose predecessor failed ends, instead of waiting for ever.
behind=--kill-on-invalid-dep=yes
note "the shards; JOBID is the number of the job before"
# shellcheck disable=SC2016 # expanded in the job
submit shard "$command "'--shard=$SLURM_ARRAY_TASK_ID/'"$shards" "--array=0-$((shards - 1))%$at_once" \
  "--dependency=afterok:$job" "$behind" "--output=$job_name-%A-%a.log"
note "the rows"
submit finish "$command --finish" "--dependency=afterok:$job" "$behind" "--output=$job_name-finish-%j.log"
note "watch:"
note "  squeue --name=$job_name-fit,$job_name-shard,$job_name-finish"
