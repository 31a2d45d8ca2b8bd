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

FROZEN = ("text", "speech")
NOISE = {"dropout": {"text": 0.1, "speech": 0.1}, "token_noise": {"text": 0.1}}
"""Against learning the pairs by heart."""
ARMS = ("single_decoder", "zipper", "diagonal", "few")


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
                f"few.{p}", f"… both towers frozen, dropout and token noise, {p} %", share=share, frozen=FROZEN,
                training=NOISE, perplexity=True, **form,
            ),
        ]  # fmt: skip
    scratch = "… no tower pretrained, none frozen, 3 % of the pairs"
    found.append(arms.zipper("few.scratch.3", scratch, share=0.03, pretrained=False, frozen=(), training=NOISE, **form))
    return tuple(found)


def tables() -> tuple[Table, ...]:
    asr = ("asr", "asr_other", "asr_shuffled", "asr_no_audio", "asr_gates_zero", "asr_nats")
    tts = ("tts", "tts_shuffled", "tts_nats", "tts_shuffled_nats")
    few = tuple(f"{arm}.{percent(share)}" for share in SMALL for arm in ARMS)
    return (
        Table("Speech to text", (*few, "few.scratch.3"), asr),
        Table("Text to speech", (*few, "few.scratch.3"), tts),
    )


def figures() -> tuple[Figure, ...]:
    labels = ("Single Decoder", "Zipper, paper's form", "… attention starts on the diagonal", "… frozen, with noise")
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
            Claim(f"{where} ours is better than {words}, {what}", measure, f"few.{p}", f"{arm}.{p}", source=source)
            for words, arm, source in (
                ("the paper's form", "zipper", "ours"),
                ("the Single Decoder", "single_decoder", "Figure 3"),
            )
            for what, measure in (("ASR", "asr"), ("TTS", "tts"))
        ]
        found.append(
            Claim(f"{where} frozen towers and noise help, ASR", "asr", f"few.{p}", f"diagonal.{p}", source="ours")
        )
    found += [
        Claim(f"pretraining helps, {what}", measure, "few.3", "few.scratch.3", source="implied")
        for what, measure in (("ASR", "asr"), ("TTS", "tts"), ("TTS, by likelihood", "tts_nats"))
    ]
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
