"""Strange but legal sources: each row is read right, or dropped and counted for what it is."""

from pathlib import Path

import making_sources as making
import numpy as np
import pytest
import soundfile
from logged import logged
from making_sources import SENTENCES, sound, write

from zipper_jax.data import prepared
from zipper_jax.data.import_corpus import import_corpus
from zipper_jax.data.inspect import inspect
from zipper_jax.data.prepare_examples import write_examples
from zipper_jax.data.prepare_fit import fit, open_source
from zipper_jax.data.prepare_settings import PrepareSettings
from zipper_jax.data.sources.rows import ImportSettings
from zipper_jax.speech.audio import AudioError, load_audio
from zipper_jax.speech.manifest import read_manifest
from zipper_jax.utils.errors import UserError

HELD_OUT = ImportSettings(validation=0, test=0)


def run(kind, path, out, settings=HELD_OUT):
    """(problems, rows by id, lines logged)."""
    with logged() as lines:
        header = import_corpus(kind, [path], out, settings, processes=1)
    problems = {problem: about["count"] for problem, about in header["dropped"].items()}
    return problems, {row["id"]: row for row in read_manifest(out)}, lines


def ljspeech(folder, *lines):
    for line in lines:
        sound(folder / "wavs" / f"{line.split('|')[0]}.wav")
    write(folder / "metadata.csv", "\n".join(lines) + "\n")
    return folder


def test_the_third_column_of_ljspeech_is_text_or_is_not_used(tmp_path):
    folder = ljspeech(
        tmp_path / "lj",
        "a|open the door|13",
        "b|close it at 5|close it at five",
        "c|count the box|",
        "d|paint|paint|speaker_1",
        "e|13|thirteen",
        "f|say it|1,066.5",
        "g|13|13",
        "h|open||",
    )
    problems, rows, _ = run("ljspeech", folder, tmp_path / "out")
    assert {name: row["text"] for name, row in rows.items()} == {
        "a": "open the door", "b": "close it at five", "c": "count the box", "e": "thirteen", "f": "say it", "g": "13",
        "h": "open",
    }  # fmt: skip
    assert problems == {"columns that are not id|text|normalised text": 1}


def test_a_third_column_that_is_something_else_is_refused(tmp_path):
    folder = ljspeech(tmp_path / "lj", *(f"u{n}|{SENTENCES[n]}|speaker_{n % 2}" for n in range(4)))
    with pytest.raises(UserError, match=r"metadata\.csv:1: 'speaker_0' is not the normalised text .* 3 others of 4"):
        run("ljspeech", folder, tmp_path / "out")


def test_converted_audio_is_found_under_its_other_ending(tmp_path):
    source = making.librispeech(tmp_path / "ls")
    for path in source.rglob("*.flac"):
        samples, rate = soundfile.read(path)
        soundfile.write(path.with_suffix(".wav"), samples, rate)
        path.unlink()
    problems, rows, _ = run("librispeech", source, tmp_path / "out", ImportSettings())
    assert problems == {}
    assert {Path(row["audio"]).suffix for row in rows.values()} == {".wav"}
    folder = making.ljspeech(tmp_path / "lj")
    for path in (folder / "wavs").iterdir():
        samples, rate = soundfile.read(path)
        soundfile.write(path.with_suffix(".ogg"), samples, rate)
        path.unlink()
    assert run("ljspeech", folder, tmp_path / "out2")[0] == {}


def test_segments_of_a_table_are_cut(tmp_path):
    whole = sound(tmp_path / "long.wav", seconds=6.0)
    table = "id,audio,start,end,text\n" + "".join(f"r{n},long.wav,{2 * n},{2 * n + 1.5},part {n}\n" for n in range(3))
    problems, rows, lines = run("table", write(tmp_path / "a.csv", table), tmp_path / "out")
    assert problems == {}
    assert not any("not used" in line for line in lines)
    assert [(row["start"], row["seconds"]) for row in rows.values()] == [(0.0, 1.5), (2.0, 1.5), (4.0, 1.5)]
    row = rows["r1"]
    part = load_audio(row["audio"], start=row["start"], seconds=row["seconds"])
    np.testing.assert_array_equal(part, load_audio(whole)[32_000:56_000])

    table = "audio,start,duration,text\nlong.wav,1,2,a\nlong.wav,4,,b\nlong.wav,x,2,c\nlong.wav,5,-1,d\nlong.wav,,,e\n"
    problems, rows, _ = run("table", write(tmp_path / "b.csv", table), tmp_path / "out2")
    assert problems == {"start, end or duration that is no time in seconds": 2}
    assert {row["text"]: (row.get("start"), row["seconds"]) for row in rows.values()} == {
        "a": (1.0, 2.0), "b": (4.0, 2.0), "e": (None, 6.0),
    }  # fmt: skip


def test_columns_that_are_not_used_are_named(tmp_path):
    sound(tmp_path / "a.wav")
    path = write(tmp_path / "a.csv", "audio,sentence,speaker,duration\na.wav,hello,me,0.3\n")
    _, _, lines = run("table", path, tmp_path / "out")
    hint = "did you mean --text_field sentence --voice_field speaker?"
    assert f"{path}: columns not used: sentence, speaker, duration; {hint}" in lines
    settings = ImportSettings(0, 0, text_field="sentence", voice_field="speaker")
    _, _, lines = run("table", path, tmp_path / "out2", settings)
    assert f"{path}: columns not used: duration" in lines
    path = write(tmp_path / "b.jsonl", '{"text": "one", "title": "t"}\n{"text": "two", "url": "u"}\n')
    assert f"{path}: fields not used: title, url" in run("text", path, tmp_path / "out3")[2]
    path = making.units(tmp_path / "u", 2)
    path.write_text(path.read_text() + '{"id": "x", "units": [1], "transcript": "t"}\n')
    assert f"{path}: fields not used: transcript" in run("units", path, tmp_path / "out4")[2]
    manifest = write(tmp_path / "c" / "manifest.jsonl", '{"id": "a", "split": "train", "text": "one", "sentence": "x"}')
    with logged() as lines:
        write_examples(manifest.parent, tmp_path / "p", PrepareSettings(text_vocabulary="bytes"), False, 1)
    assert f"{manifest}: fields not used: sentence" in lines


def test_kaldi_rows_are_dropped_one_by_one(tmp_path):
    folder = tmp_path / "k"
    folder.mkdir()
    stereo = np.stack([np.full(32_000, 0.2), np.full(32_000, -0.4)], axis=1)
    soundfile.write(folder / "r.wav", stereo, 16_000)
    segments = [
        "a r 0.5 1.0", "b r 1.0 1.0", "c r 1.5 -1", "d r 0 1 1", "e r 0 1 7", "f r 0 x", "g r 0", "h gone 0 1",
        "i ark 0 1",
        "j pipe 0 1", "k r 0 1 0 9", "l r 0 nan", "m r 1.9 5",
    ]  # fmt: skip
    write(folder / "wav.scp", "r r.wav\nark data.ark:5\npipe sph2pipe a.sph |\n")
    write(folder / "segments", "\n".join(segments) + "\n")
    write(folder / "text", "".join(f"{line[0]} sentence {line[0]}\n" for line in segments))
    problems, rows, _ = run("kaldi", folder, tmp_path / "out")
    assert problems == {
        "segment that is not RECORDING BEGIN END [CHANNEL] in seconds": 5,
        "no such channel": 1,
        "transcript without audio": 1,
        "audio in a Kaldi archive: write it to files first (wav-copy scp:wav.scp, extract-segments)": 1,
        "command in wav.scp, which is not executed: write the audio to files first": 1,
        "part beyond its end": 1,
    }
    assert {name: (row["start"], row["seconds"], row.get("channel")) for name, row in rows.items()} == {
        "a": (0.5, 0.5, None), "c": (1.5, 0.5, None), "d": (0.0, 1.0, 1),
    }  # fmt: skip
    where = {name: rows["d"][name] for name in ("start", "seconds", "channel")}
    np.testing.assert_allclose(load_audio(folder / "r.wav", **where), -0.4, atol=1e-4)
    np.testing.assert_allclose(load_audio(folder / "r.wav", start=0.5, seconds=0.5), -0.1, atol=1e-4)


def unstated(path):
    """The FLAC file with a header that states no length, as a stream has it."""
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    return write(path.with_name(f"stream_{path.name}"), bytes(content))


def test_a_streamed_flac_is_read_to_its_end(tmp_path):
    whole = sound(tmp_path / "ok.flac", seconds=70.0)
    stream = unstated(whole)
    np.testing.assert_array_equal(load_audio(stream), load_audio(whole))
    for start, seconds in ((0.5, 0.25), (66.0, 3.0), (69.5, None), (0.0, 70.2)):
        one, other = (load_audio(path, start=start, seconds=seconds) for path in (stream, whole))
        np.testing.assert_array_equal(one, other)
    with pytest.raises(AudioError, match="has 70 s, 69 to 71 s are asked for"):
        load_audio(stream, start=69.0, seconds=2.0)
    problems, rows, _ = run("audio", tmp_path, tmp_path / "out", ImportSettings(0, 0, piece_seconds=100.0))
    assert problems == {}
    assert {row["seconds"] for row in rows.values()} == {70.0}
    write(tmp_path / "cut.flac", stream.read_bytes()[:9000])
    with pytest.raises(AudioError, match=r"cut\.flac' cannot be read") as caught:
        load_audio(tmp_path / "cut.flac")
    assert caught.value.reason == "corrupt audio"


def test_a_clip_too_short_for_a_unit_is_dropped_by_the_import(tmp_path):
    for number in range(4):
        sound(tmp_path / "a" / f"{number}.wav", seconds=0.5)
    soundfile.write(tmp_path / "a" / "one.wav", np.array([0.5], "f4"), 44_100)
    soundfile.write(tmp_path / "a" / "some.wav", np.full(100, 0.5, "f4"), 44_100)
    problems, _, _ = run("audio", tmp_path / "a", tmp_path / "c")
    assert problems == {"shorter than 0.01 s": 2}
    write_examples(tmp_path / "c", tmp_path / "p", PrepareSettings(num_units=8, unit_features="log-mel"), False, 1)


def test_prepare_drops_and_counts_what_changed_since_the_import(tmp_path):
    table = making.table(tmp_path / "t")
    run("table", table, tmp_path / "c", ImportSettings())
    wav, out = table.parent / "wav", tmp_path / "p"
    soundfile.write(wav / "u0.wav", np.array([0.5], "f4"), 44_100)
    write(wav / "u3.wav", b"RIFF, then nothing of use")
    (wav / "u5.wav").unlink()
    settings = PrepareSettings(text_vocabulary="bytes", num_units=8, unit_features="log-mel")
    with logged() as lines:
        header = write_examples(tmp_path / "c", out, settings, False, 1)
    assert header["examples"] == {"test": 1, "train": 5, "validation": 1}
    assert {reason: one["count"] for reason, one in header["dropped"]["train"].items()} == {
        "shorter than 0.01 s": 1, "corrupt audio": 1, "missing audio": 1,
    }  # fmt: skip
    assert any(line.startswith("train: dropped 1 missing audio (first: audio file '") for line in lines)
    assert [row["id"] for row in prepared.read_examples(out, "train")] == ["u1", "u2", "u4", "u6", "u7"]
    assert any(line.startswith("train: dropped 1 corrupt audio") for line in inspect(out))
    before = (out / "examples" / "train.jsonl").read_bytes()

    killed = tmp_path / "killed"  # as if killed after the third row
    fit(open_source(tmp_path / "c", settings), killed, False)
    shard = killed / "shards" / "00000-of-00001"
    write(shard / "train.jsonl.partial", b"".join(before.splitlines(keepends=True)[:3]) + b'{"id"')
    write(shard / "train.dropped", (out / "examples" / "train.dropped").read_bytes())
    again = write_examples(tmp_path / "c", killed, settings, False, 1)
    assert again == header
    assert (killed / "examples" / "train.jsonl").read_bytes() == before

    (wav / "u9.wav").unlink()
    with pytest.raises(
        UserError, match=r"split test: none of its 1 rows can be used: .*first: .*u9\.wav' does not exist"
    ):
        write_examples(tmp_path / "c", tmp_path / "q", settings, False, 1)
