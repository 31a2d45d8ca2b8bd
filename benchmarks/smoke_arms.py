"""Validation losses of the smoke run's zipper with other zips, rows and rates: the same towers, data, seed and tokens.

    python benchmarks/smoke_arms.py --smoke runs/smoke --out benchmarks/results/smoke_arms.json        train (resumes)
    python benchmarks/smoke_arms.py --out benchmarks/results/smoke_arms.json --table                    the table

Needs the prepared data and the towers of `make smoke`. An arm takes some five minutes on two cores.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

STEPS, ROWS = 800, 8
ZIPS = "((2,1),(3,2),(4,3))"
LEARNED = {
    "ZipConfig.positions": '"learned"', "ZipConfig.position_scales": "None", "ZipConfig.rope_base": "10000.0",
    "ZipConfig.diagonal_init": "0.0",
}  # fmt: skip
ROTARY = {"ZipConfig.positions": '"rotary"', "ZipConfig.rope_base": "10000.0", "ZipConfig.diagonal_init": "0.0"}
DIAGONAL = {"ZipConfig.positions": '"rotary"', "ZipConfig.rope_base": "100.0", "ZipConfig.diagonal_init": "1.0"}
FEWER_ROWS = {"BATCH_SIZE": str(ROWS // 2), "TRAIN_STEPS": str(2 * STEPS)}
LOWER_ZIPS = {"ZIP_PAIRS": "((1,1),(2,2),(3,3))"}


FULL_RATE = {"OptimizerConfig.learning_rate_multipliers": '{".*_gate": 3.0}'}


def rate(multiplier: float) -> dict[str, str]:
    """The speech tower's share of the learning rate (the text tower is frozen)."""
    multipliers = {"towers/.*": multiplier, ".*_gate": 3.0}
    return {"OptimizerConfig.learning_rate_multipliers": json.dumps(multipliers)}


ARMS = {
    "learned": ("learned positions", LEARNED),
    "rotary": ("rotary positions, scaled", ROTARY),
    "diagonal": ("attention starts on the diagonal", DIAGONAL),
    "d_rows4": ("diagonal; rows of 4", DIAGONAL | FEWER_ROWS),
    "d_mult1": ("diagonal; speech tower at the full rate", DIAGONAL | rate(1.0)),
    "l_rows4m": ("learned; rows of 4; full rate", LEARNED | FEWER_ROWS | FULL_RATE),
    "d_rows4m": ("diagonal; rows of 4; full rate (the smoke run's)", DIAGONAL | FEWER_ROWS | FULL_RATE),
    "d_lr4": (
        "diagonal; rows of 4; twice the rate, the speech tower at 0.4 of it",
        DIAGONAL | FEWER_ROWS | rate(0.4) | {"OptimizerConfig.learning_rate": "4e-3"},
    ),
    "d_half": ("diagonal; rows of 4; half the rate; lower zips", DIAGONAL | FEWER_ROWS | rate(0.5) | LOWER_ZIPS),
}


def train(name: str, smoke: Path) -> list[dict]:
    """Train an arm unless it has been; return its validations."""
    run = smoke.parent / "arms" / name
    bindings = {
        "DATA": f'"{smoke}/prepared"', "MODEL_DIR": f'"{run}"', "TEXT_RUN": f'"{smoke}/text"',
        "SPEECH_RUN": f'"{smoke}/speech"', "TRAIN_STEPS": str(STEPS), "BATCH_SIZE": str(ROWS), "ZIP_PAIRS": ZIPS,
        "ZipConfig.max_positions": "128",
        "TrainConfig.eval_period": "100", "TrainConfig.eval_batches": "10", **rate(0.25), **ARMS[name][1],
    }  # fmt: skip
    files = ("runs/fuse.gin", "models/zipper_quick.gin", "models/zipper_identity.gin")
    flags = [f"--gin_file={file}" for file in files] + [f"--gin.{key}={value}" for key, value in bindings.items()]
    subprocess.run(["zipper", "train", *flags], check=True)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {"step": line["step"], **{task: round(found["loss"], 4) for task, found in line["tasks"].items()}}
        for line in lines
        if line.get("split") == "validation"
    ]


def table(found: dict[str, list[dict]]) -> str:
    """The last validation of each arm as Markdown."""
    lines = ["| zipper | speech to text, nats a token | text to speech, nats a unit |", "|---|---:|---:|"]
    lines += [f"| {ARMS[name][0]} | {rows[-1]['asr']:.3f} | {rows[-1]['tts']:.3f} |" for name, rows in found.items()]
    return "\n".join(lines)


def main() -> int:
    """Train and write, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", type=Path, default=Path("runs/smoke"), help="folder of `make smoke`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    found = json.loads(args.out.read_text()) if args.out.is_file() else {}
    if not args.table:
        for name in args.only:
            found[name] = train(name, args.smoke)
            args.out.write_text(json.dumps({arm: found[arm] for arm in ARMS if arm in found}, indent=1) + "\n")
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
