"""Recordings of prepared examples, from the manifest of their corpus."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zipper_jax.data.encode import part
from zipper_jax.speech.manifest import read_manifest
from zipper_jax.utils.errors import UserError


def recordings(corpus: Path, examples: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Example id -> arguments of `load_audio`.

    Raises:
        UserError: The corpus has no audio for an example.
    """
    parts = {row["id"]: part(corpus, row) for row in read_manifest(corpus) if "audio" in row}
    for example in examples:
        found = parts.get(example["id"])
        if found is None or not Path(found["source"]).is_file():
            place = found["source"] if found else "not in its manifest"
            raise UserError(
                f"--corpus {corpus} has no audio for {example['id']!r} ({place}); give the corpus that was prepared "
                "(or, with --split, none: the page then plays the vocoder's output)"
            )
    return {example["id"]: parts[example["id"]] for example in examples}
