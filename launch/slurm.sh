#!/usr/bin/env bash
# Trains on the GPUs of a SLURM cluster: writes a batch script, shows it and submits it. One task per GPU (JAX gives each
# task of a SLURM step the GPU of its local number), all on one coordinator that JAX finds from SLURM's variables.
#
#   launch/slurm.sh --job_name=fuse-1 --nodes=2 --gpus_per_node=8 --partition=gpu --time=24:00:00 -- \
#     train --gin_file=runs/fuse.gin --gin_file=hardware/accelerator.gin --gin.FSDP=8 --gin.DATA=/shared/prepared \
#     --gin.MODEL_DIR=/shared/runs/fuse-1 --gin.TEXT_RUN=/shared/runs/text --gin.SPEECH_RUN=/shared/runs/speech
#
# When a task dies, SLURM kills the rest of the step, and the step is restarted in the same job. Shortly before the time
# limit training saves, and the job requeues itself. Run folder and data must be on the cluster's shared file system.
# shellcheck disable=SC2154 # options become variables by their names
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$here/lib.sh"

option job_name required fuse-1 "names the job, its script and its log"
option gpus_per_node required 8 "GPUs per node, one task each"
option nodes default 1 "number of nodes"
option time default 24:00:00 "the job's time limit; it is then requeued"
option partition optional gpu "SLURM partition"
option account optional my-account "SLURM account"
option cpus_per_task default 8 "CPU cores per GPU"
option sbatch repeated --constraint=h100 "further option of sbatch"
option zipper default zipper "the program, on every node: an absolute path to a virtual environment's, or on PATH"
option container_image optional my-image.sqsh "run in this container (pyxis), made from container/gpu.Dockerfile"
option container_mounts optional /shared:/shared "folders mounted into the container"
option grace_seconds default 180 "seconds before the time limit at which training saves"
option restarts default 20 "maximum number of restarts of the step in one job"
option script optional fuse-1.sbatch "where the batch script is written (default: JOB_NAME.sbatch)"
parse_options "$@"
require job_name gpus_per_node
number gpus_per_node 1 nodes 1 cpus_per_task 1 grace_seconds 0 restarts 0
[[ $job_name =~ ^[A-Za-z0-9._-]+$ ]] || fail "--job_name=$job_name: letters, digits, dots, - and _"
[ -z "$container_mounts" ] || [ -n "$container_image" ] || fail "--container_mounts needs --container_image"
[[ -z $container_image || $container_mounts ]] ||
  fail "--container_image needs --container_mounts (for example /shared:/shared), or it sees neither data nor run folder"
train_command /
[ -n "$script" ] || script=$job_name.sbatch

# No --gpu-bind: by default a task sees all GPUs of the step. With "none" SLURM 22.05 does not set CUDA_VISIBLE_DEVICES,
# and without device cgroups a job on a part of a node would use another job's GPUs.
step=(srun --kill-on-bad-exit=1 "--ntasks-per-node=$gpus_per_node" "--cpus-per-task=$cpus_per_task")
[ -z "$container_image" ] || step+=("--container-image=$container_image" "--container-mounts=$container_mounts")

# srun returns the highest status of its tasks, which hides a status 2 behind the killed tasks' statuses; a task with
# status 2 therefore creates a marker file. The shell ignores SIGTERM, so that it can report training's status.
# shellcheck disable=SC2016 # expanded in the task
task='trap : TERM; refused=$1; shift; "$@"; status=$?; [ "$status" != 2 ] || : >"$refused"; exit "$status"'

batch_script() {
  local extra
  printf '%s\n' '#!/usr/bin/env bash' "#SBATCH --job-name=$job_name" "#SBATCH --nodes=$nodes" \
    "#SBATCH --ntasks-per-node=$gpus_per_node" "#SBATCH --gpus-per-node=$gpus_per_node" \
    "#SBATCH --cpus-per-task=$cpus_per_task" "#SBATCH --time=$time" "#SBATCH --output=$job_name-%j.log" \
    '#SBATCH --open-mode=append' '#SBATCH --requeue' "#SBATCH --signal=B:USR1@$grace_seconds"
  [ -z "$partition" ] || echo "#SBATCH --partition=$partition"
  [ -z "$account" ] || echo "#SBATCH --account=$account"
  for extra in "${sbatch[@]}"; do echo "#SBATCH $extra"; done
  cat <<END
# Written by launch/slurm.sh.
set -uo pipefail
refused=$(quoted "$model_dir").\$SLURM_JOB_ID.refused # beside the run folder, which every task sees
mkdir -p "\$(dirname "\$refused")"
rm -f "\$refused"
$(declare -f retry_until_done)

# Near the time limit training saves and stops. The signal is USR1, since TERM is also sent when the job is cancelled.
stop_asked=""
near_limit() {
  stop_asked=limit interrupted=1
  scancel --signal=TERM "\$SLURM_JOB_ID" # to the tasks, not to this script; srun itself would end at once on a TERM
}
trap near_limit USR1

run_step() {
  local status
  $(quoted "${step[@]}") bash -c $(quoted "$task") zipper "\$refused" \\
    $(quoted "$zipper" "${rest[@]}" --coordinator=auto) &
  step=\$!
  interrupted=1
  while [ -n "\$interrupted" ]; do # wait again where USR1 interrupted it
    interrupted="" status=0
    wait "\$step" || status=\$?
  done
  [ ! -e "\$refused" ] || return 2
  return "\$status"
}

status=0
retry_until_done $restarts run_step || status=\$?
rm -f "\$refused"
if [ "\$stop_asked" = limit ] && [ "\$status" != 0 ] && [ "\$status" != 2 ]; then
  scontrol requeue "\$SLURM_JOB_ID"
fi
exit "\$status"
END
}

if [ -n "$dry_run" ]; then
  printf "cat >%s <<'END_OF_SCRIPT'\n%s\nEND_OF_SCRIPT\n" "$(quoted "$script")" "$(batch_script)"
else
  command -v sbatch >/dev/null || fail "no sbatch on PATH: run this on a login node of the cluster"
  batch_script >"$script"
  say "wrote $script"
fi
run sbatch "$script"
note "watch:"
note "  squeue --name=$job_name"
note "  tail -f $job_name-JOBID.log"
