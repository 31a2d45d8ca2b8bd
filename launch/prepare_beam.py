"""Prepares a large corpus with Apache Beam, one element per shard: on this machine, Dataflow, Spark or Flink.

python launch/prepare_beam.py --shards=64 --runner=DirectRunner --direct_num_workers=4 \\
    --direct_running_mode=multi_processing -- zipper data prepare --corpus=/shared/corpus --out=/shared/prepared

Runs in an environment of its own, with apache-beam alone (it needs protobuf < 7). ``zipper`` is a program that every
worker can start, such as an absolute path to that of its virtual environment; options that are not ours are Beam's.
A shard whose process is killed is started again where it was; one that is done does nothing.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

USER_ERROR = 2  # zipper's exit status for errors that a restart would repeat


class MakeShard(beam.DoFn):
    """Runs the command for one shard, and yields its index.

    Args:
        command: ``zipper data prepare`` and its options.
        shards: Number of shards.
        attempts: How often a shard is started at most, before Beam's own retries.
    """

    def __init__(self, command: list[str], shards: int, attempts: int):
        self._command, self._shards, self._attempts = command, shards, attempts

    def process(self, index: int, *_: Any) -> Iterator[int]:
        """Run the command for shard ``index``. Raises RuntimeError when its last attempt failed."""
        for left in reversed(range(self._attempts)):
            command = [*self._command, f"--shard={index}/{self._shards}"]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode == 0:
                yield index
                return
            if done.returncode == USER_ERROR or not left:
                raise RuntimeError(f"{shlex.join(command)}: status {done.returncode}\n{done.stderr[-2000:]}")


def main() -> int:
    """Fit, make the shards in a pipeline, finish."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--shards", type=int, required=True, help="number of shards")
    parser.add_argument("--attempts", type=int, default=3, help="how often a shard is started at most (default: 3)")
    parser.add_argument("--dry_run", action="store_true", help="print the commands and Beam's options, and run none")
    place = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args, options = parser.parse_known_args(sys.argv[1:place])
    command = sys.argv[place + 1 :]
    if command[1:3] != ["data", "prepare"]:
        parser.error("give the command after --: -- zipper data prepare --corpus=FOLDER --out=FOLDER ...")
    if "--overwrite" in command:  # shards refuse it, after --fit has started over
        parser.error("--overwrite: run the command once by itself with --fit --overwrite, and omit it here")
    if args.shards < 1 or args.attempts < 1:
        parser.error(f"--shards={args.shards}, --attempts={args.attempts}: give at least 1")
    if args.dry_run:
        print(shlex.join([*command, "--fit"]))
        print(f"# in a Beam pipeline, {shlex.join(options) or 'no options'}, I from 0 to {args.shards - 1}:")
        print(shlex.join([*command, f"--shard=I/{args.shards}"]))
        print(shlex.join([*command, "--finish"]))
        return 0
    if status := subprocess.run([*command, "--fit"], check=False).returncode:
        return status
    with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
        shards = pipeline | beam.Create(range(args.shards)) | beam.Reshuffle()
        _ = shards | "shard" >> beam.ParDo(MakeShard(command, args.shards, args.attempts))
    return subprocess.run([*command, "--finish"], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
