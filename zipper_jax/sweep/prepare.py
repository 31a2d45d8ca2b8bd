"""The data of a sweep: corpus, prepared rows, a folder per share of the pairs, and the sentences that rows are scored
on as token ids, so that whoever runs rows needs no vocabulary and no audio."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from zipper_jax.files import write_json
from zipper_jax.sweep.plan import Places, Sweep

SCORED_SPLITS = ("validation", "test", "test_other")


def prepared(sweep: Sweep, places: Places) -> bool:
    """Whether `prepare` has nothing to do."""
    folders = [places.data(share) for share in (1.0, *sweep.shares)]
    sentences = [places.root / "sentences" / f"{split}.json" for split in SCORED_SPLITS]
    return all(os.path.isdir(f) for f in folders) and all(path.is_file() for path in sentences)


def prepare(sweep: Sweep, places: Places, say: Callable[[str], None], prose: Sequence[Path] = ()) -> None:
    """Makes what is missing.

    Args:
      prose: text files or folders for the text tower's pretraining, which the text vocabulary is then fitted on.

    Raises:
      UserError: the folder holds data of other settings.
    """
    from zipper_jax.data.import_corpus import import_corpus
    from zipper_jax.data.prepare_rows import prepare as prepare_rows
    from zipper_jax.data.prepare_settings import PrepareSettings
    from zipper_jax.data.prepared import read_examples, read_vocabularies
    from zipper_jax.data.subsets import write_share
    from zipper_jax.speech.corpus import CorpusSettings, synthesise_corpus

    settings = PrepareSettings(**sweep.prepare)
    if prose:
        import_corpus("text", prose, places.root / "prose_corpus", say=say)
        prepare_rows(places.root / "prose_corpus", places.prose, settings, say=say)
    if places.prose.is_dir():
        settings = dataclasses.replace(settings, text_vocabulary=str(places.prose))
    synthesise_corpus(places.corpus, CorpusSettings(**sweep.corpus), progress=say)
    prepare_rows(places.corpus, places.prepared, settings, say=say)
    for share in sweep.shares:
        about = write_share(places.prepared, places.data(share), share, settings)
        say(f"{share:.1%} of the pairs: {about['sentences']} sentences, {about['hours']:.3f} h")
    vocabularies = read_vocabularies(places.prepared)
    for split in SCORED_SPLITS:
        sentences = [
            {
                "id": example["id"],
                "text": example["text"],
                "contents": {
                    "text": vocabularies["text"].encode(example["text"]).tolist(),
                    "speech": vocabularies["speech"].encode(example["units"]).tolist(),
                },
            }
            for example in read_examples(places.prepared, split)
        ]
        write_json(places.root / "sentences" / f"{split}.json", sentences)
