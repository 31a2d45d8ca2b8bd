"""Small real sources in other people's formats. Audio is noise: no reader depends on its content."""

import json
from pathlib import Path

import numpy as np
import soundfile

SENTENCES = [
    f"{verb} the {thing}" for verb in ("open", "close", "paint", "count") for thing in ("door", "window", "box")
]


def sound(path: Path, seconds: float = 0.3, rate: int = 16_000, level: float = 0.1) -> Path:
    """Noise, the same for the same name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name) + int(1000 * seconds))
    soundfile.write(path, level * rng.uniform(-1, 1, round(seconds * rate)), rate)
    return path


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def librispeech(folder: Path) -> Path:
    """Two training speakers, one of dev, one of test-clean, one of test-other; two utterances each."""
    sentences = iter(SENTENCES)
    for subset, speaker in (
        ("train-clean-100", "19"),
        ("train-clean-100", "26"),
        ("dev-clean", "84"),
        ("test-clean", "61"),
        ("test-other", "367"),
    ):
        home = folder / subset / speaker / "198"
        names = [f"{speaker}-198-{number:04d}" for number in range(2)]
        for name in names:
            sound(home / f"{name}.flac")
        write(home / f"{speaker}-198.trans.txt", "".join(f"{name} {next(sentences).upper()}\n" for name in names))
    return folder


def ljspeech(folder: Path, count: int = 10) -> Path:
    lines = [f"LJ001-{n:04d}|{SENTENCES[n]}, no. {n}|{SENTENCES[n]}, number {n}\n" for n in range(count)]
    for number in range(count):
        sound(folder / "wavs" / f"LJ001-{number:04d}.wav", rate=22_050)
    write(folder / "metadata.csv", "".join(lines))
    return folder


def table(folder: Path, name: str = "mine.tsv", count: int = 10) -> Path:
    """id, audio, text, split, voice."""
    mark = "\t" if name.endswith("tsv") else ","
    rows = [["id", "audio", "text", "split", "voice"]]
    for number in range(count):
        split = "dev" if number == 8 else "test" if number == 9 else "train"
        file = sound(folder / "wav" / f"u{number}.wav")
        rows.append([f"u{number}", str(file.relative_to(folder)), SENTENCES[number], split, f"v{number % 2}"])
    return write(folder / name, "".join(mark.join(row) + "\n" for row in rows))


def kaldi(folder: Path, first: int = 0, count: int = 6) -> Path:
    names = [f"utt{first + n}" for n in range(count)]
    for name in names:
        sound(folder / "wav" / f"{name}.wav")
    write(folder / "wav.scp", "".join(f"{name} wav/{name}.wav\n" for name in names))
    write(folder / "text", "".join(f"{name} {SENTENCES[first + n]}\n" for n, name in enumerate(names)))
    write(folder / "utt2spk", "".join(f"{name} spk{n % 2}\n" for n, name in enumerate(names)))
    return folder


def units(folder: Path, count: int = 10, **header) -> Path:
    """Units at 50 Hz of 20 kinds, with text and seconds."""
    rng = np.random.default_rng(0)
    rows = [
        {"id": f"u{n}", "units": rng.integers(0, 20, 25).tolist(), "text": SENTENCES[n], "seconds": 0.5}
        for n in range(count)
    ]
    write(folder / "header.json", json.dumps({"num_units": 20, "rate_hz": 50, "name": "made up", **header}))
    return write(folder / "units.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
