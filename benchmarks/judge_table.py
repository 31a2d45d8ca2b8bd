"""Word error rates of the judge on synthetic speech: raw, through units, and controls.

    python benchmarks/judge_table.py [--engine flite] [--rate 1.25] [--voices slt awb] [--train 1000] [--test 60]

Synthesises a corpus in a temporary folder, fits the tokenizer on its training split, and prints and writes the table
(benchmarks/results/judge_table.json). Seconds are wall time; cpu_seconds, of this process only, are comparable on a
shared machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from zipper_jax.metrics.error_rates import NORMALISER, wer
from zipper_jax.speech import grammar, judge, vocoder
from zipper_jax.speech.audio import SAMPLE_RATE, add_noise, load_audio
from zipper_jax.speech.corpus import CorpusSettings, synthesise_corpus
from zipper_jax.speech.features import log_mel
from zipper_jax.speech.manifest import read_manifest
from zipper_jax.speech.tokenizer import UnitTokenizer

RESULT = Path(__file__).parent / "results" / "judge_table.json"


class Stopwatch:
    """Wall and CPU seconds of named steps."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, float]] = {}

    def time(self, name: str, function: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = function()
        self.rows[name] = {
            "seconds": round(time.perf_counter() - wall, 2),
            "cpu_seconds": round(time.process_time() - cpu, 2),
        }
        return result


def main() -> None:
    options = _parse()
    settings = CorpusSettings(
        train=options.train,
        validation=0,
        test=options.test,
        test_other=options.test,
        engine=options.engine,
        voices=tuple(options.voices),
        rate=options.rate,
    )
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), settings, options.processes)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{'audio':44} WER %")
    for name, value in result["wer_percent"].items():
        print(f"{name:44} {value:5.1f}")
    print(json.dumps({key: value for key, value in result.items() if key != "wer_percent"}, indent=2))


def measure(folder: Path, settings: CorpusSettings, processes: int) -> dict[str, Any]:
    """Return the table as JSON-serialisable values."""
    watch = Stopwatch()
    watch.time("synthesis", lambda: synthesise_corpus(folder, settings, processes=processes))
    header = json.loads((folder / "corpus.json").read_text())
    train = [load_audio(folder / row["audio"]) for row in read_manifest(folder, "train")]
    tokenizer = watch.time("tokenizer_fit", lambda: UnitTokenizer.fit(train))

    rows = read_manifest(folder, "test")
    references = [row["text"] for row in rows]
    raw = [load_audio(folder / row["audio"]) for row in rows]
    units = watch.time("encode", lambda: [tokenizer.encode(w) for w in raw])
    gold = watch.time("griffin_lim", lambda: [vocoder.synthesize(tokenizer, u) for u in units])

    other_rows = read_manifest(folder, "test_other")
    other_references = [row["text"] for row in other_rows]
    other = [load_audio(folder / row["audio"]) for row in other_rows]
    other_gold = [vocoder.synthesize(tokenizer, tokenizer.encode(w)) for w in other]

    rng = np.random.default_rng(0)
    jsgf = grammar.jsgf()
    hypotheses = watch.time("judge", lambda: judge.transcribe_all(raw, jsgf, processes))
    hypotheses_gold = judge.transcribe_all(gold, jsgf, processes)

    def judged(waveforms: list[np.ndarray], texts: list[str]) -> float:
        return wer(texts, judge.transcribe_all(waveforms, jsgf, processes))

    table = {
        "test, raw": wer(references, hypotheses),
        "test, log-mel and Griffin-Lim, no units": judged([vocoder.griffin_lim(log_mel(w)) for w in raw], references),
        "test, gold units": wer(references, hypotheses_gold),
        "test_other, raw": judged(other, other_references),
        "test_other, gold units": judged(other_gold, other_references),
        "test, raw with white noise at 10 dB": judged([add_noise(w, 10, rng) for w in raw], references),
        "control: reversed raw": judged([w[::-1] for w in raw], references),
        "control: reversed gold units": judged([vocoder.synthesize(tokenizer, u[::-1]) for u in units], references),
        "control: another sentence's audio": wer(references, hypotheses[1:] + hypotheses[:1]),
        "control: random units": judged(
            [vocoder.synthesize(tokenizer, rng.integers(tokenizer.num_units, size=len(u))) for u in units], references
        ),
        "control: white noise": judged([0.1 * rng.standard_normal(len(w)) for w in raw], references),
    }
    for voice in header["voices"]:
        of_voice = [index for index, row in enumerate(rows) if row["voice"] == voice]
        texts = [references[i] for i in of_voice]
        table[f"test, raw, voice {voice}"] = wer(texts, [hypotheses[i] for i in of_voice])
        table[f"test, gold units, voice {voice}"] = wer(texts, [hypotheses_gold[i] for i in of_voice])

    seconds = sum(map(len, raw)) / SAMPLE_RATE
    lengths = [-(-len(w) // 640) for w in train]
    return {
        "wer_percent": {name: round(100 * value, 2) for name, value in table.items()},
        "judge": judge.NAME,
        "normaliser": NORMALISER,
        "engine": header["engine"],
        "voices": header["voices"],
        "rate": rows[0]["rate"],
        "test_other": {
            "rates": sorted({row["rate"] for row in other_rows}),
            "pitches": sorted({row["pitch"] for row in other_rows}),
            "snr_db": settings.other_snr_db,
        },
        "test_sentences": len(rows),
        "test_words": sum(len(text.split()) for text in references),
        "grammar_words": len(grammar.words()),
        "utterances": sum(header["counts"].values()),
        "training_audio_seconds": round(sum(map(len, train)) / SAMPLE_RATE, 1),
        "units_per_sentence": {"mean": round(float(np.mean(lengths)), 1), "longest": max(lengths)},
        "test_audio_seconds": round(seconds, 1),
        "times_real_time_by_cpu": {
            name: round(seconds / max(watch.rows[name]["cpu_seconds"], 0.01)) for name in ("encode", "griffin_lim")
        },
        "steps": watch.rows,
        "processes": processes,
        "machine": {"cores": os.cpu_count(), "cpu": platform.processor() or platform.machine()},
    }


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--voices", nargs="*", default=[])
    parser.add_argument("--rate", type=float, default=0.0, help="0: the engine's default")
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--test", type=int, default=60)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULT)
    return parser.parse_args()


if __name__ == "__main__":
    main()
