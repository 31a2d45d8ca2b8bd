"""The front door on a real run folder: a tiny zipper trained for two steps, saved, loaded and used from outside."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import soundfile
from buckets import any_folder, folder, gcs, s3  # noqa: F401
from tiny_run import SENTENCES, UNITS, tone, write_run

from zipper_jax import api, load
from zipper_jax.cli import transcribe
from zipper_jax.cli.main import main
from zipper_jax.decoding.sampling import SamplingConfig
from zipper_jax.inference.model import Speech
from zipper_jax.inference.perplexity import perplexities
from zipper_jax.sharding.mesh import MeshConfig
from zipper_jax.utils import storage
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.locks import locked_file
from zipper_jax.utils.storage import as_path
from zipper_jax.vocabularies import UnitVocabulary, train_sentencepiece


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("api"))


@pytest.fixture(scope="module")
def model(run):
    return load(run)


def test_transcribe_takes_any_rate_stereo_lists_and_arrays(model, tmp_path):
    mono, stereo = tone(tmp_path / "a.wav", 16_000, 1), tone(tmp_path / "b.flac", 44_100, 2)
    texts = model.transcribe([mono, stereo])
    assert len(texts) == 2
    assert all(isinstance(t, str) for t in texts)
    samples, rate = soundfile.read(mono, dtype="float32")
    assert model.transcribe(samples, rate) == texts[0] == model.transcribe(mono)


def test_speak_returns_audio_of_its_units_and_saves_it(model, tmp_path):
    speech = model.speak("on", sampling=SamplingConfig(temperature=1.0), seed=1)
    assert len(speech.waveform) == 640 * len(speech.units)
    assert speech.sample_rate == 16_000
    if len(speech.units):
        speech.save(tmp_path / "on.wav")
        assert soundfile.info(tmp_path / "on.wav").frames == len(speech.waveform)
    with pytest.raises(UserError, match="cannot write"):
        speech.save(tmp_path / "on.nonsense")


@pytest.mark.slow
def test_a_model_sharded_over_devices_generates_the_same(model, run):
    cut = load(run, mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    cut = cut.with_params(jax.device_get(cut.params))
    kernel = cut.params["towers"]["text"]["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 4 == kernel.size
    prompts, max_new_tokens = [[("speech", [0, 3])], [("speech", [1])], []], {"text": 3}
    wanted = model.generate(prompts, max_new_tokens=max_new_tokens)
    assert [row[0].content for row in cut.generate(prompts, max_new_tokens=max_new_tokens)] == [
        row[0].content for row in wanted
    ]


def test_generate_outputs_any_order_and_flags_what_was_truncated(model):
    rows = model.generate([[("speech", [0, 3])], []], ("text", "speech"), max_new_tokens={"text": 3, "speech": 4})
    for row in rows:
        assert [o.modality for o in row] == ["text", "speech"]
        text, speech = row
        assert len(speech.content) <= 4
        assert len(text.log_probs) <= 4
        assert speech.truncated == (len(speech.content) == 4 and speech.log_probs.size == 5 and speech.truncated)
    with pytest.raises(UserError, match="no modality 'image'"):
        model.generate([[("image", [1])]], ("text",))


def test_a_full_disk_keeps_the_recording_that_was_there(tmp_path, capsys, monkeypatch):
    """A real limit on the size of files."""
    spoken = Speech(np.zeros(16_000, np.float32), 16_000, np.zeros(25, np.int32), False)
    monkeypatch.setattr(api, "load", lambda path: SimpleNamespace(speak=lambda text, sampling: spoken))
    out = tmp_path / "on.wav"
    out.write_bytes(b"precious")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        assert main(["speak", "on", "--model", "run", "--out", str(out)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert capsys.readouterr().err.startswith("error: no room to write (")
    assert out.read_bytes() == b"precious"
    assert [path.name for path in tmp_path.iterdir()] == ["on.wav"]


def test_a_lone_tower_gives_the_stored_towers_logits_and_a_perplexity(model):
    tower = model.tower("text")
    logits = tower.logits("on")
    assert logits.shape == (4, model.vocabularies["text"].size)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = [*model.vocabularies["text"].encode("on"), model.vocabularies["text"].end_id]
    by_hand = np.exp(-np.mean([log_probs[i, t] for i, t in enumerate(targets)]))
    assert tower.perplexity(["on"]) == pytest.approx(by_hand, rel=1e-4)
    with pytest.raises(UserError, match="no tower 'image'"):
        model.tower("image")


def test_text_without_speech_keeps_its_perplexity_on_the_identity_preserving_fused_path(model):
    """Nothing is visible, so only the residual input projection may change it; with its gate closed nothing does."""
    tokens = [np.asarray(model.vocabularies["text"].encode(s), np.int32) for s in SENTENCES]
    closed = {**model.params, "input_projections": {"text": {**model.params["input_projections"]["text"], "gate": 0.0}}}
    common = (model.layout, "text", tokens)
    alone = perplexities(model.config, [model.params], *common, fused=False)
    fused = perplexities(model.config, [closed], *common, fused=True)
    assert fused == pytest.approx(alone, rel=1e-5)


def test_commands_on_the_run(run, tmp_path, capsys):
    wav = tone(tmp_path / "a.wav", 22_050, 1)
    assert main(["transcribe", "--model", str(run), str(wav)]) == 0
    assert capsys.readouterr().out.startswith(f"{wav}\t")
    requests = tmp_path / "in.jsonl"
    lines = [{"prompt": [["text", "on"]], "outputs": ["speech"]}, {"prompt": [["speech", [1, 2]]]}, {"prompt": []}]
    requests.write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = tmp_path / "out.jsonl"
    options = ["--input", str(requests), "--output", str(results), "--max_new_tokens", "6"]
    assert main(["generate", "--model", str(run), *options]) == 0
    out = [json.loads(line) for line in results.read_text().splitlines()]
    assert [line["generated"][0]["modality"] for line in out] == ["speech", "text", "text"]
    assert out[0]["prompt"] == lines[0]["prompt"]


def test_a_folder_is_transcribed_in_batches_and_resumed(run, tmp_path, capsys):
    audio, out = tmp_path / "audio", tmp_path / "out.jsonl"
    (audio / "deep").mkdir(parents=True)
    good = [tone(audio / name, 16_000, 1) for name in ("a.wav", "b.flac", "deep/c.OGG")]
    (audio / "broken.wav").write_text("no audio")
    for name, waveform in (("long.wav", np.random.default_rng(0).normal(0, 0.1, 48_000)), ("mute.wav", np.zeros(9000))):
        soundfile.write(audio / name, waveform, 16_000)
    (audio / "notes.txt").write_text("not audio either")
    command = ["transcribe", "--model", str(run), str(audio), str(good[0]), "--out", str(out)]
    assert main([*command, "--batch_size", "2"]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "3 files, 3.0 s of audio in " in told.err
    assert re.search(r"real-time factor \d+\.\d{3}\n", told.err)
    assert f"skipped: audio file '{audio / 'broken.wav'}' cannot be read" in told.err
    long = "the audio has 3.0 s of speech, the training rows of this model hold 2.5; split it into segments"
    assert f"skipped: {audio / 'long.wav'}: {long}" in told.err
    assert f"skipped: {audio / 'mute.wav'}: the audio is silent; check the recording" in told.err
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["audio"] for line in lines] == list(map(str, good))
    assert [set(line) for line in lines] == [{"audio", "text", "seconds", "truncated", "model", "beams"}] * 3
    assert lines[0]["text"] == load(run).transcribe(good[0])

    whole = out.read_text()
    out.write_text(whole[: len(whole) - 20])  # killed while writing the last line
    for name in ("broken.wav", "long.wav", "mute.wav"):
        (audio / name).unlink()
    assert main(command) == 0
    assert out.read_text() == whole
    assert "2 of 3 files are finished" in capsys.readouterr().err
    assert main(command) == 0
    assert "3 of 3 files are finished" in capsys.readouterr().err
    assert main([*command, "--beams", "2"]) == 2
    assert "line 1 was made with" in capsys.readouterr().err
    out.write_text("{}\n")
    assert main(command) == 2
    assert f"--out = {out}: line 1: audio is missing; give another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["transcribe", "--model", "RUN", "nothing.wav"], "nothing.wav"),
        (["transcribe", "--model", "RUN", "EMPTY"], "holds no audio"),
        (["transcribe", "--model", "RUN", "WAV", "--out", "no/such/folder/a.jsonl"], "the folder does not exist"),
        (["transcribe", "--model", "RUN", "WAV", "--batch_size", "0"], "--batch_size = 0"),
        (["transcribe", "--model", "nowhere", "WAV"], "nowhere"),
        (["speak", "", "--model", "RUN", "--out", "a.wav"], "text is empty"),
        (["speak", "on", "--model", "RUN", "--out", "no/such/folder/a.wav"], "folder does not exist"),
        (["generate", "--model", "RUN", "--input", "BAD"], "line 1"),
        (["generate", "--model", "RUN", "--batch_size", "0", "--input", "BAD"], "--batch_size = 0"),
        (["transcribe", "--model", "RUN", "--beem", "2", "WAV"], "--beem"),
        (["eval", "--run", "nowhere", "--data", ".", "--corpus", ".", "--out", "."], "--run = nowhere"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(run, tmp_path, capsys, arguments, message):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "text"}\n')
    (tmp_path / "empty").mkdir()
    names = {
        "RUN": str(run),
        "EMPTY": str(tmp_path / "empty"),
        "BAD": str(tmp_path / "bad.jsonl"),
        "WAV": str(tone(tmp_path / "a.wav", 16_000, 1)),
    }
    assert main([names.get(a, a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": [["text", null]]}', "prompt[0][1] = null: expected a string or a list; give {"),
        ('{"prompt": [["speech", [1.9]]]}', "prompt[0][1][0] = 1.9: expected an integer; give {"),
        ('{"prompt": [["text"]]}', 'prompt[0] = ["text"]: expected a list of length 2; give {'),
        ('{"prompt": [], "outputs": "text"}', "outputs = \"text\": expected a list or 'auto'; give {"),
        ('{"prompt": [], "outputs": []}', "outputs = []: expected a list of length >= 1; give {"),
        ('{"outputs": ["text"]}', "prompt is missing; give {"),
        ('["text"]', 'is not a JSON object but ["text"]; give {'),
        ('{"prompt": [["txt", "on"]]}', "prompt[0]: this model has no modality 'txt'; it has speech, text"),
        ('{"prompt": [], "outputs": ["text", "txt"]}', "outputs[1]: this model has no modality 'txt'; it has"),
        ('{"prompt": [["text", [1, 2]]]}', "prompt[0]: content = [1, 2]: expected a string"),
        ('{"prompt": [["text", "on"], ["speech", "on"]]}', "prompt[1]: content = 'on': expected a list of integers"),
        ('{"prompt": [["speech", [99]]]}', "prompt[0]: unit 99 is outside 0 to 11"),
    ],
)
def test_a_line_of_generate_with_other_types(run, tmp_path, capsys, line, message):
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": []}\n' + line + "\n")
    assert main(["generate", "--model", str(run), "--input", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""  # every line is checked before the first is answered
    assert printed.err.startswith(f"error: {path} line 2")
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_text_that_the_vocabulary_lacks_is_warned_of(run, tmp_path, capsys):
    """The first sees 'turn' without its T and the full stop; the third nothing at all."""
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    train_sentencepiece(["turn the light on", "go off"], 258).save(copied / "vocabularies" / "text")
    texts = ["Turn the light on.", "turn the light on", "你好"]
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text("".join(json.dumps({"prompt": [["text", text]]}) + "\n" for text in texts))
    assert main(["generate", "--model", str(copied), "--input", str(path), "--output", str(out)]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    lacks = "the model's vocabulary lacks"
    assert [line.split(", which")[0] for line in warnings] == [
        f"warning: text = 'Turn the light on.': {lacks} 'T', '.'",
        f"warning: text = '你好': {lacks} '你好'",
    ]
    command = ["speak", texts[0], "--model", str(copied), "--out", str(tmp_path / "a.wav"), "--temperature", "1"]
    main(command)
    assert capsys.readouterr().err.startswith(warnings[0])


def _without(name):
    def spoil(run):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def _with(vocabulary, modality="speech"):
    return lambda run: vocabulary.save(run / "vocabularies" / modality)


def _half_written(run):
    (run / "checkpoints" / "2").rename(run / "checkpoints" / "2.orbax-checkpoint-tmp-1")


def _changed_vocabulary(run):
    path = run / "vocabularies" / "speech" / "vocabulary.json"
    path.write_text(path.read_text().replace('"rate_hz": 25.0', '"rate_hz": 50.0'))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without("config.json"), "has no config.json, so it is not a run folder; give one"),
        (_without("checkpoints"), "has no complete checkpoint yet; train it first"),
        (_half_written, "has no complete checkpoint yet; train it first"),
        (_without("checkpoints/2/trainable"), "is damaged: step 2: trainable is missing"),
        (_without("checkpoints/2/manifest"), "is damaged: step 2: "),
        (_without("vocabularies/text"), "text/vocabulary.json' does not exist: check the folder"),
        (_with(UnitVocabulary(UNITS + 1, 25.0)), "modality 'speech': the model has a vocabulary of 14 tokens"),
        (_with(UnitVocabulary(UNITS, 25.0, "theirs")), "is not the one that this model was trained with"),
        (_changed_vocabulary, "has changed since"),
        (_without("vocabularies/speech/tokenizer.npz"), "tokenizer.npz' does not exist: check the folder"),
    ],
)
def test_a_run_that_is_not_whole_or_has_another_vocabulary(run, tmp_path, capsys, spoil, message):
    copied, wav = tmp_path / "run", str(tone(tmp_path / "a.wav", 16_000, 1))
    shutil.copytree(run, copied)
    spoil(copied)
    assert main(["transcribe", "--model", str(copied), wav, "--out", str(tmp_path / "out.jsonl")]) == 2
    *bar, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert all("files/s" in line or not line for line in bar)


def test_tensorflow_is_not_imported_by_loading_decoding_or_training_from_rows(run, tmp_path):
    """In a process of its own, from a finished run: load, generate, and train on from its packed rows."""
    script = f"""
import sys, json
from pathlib import Path
import zipper_jax
model = zipper_jax.load({str(run)!r})
model.generate([[("speech", [1, 2])]], ("text",), max_new_tokens={{"text": 2}})
from zipper_jax.utils.configs import from_dict
from zipper_jax.training.config import TrainConfig
from zipper_jax.training.loop import train
header = json.loads(Path({str(run)!r}, "config.json").read_text())
settings = {{**header["train"], "model_dir": {str(tmp_path / "more")!r}, "steps": 1}}
assert train(from_dict(TrainConfig, {{"model": header["model"], **settings}})).status == "finished"
heavy = {{"tensorflow", "seqio", "t5", "clu"}} & {{name.split(".")[0] for name in sys.modules}}
assert not heavy, heavy
assert "gin" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_an_interrupted_transcription_into_a_bucket_goes_on(run, any_folder, tmp_path, capsys, monkeypatch):  # noqa: F811
    for name in "abc":
        tone(tmp_path / f"{name}.wav", 16_000, 1)
    command = ["transcribe", "--model", str(run), str(tmp_path), "--batch_size", "1", "--out"]
    assert main([*command, str(tmp_path / "out.jsonl")]) == 0
    whole = (tmp_path / "out.jsonl").read_bytes()
    out, real = as_path(any_folder) / "out.jsonl", transcribe.share

    def share(batches, found):
        for number, result in enumerate(real(batches, found)):
            if number == 2:
                with pytest.raises(UserError, match=f"^'{out}' is being written by process"), locked_file(out):
                    pass
                raise UserError("stopped")
            yield result

    monkeypatch.setattr(transcribe, "share", share)
    assert main([*command, str(out)]) == 2
    assert storage.read(out) == b"".join(whole.splitlines(keepends=True)[:2])
    monkeypatch.undo()
    capsys.readouterr()
    assert main([*command, str(out)]) == 0
    assert f"{out}: 2 of 3 files are finished" in capsys.readouterr().err
    assert storage.read(out) == whole
    assert storage.keys(any_folder) == ["out.jsonl"]
    assert main([*command, str(out), "--beams", "2"]) == 2
    assert f"--out = {out}: line 1 was made with" in capsys.readouterr().err


HELD = """
import sys, time
from zipper_jax.cli import transcribe
from zipper_jax.cli.main import main
from zipper_jax.utils import staging
staging.PERIOD = 0.1
real = transcribe.share
def share(batches, found):
    for number, result in enumerate(real(batches, found)):
        if number == 2:
            print("held", flush=True)
            time.sleep(600)
        yield result
transcribe.share = share
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_killed_transcription_into_a_bucket_goes_on_where_it_was_copied(run, folder, tmp_path, capsys):  # noqa: F811
    for name in "abcd":
        tone(tmp_path / f"{name}.wav", 16_000, 1)
    command = ["transcribe", "--model", str(run), str(tmp_path), "--batch_size", "1", "--out"]
    assert main([*command, str(tmp_path / "out.jsonl")]) == 0
    whole = (tmp_path / "out.jsonl").read_bytes()
    out = as_path(folder) / "out.jsonl"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1]), "JAX_PLATFORMS": "cpu"}
    held = [sys.executable, "-c", HELD, *command, str(out)]
    process = subprocess.Popen(held, env=environment, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        deadline = time.monotonic() + 60
        while not out.exists() or storage.read(out) != b"".join(whole.splitlines(keepends=True)[:2]):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert main([*command, str(out)]) == 2, "another process writes it"
        assert f"error: '{out}' is being written by process {process.pid} on " in capsys.readouterr().err
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert main([*command, str(out)]) == 0
    assert f"{out}: 2 of 4 files are finished" in capsys.readouterr().err
    assert storage.read(out) == whole
    assert storage.keys(folder) == ["out.jsonl"]
    assert main([*command, str(out), "--beams", "2"]) == 2
    assert f"--out = {out}: line 1 was made with" in capsys.readouterr().err


def test_generated_lines_in_a_bucket_are_those_on_a_disk(run, folder, tmp_path):  # noqa: F811
    requests = tmp_path / "requests.jsonl"
    requests.write_text("".join(json.dumps({"prompt": [["text", text]]}) + "\n" for text in ("on", "", "off")))
    command = ["generate", "--model", str(run), "--input", str(requests), "--max_new_tokens", "4", "--output"]
    assert main([*command, str(tmp_path / "out.jsonl")]) == 0
    storage.write(f"{folder}/out.jsonl", b"replaced\n")
    assert main([*command, f"{folder}/out.jsonl"]) == 0
    assert storage.read(f"{folder}/out.jsonl") == (tmp_path / "out.jsonl").read_bytes()
    assert storage.keys(folder) == ["out.jsonl"]
