"""Print README.md's results table from files that `zipper eval` wrote, two columns per file.

python benchmarks/smoke_table.py benchmarks/results/smoke.json benchmarks/results/smoke_long.json
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


def table(runs: dict[str, dict]) -> str:
    """Return Markdown: word error rates in per cent of Zipper and Single Decoder, for each run."""

    def cell(results: dict, key: str) -> str:
        found = results.get(key, "–")
        return found if isinstance(found, str) else f"{100 * found:.1f}"

    heads = [f"{model}, {name}" for name in runs for model in ("Zipper", "Single Decoder")]
    lines = [f"| word error rate, % | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for title, key in ROWS:
        cells = [cell(results, prefix + key) for results in runs.values() for prefix in ("", "single_decoder_")]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    for name, results in runs.items():
        gold, raw, reverse, noise = (cell(results, key) for key in JUDGE)
        lines += [
            "",
            f"The judge, {name}: gold units {gold}, raw audio {raw}, reversed audio {reverse}, noise {noise}.",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table({Path(path).stem: json.loads(Path(path).read_text(encoding="utf-8")) for path in sys.argv[1:]}))
