"""Models of the hub: what is fetched of them and what is not, and the errors when they cannot be fetched.

The library reads its environment when it is imported, so each call is a process of its own.
"""

import errno
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny_hub import COMMIT, Hub

from zipper_jax import UserError
from zipper_jax.conversion import hub as module
from zipper_jax.conversion.hub import model_folder

ROOT = Path(__file__).resolve().parents[2]
NAME = "org/tiny"
TOKEN = "hf_thisIsTheSecretOfTheTest"
WEIGHTS = bytes(range(256)) * 4000
STEP = 10 * 2**20
"""The library writes files, and so resumes them, in such pieces."""
LARGE = bytes(range(256)) * (STEP // 256 + 4000)
SMALL = {
    "config.json": b'{"model_type": "tiny"}',
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
}
OTHER = {
    "README.md": b"# Tiny",
    "pytorch_model.bin": b"a pickle",
    "pytorch_model.bin.index.json": b"{}",
    "modeling_x.py": b"raise SystemExit",
    "consolidated.safetensors": b"the weights again",
    "model.fp16.safetensors": b"the weights again",
    "original/consolidated.safetensors": b"the weights again",
    "original/params.json": b"{}",
    "onnx/model.onnx": b"the weights again",
}
WANTED = sorted([*SMALL, "model.safetensors"])

CALLS = """
import json, logging, sys
from zipper_jax.conversion.hub import model_folder
from zipper_jax.utils.errors import UserError

said = []
handler = logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger("zipper_jax").addHandler(handler)
logging.getLogger("zipper_jax").setLevel(logging.INFO)
results = []
for arguments in json.loads(sys.argv[1]):
    folder, error = "", ""
    said.clear()
    try:
        folder = str(model_folder(*arguments))
    except UserError as caught:
        error = str(caught)
    results.append((list(said), folder, error))
print(json.dumps(results))
"""


@dataclass(frozen=True)
class Result:
    said: list[str]
    folder: Path
    error: str


@pytest.fixture
def calls(tmp_path):
    """``calls(hub, [arguments, ...], **environment)``: `model_folder` in a new process, with a cache of this test."""

    def calls(hub: Hub | str, calls: list[list[str]], **environment: str) -> list[Result]:
        kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
        settings = {
            "PYTHONPATH": str(ROOT),
            "HF_ENDPOINT": hub if isinstance(hub, str) else hub.address,
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "*",
        }
        command = [sys.executable, "-c", CALLS, json.dumps(calls)]
        env = kept | settings | environment
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert TOKEN not in done.stdout + done.stderr
        results = [Result(said, Path(folder), error) for said, folder, error in json.loads(done.stdout)]
        assert not any("\n" in line for result in results for line in (*result.said, result.error))
        return results

    return calls


@pytest.fixture
def call(calls):
    """The same for one call: ``call(hub, *arguments, **environment)``."""
    return lambda hub, *arguments, **environment: calls(hub, [[*(arguments or (NAME,))]], **environment)[0]


def contents(result: Result) -> dict[str, bytes]:
    assert not result.error
    folder = result.folder
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def unused_address() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def hub():
    with Hub(NAME, SMALL | OTHER | {"model.safetensors": WEIGHTS}) as hub:
        yield hub


def ranges(hub: Hub) -> list[str | None]:
    """The Range of each request for the content of the weights."""
    return [request.range for request in hub.requests if (request.method, request.file) == ("GET", "model.safetensors")]


class TestFolders:
    @pytest.fixture(autouse=True)
    def without_the_library(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # importing it now fails

    def test_a_folder_is_returned_as_it_is(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        (tmp_path / "org" / "tiny").mkdir(parents=True)
        assert model_folder(str(tmp_path)) == tmp_path
        assert model_folder("org/tiny") == Path("org/tiny")
        assert model_folder("~/org") == tmp_path / "org"

    @pytest.mark.parametrize(
        "path", ["", "./tiny", "../tiny", "/no/tiny", "~nobody", "runs/converted/tiny", "tiny/", "model.safetensors"]
    )
    def test_a_path_that_does_not_exist_is_no_id(self, path):
        with pytest.raises(UserError, match=rf"folder '{path}' does not exist"):
            model_folder(path)

    def test_a_file_is_no_folder(self, tmp_path):
        (tmp_path / "model.safetensors").touch()
        with pytest.raises(UserError, match=r"model\.safetensors' is a file: give the folder"):
            model_folder(str(tmp_path / "model.safetensors"))

    def test_a_folder_has_no_revision(self, tmp_path):
        with pytest.raises(UserError, match=r"revision 'main': .* is a folder"):
            model_folder(str(tmp_path), "main")


class TestDownloads:
    def test_what_is_wanted_is_fetched_once_and_nothing_else(self, hub, call):
        first = call(hub)
        assert contents(first) == SMALL | {"model.safetensors": WEIGHTS}
        assert {request.file for request in hub.requests if request.file} == set(WANTED)
        assert hub.fetched() == WANTED
        assert len(first.said) == 1
        assert f"{NAME} ({COMMIT[:12]}): downloading 5 files, 1000.1 KiB, to " in first.said[0]

        second = call(hub)
        assert second.folder == first.folder
        assert (hub.fetched(), second.said) == ([], [])

    def test_the_weights_are_those_of_the_index(self, hub, call):
        shards = {"model-00001-of-00002.safetensors": b"one", "model-00002-of-00002.safetensors": b"two"}
        index = {"weight_map": {"a": min(shards), "b": max(shards), "c": min(shards)}}
        wanted = SMALL | shards | {"model.safetensors.index.json": json.dumps(index).encode()}
        hub.files = wanted | OTHER
        assert contents(call(hub)) == wanted
        assert hub.fetched() == sorted(wanted)
        # All shards must be there for the copy to count as one.
        copy = call(hub, HF_HUB_OFFLINE="1")
        assert contents(copy) == wanted
        next(copy.folder.glob("model-00002*")).unlink()
        assert "not completely" in call(hub, HF_HUB_OFFLINE="1").error

    @pytest.mark.parametrize(
        "weight_map, what",
        [
            ('{"a": "model-00001.safetensors", "b": "lost.safetensors"}', "lists 'lost.safetensors', which is missing"),
            ('{"a": "original/consolidated.safetensors"}', "lists 'original/consolidated.safetensors', which is no"),
            ('{"a": "pytorch_model.bin"}', "lists 'pytorch_model.bin', which is no safetensors"),
            ('["model-00001.safetensors"]', "is damaged"),
        ],
    )
    def test_an_index_that_names_other_files(self, hub, call, weight_map, what):
        index = b'{"weight_map": %s}' % weight_map.encode()
        hub.files = SMALL | OTHER | {"model-00001.safetensors": b"", "model.safetensors.index.json": index}
        assert what in call(hub).error
        assert hub.fetched() == ["model.safetensors.index.json"]

    def test_names_are_no_patterns(self, hub, call):
        odd = "*.safetensors"
        index = {"weight_map": {"a": odd}}
        wanted = SMALL | {odd: b"one", "model.safetensors.index.json": json.dumps(index).encode()}
        hub.files = OTHER | wanted
        assert contents(call(hub)) == wanted

    def test_pickles_are_refused_before_anything_is_fetched(self, hub, call):
        hub.files = SMALL | OTHER
        assert f"'{NAME}' has no safetensors, only pytorch_model.bin, a pickle" in call(hub).error
        assert hub.fetched() == []

    def test_a_repository_without_config_is_no_model(self, hub, call):
        del hub.files["config.json"]
        assert f"'{NAME}' has no config.json" in call(hub).error
        assert hub.fetched() == []

    def test_a_cut_download_is_resumed_where_it_broke(self, hub, call):
        hub.files["model.safetensors"] = LARGE
        hub.cut["model.safetensors"] = [STEP + 1000]
        found = call(hub)
        if found.error:  # older versions of the library do not try again by themselves, but resume in the next call
            found = call(hub)
        assert contents(found)["model.safetensors"] == LARGE
        assert ranges(hub) == [None, f"bytes={STEP}-"]

    def test_a_cut_download_keeps_the_files_that_are_whole(self, hub, call, tmp_path):
        hub.files["model.safetensors"] = LARGE
        hub.cut["model.safetensors"] = [STEP + 1000]
        # After the cut the hub is down, so that the library gives up.
        hub.refuse = lambda path, file: (500, {}) if len(ranges(hub)) > 1 else None
        assert f"'{NAME}': " in call(hub).error
        assert set(hub.fetched()) == set(WANTED)
        assert "not completely" in call(hub, HF_HUB_OFFLINE="1").error

        hub.refuse = lambda path, file: None
        again = call(hub)
        assert "downloading 1 file, 11.0 MiB, to" in again.said[0]
        assert contents(again) == SMALL | {"model.safetensors": LARGE}
        # Of a file that was cut, the library keeps nothing from one call to the next since its version 1.18.
        assert ranges(hub) in ([None], [f"bytes={STEP}-"])
        assert hub.fetched() == ["model.safetensors"]
        assert not list(tmp_path.rglob("*.incomplete"))

    def test_a_revision(self, hub, calls):
        found, unknown = calls(hub, [[NAME, COMMIT], [NAME, "v9"]])
        assert contents(found) == SMALL | {"model.safetensors": WEIGHTS}
        assert not any(request.path == f"/api/models/{NAME}" for request in hub.requests)  # the main branch
        assert f"'{NAME}' has no revision 'v9': give a branch, tag or commit" in unknown.error

    def test_a_model_that_changes_meanwhile(self, hub, call):
        def change(path, file):
            if path.endswith("/revision/main"):  # the second look at the list of files
                hub.commit = COMMIT[::-1]

        hub.refuse = change
        assert "was changed on the hub" in call(hub).error


class TestOffline:
    @pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
    def test_only_the_cache_is_used(self, hub, call, calls, variable):
        without = call(hub, **{variable: "1"})
        assert f"'{NAME}' is not in the cache" in without.error
        assert f"unset {variable} once" in without.error
        folder = call(hub).folder
        hub.requests.clear()
        found, other = calls(hub, [[NAME], [NAME, "v9"]], **{variable: "1"})
        assert (found.folder, found.said, hub.requests) == (folder, [], [])
        assert f"'{NAME}' (revision 'v9') is not in the cache" in other.error

    def test_an_incomplete_copy_is_none(self, hub, call):
        (call(hub).folder / "model.safetensors").unlink()
        assert f"'{NAME}' is not in the cache" in call(hub, HF_HUB_OFFLINE="1").error


REFUSALS = [
    # status, headers, what is reported, how to fix it
    (404, {"X-Error-Code": "RepoNotFound"}, "the hub shows no model '{}' (404)", "check the spelling"),
    (404, {}, "the hub shows no model '{}' (404)", "check the spelling"),
    # What it answers, without a token, of models that do not exist, and of private ones.
    (401, {"X-Error-Code": "RepoNotFound"}, "the hub shows no model '{}' (401)", "if it is private, log in with `hf"),
    (
        401,
        {"X-Error-Message": "Invalid credentials in Authorization header"},
        "'{}': the hub asks for a valid token (401)",
        "log in with `hf auth login`, or set HF_TOKEN",
    ),
    (403, {"X-Error-Code": "GatedRepo"}, "'{}' is gated (403)", "accept its licence on the model's page"),
    (403, {}, "'{}': you may not read it (403)", "accept its licence on the model's page, then log in"),
    (403, {"X-Error-Message": "Access to this resource is disabled."}, "'{}' has been disabled", "another model"),
    (429, {}, "'{}': too many requests to the hub (429)", "wait some minutes"),
    (503, {}, "'{}': the hub answers with error 503", "run this again later"),
]


class TestRefusals:
    def test_of_models(self, hub, calls):
        names = [f"org/tiny{number}" for number in range(len(REFUSALS))]
        hub.refuse = lambda path, file: REFUSALS[int(path[-1])][:2]
        results = calls(hub, [[name] for name in names])
        for name, result, (_, _, what, fix) in zip(names, results, REFUSALS, strict=True):
            assert what.format(name) in result.error
            assert fix in result.error

    @pytest.mark.parametrize("status", [401, 403])
    def test_of_a_gated_models_files(self, hub, call, status):
        """Its list of files can be seen by everyone, the files cannot."""
        hub.refuse = lambda path, file: (status, {"X-Error-Code": "GatedRepo"}) if file else None
        assert f"'{NAME}' is gated ({status}): accept its licence" in call(hub).error

    def test_without_a_connection(self, calls):
        lost, no_id = calls(unused_address(), [[NAME], ["or g/tiny"]])
        assert f"'{NAME}': no connection to the hub, or it was lost (Connect" in lost.error
        assert "check the network, the proxy and HF_ENDPOINT" in lost.error
        assert "'or g/tiny' is neither a folder nor an id of the hub" in no_id.error

    def test_a_copy_in_the_cache_serves_meanwhile(self, hub, call):
        folder = call(hub).folder
        hub.refuse = lambda path, file: (503, {})
        for address in (hub, unused_address()):
            found = call(address)
            assert found.folder == folder
            assert len(found.said) == 1
            assert found.said[0].endswith(f"For now the copy in the cache is used: {folder}")


class TestMessages:
    def test_neither_tokens_nor_signed_addresses(self):
        error = RuntimeError(f"cannot GET https://cdn/x?Signature=abc\nwith Bearer abc and {TOKEN}")
        said = module._what_happened(error, NAME, None)
        assert "RuntimeError: cannot GET ... with ... and ...)" in said

    def test_a_full_disk(self):
        error = RuntimeError("outside")
        error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
        assert "No space left on device): set HF_HOME to another folder" in module._what_happened(error, NAME, None)

    def test_a_page_that_is_not_the_hubs(self, hub, call):
        hub.refuse = lambda path, file: (200, {"Content-Type": "text/html"})
        assert f"'{NAME}' cannot be downloaded (KeyError: 'id'): check the proxy and HF_ENDPOINT" in call(hub).error

    def test_unknown_sizes(self):
        assert module._amount(["a", "b"], {"a": 1, "b": None}) == "2 files"
        assert module._amount(["a"], {"a": 12_345_678_901_234}) == "1 file, 11.2 TiB,"
