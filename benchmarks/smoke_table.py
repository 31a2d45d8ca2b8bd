"""Prints README.md's table of figures from a results.json that `zipper eval` wrote.

python benchmarks/smoke_table.py benchmarks/results/smoke.json
"""

import json
import sys
from pathlib import Path

ROWS = (
    ("speech to text, test", "asr_wer_test"),
    ("… test_other (unseen tempo and pitch, noise)", "asr_wer_test_other"),
    ("control: another sentence's audio", "asr_wer_shuffled_audio"),
    ("control: no audio", "asr_wer_no_audio"),
    ("control: zip gates at zero", "asr_wer_gates_zero"),
    ("text to speech, judged", "tts_wer_test"),
    ("control: speech made from another sentence", "tts_wer_shuffled_text"),
)
JUDGE = ("tts_wer_gold_units", "tts_wer_raw_audio", "judge_wer_reversed", "judge_wer_noise")


def table(results: dict) -> str:
    """Markdown: word error rates in per cent, Zipper beside Single Decoder."""

    def cell(key: str) -> str:
        return f"{100 * results[key]:.1f}" if key in results else "–"

    lines = ["| word error rate, % | Zipper | Single Decoder |", "|---|---:|---:|"]
    lines += [f"| {name} | {cell(key)} | {cell('single_decoder_' + key)} |" for name, key in ROWS]
    gold, raw, reverse, noise = (cell(key) for key in JUDGE)
    lines += ["", f"The judge itself: gold units {gold}, raw audio {raw}, reversed audio {reverse}, noise {noise}."]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
