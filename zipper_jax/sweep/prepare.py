"""Data of a sweep: corpus, prepared rows, and a folder per share of the pairs.

The scored sentences are stored as token ids, so that rows run without vocabularies and audio.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from zipper_jax.sweep.plan import Places, Sweep, data_settings
from zipper_jax.tasks import MODALITIES
from zipper_jax.utils import user_json
from zipper_jax.utils.configs import from_dict
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_json

logger = logging.getLogger(__name__)

MADE_WITH = "made_with.json"
Settings = TypeVar("Settings")
SCORED_SPLITS = ("validation", "test", "test_other")


def prepared(sweep: Sweep, places: Places) -> bool:
    """Whether the data is complete.

    Raises:
        UserError: The folder holds data that was made with other settings.
    """
    path = places.root / MADE_WITH
    if not path.is_file():
        return False
    fix = "it is damaged: give another --out"
    found = user_json.read_object(path, fix)
    for part, wanted in data_settings(sweep).items():
        if found.get(part) != wanted:
            raise UserError(
                f"{str(places.root)!r} holds data that was made with {part} = {found.get(part)}, the sweep file has "
                f"{wanted}: give another --out"
            )
    return set(sweep.shares) <= set(user_json.convert(found, _MadeWith, repr(str(path)), fix).shares)


class _MadeWith(msgspec.Struct):
    shares: list[float]


def prepare(sweep: Sweep, places: Places, prose: Sequence[Path] = ()) -> None:
    """Makes what is missing.

    Args:
        sweep: The sweep.
        places: Its folders.
        say: Receives progress lines.
        prose: Text files or folders for the text tower's pretraining; the text vocabulary is then fitted on them.

    Raises:
        UserError: The folder holds data that was made with other settings.
    """
    from zipper_jax.data.import_corpus import import_corpus
    from zipper_jax.data.prepare_rows import prepare as prepare_rows
    from zipper_jax.data.prepare_settings import PrepareSettings
    from zipper_jax.data.prepared import read_examples, read_vocabularies
    from zipper_jax.data.subsets import write_share
    from zipper_jax.speech.corpus import CorpusSettings, synthesise_corpus

    prepared(sweep, places)  # another sweep's data is an error
    settings = _settings(PrepareSettings, sweep.prepare, "prepare")
    corpus = _settings(CorpusSettings, sweep.corpus, "corpus")
    if prose:
        import_corpus("text", prose, places.root / "prose_corpus")
        prepare_rows(places.root / "prose_corpus", places.prose, settings)
    if places.prose.is_dir():
        settings = dataclasses.replace(settings, text_vocabulary=str(places.prose))
    synthesise_corpus(places.corpus, corpus)
    prepare_rows(places.corpus, places.prepared, settings)
    for share in sweep.shares:
        about = write_share(places.prepared, places.data(share), share, settings)
        logger.info(f"{share:.1%} of the pairs: {about['sentences']} sentences, {about['hours']:.3f} h")
    vocabularies = read_vocabularies(places.prepared)
    for split in SCORED_SPLITS:
        sentences = [
            {
                "id": example["id"],
                "text": example["text"],
                "contents": {
                    modality: vocabularies[modality].encode(example[about.field]).tolist()
                    for modality, about in MODALITIES.items()
                },
            }
            for example in read_examples(places.prepared, split)
        ]
        write_json(places.root / "sentences" / f"{split}.json", sentences)
    write_json(
        places.root / MADE_WITH, {**data_settings(sweep), "shares": sweep.shares}
    )  # last: marks the data as complete


def _settings(kind: type[Settings], given: Mapping[str, Any], what: str) -> Settings:
    try:
        return from_dict(kind, given)
    except UserError as error:
        raise UserError(f"the sweep's {what}: {error}") from None
