"""Rows of the report's tables, what each control exposes, and the goals.

Error rates are fractions here and in ``results.json``; the report shows them in per cent.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from zipper_jax.metrics.error_rates import percent
from zipper_jax.utils.errors import UserError

OTHER = "single_decoder_"
"""Key prefix of the Single Decoder's figures."""

MOST_ASR_WER = 0.08
MOST_OTHER_OVER_TEST = 2.0
MOST_TTS_OVER_GOLD = 0.15
MOST_REAL_OVER_SHUFFLED = 1 / 3
_ROUNDING = 1e-9  # a bound hit exactly counts as met


@dataclass(frozen=True)
class Verdict:
    """Outcome of one goal for the Zipper; ``met`` is None where a figure is missing."""

    met: bool | None
    text: str


@dataclass(frozen=True)
class Row:
    """One row of an error-rate table.

    Attributes:
        key: Key in ``results.json``; the Single Decoder's has the prefix ``single_decoder_``.
        label: Heading of the row.
        why: One sentence on what the figure means or exposes.
        control: A control, not a result of the model.
        shared: Independent of the model; one value for both columns.
        goals: Names of the goals (see `verdicts`) that use this figure.
        optional: Left out where it was not measured.
    """

    key: str
    label: str
    why: str
    control: bool = False
    shared: bool = False
    goals: tuple[str, ...] = ()
    optional: bool = False


ASR_ROWS = (
    Row(
        "asr_wer_test",
        "Test sentences",
        "Sentences outside all training data; this is the main figure of speech to text.",
        goals=("asr", "audio"),
    ),
    Row(
        "asr_wer_test_other",
        "Harder test sentences",
        "Unseen tempo and pitch with light noise; a model that memorised clean audio fails here.",
        goals=("other",),
    ),
    Row(
        "asr_wer_shuffled_audio",
        "Another sentence's audio",
        "Each sentence is paired with the audio of another; a low rate would mean that the model ignores the audio.",
        control=True,
    ),
    Row(
        "asr_wer_no_audio",
        "No audio at all",
        "The text tower without audio; a low rate would mean that the sentences can be guessed.",
        control=True,
    ),
    Row(
        "asr_wer_gates_zero",
        "Gates set to 0",
        "All gates are set to 0 after training; a low rate would mean that text gets information around the zips.",
        control=True,
    ),
)

TTS_ROWS = (
    Row(
        "tts_wer_test",
        "Test sentences",
        "Synthesis of unseen sentences, transcribed by the judge; the main figure of text to speech.",
        goals=("tts",),
    ),
    Row(
        "tts_wer_best",
        "Test sentences, best of several seeds",
        "Of several samples per sentence the one with the fewest errors, as the paper reports; one sample is harder.",
        optional=True,
    ),
    Row(
        "tts_wer_against_gold_units",
        "Against the judge's transcripts of gold units",
        "The paper's second column: what the judge understands in gold units is the reference.",
        optional=True,
    ),
    Row(
        "tts_cer_test",
        "Test sentences, characters",
        "Character error rate of the same transcripts: misspelt names cost less.",
        optional=True,
    ),
    Row(
        "tts_wer_gold_units",
        "Gold units",
        "Recordings resynthesised from their units by the vocoder, without a model; the best rate these units allow.",
        control=True,
        shared=True,
    ),
    Row(
        "tts_wer_raw_audio",
        "True recordings",
        "The judge on the original audio; the rate is the judge's own error.",
        control=True,
        shared=True,
    ),
    Row(
        "tts_wer_shuffled_text",
        "Another sentence's speech",
        "Speech generated for one sentence is scored against another; a low rate would mean that the text is ignored.",
        control=True,
    ),
    Row(
        "tts_wer_best_shuffled_text",
        "Another sentence's speech, best of several seeds",
        "The same choice, scored against another sentence: what choosing alone gains.",
        control=True,
        optional=True,
    ),
    Row(
        "judge_wer_noise",
        "Judge on noise",
        "White noise instead of speech; a low rate would mean that the judge produces valid sentences by itself.",
        control=True,
        shared=True,
    ),
    Row(
        "judge_wer_reversed",
        "Judge on reversed audio",
        "Recordings played backwards; shows whether the judge's closed grammar turns any audio into valid sentences.",
        control=True,
        shared=True,
    ),
    Row(
        "judge_wer_silence",
        "Judge on silence",
        "Digital silence instead of speech: more than 100 % is invented text.",
        control=True,
        shared=True,
        optional=True,
    ),
    Row(
        "tts_truncated",
        "Cut at the length limit",
        "No error rate: the share of sentences for which generation reached max_new_tokens.",
        control=True,
    ),
)

PERPLEXITY_ROWS = (
    (
        "Text, tower alone",
        "The text tower without the zips; it cannot change where the tower is frozen.",
        "text_ppl_unimodal_before",
        "text_ppl_unimodal_after",
    ),
    (
        "Text, fused path, the paper's input projection",
        "Text alone, through input projection and zips: what fusion costs on text.",
        "text_ppl_fused_before_paper",
        "text_ppl_fused_after_paper",
    ),
    (
        "Text, fused path, identity-preserving projection",
        "The same with our projection, which is the identity at first: before fusion it must equal the tower alone.",
        "text_ppl_fused_before_identity",
        "text_ppl_fused_after_identity",
    ),
    (
        "Speech, tower alone",
        "The speech tower without the zips: a rise means that fusion made it forget speech.",
        "speech_ppl_unimodal_before",
        "speech_ppl_unimodal_after",
    ),
)
"""Label, explanation, key before fusion, key after; ``text_ppl_unimodal`` stands for both where it is given."""

_SHOWN_ELSEWHERE = {
    "parameters",
    "seconds",
    "normaliser",
    "judge",
    "judge_normaliser",
    "sentences",
    "settings",
    "text_ppl_unimodal",
}


def not_possible(results: Mapping[str, Any], key: str) -> str:
    """Why the control ``key`` is not possible, or ""."""
    value = results.get(key)
    return value if isinstance(value, str) and value.startswith("not possible: ") else ""


def number(results: Mapping[str, Any], key: str) -> float | None:
    """The figure ``key``; None where it is missing, null, not finite or "not possible: ...".

    Raises:
        UserError: The value is no number.
    """
    value = results.get(key)
    if value is None or not_possible(results, key):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"results.json: {key} is {value!r}: give a number, or omit it where it was not measured")
    return float(value) if math.isfinite(value) else None


def verdicts(results: Mapping[str, Any]) -> dict[str, Verdict]:
    """Check the four goals against the Zipper's figures, in the order shown."""

    def check(name: str, keys: tuple[str, ...], bound: Callable[..., float], words: str) -> Verdict:
        figures = [number(results, key) for key in keys]
        found = [figure for figure in figures if figure is not None]
        if len(found) < len(keys):
            why_not = [not_possible(results, key) for key in keys]
            return Verdict(None, f"{name}: {next(filter(None, why_not), 'not measured')}")
        most = bound(*found[1:])
        value, limit = percent(found[0]), percent(most)
        if value == limit:  # with one decimal, figure and bound would look equal
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
            "Audio is used",
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
    """Keys without a table, shown under the settings so that every figure appears."""
    rows = {row.key for row in ASR_ROWS + TTS_ROWS}
    shown = rows | {OTHER + key for key in rows} | {key for row in PERPLEXITY_ROWS for key in row[2:]}
    return sorted(set(results) - shown - _SHOWN_ELSEWHERE)
