"""Difference of float32 logits from transformers, per configuration of tests/conversion/tiny_hf.py.

    python benchmarks/conversion_parity.py --out benchmarks/results/conversion_parity.json

Needs torch and transformers. The figure is max |Δ logit| over max |logit|, 2 rows of 64 tokens.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from zipper_jax.conversion import from_hf, verify
from zipper_jax.conversion.to_tower import load_tower
from zipper_jax.vocabularies import UnitVocabulary

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "conversion"))


def main() -> None:
    import tiny_hf
    import torch
    import transformers

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="JSON file to write")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    found = {}
    for name in tiny_hf.CASES:
        with tempfile.TemporaryDirectory() as folder:
            theirs = tiny_hf.build(name, folder)
            plan = from_hf.plan(folder)
            ours = load_tower(plan, "text", UnitVocabulary(plan.tower.vocab_size - 2, 25.0))
        tokens = tiny_hf.random_tokens(2, 64)
        with torch.no_grad():
            wanted = theirs(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()
        difference = np.abs(verify.our_logits(ours, "text")(tokens) - wanted).max() / np.abs(wanted).max()
        found[name] = float(f"{difference:.2e}")
        print(f"{found[name]:.2e}  {name}", flush=True)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    result = {"largest": max(found.values()), "cases": found, "versions": versions}
    print(f"largest {result['largest']:.2e} of {len(found)} configurations")
    if args.out:
        Path(args.out).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
