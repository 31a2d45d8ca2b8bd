"""Checkpoints that are damaged, old, elsewhere, or for another model. Real folders, real flipped bytes."""

import gc
import hashlib
import json
import re
import resource
import shutil
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from logged import logged
from running import log, params, run
from tiny_models import LENGTHS, ONE_DEVICE, tower, zipper_model

import zipper_jax
from zipper_jax.checkpoint import checkpoints, manifest
from zipper_jax.checkpoint.orbax_trees import read_folder
from zipper_jax.checkpoint.run_format import read_config
from zipper_jax.cli import gin_bindings
from zipper_jax.cli.main import main
from zipper_jax.decoding.sampling import SamplingConfig
from zipper_jax.models.config import ModalityConfig
from zipper_jax.sequences import TowerBatch
from zipper_jax.sharding.mesh import MeshConfig
from zipper_jax.training import program
from zipper_jax.training.config import DataConfig, RestoreCheckpointConfig, SaveCheckpointConfig
from zipper_jax.training.monitor import read_metrics
from zipper_jax.training.optimizer import OptimizerConfig
from zipper_jax.training.partition_tree import FreezeConfig
from zipper_jax.utils.configs import RENAMED
from zipper_jax.utils.errors import DamagedError, UserError
from zipper_jax.utils.trees import unflatten

# A read that fails leaves tasks of Orbax's behind in an event loop that is closed; Python warns whenever it collects
# them. Collected here, they cause no warning in another file's tests.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _collected():
    yield
    gc.collect()


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(bytes(data))


def largest(folder: Path) -> Path:
    """The file with most of the elements."""
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, prepared):
    """A run with a frozen tower and checkpoints of steps 2, 3 and 4; copy it before you break it."""
    from zipper_jax.training.config import TrainConfig

    config = TrainConfig(
        model=zipper_model(),
        data=DataConfig(str(prepared), "asr_tts", LENGTHS, {"asr": 1.0, "tts": 1.26}),
        model_dir=str(tmp_path_factory.mktemp("trained") / "run"),
        steps=4,
        batch_size=4,
        optimizer=OptimizerConfig(learning_rate=1e-2),
        mesh=ONE_DEVICE,
        log_period=1,
        freeze=FreezeConfig(towers=("text",)),
        save=SaveCheckpointConfig(period=1, keep=3),
    )
    run(config)
    return config


@pytest.fixture
def copied(trained, tmp_path):
    shutil.copytree(trained.model_dir, tmp_path / "copy")
    return replace(trained, model_dir=str(tmp_path / "copy"))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, np.uint32, np.bool_, "bfloat16"])
def test_a_digest_tells_every_element_and_every_place(dtype):
    random = np.random.default_rng(0)
    values = jax.numpy.asarray(random.integers(0, 2, (7, 5)), dtype)
    digest = manifest.table({"x": values})["x"]["digest"]
    assert manifest.table({"x": values})["x"]["digest"] == digest
    seen = {digest}
    for place in np.ndindex(7, 5):
        changed = values.at[place].set(1 - values[place] if dtype is not np.bool_ else ~values[place])
        seen.add(manifest.table({"x": changed})["x"]["digest"])
    assert len(seen) == 36
    zeros = jax.numpy.zeros(4)
    assert manifest.table({"x": zeros})["x"]["digest"] != manifest.table({"x": -zeros})["x"]["digest"]
    swapped = jax.numpy.asarray([[1, 2], [3, 4]], np.float32)
    assert manifest.table({"x": swapped})["x"]["digest"] != manifest.table({"x": swapped.T})["x"]["digest"]


def test_a_digest_is_the_same_on_any_mesh():
    from jax.sharding import NamedSharding, PartitionSpec

    from zipper_jax.sharding.mesh import make_mesh

    values = np.random.default_rng(0).normal(size=(8, 12)).astype(np.float32)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    cut = jax.device_put(values, NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "tensor")))
    assert manifest.table({"x": cut}) == manifest.table({"x": values})


@pytest.mark.slow
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_costs_nothing_that_was_saved(copied, asynchronous, monkeypatch, capsys):
    """Files may not grow as large as the arrays': the run ends with one line, and resumes once there is space."""
    save = replace(copied.save, asynchronous=asynchronous)
    config = replace(copied, steps=6, save=save)
    monkeypatch.setattr(gin_bindings, "train_config", lambda: config)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (56_000, hard))
    try:
        assert main(["train", "--gin_file=runs/fuse.gin"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"error: {config.model_dir!r}: no disk space left to write a checkpoint (step 4 is complete); " + (
        "free some, then run the same command again"
    )
    assert max(checkpoints.steps(config.model_dir)) == 4
    assert not checkpoints.verify(config.model_dir, 4)
    result, shown = run(config)
    assert result.step == 6
    assert "resuming after step 4" in shown


def test_any_flipped_byte_truncated_or_missing_file_is_found_and_named(copied, capsys):
    """Every file of a step and of the frozen part in turn, at a random byte."""
    run_dir = Path(copied.model_dir)
    assert main(["ckpt", "verify", str(run_dir)]) == 0
    assert capsys.readouterr().out.split("\n")[:3] == ["step 2: good", "step 3: good", "step 4: good"]
    random = np.random.default_rng(0)
    step = run_dir / "checkpoints" / "3"
    files = [p for root in (step, run_dir / "frozen") for p in sorted(root.rglob("*")) if p.is_file()]
    assert len(files) > 20
    for path in (path for path in files if path.stat().st_size):
        whole = path.read_bytes()
        flip(path, int(random.integers(len(whole))))
        name = (
            path.name
            if path.name == manifest.FILES
            else str(path.relative_to(step if step in path.parents else run_dir))
        )
        problems = checkpoints.verify(run_dir, 3, arrays=False)
        assert any(name in p.replace(": file ", "/") for p in problems), (name, problems)
        path.write_bytes(whole[:-1])
        assert checkpoints.verify(run_dir, 3, arrays=False)
        path.unlink()
        assert checkpoints.verify(run_dir, 3, arrays=False)
        path.write_bytes(whole)
    assert checkpoints.verify(run_dir, 3) == []

    data = largest(step / "trainable")
    flip(data, data.stat().st_size // 2)
    assert main(["ckpt", "verify", str(run_dir)]) == 1
    shown = capsys.readouterr().out
    assert "step 2: good\nstep 3: DAMAGED\n" in shown
    assert str(data.relative_to(step)) in shown
    assert main(["ckpt", "verify", str(run_dir), "--step", "7"]) == 2
    assert "there are: 2, 3, 4" in capsys.readouterr().err


def test_an_array_that_is_not_what_was_saved_is_named_though_its_file_reads_well(copied):
    """A write that went wrong by itself: the files agree with their digests, the elements differ."""
    import orbax.checkpoint as ocp

    folder = Path(copied.model_dir, "checkpoints", "4")
    path = "towers/speech/final_norm/scale"
    nested = checkpoints.orbax_trees.read_folder(folder / "trainable", None, "")
    assert path in nested
    nested[path] = nested[path] + np.float32(1e-6)
    shutil.rmtree(folder / "trainable")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(folder / "trainable", args=ocp.args.PyTreeSave(checkpoints.unflatten(nested)))
    manifest.seal_files(folder)
    assert checkpoints.verify(copied.model_dir, 4, arrays=False) == []
    assert checkpoints.verify(copied.model_dir, 4) == [f"array {path} is not what was saved"]
    with pytest.raises(DamagedError, match=f"array {path}"):
        checkpoints.load_params(copied.model_dir, 4)


def test_training_resumes_from_the_last_good_step_and_reports_it(trained, copied, tmp_path):
    damaged = Path(copied.model_dir, "checkpoints")
    data = largest(damaged / "4" / "trainable")
    flip(data, data.stat().st_size // 2)
    shutil.rmtree(damaged / "3" / "optimizer")
    longer = replace(copied, steps=6)
    result, shown = run(longer)
    assert result.status == "finished"
    assert "checkpoint 4 of" in shown
    assert "optimizer is missing" in shown
    assert "resuming from step 2, the newest good checkpoint" in shown
    assert sorted(p.name for p in Path(copied.model_dir, "damaged").iterdir()) == ["3", "4"], "nothing is lost"
    straight = replace(trained, model_dir=str(tmp_path / "straight"), steps=6)
    run(straight)
    assert log(longer) == log(straight)


def test_compressed_data_that_cannot_be_unpacked_is_damage_too(copied):
    # Orbax reports it by a bare Exception.
    data = largest(Path(copied.model_dir, "checkpoints", "4", "trainable"))
    content = data.read_bytes()
    frame = b"\x28\xb5\x2f\xfd"  # how a compressed array begins; the first in the file is broken
    assert frame in content
    data.write_bytes(content.replace(frame, b"\x28\xb5\x2f\xfc", 1))
    shown = run(replace(copied, steps=5))[1]
    assert "checkpoint 4 of" in shown
    assert "resuming from step 3, the newest good checkpoint" in shown


def test_loading_falls_back_with_a_warning_but_not_from_a_step_asked_for(copied):
    data = largest(Path(copied.model_dir, "checkpoints", "4", "trainable"))
    flip(data, data.stat().st_size // 2)
    with pytest.warns(UserWarning, match="loading step 3"):
        found = params(copied)
    for key, leaf in params(copied, 3).items():
        np.testing.assert_array_equal(found[key], leaf)
    with pytest.raises(DamagedError, match="checkpoint 4"):
        checkpoints.load_params(copied.model_dir, 4)


def made(leaves):
    return {path: leaf.make() for path, leaf in leaves.items()}


def test_parameters_opened_one_by_one_are_those_loaded_at_once(trained, copied):
    """Slices of a leaf that is frozen in part are joined; a leaf is read and verified when it is requested."""
    for step in (None, 3):
        opened, loaded = checkpoints.open_params(copied.model_dir, step), params(copied, step)
        assert {path: (leaf.shape, leaf.dtype) for path, leaf in opened.items()} == {
            path: (leaf.shape, leaf.dtype) for path, leaf in loaded.items()
        }
        for path, array in made(opened).items():
            np.testing.assert_array_equal(array, loaded[path])
    data = largest(Path(copied.model_dir, "checkpoints", "4", "trainable"))
    flip(data, data.stat().st_size // 2)
    with pytest.raises(DamagedError, match="checkpoint 4"):
        made(opened_step(copied, 4))
    with pytest.raises(DamagedError, match=r"checkpoint 4.*not what was saved"):
        checkpoints.open_params(copied.model_dir, 4)
    with pytest.warns(UserWarning, match="loading step 3"):
        found = made(checkpoints.open_params(copied.model_dir))
    for path, array in params(copied, 3).items():
        np.testing.assert_array_equal(found[path], array)
    data = largest(next(p for p in Path(copied.model_dir, "frozen").iterdir() if p.is_dir()))
    flip(data, data.stat().st_size // 2)
    with pytest.raises(DamagedError, match="frozen part"):
        made(checkpoints.open_params(copied.model_dir, 3))


def opened_step(config, step):
    """Unsealed, as a kill behind a save leaves it: only its arrays' digests show damage."""
    folder = Path(config.model_dir, "checkpoints", str(step))
    sealed = (folder / manifest.FILES).read_bytes()
    (folder / manifest.FILES).unlink()
    found = checkpoints.open_params(config.model_dir, step)
    (folder / manifest.FILES).write_bytes(sealed)
    return found


def test_a_damaged_frozen_part_stops_the_run_and_condemns_no_step(copied):
    data = largest(next(p for p in Path(copied.model_dir, "frozen").iterdir() if p.is_dir()))
    flip(data, data.stat().st_size // 2)
    with pytest.raises(UserError, match=r"frozen part .* is damaged.*restore it from a copy"):
        run(replace(copied, steps=6))
    assert checkpoints.steps(copied.model_dir) == [2, 3, 4]


def test_a_frozen_part_is_known_by_its_name_without_its_table(copied):
    """The table of digests is written again; arrays that are not those of the name are never taken for them."""
    root = Path(copied.model_dir, "frozen")
    (table,) = root.glob("*.json")
    content = table.read_bytes()
    table.unlink()
    like = program.build(copied, 2).like
    with checkpoints.Checkpoints(copied.model_dir, copied.save) as saved:
        saved.restore(like)
    assert table.read_bytes() == content
    table.unlink()
    folder = root / table.stem
    frozen = read_folder(folder, None, "")
    frozen[max(frozen, key=lambda key: frozen[key].size)] += 1
    shutil.rmtree(folder)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
        writer.save(folder, args=ocp.args.PyTreeSave(unflatten(frozen)))
    with (
        checkpoints.Checkpoints(copied.model_dir, copied.save) as saved,
        pytest.raises(DamagedError, match="its arrays are not what was saved"),
    ):
        saved.restore(like)
    assert not table.exists()


def test_freezing_what_was_trained_is_named(copied):
    """And not a crash, which in a group would be of one process only."""
    more = replace(copied, freeze=FreezeConfig(towers=("text", "speech")), allow_changes=True)
    with (
        checkpoints.Checkpoints(copied.model_dir, copied.save) as saved,
        pytest.raises(UserError, match=r"lacks towers/speech/.* model or freeze rules changed since"),
    ):
        saved.restore(program.build(more, 2).like)


def test_every_step_damaged_never_starts_over_silently(copied):
    for step in (2, 3, 4):
        Path(copied.model_dir, "checkpoints", str(step), "manifest", "metadata").write_text("{")
    for _ in range(2):
        with pytest.raises(DamagedError, match="every checkpoint of"):
            run(replace(copied, steps=6))
    assert checkpoints.steps(copied.model_dir) == [2, 3, 4], "nothing was moved"
    (Path(copied.model_dir) / "checkpoints").rename(Path(copied.model_dir) / "damaged")
    with pytest.raises(UserError, match="has no good checkpoint, only damaged ones"):
        run(replace(copied, steps=6))


def test_a_half_written_step_is_cleared_away(copied):
    """What a kill in the middle of a write leaves: a folder under a temporary name; or a half deleted old step."""
    folder = Path(copied.model_dir, "checkpoints")
    shutil.copytree(folder / "4", folder / "5.orbax-checkpoint-tmp-123")
    shutil.copytree(folder / "2", folder / ".trash-1")
    assert checkpoints.steps(copied.model_dir) == [2, 3, 4]
    run(replace(copied, steps=5))
    assert sorted(p.name for p in folder.iterdir()) == ["3", "4", "5"]


@pytest.mark.slow
def test_restoring_onto_another_mesh_gives_the_same_arrays_and_nearly_the_same_losses(trained, copied):
    elsewhere = replace(copied, mesh=MeshConfig(data=2, fsdp=2, tensor=2), steps=6)
    run(elsewhere)
    here = replace(trained, steps=6)
    for a, b in zip(log(elsewhere), log(here), strict=False):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
    assert checkpoints.verify(copied.model_dir, 6) == []


def test_restoring_in_another_dtype_casts_what_was_verified(copied):
    from zipper_jax.training import program

    like = program.build(copied, 2).like
    half = {
        k: jax.ShapeDtypeStruct(v.shape, jax.numpy.bfloat16, sharding=v.sharding) for k, v in like.trainable.items()
    }
    state, _ = checkpoints.restore_step(copied.model_dir, like._replace(trainable=half), 4)
    whole, _ = checkpoints.restore_step(copied.model_dir, like, 4)
    for key, leaf in state.trainable.items():
        assert leaf.dtype == jax.numpy.bfloat16
        np.testing.assert_array_equal(leaf, whole.trainable[key].astype(jax.numpy.bfloat16))


def test_export_is_one_folder_that_loads_and_needs_nothing_else(copied, tmp_path, capsys):
    out = tmp_path / "exported"
    assert main(["ckpt", "export", copied.model_dir, "--out", str(out), "--step", "3"]) == 0
    assert main(["ckpt", "verify", str(out)]) == 0
    assert main(["ckpt", "list", str(out)]) == 0
    expected = params(copied, 3)
    shutil.rmtree(copied.model_dir)
    found = params(replace(copied, model_dir=str(out)))
    assert found.keys() == expected.keys()
    for key, leaf in expected.items():
        np.testing.assert_array_equal(found[key], leaf)
    assert not list(out.rglob("optimizer"))
    with pytest.raises(UserError, match="exported without its optimizer"):
        run(replace(copied, model_dir=str(out), steps=6))
    assert zipper_jax.load(out).max_new_tokens == {"text": 14, "speech": 22}
    assert main(["ckpt", "export", str(out), "--out", str(out)]) == 2
    assert "exists" in capsys.readouterr().err


def test_an_export_onto_a_full_disk_leaves_nothing(copied, tmp_path, capsys):
    assert not checkpoints.verify(copied.model_dir, 4)  # compiled here: jax stores what it compiles
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        assert main(["ckpt", "export", copied.model_dir, "--out", str(tmp_path / "exported")]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "(File too large); fix that or free disk space, then run the same command again\n" in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_prune_keeps_what_is_needed_and_reports_what_it_deletes(copied, capsys):
    run_dir = Path(copied.model_dir)
    (run_dir / "frozen" / "unneeded").mkdir()
    (run_dir / "checkpoints" / "5.orbax-checkpoint-tmp-1").mkdir()
    assert main(["ckpt", "prune", str(run_dir), "--keep", "2", "--dry_run"]) == 0
    assert checkpoints.steps(run_dir) == [2, 3, 4]
    assert main(["ckpt", "prune", str(run_dir), "--keep", "2"]) == 0
    shown = capsys.readouterr().out
    assert all(f"deleted {name}" in shown for name in ("checkpoints/2", "frozen/unneeded"))
    assert sorted(p.name for p in (run_dir / "checkpoints").iterdir()) == ["3", "4"]
    assert main(["ckpt", "verify", str(run_dir)]) == 0
    assert main(["ckpt", "prune", str(run_dir), "--keep", "0"]) == 2


def test_two_runs_never_share_a_folder(copied):
    from zipper_jax.utils.locks import locked

    before = Path(copied.model_dir, "config.json").read_bytes()
    with locked(Path(copied.model_dir)), pytest.raises(UserError, match=r"is being written by process \d+ on "):
        run(replace(copied, steps=6, seed=7, allow_changes=True))
    assert Path(copied.model_dir, "config.json").read_bytes() == before, "the one that holds it is not disturbed"


def test_a_kill_while_the_folder_is_set_up_does_no_harm(copied, tmp_path):
    """Config written, vocabularies not yet; and what a torn write leaves behind."""
    new = tmp_path / "new"
    new.mkdir()
    (new / ".config.json.123").write_text("{")
    (new / ".lock").touch()
    run(replace(copied, model_dir=str(new), steps=1))
    shutil.rmtree(new / "checkpoints")
    shutil.rmtree(new / "vocabularies")
    run(replace(copied, model_dir=str(new), steps=1))
    assert sorted(p.name for p in (new / "vocabularies").iterdir()) == ["speech", "text"]


def test_saving_without_a_background_thread(copied):
    config = replace(copied, steps=6, save=SaveCheckpointConfig(period=1, keep=2, asynchronous=False))
    run(config)
    assert checkpoints.steps(copied.model_dir) == [5, 6]
    assert checkpoints.verify(copied.model_dir, 6, arrays=False) == []


def test_the_newest_step_is_sealed_soon_and_good_before_that(copied):
    """What a kill right behind a save leaves: arrays are verified, files are not sealed yet."""
    Path(copied.model_dir, "checkpoints", "4", manifest.FILES).unlink()
    assert checkpoints.verify(copied.model_dir, 4) == []
    assert checkpoints.verify(copied.model_dir, 4, arrays=False) == ["files.json is missing"]
    sealed = []

    class Watching:
        def __init__(self, batches):
            self.batches = batches

        def get(self, step):
            time.sleep(0.3)  # a step long enough for the writer
            sealed.append(
                [s for s in checkpoints.steps(copied.model_dir) if not checkpoints.verify(copied.model_dir, s, False)]
            )
            return self.batches.get(step)

    run(replace(copied, steps=16, save=SaveCheckpointConfig(period=5)), wrap_batches=Watching)
    assert 5 in sealed[-3], "while training goes on, not at the next save"


@pytest.mark.slow
def test_a_run_of_the_first_format_resumes(prepared, tmp_path, monkeypatch):
    """Written by the version before digests: two steps of five, and the losses which that version then logged."""
    expected = [7.025000095367432, 6.573155403137207, 6.348919868469238]
    with tarfile.open(Path(__file__).parent / "run_of_format_1.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    shutil.copytree(prepared, tmp_path / "prepared")
    monkeypatch.chdir(tmp_path)
    assert checkpoints.verify("run", 2) == []
    assert checkpoints.load_params("run")[1]["towers"].keys() == {"text", "speech"}
    from zipper_jax.training.run_folder import stored_config

    config = replace(stored_config("run"), steps=5)
    assert config.save == SaveCheckpointConfig(period=2)
    result, shown = run(config)
    assert result.status == "finished"
    assert "resuming after step 2" in shown
    losses = [line["loss"] for line in read_metrics("run") if line["split"] == "train"]
    np.testing.assert_allclose(losses[2:], expected, rtol=1e-5)  # another machine may round otherwise
    assert json.loads(Path("run/config.json").read_text())["format_version"] == 3
    assert main(["ckpt", "verify", "run"]) == 0


@pytest.fixture(scope="module")
def format_2(tmp_path_factory) -> Path:
    """Folders of format 2: ``run`` (25 of 30 steps, frozen text tower), ``prepared``, and ``model``, exported from run.

    expected.json holds what the version that wrote them then computed.
    """
    folder = tmp_path_factory.mktemp("format_2")
    for name in ("run_of_format_2", "model_folder_of_format_2"):
        with tarfile.open(Path(__file__).parent / f"{name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return folder


def expected_of(folder: Path) -> dict:
    return json.loads((folder / "expected.json").read_text())


def check_generated(folder: Path, model, name: str, outputs: tuple[str, ...], **sampling) -> None:
    """Tokens exactly, log probabilities (of the fused path) within 1e-5, for three prompts."""
    prompts = [
        [("speech", np.array([2, 2, 5, 5, 9, 9], np.int32))],
        [("text", np.array([6, 0, 3], np.int32))],
        [("text", np.array([1, 4], np.int32)), ("speech", np.array([8], np.int32))],
    ]
    expected, max_new_tokens = expected_of(folder), {"text": 8, "speech": 10}
    for row, spans in enumerate(
        model.generate_tokens(prompts, outputs, sampling=SamplingConfig(**sampling), max_new_tokens=max_new_tokens)
    ):
        for modality, span in zip(outputs, spans, strict=True):
            key = f"{name}/{row}/{modality}"
            assert span.tokens.tolist() == expected[f"{key}/tokens"], key
            assert span.truncated == (len(span.tokens) == max_new_tokens[modality]), key
            np.testing.assert_allclose(span.log_probs, expected[f"{key}/log_probs"], rtol=1e-5, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", ["run", "model"])
def test_towers_of_a_folder_of_format_2_give_the_recorded_logits(format_2, name):
    model, expected = zipper_jax.load(format_2 / name), expected_of(format_2)
    for side, content in (("text", [3, 1, 4, 1, 5]), ("speech", [2, 7, 1, 8, 2, 8, 1])):
        logits = model.tower(side).logits(content)
        np.testing.assert_allclose(logits, expected[f"{side}/logits"], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run", "model"])
def test_a_folder_of_format_2_generates_the_recorded_tokens(format_2, name):
    """No near ties: the tokens stay the same when every parameter changes by a random 3e-4 of itself."""
    model = zipper_jax.load(format_2 / name)
    check_generated(format_2, model, "greedy", ("text", "speech"))
    check_generated(format_2, model, "sampled", ("speech",), temperature=1.5, top_k=9, top_p=0.95, seed=3)
    check_generated(format_2, model, "beams", ("text",), beams=2)


def test_a_run_of_format_2_exports_the_recorded_weights(format_2, tmp_path):
    assert main(["convert", "export", str(format_2 / "run"), "--out", str(tmp_path / "out")]) == 0
    found, recorded = (folder / "model.safetensors" for folder in (tmp_path / "out", format_2 / "model"))
    assert found.read_bytes() == recorded.read_bytes()


def test_configurations_of_format_2_are_read_by_their_new_names(format_2):
    """Every renamed field of the stored JSON is gone, every other one is as it was stored."""
    back = {new: before for names in RENAMED.values() for before, new in names.items()}
    for folder in (path.parent for path in format_2.rglob("config.json")):
        stored, read = json.loads((folder / "config.json").read_text()), read_config(folder)
        assert stored["format_version"] == read["format_version"] == 2
        old = {name for names in RENAMED.values() for name in names}
        assert old & set(re.findall(r'"(\w+)":', json.dumps(stored["model"])))
        assert not old & set(re.findall(r'"(\w+)":', json.dumps(read["model"])))
        text = re.sub(r'"(\w+)":', lambda m: f'"{back.get(m[1], m[1])}":', json.dumps(read))
        assert json.loads(text) == stored


def this_machine() -> str:
    """What bitwise equal results depend on besides the program."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    flags = next((sorted(line.split()[2:]) for line in lines if line.startswith("flags")), [])
    return f"jax {jax.__version__}, CPU {hashlib.sha256(' '.join(flags).encode()).hexdigest()[:12]}"


@pytest.mark.slow
def test_a_run_of_format_2_resumes(format_2, tmp_path, monkeypatch):
    """The losses are bitwise the recorded ones on a CPU like that of the recording (one core or two, one device or
    eight: the same). With other vector instructions (XLA_FLAGS=--xla_cpu_max_isa=AVX2 or SSE4_2) sums are rounded
    otherwise: 1.2e-7 was seen.
    """
    shutil.copytree(format_2, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    assert checkpoints.verify("run", 25) == []
    from zipper_jax.training.run_folder import stored_config

    result, shown = run(stored_config("run"))
    assert (result.status, result.step) == ("finished", 30)
    assert "resuming after step 25" in shown
    losses = [line["loss"] for line in read_metrics("run") if line["split"] == "train" and line["step"] > 25]
    expected = expected_of(format_2)
    np.testing.assert_allclose(losses, expected["losses"], rtol=1e-6)
    if this_machine() == expected["machine"]:
        np.testing.assert_array_equal(np.float32(losses), np.float32(expected["losses"]), "not bitwise")
    assert main(["ckpt", "verify", "run"]) == 0


def three_towers():
    """The fused model with one more tower, zipped to the text."""
    model = zipper_model()
    extra = replace(model.zips[0], towers=("music", "text"), intervals={"text": 1, "music": 1})
    return replace(
        model,
        towers={**model.towers, "music": tower(10, 2, 8)},
        modalities={**model.modalities, "music": ModalityConfig("music", 10)},
        zips=(*model.zips, extra),
    )


def test_a_model_with_more_towers_and_zips_starts_from_one_with_fewer(trained, tmp_path, monkeypatch):
    from zipper_jax.training.initial import initial_params
    from zipper_jax.utils.trees import flatten

    restore = RestoreCheckpointConfig(trained.model_dir, strict=False)
    with logged() as told:
        found = flatten(initial_params(three_towers(), 0, {}, restore))
    source = params(trained)
    assert set(source) < set(found)
    for key, leaf in source.items():
        np.testing.assert_array_equal(found[key], leaf)
    assert "so random" in told[0]
    assert "music" in told[0]
    with pytest.raises(UserError, match=r"lacks .*music.* and \d+ more"):
        initial_params(three_towers(), 0, {}, replace(restore, strict=True))


def test_paths_are_assigned_by_regular_expressions(trained):
    from zipper_jax.training.initial import initial_params
    from zipper_jax.utils.trees import flatten

    only_text = RestoreCheckpointConfig(
        trained.model_dir, 3, assignment_map=((r"towers/text/(.*)", r"towers/text/\1"), (".*", None))
    )
    found, fresh, source = (
        flatten(initial_params(zipper_model(), 5, {}, only_text)),
        flatten(initial_params(zipper_model(), 5, {})),
        params(trained, 3),
    )
    for key, leaf in found.items():
        np.testing.assert_array_equal(leaf, (source if key.startswith("towers/text/") else fresh)[key])
    with pytest.raises(UserError, match=r"towers/speech/.* has shape"):
        initial_params(
            zipper_model(), 0, {}, replace(only_text, assignment_map=(("towers/speech/(.*)", r"towers/text/\1"),))
        )
    with pytest.raises(UserError, match="assignment_map"):
        initial_params(zipper_model(), 0, {}, replace(only_text, assignment_map=(("towers/txt/.*", None),)))


def test_a_second_look_at_batches_survives_saving(tmp_path):
    from zipper_jax.training import bad_batches
    from zipper_jax.training.skips import Skips

    batch = {
        "towers": {"text": TowerBatch(*(np.full((2, 3), n, np.float32) for n in range(6)))},
        "task": np.array([0, 1], np.int32),
    }
    path = bad_batches.path_of(tmp_path, 7)
    bad_batches.write(path, batch, 7, 5, Skips([(1, 3)]))
    again, number, step, skips = bad_batches.read(path)
    assert (number, step, skips.ranges) == (7, 5, ((1, 3),))
    for a, b in zip(again["towers"]["text"], batch["towers"]["text"], strict=True):
        np.testing.assert_array_equal(a, b)
