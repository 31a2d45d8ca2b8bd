"""Speed of data preparation from recordings to packed rows: hours of audio per minute, all cores.

python benchmarks/preparation.py --out benchmarks/results/preparation.json
python benchmarks/preparation.py --out benchmarks/results/preparation.json --table
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import soundfile

from zipper_jax.data.import_corpus import import_corpus
from zipper_jax.data.prepare_rows import prepare
from zipper_jax.data.prepare_settings import PrepareSettings
from zipper_jax.speech.corpus import CorpusSettings, synthesise_corpus
from zipper_jax.speech.manifest import read_manifest
from zipper_jax.speech.workers import usable_cores


def main() -> int:
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sentences", type=int, default=3000)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if not args.table:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(Path(folder), args.sentences)
        args.out.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
    print(table(json.loads(args.out.read_text())))
    return 0


def measure(root: Path, sentences: int) -> dict[str, Any]:
    """Return the seconds of each stage, for ``sentences`` recordings at 22.05 kHz, which are resampled."""
    settings = CorpusSettings(train=sentences, validation=0, test=0, test_other=0)
    made = synthesise_corpus(root / "made", settings)
    lines = ["audio\ttext"]
    for row in read_manifest(made):
        waveform, _ = soundfile.read(made / row["audio"])
        soundfile.write(root / f"{row['id']}.wav", waveform, 22_050)  # not resampled, so the speech is faster
        lines.append(f"{row['id']}.wav\t{row['text']}")
    (root / "mine.tsv").write_text("\n".join(lines) + "\n")
    seconds = {}

    def timed(name: str, work: Any) -> Any:
        began = time.perf_counter()
        result = work()
        seconds[name] = time.perf_counter() - began
        return result

    import_corpus("text", [_text(root)], root / "warm")  # warm-up: loads the modules
    prepare(root / "warm", root / "warm_rows", PrepareSettings(text_vocabulary="bytes", unit_features="log-mel"))
    header = timed("import", lambda: import_corpus("table", [root / "mine.tsv"], root / "corpus"))
    rows = PrepareSettings(text_length=32, speech_length=128, unit_features="log-mel")
    timed("prepare", lambda: prepare(root / "corpus", root / "prepared", rows))
    again = PrepareSettings(text_length=32, speech_length=128, tokenizer=str(root / "prepared"))
    timed("prepare, units given", lambda: prepare(root / "corpus", root / "again", again))
    return {"hours": header["hours"], "utterances": sentences, "cores": usable_cores(), "seconds": seconds}


def _text(root: Path) -> Path:
    path = root / "few.txt"
    path.write_text("".join(f"line {n}\n" for n in range(40)))
    return path


def table(found: dict[str, Any]) -> str:
    """Return the stages as Markdown."""
    lines = [
        f"| stage | seconds for {found['hours']:.2f} h, {found['cores']} cores | hours of audio a minute |",
        "|---|---|---|",
    ]
    for name, seconds in found["seconds"].items():
        lines.append(f"| {name} | {seconds:.0f} | {found['hours'] * 60 / seconds:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
