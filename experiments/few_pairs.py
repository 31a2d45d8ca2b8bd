"""Few pairs: what makes a small share of the pairs suffice (docs/few_pairs.md).

    zipper sweep run experiments/few_pairs.py --size cpu --out runs/few_pairs --jobs 2

Data, towers, budgets and sizes are those of experiments/findings.py, whose arms `zipper` (the paper's form) and
`single_decoder` are run again.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from findings import DIAGONAL, PRESERVING, SMALL, Arms, Size, percent, size_of

from zipper_jax.sweep.plan import Arm, Claim, Figure, Sweep, Table

BOTH = ("text", "speech")


def noise(dropout: float, text: float, speech: float) -> dict[str, Any]:
    """Fields of TrainConfig against learning the pairs by heart, and against writing on without listening."""
    return {"dropout": dict.fromkeys(BOTH, dropout), "token_noise": {"text": text, "speech": speech}}


FROZEN, TRAINED, LISTENING = noise(0.2, 0.2, 0.5), noise(0.1, 0.1, 0.5), noise(0.2, 0.2, 0.0)
ARMS = ("single_decoder", "zipper", "diagonal", "frozen", "trained")
OTHERS = ("listening.0.5", "scratch.3", "scratch.1")
SEEDS = {0.03: (0, 1, 2, 3, 4, 5)}
"""Share -> seeds of two arms that three seeds could not tell apart."""


def all_arms(size: Size) -> tuple[Arm, ...]:
    arms = Arms(size)
    form: dict[str, Any] = {"projections": PRESERVING, "form": DIAGONAL}
    found = [arms.pretraining("text"), arms.pretraining("speech")]
    for share in SMALL:
        p = percent(share)
        found += [
            arms.single_decoder(f"single_decoder.{p}", f"one decoder, {p} % of the pairs", share=share),
            arms.zipper(f"zipper.{p}", f"the paper's form, {p} %", share=share),
            arms.zipper(f"diagonal.{p}", f"ours, attention starts on the diagonal, {p} %", share=share, **form),
            arms.zipper(
                f"frozen.{p}", f"… both towers frozen, dropout and token noise, {p} %", share=share, frozen=BOTH,
                training=FROZEN, perplexity=True, **form,
            ),
            arms.zipper(
                f"trained.{p}", f"… speech tower trained at the full rate, less dropout and token noise, {p} %",
                share=share, tower_rate=1.0, training=TRAINED, perplexity=True,
                seeds=SEEDS.get(share), **form,
            ),
        ]  # fmt: skip
    found.append(arms.zipper(
        "listening.0.5", "… both towers frozen, dropout, noise in text alone, 0.5 %", share=0.005, frozen=BOTH,
        training=LISTENING, perplexity=True, **form,
    ))  # fmt: skip
    for share in (0.03, 0.01):
        p = percent(share)
        about = f"… no tower pretrained, none frozen, noise as in trained, {p} %"
        found.append(arms.zipper(
            f"scratch.{p}", about, share=share, pretrained=False, frozen=(), training=TRAINED,
            seeds=SEEDS.get(share), **form,
        ))  # fmt: skip
    return tuple(found)


def tables() -> tuple[Table, ...]:
    asr = ("asr", "asr_other", "asr_shuffled", "asr_no_audio", "asr_gates_zero", "asr_nats")
    tts = ("tts", "tts_shuffled", "tts_nats", "tts_shuffled_nats")
    few = tuple(f"{arm}.{percent(share)}" for share in SMALL for arm in ARMS)
    return Table("Speech to text", (*few, *OTHERS), asr), Table("Text to speech", (*few, *OTHERS), tts)


def figures() -> tuple[Figure, ...]:
    labels = (
        "Single Decoder", "Zipper, paper's form", "… attention starts on the diagonal", "… frozen, with noise",
        "… speech tower trained, with noise",
    )  # fmt: skip
    series = {
        label: [(100 * share, f"{arm}.{percent(share)}") for share in SMALL]
        for label, arm in zip(labels, ARMS, strict=True)
    }
    return (
        Figure("few_asr", "Speech to text with few pairs", "share of the pairs, %", "asr", series, log_x=True),
        Figure("few_tts", "Text to speech with few pairs", "share of the pairs, %", "tts", series, log_x=True),
    )


def claims() -> tuple[Claim, ...]:
    found = []
    for share in SMALL:
        p = percent(share)
        where = f"with {p} % of the pairs"
        found += [
            Claim(f"{where} {ours} is better than {words}, {what}", measure, f"{ours}.{p}", f"{arm}.{p}", source=source)
            for ours in ("frozen", "trained")
            for words, arm, source in (
                ("the paper's form", "zipper", "ours"),
                ("the Single Decoder", "single_decoder", "Figure 3"),
                ("the diagonal alone", "diagonal", "ours"),
            )
            for what, measure in (("ASR", "asr"), ("TTS", "tts"))
        ]
    found += [
        Claim("with 0.5 % of the pairs both towers frozen and noise in text alone is better than the paper's form, ASR",
              "asr", "listening.0.5", "zipper.0.5", source="ours"),
        Claim("with 0.5 % of the pairs noise in units costs speech to text, both towers frozen",
              "asr", "listening.0.5", "frozen.0.5", source="ours"),
    ]  # fmt: skip
    found += [
        Claim(f"with {p} % of the pairs pretraining helps, {what}", measure, f"trained.{p}", f"scratch.{p}",
              source="implied")
        for p in ("3", "1")
        for what, measure in (("ASR", "asr"), ("TTS", "tts"), ("TTS, by likelihood", "tts_nats"))
    ]  # fmt: skip
    return tuple(found)


def sweep(size: str) -> Sweep:
    chosen = size_of(size)
    return Sweep(
        name=f"few_pairs_{size}",
        corpus=chosen.corpus,
        prepare=chosen.prepare,
        arms=all_arms(chosen),
        scoring=chosen.scoring,
        tables=tables(),
        figures=figures(),
        claims=claims(),
        about=f"Few pairs: the paper's form, the Single Decoder and ours. {chosen.about}",
        times=True,
    )
