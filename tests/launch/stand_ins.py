"""Stand-ins for gcloud, srun and the programs of a TPU host: small scripts on PATH that keep their state in a folder.

The stand-in gcloud really runs what is sent over ssh, once per host with a home of its own: worker.sh is tested, too.
"""

import json
import os
import stat
import sys
from pathlib import Path

HOSTS = 2

_GCLOUD = r"""
import json, os, shutil, signal, subprocess, sys
from pathlib import Path

cloud = Path(os.environ["CLOUD"])
words = sys.argv[1:]
flags = dict(word.partition("=")[::2] for word in words if word.startswith("--"))
plain = [word for word in words if not word.startswith("--")]
verb = plain[3]
state = cloud / "state"
command = flags.get("--command", "")
with (cloud / "calls").open("a") as file:
    file.write(json.dumps([verb, command]) + "\n")
scenario = json.loads((cloud / "scenario").read_text())

def hosts():
    return sorted((cloud / "hosts").glob("host*"))

def kill_all():
    for group in (cloud / "hosts").glob("*/zipper/state/group"):
        try:
            os.killpg(int(group.read_text().split()[0]), signal.SIGKILL)
        except ProcessLookupError:
            pass

def take_away():
    kill_all()
    shutil.rmtree(cloud / "hosts", ignore_errors=True)

if verb == "describe":
    if not state.exists():
        sys.exit("ERROR: NOT_FOUND: Resource was not found")
    print(state.read_text())
elif verb == "create":
    if scenario.get("refuse"):
        sys.exit("ERROR: RESOURCE_EXHAUSTED: quota")
    assert not state.exists(), "created twice"
    for index in range(scenario["hosts"]):
        uv = cloud / "hosts" / f"host{index}" / "zipper" / "uv" / "bin" / "uv"
        uv.parent.mkdir(parents=True)
        shutil.copy(cloud / "bin" / "uv", uv)
    state.write_text("ACTIVE")
elif verb == "delete":
    assert "--force" in flags and "--quiet" in flags
    take_away()
    state.unlink()
elif verb == "scp":
    for host in hosts():
        for source in plain[4:-1]:
            shutil.copy(source, host / plain[-1].partition(":")[2])
elif verb == "ssh":
    seen = [json.loads(line) for line in (cloud / "calls").read_text().splitlines()]
    starts = sum("worker.sh start" in c for _, c in seen)
    looks = 0
    for _, c in seen:
        looks = 0 if "worker.sh start" in c else looks + c.endswith("worker.sh status")
    if command.endswith("status") and [starts, looks] == scenario.get("taken_away"):
        take_away()
        state.write_text("SUSPENDED")
    if state.read_text() != "ACTIVE":
        sys.exit("ERROR: the node is not ready")
    running = [
        subprocess.Popen(["bash", "-c", command], cwd=host,
                         env={**os.environ, "HOME": str(host), "HOST": host.name, "PART": str(index)})
        for index, host in enumerate(hosts())
    ]
    sys.exit(next((s for s in [p.wait() for p in running] if s), 0))
"""

# Training: the n-th start on a host follows the scenario: "run" until a signal, or an exit status.
_ZIPPER = r"""
import json, os, signal, sys, time
from pathlib import Path

cloud, host = Path(os.environ["CLOUD"]), os.environ["HOST"]
mine = cloud / f"training.{host}"
with mine.open("a") as file:
    file.write(json.dumps({"pid": os.getpid(), "arguments": sys.argv[1:]}) + "\n")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
attempt = len(mine.read_text().splitlines())
what = json.loads((cloud / "scenario").read_text())["attempts"][attempt - 1][int(os.environ["PART"])]
print("step", attempt, flush=True)
if what != "run":
    sys.exit(what)
while not (cloud / "finish").exists():
    time.sleep(0.02)
"""

_UV = r"""
import os, shutil, sys
from pathlib import Path

cloud = Path(os.environ["CLOUD"])
with (cloud / "installed").open("a") as file:
    file.write(" ".join(sys.argv[1:]) + "\n")
if sys.argv[1] == "venv":
    target = Path(sys.argv[-1]) / "bin" / "zipper"
    target.parent.mkdir(parents=True)
    shutil.copy(cloud / "bin" / "zipper", target)
"""

# A step of a SLURM job: the n-th one follows the scenario; "task" runs the task's own command.
_SRUN = r"""
import json, os, signal, subprocess, sys, time
from pathlib import Path

cloud = Path(os.environ["CLOUD"])
with (cloud / "steps").open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\n")
number = len((cloud / "steps").read_text().splitlines())
what = json.loads((cloud / "scenario").read_text())["steps"][number - 1]
if what == "limit":
    (cloud / "step.pid").write_text(str(os.getpid()))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.kill(os.getppid(), signal.SIGUSR1)
    time.sleep(20)
    sys.exit(99)
if isinstance(what, dict):  # the tasks end with this; the step with the highest of all
    words = sys.argv[sys.argv.index("bash"):]
    env = {**os.environ, "PATH": f"{cloud / 'task_bin'}:{os.environ['PATH']}", "TASK_STATUS": str(what["task"])}
    status = subprocess.run(words, env=env).returncode
    sys.exit(max(status, what.get("others", 0)))
sys.exit(what)
"""

_SCANCEL = r"""
import os, signal, sys
from pathlib import Path

cloud = Path(os.environ["CLOUD"])
(cloud / "scancel").write_text(" ".join(sys.argv[1:]))
os.kill(int((cloud / "step.pid").read_text()), signal.SIGTERM)
"""

_SCONTROL = r"""
import os, sys
from pathlib import Path

(Path(os.environ["CLOUD"]) / "scontrol").write_text(" ".join(sys.argv[1:]))
"""


def program(path: Path, text: str) -> None:
    """An executable script; Python unless it begins with #!."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if text.startswith("#!") else f"#!{sys.executable} -IS\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


class Cloud:
    """A folder with the programs, their scenario, and the records they wrote."""

    def __init__(self, folder: Path, **scenario: object) -> None:
        self.folder = folder
        self.share = folder / "share"
        self.share.mkdir(parents=True)
        (folder / "hosts").mkdir()
        (folder / "scenario").write_text(json.dumps({"hosts": HOSTS, **scenario}))
        for name, text in {
            "gcloud": _GCLOUD, "zipper": _ZIPPER, "uv": _UV, "srun": _SRUN, "scancel": _SCANCEL, "scontrol": _SCONTROL,
            "sudo": '#!/bin/sh\nexec "$@"\n', "mountpoint": "#!/bin/sh\nexit 0\n",
            "hostname": '#!/bin/sh\necho "$HOST-w-$PART"\n',
        }.items():  # fmt: skip
            program(folder / "bin" / name, text)
        program(folder / "task_bin" / "zipper", '#!/bin/sh\nexit "$TASK_STATUS"\n')
        self.environment = {
            **os.environ,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "CLOUD": str(folder),
            "retry_pause": "0",
        }

    def calls(self) -> list[str]:
        """The calls of gcloud, in order; for ssh the subcommand of worker.sh."""
        found = []
        for line in (self.folder / "calls").read_text().splitlines():
            verb, command = json.loads(line)
            found.append(" ".join(command.split()[2:]) if "worker.sh" in command else verb)
        return found

    def trainings(self, host: int) -> list[dict]:
        """The starts of training on a host."""
        file = self.folder / f"training.host{host}"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def noted(self, name: str) -> str:
        """What a stand-in recorded, or nothing."""
        file = self.folder / name
        return file.read_text() if file.exists() else ""
