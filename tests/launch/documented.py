"""The arguments of other people's tools that launch/ and docs/pods.md use, each as its documentation has it.

A flag ending in ``=`` takes a value, another does not. Only what we use is listed: a new flag must be looked up first.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """flags: without those of ``also``. page: where they are documented."""

    page: str
    flags: frozenset[str]


_GCLOUD = "https://cloud.google.com/sdk/gcloud/reference/"
_GCLOUD_WIDE = ("--project=", "--format=", "--quiet")  # https://cloud.google.com/sdk/gcloud/reference#GLOBAL-FLAGS
_XPK = "https://github.com/AI-Hypercomputer/xpk/blob/main/src/xpk/parser/"
_GCLUSTER = "https://github.com/GoogleCloudPlatform/cluster-toolkit/blob/1047080375af/cmd/"
_KUBECTL = "https://kubernetes.io/docs/reference/kubectl/generated/"
_XPK_SHARED = ("--project=", "--zone=")  # parser/common.py, add_shared_arguments


def _gcloud(command: str, *flags: str) -> tuple[str, Command]:
    return f"gcloud {command}", Command(_GCLOUD + command.replace(" ", "/"), frozenset((*flags, *_GCLOUD_WIDE)))


def _xpk(command: str, *flags: str) -> tuple[str, Command]:
    return f"xpk {command}", Command(f"{_XPK}{command.split()[0]}.py", frozenset((*flags, *_XPK_SHARED)))


def _gcluster(command: str, *flags: str) -> tuple[str, Command]:
    shared = ("--cluster=", "--project=", "--location=") if command.startswith("job ") else ()  # job/job.go
    return f"gcluster {command}", Command(f"{_GCLUSTER}{command.replace(' ', '/')}.go", frozenset((*flags, *shared)))


def _tool(command: str, page: str, *flags: str) -> tuple[str, Command]:
    return command, Command(page, frozenset(flags))


_SSH = ("--worker=", "--command=", "--internal-ip", "--ssh-flag=", "--zone=")
_SCP = ("--worker=", "--internal-ip", "--zone=")

COMMANDS: dict[str, Command] = dict(
    [
        _gcloud(
            "compute tpus queued-resources create",
            *("--zone=", "--accelerator-type=", "--runtime-version=", "--node-id=", "--node-count=", "--node-prefix="),
            *("--spot", "--reserved", "--network=", "--subnetwork="),
        ),
        _gcloud("compute tpus queued-resources describe", "--zone="),
        _gcloud("compute tpus queued-resources list", "--zone="),
        _gcloud("compute tpus queued-resources delete", "--zone=", "--force"),
        _gcloud("compute tpus queued-resources ssh", *_SSH, "--node="),
        _gcloud("compute tpus queued-resources scp", *_SCP, "--node="),
        _gcloud("compute tpus tpu-vm describe", "--zone="),
        _gcloud("compute tpus tpu-vm ssh", *_SSH),
        _gcloud("compute tpus tpu-vm scp", *_SCP),
        _gcloud("compute tpus accelerator-types list", "--zone="),
        _gcloud("auth login"),
        _gcloud("auth configure-docker"),
        _gcloud("config set"),
        _gcloud("projects create"),
        _gcloud("projects delete"),
        _gcloud("billing accounts list"),
        _gcloud("billing projects link", "--billing-account="),
        _gcloud("services enable"),
        _gcloud("compute networks create", "--subnet-mode="),
        _gcloud("compute firewall-rules create", "--network=", "--allow=", "--source-ranges="),
        _gcloud("filestore instances create", "--zone=", "--tier=", "--protocol=", "--file-share=", "--network="),
        _gcloud("filestore instances describe", "--zone="),
        _gcloud("filestore instances delete", "--zone="),
        _gcloud(
            "compute instances create",
            *("--zone=", "--machine-type=", "--image-family=", "--image-project=", "--boot-disk-size=", "--network="),
            "--scopes=",
        ),
        _gcloud("compute instances delete", "--zone="),
        _gcloud("compute ssh", "--zone=", "--command="),
        _gcloud("compute scp", "--zone=", "--recurse"),
        _gcloud("artifacts repositories create", "--location=", "--repository-format="),
        _gcloud("artifacts repositories delete", "--location="),
        _gcloud("storage cp", "--recursive"),
        _gcloud("storage rm", "--recursive"),
        _gcloud("storage buckets create", "--location=", "--uniform-bucket-level-access", "--soft-delete-duration="),
        _xpk(
            "cluster create",
            *("--cluster=", "--tpu-type=", "--num-slices=", "--spot", "--on-demand", "--flex", "--reservation="),
            *("--enable-gcpfilestore-csi-driver", "--cpu-limit="),
        ),
        _xpk("cluster delete", "--cluster="),
        _xpk(
            "storage create",
            *("--type=", "--size=", "--tier=", "--vol=", "--access-mode=", "--auto-mount=", "--mount-point="),
            *("--readonly=", "--cluster="),
        ),
        _xpk("storage delete", "--cluster="),
        _xpk(
            "workload create",
            *("--workload=", "--cluster=", "--tpu-type=", "--num-slices=", "--docker-image=", "--storage="),
            *("--priority=", "--max-restarts=", "--restart-on-exit-codes=", "--termination-grace-period-seconds="),
            "--command=",
        ),
        _xpk("workload list", "--cluster=", "--filter-by-job=", "--wait-for-job-completion="),
        _xpk("workload delete", "--cluster=", "--workload="),
        _gcluster(
            "job submit",
            *("--name=", "--compute-type=", "--topology=", "--gke-disable-parallel-containers", "--num-slices="),
            *("--image=", "--restarts=", "--grace-period=", "--mount=", "--service-account=", "--queue="),
            *("--priority=", "--await-job-completion", "--restart-on-exit-codes=", "--command="),
        ),
        _gcluster("job list", "--name-contains="),
        _gcluster("job logs", "--follow"),
        _gcluster("job cancel"),
        _gcluster("deploy", "--deployment-file="),
        _gcluster("destroy"),
        _tool("kubectl apply", f"{_KUBECTL}kubectl_apply/", "--filename="),
        _tool(
            "kubectl wait",
            "https://kubernetes.io/docs/reference/kubectl/generated/kubectl_wait/",
            "--for=",
            "--timeout=",
        ),
        _tool("kubectl delete", "https://kubernetes.io/docs/reference/kubectl/generated/kubectl_delete/"),
        _tool("docker build", "https://docs.docker.com/reference/cli/docker/buildx/build/", "--file=", "--tag="),
        _tool("docker push", "https://docs.docker.com/reference/cli/docker/image/push/"),
        _tool(
            "sbatch",
            "https://slurm.schedmd.com/sbatch.html",
            *("--job-name=", "--nodes=", "--ntasks-per-node=", "--gpus-per-node=", "--cpus-per-task=", "--time="),
            *("--parsable", "--array=", "--dependency=", "--kill-on-invalid-dep=", "--wrap="),
            *("--output=", "--open-mode=", "--requeue", "--signal=", "--partition=", "--account=", "--constraint="),
        ),
        _tool(
            "srun",
            # the last two: https://github.com/NVIDIA/pyxis/wiki/Usage
            "https://slurm.schedmd.com/srun.html",
            *("--kill-on-bad-exit=", "--ntasks-per-node=", "--cpus-per-task="),
            *("--container-image=", "--container-mounts="),
        ),
        _tool("scontrol requeue", "https://slurm.schedmd.com/scontrol.html"),
        _tool("scancel", "https://slurm.schedmd.com/scancel.html", "--signal="),
        _tool("squeue", "https://slurm.schedmd.com/squeue.html", "--name="),
    ]
)
"""command -> what its documentation says."""


def problems(words: list[str]) -> list[str]:
    """Arguments of a command line that the documentation does not have; [] if it has them all."""
    depth = max((n for n in range(1, len(words) + 1) if " ".join(words[:n]) in COMMANDS), default=0)
    if not depth:
        return [f"{' '.join(words[:5])}: no such command in documented.py"]
    name = " ".join(words[:depth])
    found = []
    for word in words[depth:]:
        if word == "--" or (name == "srun" and not word.startswith("-")):
            break  # what follows is another program's
        if word.startswith("-"):
            flag, equals, _ = word.partition("=")
            if flag + equals not in COMMANDS[name].flags:
                found.append(f"{name}: {flag + equals} is not in {COMMANDS[name].page}")
    return found
