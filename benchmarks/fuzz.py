"""The table of the results that tests/fuzz/long_run.py writes.

python benchmarks/fuzz.py --out benchmarks/results/fuzz.json --table
"""

import argparse
import json
from pathlib import Path
from typing import Any


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results in Markdown."""
    lines = ["| entry point | CPU minutes | examples | different messages | branches taken | faults found |"]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    for name, one in sorted(results.items()):
        share = f"{one['branches']} of {one['branches_of']} ({one['branches'] / one['branches_of']:.0%})"
        lines.append(
            f"| `{name}` | {one['cpu_seconds'] / 60:.1f} | {one['examples']:,} | {one['messages']:,} | {share} | "
            f"{one['faults']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of tests/fuzz/long_run.py")
    parser.add_argument("--table", action="store_true", required=True, help="print it in Markdown")
    args = parser.parse_args()
    print(table(json.loads(args.out.read_bytes())))


if __name__ == "__main__":
    main()
