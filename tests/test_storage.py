"""Objects of buckets, and the locks that are made of them."""

import gc
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorstore
from buckets import any_folder, failing, folder, gcs, s3  # noqa: F401
from safetensors.numpy import save_file

from zipper_jax.checkpoint.safetensors_files import Reader
from zipper_jax.data.bucket_arrays import BucketArray
from zipper_jax.utils import leases, objects, storage
from zipper_jax.utils.errors import ServiceError, UserError
from zipper_jax.utils.files import copy_folder, new_folder, require_new, write_json, write_with
from zipper_jax.utils.locks import locked, locked_file
from zipper_jax.utils.staging import growing
from zipper_jax.utils.storage import ABSENT, MARKER, as_path
from zipper_jax.utils.user_json import read_object


def test_paths_are_of_this_machine_or_of_a_bucket():
    assert as_path("runs/a") == Path("runs/a")
    for text in ("gs://b/runs/a", "gs:/b/runs/a", Path("gs://b/runs/a")):
        assert str(as_path(text)) == "gs://b/runs/a"
    assert str(as_path("s3://b/runs") / "a") == "s3://b/runs/a"
    assert not storage.is_bucket("./gs:/x")


def test_objects_are_written_read_listed_and_deleted(any_folder):  # noqa: F811
    here = as_path(any_folder)
    assert not here.exists()
    assert storage.keys(here) == []
    for name in ("a.txt", "b/c.txt", "b/d/e.txt", "b0.txt"):
        storage.write(here / name, name.encode())
    assert storage.keys(here) == ["a.txt", "b/c.txt", "b/d/e.txt", "b0.txt"]
    assert storage.keys(here / "b") == ["c.txt", "d/e.txt"], "b0.txt is no child of b"
    assert storage.subfolders(here) == ["b"]
    assert sorted(path.name for path in here.iterdir()) == ["a.txt", "b", "b0.txt"]
    assert (here / "b").is_dir()
    assert not (here / "b").is_file()
    assert (here / "a.txt").is_file()
    assert not (here / "a").exists()
    assert storage.read(here / "b/c.txt") == (here / "b/c.txt").read_bytes() == b"b/c.txt"
    assert storage.read(here / "b/c.txt", 2, 4) == b"c."
    assert [content for content, _ in storage.read_spans(here / "b/c.txt", [(0, 1), (4, 7)])] == [b"b", b"txt"]
    with pytest.raises(FileNotFoundError):
        storage.read(here / "none")
    storage.delete_tree(here / "b")
    assert storage.keys(here) == ["a.txt", "b0.txt"]


def test_a_write_under_a_condition_happens_once(any_folder):  # noqa: F811
    path = as_path(any_folder) / "one"
    first = storage.write(path, b"1", only_if=ABSENT)
    assert first is not None
    assert storage.write(path, b"2", only_if=ABSENT) is None
    second = storage.write(path, b"3", only_if=first)
    assert second is not None
    assert storage.write(path, b"4", only_if=first) is None
    assert storage.read_version(path) == (b"3", second)


def test_a_listing_has_every_page(folder):  # noqa: F811
    here = as_path(folder)
    threads = [
        threading.Thread(target=lambda n=n: [storage.write(here / f"{n}/{i}", b"x") for i in range(251)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(storage.keys(here)) == 1004


def test_what_a_bucket_refuses_names_it(gcs):  # noqa: F811
    with pytest.raises(ServiceError, match=r"^'gs://no-such-bucket/x': the bucket cannot be used .*credentials"):
        storage.write(as_path("gs://no-such-bucket/x"), b"")


def test_files_and_folders_are_written_whole(any_folder, tmp_path):  # noqa: F811
    here = as_path(any_folder)
    write_json(here / "x.json", {"a": [1]})
    assert read_object(here / "x.json", "") == {"a": [1]}
    write_with(here / "y", lambda aside: aside.write_bytes(b"y"))
    assert storage.read(here / "y") == b"y"
    out = here / "out"
    with new_folder(out) as made:
        (made / "sub").mkdir()
        (made / "sub" / "f").write_bytes(b"f")
        assert not out.exists(), "nothing is there before the end"
    assert storage.keys(out) == [MARKER, "sub/f"]
    with pytest.raises(UserError, match="exists"):
        require_new(out)
    copy_folder(out, tmp_path / "back")
    assert [path.name for path in (tmp_path / "back").rglob("*") if path.is_file()] == ["f"]
    with pytest.raises(ZeroDivisionError), new_folder(here / "failed"):
        1 / 0  # noqa: B018
    assert not (here / "failed").exists()
    assert not [name for name in storage.keys(here) if "lock" in name]


def test_a_folder_whose_writer_was_killed_is_replaced(folder, tmp_path, monkeypatch):  # noqa: F811
    out = as_path(folder) / "out"
    real, count = storage.write, 0

    def fails(path, data, only_if=None):
        nonlocal count
        count += "out/" in str(path)
        if count == 3 and "out/" in str(path):
            raise KeyboardInterrupt
        return real(path, data, only_if)

    for module in (objects, storage):
        monkeypatch.setattr(module, "write", fails)
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"1")
    with pytest.raises(KeyboardInterrupt):
        copy_folder(tmp_path, out)
    monkeypatch.undo()
    assert storage.is_partial(out)
    with new_folder(out) as made:
        (made / "c").write_bytes(b"2")
    assert storage.keys(out) == ["c", MARKER]


HOLD = """
import sys, time
from zipper_jax.utils import leases
leases.LEASE, leases.RENEWAL = float(sys.argv[2]), float(sys.argv[3])
from zipper_jax.utils.locks import locked, locked_file
from zipper_jax.utils.staging import growing
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(where: str, lease: float = 60, renewal: float = 10) -> subprocess.Popen:
    command = [sys.executable, "-c", HOLD, where, str(lease), str(renewal)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n", process.stderr.read()
    return process


def pretend_another_machine(path, monkeypatch) -> None:
    content = {**json.loads(storage.read(path)), "machine": "another"}
    storage.write(path, json.dumps(content).encode())


def test_one_process_holds_a_lock_and_its_successor_takes_it_over_once_it_is_killed(any_folder):  # noqa: F811
    holder = hold(any_folder)
    with pytest.raises(UserError, match=f"is being written by process {holder.pid} on "), locked(any_folder):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close(), holder.stderr.close()
    assert (as_path(any_folder) / ".lock").is_file()
    refused = pytest.raises(UserError, match=f"is being written by process {os.getpid()} ")
    with locked(any_folder), refused, locked(any_folder):
        pass
    assert storage.keys(as_path(any_folder)) == []


def test_the_lock_of_another_machine_is_taken_over_when_its_lease_has_run_out(folder, monkeypatch):  # noqa: F811
    monkeypatch.setattr(leases, "LEASE", 2.0)
    lock = as_path(folder) / ".lock"
    storage.write(lock, json.dumps({"holder": "process 7 on mars", "process": 7, "machine": "another"}).encode())
    began = time.monotonic()
    with locked(folder):
        assert time.monotonic() - began >= 2.0
        assert json.loads(storage.read(lock))["process"] == os.getpid()


def test_a_lock_that_is_renewed_is_not_taken_over(folder, monkeypatch):  # noqa: F811
    monkeypatch.setattr(leases, "LEASE", 30.0)
    monkeypatch.setattr(leases, "_machine", lambda: "here")
    holder = hold(folder, lease=30, renewal=0.5)
    with pytest.raises(UserError, match=f"is being written by process {holder.pid} on "), locked(folder):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close(), holder.stderr.close()


def test_a_holder_whose_lock_was_taken_over_ends_at_once(folder):  # noqa: F811
    holder = hold(folder, lease=60, renewal=0.2)
    storage.write(as_path(folder) / ".lock", json.dumps({"holder": "process 7 on mars"}).encode())
    assert holder.wait(timeout=20) == 1
    assert "another process has taken over the lock" in holder.stderr.read()
    holder.stdout.close(), holder.stderr.close()
    assert json.loads(storage.read(as_path(folder) / ".lock"))["holder"] == "process 7 on mars"


@pytest.mark.parametrize("status", [0, 503])
def test_a_holder_that_cannot_renew_its_lock_ends_before_it_may_be_taken_over(folder, status):  # noqa: F811
    holder = hold(folder, lease=6, renewal=1)
    with failing(f"{folder.rpartition('/')[2]}/.lock", status):
        assert holder.wait(timeout=20) == 1, "TensorStore alone tries for a minute"
    assert "this process ends" in holder.stderr.read()
    holder.stdout.close(), holder.stderr.close()


def test_a_lock_that_cannot_be_released_does_not_hide_the_error_of_the_block(folder, caplog):  # noqa: F811
    with pytest.raises(ZeroDivisionError), failing(f"DELETE .*{folder.rpartition('/')[2]}"), locked(folder):
        1 / 0  # noqa: B018
    assert "the lock stays" in caplog.text


def test_a_killed_holder_that_its_parent_has_not_noticed_is_dead(folder):  # noqa: F811
    holder = hold(folder)
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # a zombie from now on
    with locked(folder):
        assert json.loads(storage.read(as_path(folder) / ".lock"))["process"] == os.getpid()
    holder.wait()
    holder.stdout.close(), holder.stderr.close()


def test_a_lost_answer_to_a_write_of_a_lock_does_not_lose_it(folder, monkeypatch):  # noqa: F811
    real, lost = storage.write, []

    def loses(path, data, only_if=None):
        found = real(path, data, only_if)
        if data is not None and len(lost) < 2:
            lost.append(found)
            return None
        return found

    monkeypatch.setattr(storage, "write", loses)
    monkeypatch.setattr(leases, "RENEWAL", 0.2)
    with locked(folder):
        time.sleep(1)
    assert len(lost) == 2
    assert storage.keys(as_path(folder)) == []


def test_objects_do_not_leave_the_folder_that_they_are_copied_to(tmp_path, monkeypatch):
    store = tensorstore.KvStore.open({"driver": "memory"}).result()  # the emulators refuse such names
    monkeypatch.setattr(objects, "_open", lambda *_: store)
    for name in ("../a", "a/../../b", "a/./b", "a//b"):
        storage.write(f"gs://bucket/x/{name}", b"x")
        with pytest.raises(UserError, match=r"no file can have that name"):
            storage.copy_tree(as_path("gs://bucket/x"), tmp_path / "out")
        storage.write(f"gs://bucket/x/{name}", None)
    assert not list(tmp_path.rglob("*"))


def test_damaged_arrays_and_tensors_are_called_damaged(any_folder, tmp_path):  # noqa: F811
    np.save(tmp_path / "a.npy", np.arange(100_000))
    whole = (tmp_path / "a.npy").read_bytes()
    for content in (b"", whole[:5], whole[:50]):
        storage.write(f"{any_folder}/a.npy", content)
        with pytest.raises(UserError, match=r"a\.npy' .*damaged.*; prepare it again"):
            BucketArray(as_path(any_folder) / "a.npy", "prepare it again")
    for content in (whole[:1000], whole[:-1000]):
        storage.write(f"{any_folder}/a.npy", content)
        array = BucketArray(as_path(any_folder) / "a.npy", "prepare it again")
        with pytest.raises(UserError, match=r"a\.npy' .*damaged.*; prepare it again"):
            array[-5:]
    storage.write(f"{any_folder}/a.npy", whole)
    assert (BucketArray(as_path(any_folder) / "a.npy", "")[:] == np.arange(100_000)).all()
    save_file({"a": np.arange(100, dtype=np.float32)}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    for content in (b"", whole[:5], whole[:20], whole[:-10]):
        storage.write(f"{any_folder}/model.safetensors", content)
        with pytest.raises(UserError, match=r"model\.safetensors.* damaged"):
            Reader(any_folder).read("a")


def test_a_file_whose_writing_fails_becomes_no_object(folder):  # noqa: F811
    for mode, content in (("w", "x"), ("wb", b"x")):
        with pytest.raises(TypeError), (as_path(folder) / "half").open(mode) as file:
            file.writelines([content, 1])
        file = (as_path(folder) / "half").open(mode)
        file.write(content)
        del file
        gc.collect()
        with (as_path(folder) / mode).open(mode) as file:
            file.write(content)
    assert storage.keys(folder) == ["w", "wb"]


def test_importing_the_package_leaves_other_programs_buckets_alone():
    code = "import os, zipper_jax.cli.main, zipper_jax.utils.storage; assert 'EPATH_USE_TF' not in os.environ"
    environment = {name: value for name, value in os.environ.items() if name != "EPATH_USE_TF"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_many_that_want_a_lock_at_once_get_it_one_at_a_time(folder):  # noqa: F811
    held, most = [], []

    def want() -> None:
        for _ in range(5):
            try:
                with locked(folder):
                    held.append(1)
                    most.append(len(held))
                    time.sleep(0.01)
                    held.pop()
            except UserError:
                pass

    threads = [threading.Thread(target=want) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1


def test_an_empty_file_is_not_left_behind(folder, tmp_path):  # noqa: F811
    for path in (as_path(folder) / "a", tmp_path / "a"):
        with growing(path) as here:
            here.touch()
        assert not path.exists()
        with locked_file(path), growing(path.with_name("b")) as here:
            here.write_text("y\n")
        assert path.with_name("b").read_bytes() == b"y\n"
