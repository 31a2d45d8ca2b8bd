"""Which figures the report shows, what each would expose, and whether the goals are met.

Error rates are fractions here and in ``results.json``; only the report turns them into per cent.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from zipper_jax.utils.errors import UserError

OTHER = "single_decoder_"
"""Prefix of the Single Decoder's figures."""

MOST_ASR_WER = 0.08
MOST_OTHER_OVER_TEST = 2.0
MOST_TTS_OVER_GOLD = 0.15
MOST_REAL_OVER_SHUFFLED = 1 / 3
_ROUNDING = 1e-9  # a bound hit exactly counts as met


@dataclass(frozen=True)
class Verdict:
    """One goal held against the Zipper's figures. ``met`` is None where a figure is missing."""

    met: bool | None
    text: str


@dataclass(frozen=True)
class Row:
    """One line of an error-rate table.

    key: in ``results.json``; the Single Decoder's has the prefix ``single_decoder_``.
    why: one plain sentence on what the figure would expose.
    control: no result of the model but a check beside one.
    shared: does not depend on the model; one value stands for both columns.
    goals: names of the goals (see `verdicts`) this figure has to meet.
    """

    key: str
    label: str
    why: str
    control: bool = False
    shared: bool = False
    goals: tuple[str, ...] = ()


ASR_ROWS = (
    Row(
        "asr_wer_test",
        "Test sentences",
        "Sentences that no training run saw; this is the main figure of speech to text.",
        goals=("asr", "audio"),
    ),
    Row(
        "asr_wer_test_other",
        "Harder test sentences",
        "Unseen tempo and pitch with light noise; a model that only memorised clean audio falls apart here.",
        goals=("other",),
    ),
    Row(
        "asr_wer_shuffled_audio",
        "Another sentence's audio",
        "Each sentence is paired with the audio of another; a low rate would mean that the text is guessed, not heard.",
        control=True,
    ),
    Row(
        "asr_wer_no_audio",
        "No audio at all",
        "What the text side writes by itself; a low rate would mean that the sentences can be guessed.",
        control=True,
    ),
    Row(
        "asr_wer_gates_zero",
        "Gates set to 0",
        "The zips are shut after training; a low rate would mean that words reach the text some other way.",
        control=True,
    ),
)

TTS_ROWS = (
    Row(
        "tts_wer_test",
        "Test sentences",
        "The model speaks sentences it never saw, a judge writes them down; the main figure of text to speech.",
        goals=("tts",),
    ),
    Row(
        "tts_wer_gold_units",
        "Gold units",
        "True recordings through units and vocoder, no model; the best that any model with these units can reach.",
        control=True,
        shared=True,
    ),
    Row(
        "tts_wer_raw_audio",
        "True recordings",
        "The judge on untouched audio; whatever it gets wrong here is the judge's own error.",
        control=True,
        shared=True,
    ),
    Row(
        "tts_wer_shuffled_text",
        "Another sentence's speech",
        "Speech made for one sentence is scored against another; a low rate would mean that the text plays no part.",
        control=True,
    ),
    Row(
        "judge_wer_noise",
        "Judge on noise",
        "Plain noise instead of speech; a low rate would mean that the judge makes up valid sentences by itself.",
        control=True,
        shared=True,
    ),
    Row(
        "judge_wer_reversed",
        "Judge on reversed audio",
        "Recordings played backwards; shows how far the judge's closed grammar turns nonsense into valid sentences.",
        control=True,
        shared=True,
    ),
    Row(
        "tts_truncated",
        "Cut at the length limit",
        "No error rate: the share of sentences where the model did not stop speaking by itself.",
        control=True,
    ),
)

PERPLEXITY_ROWS = (
    (
        "Text, tower alone",
        "The text tower without the zips; where it was frozen, this can't change.",
        "text_ppl_unimodal_before",
        "text_ppl_unimodal_after",
    ),
    (
        "Text, fused path, the paper's input projection",
        "Text without any speech through projection and zips: what fusion costs the text side.",
        "text_ppl_fused_before_paper",
        "text_ppl_fused_after_paper",
    ),
    (
        "Text, fused path, identity-preserving projection",
        "The same with our projection, which starts as the identity: before fusion it must equal the tower alone.",
        "text_ppl_fused_before_identity",
        "text_ppl_fused_after_identity",
    ),
    (
        "Speech, tower alone",
        "The speech tower without the zips: a rise would mean that fusion made it forget speech.",
        "speech_ppl_unimodal_before",
        "speech_ppl_unimodal_after",
    ),
)
"""Label, what it would expose, key before fusion, key after; ``text_ppl_unimodal`` alone stands for both."""

_SHOWN_ELSEWHERE = {"parameters", "seconds", "normaliser", "judge", "sentences", "settings", "text_ppl_unimodal"}


def number(results: Mapping[str, Any], key: str) -> float | None:
    """The finite figure ``key``; None where it is missing, null or not finite.

    Raises:
      UserError: the value is no number.
    """
    value = results.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"results.json: {key} is {value!r}: give a number, or leave it out where it was not measured")
    return float(value) if math.isfinite(value) else None


def percent(fraction: float | None, decimals: int = 1) -> str:
    """``6.2 %``, or ``not measured``."""
    return "not measured" if fraction is None else f"{100 * fraction:.{decimals}f} %"


def verdicts(results: Mapping[str, Any]) -> dict[str, Verdict]:
    """The four goals, in the order of reading, from the Zipper's own figures."""

    def check(name: str, keys: tuple[str, ...], bound: Callable[..., float], words: str) -> Verdict:
        figures = [number(results, key) for key in keys]
        found = [figure for figure in figures if figure is not None]
        if len(found) < len(keys):
            return Verdict(None, f"{name}: cannot tell, not measured")
        most = bound(*found[1:])
        value, limit = percent(found[0]), percent(most)
        if value == limit:  # two decimals where one would hide on which side of the bound the figure lies
            value, limit = percent(found[0], 2), percent(most, 2)
        return Verdict(found[0] <= most + _ROUNDING, f"{name}: {value}, at most {limit}{words}")

    return {
        "asr": check("Speech to text", ("asr_wer_test",), lambda: MOST_ASR_WER, ""),
        "other": check(
            "Harder speech",
            ("asr_wer_test_other", "asr_wer_test"),
            lambda test: MOST_OTHER_OVER_TEST * min(test, MOST_ASR_WER),
            " (twice the test sentences, or twice their goal)",
        ),
        "audio": check(
            "It listens",
            ("asr_wer_test", "asr_wer_shuffled_audio"),
            lambda shuffled: MOST_REAL_OVER_SHUFFLED * shuffled,
            " (a third of another sentence's audio)",
        ),
        "tts": check(
            "Text to speech",
            ("tts_wer_test", "tts_wer_gold_units"),
            lambda gold: gold + MOST_TTS_OVER_GOLD,
            " (15 points over gold units)",
        ),
    }


def other_figures(results: Mapping[str, Any]) -> list[str]:
    """Keys that no table has a place for, so that nothing measured goes unseen."""
    rows = {row.key for row in ASR_ROWS + TTS_ROWS}
    shown = rows | {OTHER + key for key in rows} | {key for row in PERPLEXITY_ROWS for key in row[2:]}
    return sorted(set(results) - shown - _SHOWN_ELSEWHERE)
