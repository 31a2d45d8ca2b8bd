"""launch/: printed commands are documented ones, mistakes are named, and what runs lasts until training is done."""

import contextlib
import gzip
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import documented
import pytest
from stand_ins import HOSTS, Cloud, program

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("local.sh", "tpu_queued.sh", "gcluster.sh", "xpk.sh", "slurm.sh", "prepare_slurm.sh", "prepare_gke.sh")
TRAIN = ["--", "train", "--gin_file=runs/fuse.gin", "--gin.OptimizerConfig.x=('it''s', \"a b\")"]
TPU = ["--name=fuse-1", "--project=p", "--zone=us-west4-a", "--accelerator_type=v5litepod-16"]
TPU += ["--nfs=10.0.0.2:/zipper", "--package=dist/zipper.whl"]
XPK = ["--cluster=c", "--project=p", "--zone=z", "--tpu_type=tpu7x-4x4x4", "--workload=fuse-1", "--docker_image=r/i:1"]
XPK += ["--storage=s"]
GCLUSTER = ["--cluster=c", "--project=p", "--location=l", "--compute_type=v6e-256", "--name=fuse-1", "--image=r/i:1"]
SHARE = "--mount=filestore://s:/mnt/zipper:rw"
IRONWOOD = ["--compute_type=tpu7x-standard-4t", "--topology=4x4x4"]
SLURM = ["--job_name=fuse-1", "--gpus_per_node=8"]
PREPARE = ["--", "data", "prepare", "--corpus=/s/a b", "--out=/s/it's"]
ARRAY, PODS = ["--job_name=p-1", "--shards=8"], ["--name=p-1", "--shards=8", "--image=r/i:1", "--claim=c"]
ON_MOUNT, ON_DISK = [*TRAIN, "--gin.MODEL_DIR=/mnt/zipper/r"], [*TRAIN, "--gin.MODEL_DIR=/shared/r"]
GOOD = {
    "local": ("local.sh", ["--processes", "4", *ON_DISK]),
    "tpu": ("tpu_queued.sh", [*TPU, "--spot", *ON_MOUNT]),
    "tpu, bucket": ("tpu_queued.sh", [*TPU[:4], TPU[5], "--spot", *TRAIN, "--gin.MODEL_DIR=gs://b/r"]),
    "tpu, slices": (
        "tpu_queued.sh",
        [*TPU, "--num_slices=4", "--reserved", "--network=n", "--subnetwork=s", *ON_MOUNT],
    ),
    "tpu, internal": ("tpu_queued.sh", [*TPU, "--internal_ip", "--keep", *ON_MOUNT]),
    "tpu, existing": ("tpu_queued.sh", ["--existing=mine", *TPU[1:3], *TPU[4:], *ON_MOUNT]),
    "tpu, stop": ("tpu_queued.sh", [*TPU[:3], "--stop"]),
    "gcluster": ("gcluster.sh", [*GCLUSTER, *TRAIN, "--gin.MODEL_DIR=gs://b/r"]),
    "gcluster, share": ("gcluster.sh", [*GCLUSTER, *IRONWOOD, SHARE, "--wait", "--priority=low", *ON_MOUNT]),
    "gcluster, more": (
        "gcluster.sh",
        [*GCLUSTER, "--service_account=a", "--queue=q", "--build_image", *TRAIN, "--gin.MODEL_DIR=gs://b/r"],
    ),
    "gcluster, image": ("gcluster.sh", ["--build_image", "--image=r/i:1"]),
    "xpk": ("xpk.sh", [*XPK, "--wait", *ON_MOUNT]),
    "xpk, bucket": ("xpk.sh", [*XPK[:-1], *TRAIN, "--gin.MODEL_DIR=gs://b/r"]),
    "xpk, all": ("xpk.sh", [*XPK, "--create_cluster", "--capacity=reservation=mine", "--create_storage", *ON_MOUNT]),
    "xpk, flex": ("xpk.sh", [*XPK, "--create_cluster", "--capacity=flex", "--cluster_flag=--cpu-limit=9", *ON_MOUNT]),
    "xpk, image": ("xpk.sh", ["--build_image", "--docker_image=r/i:1"]),
    "slurm": ("slurm.sh", [*SLURM, "--partition=g", "--account=a", "--sbatch=--constraint=h100", *ON_DISK]),
    "prepare, slurm": (
        "prepare_slurm.sh",
        [*ARRAY, "--partition=g", "--account=a", "--sbatch=--constraint=x", *PREPARE],
    ),
    "prepare, gke": ("prepare_gke.sh", [*PODS, *PREPARE]),
    "slurm, container": ("slurm.sh", [*SLURM, "--container_image=i", "--container_mounts=/s:/s", *ON_DISK]),
}


def launch(script, *arguments, **options):
    return subprocess.run(
        [ROOT / "launch" / script, *arguments], capture_output=True, text=True, timeout=60, check=False, **options
    )


def zipper_problems(words):
    """Arguments of ``zipper COMMAND ...`` that zipper's own parsers would not accept."""
    import argparse

    from zipper_jax.cli import gin_flags, launch, main, train

    if words[1] == "train":
        parser = argparse.ArgumentParser(exit_on_error=False)
        train.add_arguments(parser)
        gin_flags.parse(parser.parse_known_args(words[2:])[1])
    elif words[1] == "launch":
        parser = argparse.ArgumentParser(exit_on_error=False)
        launch.add_arguments(parser)
        _, rest = parser.parse_known_args(words[2 : words.index("--")])
        return [f"zipper launch: {rest}"] * bool(rest) + zipper_problems(["zipper", *words[words.index("--") + 1 :]])
    return [] if words[1] in main.COMMANDS else [f"no command {words[1]}"]


def inner(words):
    """Command lines inside a command line: what a container or a task runs."""
    for word in words:
        if word.startswith("--command=exec "):
            yield shlex.split(word.removeprefix("--command=exec "))
        if word.startswith("--wrap="):
            yield shlex.split(re.search(r"do (.*) && exit 0", word)[1])
    if words[0] == "srun":
        yield words[max(i for i, word in enumerate(words) if word == "zipper") :]


def commands(text):
    """The command lines of a dry run, as words; #SBATCH lines and the step of a batch script among them."""
    for job in re.findall(r"^cat >\S+ <<'END_OF_JOB'\n(.*?)^END_OF_JOB\n", text, re.DOTALL | re.MULTILINE):
        words = re.findall(r"^            - (.*)$", job, re.MULTILINE)
        yield [word[1:-1].replace("''", "'") if word[0] == "'" else word for word in words if word[0] != "{"]
    text = re.sub(r"^cat >\S+ <<'END_OF_JOB'\n.*?^END_OF_JOB\n", "", text, flags=re.DOTALL | re.MULTILINE)
    text, _, rest = text.partition("cat >fuse-1.sbatch <<'END_OF_SCRIPT'\n")
    script, _, after = rest.partition("END_OF_SCRIPT\n")
    text += after
    if script:
        yield ["sbatch", *re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE)]
        yield shlex.split(re.search(r"^  (srun .*?) &$", script, re.DOTALL | re.MULTILINE)[1])
        yield from (
            shlex.split(line, comments=True) for line in re.findall(r"^  (scancel .*|scontrol .*)$", script, re.M)
        )
    yield from (shlex.split(line) for line in text.splitlines() if line and not line.startswith("#"))


@pytest.mark.parametrize("case", GOOD)
def test_a_dry_run_prints_documented_commands_and_runs_none(case, tmp_path):
    script, arguments = GOOD[case]
    # A PATH on which none of the tools is: running one would fail.
    for tool in ("bash", "dirname", "basename", "awk", "sed", "cat"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    done = launch(script, *arguments, "--dry_run") if "--" not in arguments else launch(
        script, "--dry_run", *arguments, env={"PATH": str(tmp_path), "HOME": str(tmp_path)}, cwd=tmp_path
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    found = list(commands(done.stdout))
    assert found
    for words in found:
        assert (zipper_problems(words) if words[0].endswith("zipper") else documented.problems(words)) == []
    if "--" in arguments:  # the train command arrives as it was given, wherever it is wrapped
        wanted = arguments[arguments.index("--") + 1 :]
        texts = [words for outer in found for words in (outer, *inner(outer))]
        texts += [shlex.split(w.partition("=")[2]) for words in found for w in words if w.startswith("--command=bash")]
        verb = wanted[0]
        trains = [words[words.index(verb) :] for words in texts if verb in words]
        assert trains
        assert [words[: len(wanted)] for words in trains] == [wanted] * len(trains)
        if verb == "train" and script != "local.sh":
            assert all("--coordinator=auto" in words for words in trains) or script == "tpu_queued.sh"
    assert sorted(path.name for path in tmp_path.iterdir() if not path.is_symlink()) == []


def test_the_group_rule_is_in_what_clusters_receive():
    """Kubernetes: any status but 2 starts all pods again. SLURM: one bad task ends the step; one task has one GPU."""
    words = [w for line in commands(launch("xpk.sh", "--dry_run", *XPK, *ON_MOUNT).stdout) for w in line]
    flags = dict(word.partition("=")[::2] for word in words)
    assert int(flags["--max-restarts"]) > 0
    again = {42, *range(127, 256)}  # xpk's own
    for part in flags["--restart-on-exit-codes"].split(","):
        first, _, last = part.partition("-")
        again |= set(range(int(first), int(last or first) + 1))
    assert again == set(range(1, 256)) - {2}
    words = [
        w
        for line in commands(launch("gcluster.sh", "--dry_run", *GCLUSTER, *IRONWOOD, SHARE, *ON_MOUNT).stdout)
        for w in line
    ]
    flags = dict(word.partition("=")[::2] for word in words)
    # The same; its parser takes numbers only. One process for all chips of a host.
    assert set(map(int, flags["--restart-on-exit-codes"].split(","))) == set(range(1, 256)) - {2}
    assert int(flags["--restarts"]) > 0
    assert "--gke-disable-parallel-containers" in flags
    options, step = list(commands(launch("slurm.sh", "--dry_run", *SLURM, *ON_DISK).stdout))[:2]
    assert "--kill-on-bad-exit=1" in step
    assert {"--ntasks-per-node=8", "--gpus-per-node=8", "--requeue", "--signal=B:USR1@180"} <= set(options)
    # JAX takes the GPU of a task's local number: each must see all of the step's, which is what SLURM does unasked.
    assert not [word for word in step if word.startswith(("--gpu", "--gres", "--tres", "--ntasks-per-gpu"))]


def test_shards_are_numbered_as_zipper_numbers_them(tmp_path):
    """Each element of an array gets its shard: the wrapped script runs under sh, and is repeated, but not after 2."""
    words = list(commands(launch("prepare_slurm.sh", "--dry_run", *ARRAY, "--restarts=2", *PREPARE).stdout))
    assert [dict(w.partition("=")[::2] for w in line).get("--array") for line in words] == [None, "0-7%64", None]
    wrapped = words[1][-1].removeprefix("--wrap=")
    for status, runs in ((0, 1), (2, 1), (137, 3)):
        program(tmp_path / "zipper", f'#!/bin/sh\necho "$*" >>{tmp_path}/log; exit {status}')
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "7"}
        done = subprocess.run(["sh", "-c", wrapped], env=environment, check=False)
        assert bool(done.returncode) == bool(status)
        lines = (tmp_path / "log").read_text().splitlines()
        assert lines == ["data prepare --corpus=/s/a b --out=/s/it's --processes=4 --shard=7/8"] * runs
        (tmp_path / "log").unlink()
    _, shard, _ = (
        line for line in commands(launch("prepare_gke.sh", "--dry_run", *PODS, *PREPARE).stdout) if line[0] == "zipper"
    )
    assert shard[-1] == "--shard=$(JOB_COMPLETION_INDEX)/8"


KUBECTL = """#!/bin/bash
echo "$*" >>{log}
case "$*" in
  wait*complete*{job}|wait*failed*{job}) [[ $* == *={state}* ]] || exec sleep 60 ;;
  wait*failed*) exec sleep 60 ;;
  get*{job}*conditions*) echo {answer} ;;
  get*conditions*) echo SuccessCriteriaMet Complete ;;
  get*failedIndexes*) echo 3,5-7 ;;
esac
"""


@pytest.mark.parametrize(
    ("state", "answer", "status", "said"),
    [
        ("failed", "FailureTarget Failed", 2, "job-name=p-1-shard,batch.kubernetes.io/job-completion-index=3; then"),
        ("complete", "Complete", 0, ""),
        ("neither", "", 2, "p-1-shard is neither complete nor failed after --timeout=1s"),
    ],
)
def test_a_failed_job_ends_the_preparation_and_names_a_log(tmp_path, state, answer, status, said):
    text = KUBECTL.format(log=tmp_path / "log", job="job/p-1-shard", state=state, answer=answer)
    text = text.replace("exec sleep 60", "sleep 1; exit 1") if state == "neither" else text
    program(tmp_path / "bin" / "kubectl", text)
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    done = launch("prepare_gke.sh", *PODS, "--timeout=1s", *PREPARE, env=environment, cwd=tmp_path)
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    applied = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("apply")]
    assert len(applied) == (2 if status else 3)


def test_every_kind_of_tpu_gets_its_runtime():
    for kind, runtime in (
        ("v5litepod-16", "v2-alpha-tpuv5-lite"), ("v5p-32", "v2-alpha-tpuv5"), ("v6e-16", "v2-alpha-tpuv6e"),
        ("v4-8", "tpu-ubuntu2204-base"),
    ):  # fmt: skip
        done = launch("tpu_queued.sh", "--dry_run", *TPU[:3], f"--accelerator_type={kind}", *TPU[4:], *ON_MOUNT)
        assert f"--runtime-version={runtime} " in done.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "names"),
    [
        *((script, ["--nodez=3"], "no option --nodez") for script in SCRIPTS),
        *((script, ["stray"], "stray") for script in SCRIPTS),
        ("local.sh", ["--processes"], "--processes needs a value"),
        ("local.sh", ["--processes=", *ON_DISK], "--processes= is empty"),
        ("local.sh", ["--processes=many", *ON_DISK], "--processes=many"),
        ("local.sh", ["--processes=0", *ON_DISK], "--processes=0"),
        ("local.sh", [], "-- train --gin_file="),
        ("local.sh", TRAIN, "--gin.MODEL_DIR="),
        ("local.sh", ["--", "train", "--gin.MODEL_DIR=r"], "--gin_file"),
        ("local.sh", [*ON_DISK, "--coordinator=auto"], "--coordinator"),
        ("tpu_queued.sh", [], "--accelerator_type|--name.*\n.*--project.*\n.*--zone"),
        ("tpu_queued.sh", [*TPU[:3], *ON_MOUNT], "--accelerator_type .for example --accelerator_type=v5litepod-64"),
        ("tpu_queued.sh", [*TPU[:4], *ON_MOUNT], "--package .for example"),
        ("tpu_queued.sh", [*TPU[:4], TPU[5], *ON_MOUNT], "/mnt/zipper/r is on a share: give --nfs"),
        ("tpu_queued.sh", [*TPU, "--spot=yes", *ON_MOUNT], "--spot takes no value"),
        ("tpu_queued.sh", [*TPU, "--spot", "--reserved", *ON_MOUNT], "--spot and --reserved"),
        ("tpu_queued.sh", [*TPU, "--accelerator_type=v5e-16", *ON_MOUNT], "v5litepod-16"),
        ("tpu_queued.sh", [*TPU, "--accelerator_type=tpu7x-16", *ON_MOUNT], "xpk.sh"),
        ("tpu_queued.sh", [*TPU, "--accelerator_type=x-16", *ON_MOUNT], "--runtime_version"),
        ("tpu_queued.sh", [*TPU, "--nfs=bucket", *ON_MOUNT], "--nfs=bucket"),
        ("tpu_queued.sh", [*TPU, "--name=Fuse_1", *ON_MOUNT], "--name=Fuse_1"),
        ("tpu_queued.sh", [*TPU, "--existing=mine", *ON_MOUNT], "--existing=mine"),
        ("tpu_queued.sh", [*TPU, *TRAIN, "--gin.MODEL_DIR=s3://b/r"], "s3://b/r: of URLs only gs://BUCKET/FOLDER"),
        ("tpu_queued.sh", [*TPU, *TRAIN, "--gin.MODEL_DIR=gs://b"], "gs://b: of URLs only gs://BUCKET/FOLDER"),
        ("tpu_queued.sh", [*TPU, *ON_DISK], "/shared/r: give gs://BUCKET/FOLDER, or a folder in /mnt/zipper"),
        ("xpk.sh", [], "--cluster(.*\n)*.*--docker_image"),
        ("xpk.sh", [*XPK, "--create_cluster", *ON_MOUNT], "--capacity"),
        ("xpk.sh", [*XPK, "--create_cluster", "--capacity=cheap", *ON_MOUNT], "--capacity=cheap"),
        ("xpk.sh", [*XPK, *ON_DISK], "/shared/r"),
        ("xpk.sh", [*XPK[:-1], *ON_MOUNT], "/mnt/zipper/r is on a share: give --storage"),
        ("gcluster.sh", [], "--cluster(.*\n)*.*--image"),
        ("gcluster.sh", [*GCLUSTER, *IRONWOOD[:1], *TRAIN, "--gin.MODEL_DIR=gs://b/r"], "--topology is missing"),
        ("gcluster.sh", [*GCLUSTER, *ON_MOUNT], "/mnt/zipper/r is on a share: give --mount=SOURCE:FOLDER:rw"),
        ("gcluster.sh", [*GCLUSTER, SHARE, *ON_DISK], "/shared/r: give gs://BUCKET/FOLDER, or a folder in /mnt/zipper"),
        ("gcluster.sh", [*GCLUSTER, "--mount=s:/mnt/zipper", *ON_MOUNT], "--mount=s:/mnt/zipper: give SOURCE"),
        ("gcluster.sh", [*GCLUSTER, f"--name={'x' * 29}", *TRAIN, "--gin.MODEL_DIR=gs://b/r"], "at most 28 letters"),
        ("prepare_slurm.sh", [*ARRAY, *ON_DISK], "-- data prepare --corpus=FOLDER"),
        ("prepare_slurm.sh", [*ARRAY, *PREPARE[:-1]], "--out=FOLDER"),
        ("prepare_slurm.sh", [*ARRAY, *PREPARE, "--shard=0/2"], "prepare_slurm.sh sets --shard itself"),
        ("prepare_slurm.sh", [*ARRAY, *PREPARE, "--overwrite"], "--overwrite: run the command once by itself"),
        ("prepare_gke.sh", [*PODS, "--name=P_1", *PREPARE], "--name=P_1"),
        ("slurm.sh", ON_DISK, "--job_name.*\n.*--gpus_per_node"),
        ("slurm.sh", [*SLURM, *TRAIN, "--gin.MODEL_DIR=r"], "or a folder in /"),
        ("slurm.sh", [*SLURM, "--container_mounts=/a:/a", *ON_DISK], "--container_image"),
        ("slurm.sh", [*SLURM, "--container_image=i", *ON_DISK], "--container_mounts"),
    ],
)  # fmt: skip
def test_mistakes_are_named(script, arguments, names):
    done = launch(script, "--dry_run", *arguments)
    assert done.returncode == 2
    assert re.search(names, done.stderr), done.stderr
    assert done.stderr.startswith("error: ")
    assert not done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_option_and_an_example(script):
    done = launch(script, "--help")
    assert done.returncode == 0
    text = (ROOT / "launch" / script).read_text()
    for name in (*re.findall(r"^option (\w+)", text, re.MULTILINE), "dry_run", "help"):
        assert re.search(rf"^  --{name}\b", done.stdout, re.MULTILINE)
    assert f"launch/{script} --" in done.stdout
    assert "set -euo" not in done.stdout
    assert "shellcheck" not in done.stdout


def test_a_dry_run_quotes_so_that_a_shell_reads_the_same_words():
    given = ["a b", "it's", '"', "$HOME", "*", "--gin.X=('a b',)", "--empty=", "", "é", "back\\slash", "--q='"]
    line = subprocess.run(
        ["bash", "-c", 'source "$0"; quoted "$@"', ROOT / "launch/lib.sh", *given], capture_output=True, text=True
    ).stdout
    assert shlex.split(line) == given


# --- a queued resource that is preempted ------------------------------------------------------------------------------


def tpu_run(cloud, *extra, **options):
    package = cloud.folder / "zipper.whl"
    package.write_text("a wheel")
    command = [
        ROOT / "launch/tpu_queued.sh", *TPU[:4], "--nfs=10.0.0.2:/zipper", f"--mount={cloud.share}", "--poll_seconds=0",
        f"--package={package}", "--pause_seconds=0", *extra, *TRAIN, f"--gin.MODEL_DIR={cloud.share}/runs/fuse-1",
    ]  # fmt: skip
    # Where tests run in the background, Ctrl-C is ignored, and a shell cannot trap a signal it was started to ignore.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, env=cloud.environment, stderr=subprocess.PIPE, text=True, **options)
    finally:
        signal.signal(signal.SIGINT, before)


def finished(process):
    """Exit status and output."""
    try:
        said = process.communicate(timeout=120)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, said


@pytest.fixture(autouse=True)
def nothing_runs_on(tmp_path):
    """A test that fails leaves no watcher and no training behind."""
    yield
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if str(tmp_path).encode() in (entry / "cmdline").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def without_looks(calls):
    return [" ".join(call.split()[:2]) if call.startswith("stop") else call.split()[0] for call in calls
            if call not in ("describe", "status")]  # fmt: skip


ROUND = ["ssh", "scp", "setup", "start"]


@pytest.mark.slow
def test_preempted_and_failing_it_resumes_in_the_same_run_folder(tmp_path):
    cloud = Cloud(tmp_path / "cloud", taken_away=[1, 2], attempts=[["run", "run"], ["run", 1], [0, 0]])
    status, said = finished(tpu_run(cloud, "--spot"))
    assert status == 0, said
    # Attempt 1 is preempted, attempt 2 loses a process, attempt 3 finishes.
    calls = without_looks(cloud.calls())
    assert calls == ["create", *ROUND, "stop KILL", "delete", "create", *ROUND, "stop KILL", *ROUND, "delete"]
    for host in range(HOSTS):
        starts = cloud.trainings(host)
        assert len(starts) == 3
        wanted = [*TRAIN[1:], f"--gin.MODEL_DIR={cloud.share}/runs/fuse-1", "--coordinator=auto"]
        assert [start["arguments"] for start in starts] == [wanted] * 3
        assert not any(alive(start["pid"]) for start in starts)
    assert "preempted" in said
    assert "status 1" in said
    # New hosts were set up; hosts that were set up already were not set up again.
    assert cloud.noted("installed").count("venv ") == 2 * HOSTS
    assert "--require-hashes" in cloud.noted("installed")


def test_the_rest_of_a_group_is_killed_before_it_starts_again(tmp_path):
    cloud = Cloud(tmp_path / "cloud", attempts=[["run", 7], ["run", "run"]])
    watching = tpu_run(cloud)
    until(lambda: len(cloud.trainings(0)) == 2 and len(cloud.trainings(1)) == 2)
    assert not alive(cloud.trainings(0)[0]["pid"])
    (cloud.folder / "finish").touch()
    assert finished(watching)[0] == 0


def test_a_users_error_is_not_retried(tmp_path):
    cloud = Cloud(tmp_path / "cloud", attempts=[["run", 2]])
    status, said = finished(tpu_run(cloud))
    assert status == 2
    assert "a restart cannot fix this" in said
    assert without_looks(cloud.calls()) == ["create", *ROUND, "stop KILL", "delete"]
    assert not alive(cloud.trainings(0)[0]["pid"])


def test_it_gives_up_after_so_many_restarts(tmp_path):
    cloud = Cloud(tmp_path / "cloud", hosts=1, attempts=[[5]] * 2)
    status, said = finished(tpu_run(cloud, "--restarts=1", "--keep"))
    assert status == 5
    assert "giving up" in said
    assert len(cloud.trainings(0)) == 2
    assert "delete" not in cloud.calls()


def test_a_refused_request_is_not_repeated(tmp_path):
    cloud = Cloud(tmp_path / "cloud", refuse=True, attempts=[])
    status, said = finished(tpu_run(cloud))
    assert status == 2
    assert "refused" in said
    assert cloud.calls().count("create") == 1


def test_watching_can_end_and_begin_again(tmp_path):
    cloud = Cloud(tmp_path / "cloud", attempts=[["run", "run"]])
    first = tpu_run(cloud, start_new_session=True)
    until(lambda: all(cloud.trainings(host) for host in range(HOSTS)))
    os.killpg(first.pid, signal.SIGINT)
    status, said = finished(first)
    assert status == 130
    assert "training continues" in said
    assert alive(cloud.trainings(0)[0]["pid"])
    second = tpu_run(cloud)
    until(lambda: cloud.calls().count("status") > 10)
    (cloud.folder / "finish").touch()
    status, said = finished(second)
    assert status == 0
    assert "already runs" in said
    assert sum(call.startswith("start") for call in cloud.calls()) == 1
    assert cloud.calls()[-1] == "delete"


def test_stop_saves_and_a_watcher_does_not_start_it_again(tmp_path):
    cloud = Cloud(tmp_path / "cloud", attempts=[["run", "run"]])
    watcher = tpu_run(cloud)
    until(lambda: all(cloud.trainings(host) for host in range(HOSTS)))
    status, _ = finished(tpu_run(cloud, "--stop", "--keep"))
    assert status == 0
    status, said = finished(watcher)
    assert status == 130
    assert "asked to stop" in said
    assert not any(alive(cloud.trainings(host)[0]["pid"]) for host in range(HOSTS))
    assert "delete" not in cloud.calls()
    assert "stop KILL" not in cloud.calls()


def test_a_command_that_gcloud_repeats_starts_training_once(tmp_path):
    cloud = Cloud(tmp_path / "cloud", attempts=[["run"]])
    home = cloud.folder / "hosts" / "host0"
    (home / "zipper/venv/bin").mkdir(parents=True)
    shutil.copy(cloud.folder / "bin/zipper", home / "zipper/venv/bin/zipper")
    environment = {**cloud.environment, "HOME": str(home), "HOST": "host0", "PART": "0"}

    def worker(*words):
        return launch("worker.sh", *words, env=environment).stdout

    assert worker("status") == "zipper-worker host0-w-0 idle\n"
    assert "running" in worker("start", "a1", "train", "--gin.MODEL_DIR=/nowhere/r")
    until(lambda: cloud.trainings(0))
    assert "running" in worker("start", "a1", "train", "--gin.MODEL_DIR=/nowhere/r")
    assert alive(cloud.trainings(0)[0]["pid"])
    assert len(cloud.trainings(0)) == 1
    group = home / "zipper/state/group"
    number, _ = group.read_text().split()
    worker("stop", "KILL")
    assert "exited 137" in worker("status")
    assert not alive(cloud.trainings(0)[0]["pid"])
    # Another boot: the number may belong to something else now.
    group.write_text(f"{os.getpgid(0)} another-boot\n")
    assert "exited 137" in worker("status")
    assert number.isdigit()


# --- SLURM ------------------------------------------------------------------------------------------------------------


def job(cloud, *extra):
    """The batch script that slurm.sh writes, run."""
    (cloud.folder / "bin" / "sbatch").symlink_to(shutil.which("true"))
    script = cloud.folder / "job.sbatch"
    arguments = [*SLURM, f"--script={script}", *extra, *TRAIN, f"--gin.MODEL_DIR={cloud.share}/r"]
    written = launch("slurm.sh", *arguments, env=cloud.environment)
    assert written.returncode == 0, written.stderr
    return subprocess.run(
        ["bash", script], env={**cloud.environment, "SLURM_JOB_ID": "7"}, cwd=cloud.folder, capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "status", "requeued"),
    [
        ([0], 0, ""),
        ([1, 137, 0], 0, ""),  # a process died, twice
        ([{"task": 2, "others": 137}], 2, ""),  # a user's error, hidden by tasks that were killed with it
        ([{"task": 3, "others": 137}, {"task": 0}], 0, ""),
        (["limit"], 143, "requeue 7"),
        ([1, "limit"], 143, "requeue 7"),
    ],
)
def test_a_slurm_job_lasts_until_training_is_done(tmp_path, steps, status, requeued):
    cloud = Cloud(tmp_path / "cloud", steps=steps)
    done = job(cloud)
    assert done.returncode == status, done.stderr
    assert len(cloud.noted("steps").splitlines()) == len(steps)
    assert cloud.noted("scontrol") == requeued
    assert cloud.noted("scancel") == ("--signal=TERM 7" if requeued else "")
    assert list(cloud.share.iterdir()) == []


def test_a_dry_run_pasted_submits_the_same_script(tmp_path):
    cloud = Cloud(tmp_path / "cloud", steps=[])
    program(cloud.folder / "bin" / "sbatch", '#!/bin/sh\ncat "$1"\n')
    arguments = [*SLURM, *TRAIN, f"--gin.MODEL_DIR={cloud.share}/r"]
    done = [launch("slurm.sh", *more, *arguments, env=cloud.environment, cwd=tmp_path) for more in ([], ["--dry_run"])]
    (tmp_path / "fuse-1.sbatch").unlink()
    pasted = subprocess.run(
        ["bash", "-eu"], input=done[1].stdout, env=cloud.environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done[0].stdout == pasted.stdout != "", pasted.stderr


def test_a_slurm_job_gives_up(tmp_path):
    cloud = Cloud(tmp_path / "cloud", steps=[9] * 3)
    done = job(cloud, "--restarts=2")
    assert done.returncode == 9
    assert "giving up" in done.stderr


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_local_really_runs(tmp_path):
    """zipper launch starts the group; its training refuses at once, and the status comes back."""
    program(tmp_path / "zipper", f'#!/bin/sh\nexec {sys.executable} -m zipper_jax.cli.main "$@"\n')
    done = launch(
        "local.sh", "--processes=2", "--", "train", "--gin_file=runs/nothing.gin", f"--gin.MODEL_DIR={tmp_path}/r",
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2
    assert "runs/nothing.gin" in done.stderr
    assert "zipper launch --processes=2 --restarts=100" in done.stderr


def test_scripts_are_shell_that_bash_reads():
    for script in sorted((ROOT / "launch").glob("*.sh")):
        assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
        assert "set -euo pipefail" in script.read_text() or script.name in ("lib.sh", "stages.sh")


def test_one_library_and_no_copies():
    """A function is defined in one script only."""
    seen = {}
    for script in sorted((ROOT / "launch").glob("*.sh")):
        for name in re.findall(r"^(\w+)\(\) \{", script.read_text(), re.MULTILINE):
            seen.setdefault(name, []).append(script.name)
    # worker.sh runs on hosts that have no lib.sh; the names it shares with others are its subcommands
    assert {name: where for name, where in seen.items() if len(where) > 1 and "worker.sh" not in where} == {}


def test_the_tables_agree_with_an_installed_gcloud():
    """Google's CLI carries the list of its own commands and flags."""
    gcloud = shutil.which("gcloud")
    tree = gcloud and Path(gcloud).resolve().parents[1] / "data/cli/gcloud_completions.py"
    if not tree or not tree.exists():
        pytest.skip("no gcloud here")
    spec = importlib.util.spec_from_file_location("gcloud_completions", tree)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    root = module.STATIC_COMPLETION_CLI_TREE
    for name, command in documented.COMMANDS.items():
        if name.startswith("gcloud "):
            node = root
            for word in name.split()[1:]:
                node = node["commands"][word]
            for flag in command.flags:
                kind = {**root["flags"], **node["flags"]}[flag.removesuffix("=")]
                assert (kind == "bool") == (not flag.endswith("=")), f"{name} {flag}: {kind}"


@pytest.mark.parametrize("tool", ["sbatch", "srun", "scancel", "squeue"])
def test_the_tables_agree_with_an_installed_slurm(tool):
    """Its man pages (`apt-get install slurm-client`); --help has less. Those of pyxis, a plugin, are not there."""
    page = Path(f"/usr/share/man/man1/{tool}.1.gz")
    if not page.exists():
        pytest.skip("no SLURM here")
    text = re.sub(r"\\f.|\\", "", gzip.decompress(page.read_bytes()).decode())
    for flag in documented.COMMANDS[tool].flags:
        if not flag.startswith("--container-"):
            name, value, _ = flag.partition("=")
            forms = re.findall(rf"^(?:-\w, )?{name}(\[?=|$)", text, re.MULTILINE)
            assert forms, f"{tool} {flag}"
            assert all(form.endswith("=") == bool(value) for form in forms), f"{tool} {flag}"


def test_the_tables_agree_with_an_installed_xpk():
    if not shutil.which("xpk"):
        pytest.skip("no xpk here")
    for name, command in documented.COMMANDS.items():
        if name.startswith("xpk "):
            text = subprocess.run([*name.split(), "--help"], capture_output=True, text=True, check=True).stdout
            for flag in command.flags:
                after = " [A-Z{]" if flag.endswith("=") else r"[]\s]"
                assert re.search(rf"[\[\s]{flag.removesuffix('=')}{after}", text), f"{name} {flag}"


def pods_commands():
    """The command lines of docs/pods.md; $NAME stays as it is."""
    text = (ROOT / "docs/pods.md").read_text()
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip() and not line.startswith("#"):
                yield line.strip()


def test_what_the_page_says_to_type_is_documented():
    checked = 0
    for line in pods_commands():
        # NAME=$(gcloud ...) is a command, too
        line = re.sub(r"^\w+=\$\((.*)\)$", r"\1", line)
        words = shlex.split(line, comments=True)
        if words[0] in {name.split()[0] for name in documented.COMMANDS}:
            assert documented.problems(words) == [], line
            checked += 1
        elif words[0] == "zipper":
            assert zipper_problems(words) == [], line
            checked += 1
    assert checked > 20


def test_what_the_page_launches_passes_a_dry_run():
    settings = [line for line in pods_commands() if re.match(r"[A-Z]\w*=[^$]*$|export ", line)]
    computed = ("SHARE=10.0.0.2:/zipper", "PACKAGE=dist/zipper.whl")  # by commands that need a cloud, or a wheel
    launches = [line for line in pods_commands() if line.startswith("launch/")]
    assert len(launches) >= 4
    for line in launches:
        head, dashes, train = line.partition(" -- ")
        done = subprocess.run(
            ["bash", "-euc", "\n".join((*settings, *computed, f"{head} --dry_run{dashes}{train}"))],
            cwd=ROOT, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stderr}"


def test_the_containers_take_what_the_builder_sends():
    ignored = (ROOT / ".dockerignore").read_text().split()
    for name in ("tpu", "gpu"):
        text = (ROOT / f"launch/container/{name}.Dockerfile").read_text()
        assert "--require-hashes" in text
        assert 'ENTRYPOINT ["zipper"]' in text
        assert re.search(r"^USER ", text, re.MULTILINE)
    for needed in ("pyproject.toml", "README.md", "LICENSE", "requirements.lock", "zipper_jax", "gin"):
        assert f"!{needed}" in ignored
        assert (ROOT / needed).exists()
