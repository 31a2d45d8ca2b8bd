"""Subsets of the pairs of a prepared folder: the same vocabularies and unimodal rows, fewer aligned examples.

Subsets are nested: a larger share contains the pairs of a smaller one. Validation and test are copied unchanged.
"""

import shutil
import zlib
from pathlib import Path
from typing import Any

from zipper_jax.data.mixtures import permutation
from zipper_jax.data.packed_rows import read_meta, write_rows
from zipper_jax.data.prepare_rows import Packed, examples_of
from zipper_jax.data.prepare_settings import PrepareSettings
from zipper_jax.data.prepared import read_examples, read_header, read_vocabularies
from zipper_jax.utils import user_json
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import copy_folder, write_json

TRAIN = "train"
ABOUT = "share.json"


def write_share(prepared: Any, out: Any, share: float, settings: PrepareSettings, seed: int = 0) -> dict[str, Any]:
    """Write ``out``: rows of ``prepared`` with a ``share`` of its training sentences in tasks of several modalities.

    Finished parts are skipped.

    Args:
        prepared: A prepared folder.
        out: Folder to write.
        share: Fraction of the training sentences, in (0, 1].
        settings: Settings that ``prepared`` was made with (row lengths, tasks).
        seed: Seed of the selection.

    Returns:
        The content of ``share.json``, with ``share``, ``sentences`` and ``hours``.

    Raises:
        UserError: A share outside (0, 1], or one so small that no sentence is left.
    """
    prepared, out = Path(prepared), Path(out)
    if not 0 < share <= 1:
        raise UserError(f"share of pairs = {share}: give a fraction above 0 and at most 1, e.g. 0.01")
    task_set = settings.task_set
    paired = {
        m for task in settings.tasks if len(task_set.tasks[task].spans) > 1 for m in task_set.tasks[task].modalities
    }
    fields = {modality: task_set.field_of(modality) for modality in paired}
    examples = [e for e in read_examples(prepared, TRAIN) if all(e[field] is not None for field in fields.values())]
    sentences = sorted({e["id"] for e in examples})
    count = round(share * len(sentences))
    if not count:
        raise UserError(f"share of pairs = {share}: none of {len(sentences)} sentences is left; give a larger one")
    order = permutation(len(sentences), seed, zlib.crc32(b"share of pairs"))
    chosen = {sentences[i] for i in order[:count]}
    kept = [e for e in examples if e["id"] in chosen]
    about = {
        "of": read_header(prepared)["made_with"],
        "lengths": settings.row_lengths,
        "share": share,
        "seed": seed,
        "sentences": count,
        "hours": round(sum(e["seconds"] for e in kept if not e["shift"]) / 3600, 5),
    }
    if out.is_dir() and (out / ABOUT).is_file() and user_json.read_object(out / ABOUT, "delete the folder") != about:
        raise UserError(f"{str(out)!r} holds a subset of other data: delete the folder, or give another")
    vocabularies = read_vocabularies(prepared)
    for task in settings.tasks:
        if len(task_set.tasks[task].spans) == 1:
            copy_folder(prepared / "rows" / task, out / "rows" / task)
            continue
        for split in (path.name for path in sorted((prepared / "rows" / task).iterdir())):
            home = out / "rows" / task / split
            if split != TRAIN:
                copy_folder(prepared / "rows" / task / split, home)
            elif (read_meta(home) or {}).get("of") != about:
                digests = {name: vocabulary.digest for name, vocabulary in vocabularies.items()}
                more = {"task": task, "split": split, "of": about, "vocabularies": digests}
                packed = Packed(task, examples_of(prepared, task, split, settings, kept), settings, more)
                write_rows(home, packed, packed.meta)
    copy_folder(prepared / "vocabularies", out / "vocabularies")
    shutil.copy(prepared / "header.json", out / "header.json")
    write_json(out / ABOUT, about)
    return about
