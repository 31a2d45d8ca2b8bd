"""Data preparation: import a corpus, synthesise one (synth), and turn a corpus into packed rows (prepare).

example:
  zipper data import librispeech LibriSpeech --out data/corpus        # docs/your_data.md: all formats
  zipper data synth --out data/corpus --sentences 1000
  zipper data prepare --corpus data/corpus --out data/prepared --text_length 64 --speech_length 512
  zipper data prepare --corpus data/corpus --out data/prepared --gin_file=tasks/phones.gin    # tasks of your own
  zipper data prepare --corpus data/corpus --out data/prepared --fit                          # on many machines: once,
  zipper data prepare --corpus data/corpus --out data/prepared --shard 3/16                   # 0/16 to 15/16, anywhere,
  zipper data prepare --corpus data/corpus --out data/prepared --finish                       # once, behind them
"""

import argparse
import dataclasses
import logging
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from zipper_jax.cli.main import refuse
from zipper_jax.data.import_corpus import check_shard, import_corpus
from zipper_jax.data.inspect import inspect
from zipper_jax.data.prepare_settings import PrepareSettings
from zipper_jax.data.sources import READERS
from zipper_jax.data.sources.rows import ImportSettings
from zipper_jax.speech.corpus import CorpusSettings, synthesise_corpus
from zipper_jax.speech.hubert import HubertTokenizer, read_centroids
from zipper_jax.speech.mel_decoder_training import MelDecoderSettings
from zipper_jax.speech.sentences import write_open_corpus
from zipper_jax.tasks import SPEECH
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import new_folder, require_new
from zipper_jax.utils.paths import folder_path, folder_text, local_path, path_text, require_different
from zipper_jax.vocabularies import UnitVocabulary

logger = logging.getLogger(__name__)

TAKES_GIN_FLAGS = ("prepare",)
_HELP = {
    "train": "sentences of the training split",
    "validation": "sentences of the validation split (import: if the source has none; -1: one in 20, at most 100)",
    "test": "sentences of the test split (import: as validation)",
    "max_seconds": "drop audio with a transcript that is longer",
    "piece_seconds": "cut audio without a transcript into equal pieces no longer than this",
    "piece_words": "cut text without audio into equal pieces no longer than this; 0: never",
    "documents": ".txt files: a document per line, or paragraphs with blank lines between them",
    "text_field": "column, field or feature that holds the text; empty: the format's own",
    "audio_field": "column or feature that holds the audio; empty: the format's own",
    "voice_field": "column or feature that names the speaker; empty: the format's own",
    "audio_folder": "base folder of the paths in a table; empty: the table's folder",
    "header": "JSON file with num_units and rate_hz of given units; empty: header.json beside them",
    "sample_rate": "of a TFDS dataset that does not state it",
    "normaliser": "policy by which sentences are equal (splits, leak checks, controls, error rates): default, none, "
    "basic, whisper-english, or jiwer:TRANSFORM,...",
    "encode_text": "whether models see texts as written, or normalised by that policy",
    "test_other": "sentences of the harder test split (unseen rate and pitch, light noise)",
    "engine": "flite, espeak, auto (flite where its library is installed), or neural voices: piper, kokoro (extra "
    "voices)",
    "word_times": "add the times of words to the manifest, for interleaved tasks (engine flite)",
    "voice_files": "folder of the files of neural voices; empty: the installed packages'",
    "text_only": "file of further training text, a document per line; lines that hold a held-out sentence are dropped",
    "voices": "comma-separated; empty for the engine's own choice",
    "rate": "tempo as a multiple of the voice's own; 0 for the engine's default",
    "rates": "comma-separated multiples of rate, assigned to sentences round-robin",
    "pitches": "comma-separated multiples of the voice's own pitch, assigned to sentences round-robin",
    "seed": "same seed, same result",
    "grammar": "grammar of the sentences: home (75 words) or wide (718)",
    "steps": "updates of the vocoder",
    "batch": "crops of audio per update",
    "crop": "units of a crop",
    "learning_rate": "its peak; it falls to 0 along a cosine",
    "jitter": "share of units that training replaces by similar ones, as those of other voices are",
    "dim": "width of the vocoder's network",
    "blocks": "its depth; each reaches 3 units further to either side",
    "voice": "voice of the corpus to speak with; empty: the one with most audio",
    "text_length": "text positions of a packed row, begin and end tokens included",
    "speech_length": "speech positions of a packed row, begin and end tokens included",
    "text_vocabulary": "sentencepiece, bytes, a .model file, a tokenizer's folder, or a run or tower that has one",
    "text_vocabulary_size": "total number of tokens (sentencepiece)",
    "num_units": "number of units of the tokenizer",
    "unit_features": "what fitted units are codes of: whisper, whisper:FOLDER (sounds, whoever speaks; extra judge), "
    "or log-mel (a speaker's spectrum; needs no weights); empty: whisper",
    "unit_layer": "layer of Whisper's encoder whose states units are codes of",
    "unit_rate": "units of Whisper's encoder per second: 25 or 50",
    "tokenizer": "a run, prepared folder or `zipper data tokenizer` folder whose units to use; empty: fit a tokenizer",
    "speech_vocabulary": "a run or tower folder with as many units, whose ids to use",
    "shifts": "encode training audio this many times, from different starting points within one unit",
    "max_unknown": "largest share of a split's tokens that may be unknown to a vocabulary",
    "tasks": "comma-separated tasks to write rows for; empty: all",
    "lengths": "positions of a packed row for further modalities, NAME=LENGTH, comma-separated",
    "vocabularies": "as --text_vocabulary for further modalities, NAME=WHAT, comma-separated; else made from the data",
    "vocabulary_sizes": "tokens (sentencepiece) or units of further modalities, NAME=SIZE, comma-separated",
    "alignments": "file or folder with word times of the rows, .ctm, .TextGrid or .jsonl, for interleaved tasks",
    "fields": "comma-separated further columns or fields to keep, for user-defined modalities",
    "open_rows": "number of rows that packing fills at the same time",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(
        dest="command", metavar="{import,sentences,synth,tokenizer,vocoder,prepare,inspect}", required=True
    )
    importing = commands.add_parser("import", help="import your own data as a corpus", allow_abbrev=False)
    importing.add_argument("format", help=f"{', '.join(READERS)} or tfds:NAME")
    importing.add_argument("paths", nargs="*", help="files or folders of that format; for tfds: the data_dir")
    importing.add_argument("--out", required=True, type=path_text, help="folder to write; audio files are not copied")
    importing.add_argument("--strict", action="store_true", help="fail if a row cannot be used, instead of dropping it")
    importing.add_argument("--overwrite", action="store_true", help="read again into a folder that has a corpus")
    importing.add_argument(
        "--shard", type=_shard, metavar="I/N", help="only check part I of N of the audio, I from 0, for a later import"
    )
    _add_fields(importing, ImportSettings)
    synth = commands.add_parser("synth", help="synthesise a corpus", allow_abbrev=False)
    synth.add_argument("--out", required=True, type=path_text, help="folder to write; a rerun resumes")
    synth.add_argument(
        "--sentences",
        type=path_text,
        help="a number: training sentences, of the grammar, as --train; or a file of sentences, one per line, of which "
        "--validation, --test and --test_other are held out and the others (or --train of them) are for training",
    )
    _add_fields(synth, CorpusSettings, omitted=("text_file",))
    synth.set_defaults(train=None)  # as many as the file has, where there is one
    opening = commands.add_parser("sentences", help="open sentences from WordNet's files", allow_abbrev=False)
    opening.add_argument(
        "--wordnet", required=True, type=path_text, help="folder with data.noun (Debian: wordnet-base)"
    )
    opening.add_argument("--out", required=True, type=path_text, help="folder to write: spoken.txt, text.txt, licence")
    prepare = commands.add_parser("prepare", help="units, vocabularies, packed rows", allow_abbrev=False)
    prepare.add_argument("--corpus", required=True, type=path_text, help="folder with manifest.jsonl and audio")
    prepare.add_argument("--out", type=folder_text, help="folder to write, also of a bucket; a rerun resumes")
    prepare.add_argument("--overwrite", action="store_true", help="replace data that was made with other settings")
    step = prepare.add_mutually_exclusive_group()
    step.add_argument("--fit", action="store_true", help="only the first step, for shards: units and vocabularies")
    step.add_argument(
        "--shard", type=_shard, metavar="I/N", help="only part I of N of the rows, I from 0; in any order, anywhere"
    )
    step.add_argument("--finish", action="store_true", help="only the last step: check and join the shards, pack rows")
    step.add_argument("--workers", type=_workers, metavar="N", help="N shards, at the same time, on this machine")
    step.add_argument("--estimate", action="store_true", help="print hours, core hours, cost and size; write nothing")
    prepare.add_argument("--rate", type=float, help="for --estimate: hours of audio that a core encodes in an hour")
    prepare.add_argument("--price", type=float, help="for --estimate: of one core hour")
    _add_fields(prepare, PrepareSettings, given_only=True)
    prepare.add_argument_group("gin", "--gin_file=FILE and --gin.NAME=VALUE, as for `zipper train`; options above win")
    tokenizer = commands.add_parser("tokenizer", help="units of a HuBERT on disk, for prepare", allow_abbrev=False)
    tokenizer.add_argument(
        "--hubert", required=True, type=path_text, help="folder with config.json and weights; it is not copied"
    )
    tokenizer.add_argument(
        "--layer", required=True, type=int, help="layer of the features; 1: the first block's output"
    )
    tokenizer.add_argument(
        "--kmeans", required=True, type=path_text, help=".npy with the centroids [units, hidden size]"
    )
    tokenizer.add_argument("--pooled", type=int, default=1, help="frames averaged per unit (default: 1)")
    tokenizer.add_argument("--vocoder", default="", help="command from {units} to {wav}; stored, not executed")
    tokenizer.add_argument("--out", required=True, type=path_text, help="folder to write, for prepare --tokenizer")
    vocoder = commands.add_parser("vocoder", help="learn the way from units back to audio", allow_abbrev=False)
    vocoder.add_argument("folder", type=path_text, help="prepared data, a run or a tokenizer's folder: stored there")
    vocoder.add_argument("--corpus", required=True, type=path_text, help="corpus whose training audio to learn from")
    vocoder.add_argument("--seconds", type=float, default=3600.0, help="of audio to use at most (default: 3600)")
    vocoder.add_argument("--overwrite", action="store_true", help="replace a vocoder that is there")
    _add_fields(vocoder, MelDecoderSettings)
    inspecting = commands.add_parser("inspect", help="summarise a corpus or prepared folder", allow_abbrev=False)
    inspecting.add_argument("folder", type=folder_path, help="a corpus, or a prepared folder, also of a bucket")
    inspecting.add_argument("--examples", type=int, default=3, help="number of examples to show (default: 3)")
    inspecting.add_argument("--out", type=path_text, help="folder for lengths.png and the examples as WAV")
    inspecting.add_argument("--run_vocoder", action="store_true", help="execute the vocoder command of external units")
    for command in (importing, synth, prepare, vocoder):
        command.add_argument("--processes", type=int, help="worker processes (default: one per core)")


def run(args: argparse.Namespace, extra: Sequence[str]) -> int:
    gin_flags = ("--gin_file", "--gin.") if args.command in TAKES_GIN_FLAGS else ()
    refuse("data", args, [one for one in extra if one.startswith("--") and not one.startswith(gin_flags)])
    if args.command == "synth":
        synthesise_corpus(args.out, _synth_settings(args), processes=args.processes)
        return 0
    if args.command == "sentences":
        write_open_corpus(args.wordnet, args.out)
        return 0
    if args.command == "import":
        settings = _settings(ImportSettings, args)
        tfds = args.format.startswith("tfds:")  # its data_dir may be a bucket, which TFDS reads itself
        paths = args.paths if tfds else [local_path(path, "paths") for path in args.paths]
        if args.shard:
            check_shard(args.format, paths, args.out, settings, args.shard, args.overwrite, args.processes)
        else:
            import_corpus(args.format, paths, args.out, settings, args.strict, args.overwrite, args.processes)
        return 0
    if args.command == "vocoder":
        from zipper_jax.data.train_vocoder import train_vocoder

        settings = _settings(MelDecoderSettings, args)
        train_vocoder(args.folder, args.corpus, settings, args.seconds, args.overwrite, args.processes)
        return 0
    if args.command == "inspect":
        if args.out:
            require_different(args.out, "--out", {"the folder": args.folder})
        for line in inspect(args.folder, args.examples, Path(args.out) if args.out else None, args.run_vocoder):
            print(line)
        return 0
    if args.command == "tokenizer":
        return _tokenizer(args)
    return _prepare(args, extra)


def _prepare(args: argparse.Namespace, extra: Sequence[str]) -> int:
    from zipper_jax.data import prepare_rows
    from zipper_jax.data.prepare_estimate import estimate

    corpus, out, settings, processes = args.corpus, args.out, _prepare_settings(args, extra), args.processes
    if args.estimate:
        for line in estimate(corpus, settings, args.rate, args.price):
            print(line)
        return 0
    if args.rate is not None or args.price is not None:
        raise UserError("--rate, --price: only --estimate uses them; add it, or omit them")
    if not out:
        raise UserError("--out is missing: give the folder to write")
    require_different(out, "--out", {"--corpus": corpus})
    if (args.workers or 1) > 1 and processes is not None:
        raise UserError(
            f"--processes {processes}: with --workers each shard encodes in one process; give one of the two"
        )
    if args.shard and args.overwrite:
        raise UserError("--overwrite: give it to --fit, which starts over, not to --shard")
    if args.fit:
        prepare_rows.prepare_fit(corpus, out, settings, args.overwrite)
    elif args.shard:
        prepare_rows.prepare_shard(corpus, out, settings, args.shard, processes)
    elif args.finish:
        prepare_rows.prepare_finish(corpus, out, settings, args.overwrite)
    else:
        prepare_rows.prepare(corpus, out, settings, args.overwrite, processes, args.workers or 1)
    return 0


def _shard(text: str) -> tuple[int, int]:
    """Parse I/N."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UserError(f"--shard = {text}: give I/N with I from 0 to N - 1, for example 3/16")
    return int(index), int(count)


def _workers(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise UserError(f"--workers = {text}: give a whole number of at least 1")
    return int(text)


def _synth_settings(args: argparse.Namespace) -> CorpusSettings:
    """Return the settings; ``--sentences`` is a number or a file."""
    number = args.sentences if args.sentences and args.sentences.isdecimal() else ""
    args.text_file = "" if number else args.sentences or ""
    if number and args.train is not None:
        raise UserError(f"--sentences = {number}: --train = {args.train} says the same; give one of them")
    if number:
        args.train = int(number)
    elif args.train is None:
        args.train = -1 if args.text_file else CorpusSettings.train
    return _settings(CorpusSettings, args)


def _prepare_settings(args: argparse.Namespace, extra: Sequence[str]) -> PrepareSettings:
    """Return the settings of the gin flags, overridden by the options."""
    values = {field.name: getattr(args, field.name) for field in _flags(PrepareSettings)}
    given = {name: value for name, value in values.items() if value is not None}
    if not extra:
        return PrepareSettings(**given)
    from zipper_jax.cli import gin_bindings, gin_flags

    gin_flags.apply(gin_flags.parse(extra))
    return gin_bindings.prepare_settings(given)


def _tokenizer(args: argparse.Namespace) -> int:
    require_new(args.out)
    made = HubertTokenizer(args.hubert, args.layer, read_centroids(args.kmeans), args.pooled, args.vocoder)
    with new_folder(args.out) as aside:
        home = aside / "vocabularies" / SPEECH
        made.save(home)
        UnitVocabulary(made.num_units, made.rate_hz, made.digest).save(home)
    logger.info(f"{args.out}: {made.num_units} units at {made.rate_hz:g} Hz")
    return 0


def _flags(cls: type) -> list[dataclasses.Field]:
    """Return the fields of a settings dataclass that are options: all but nested dataclasses."""
    kinds = typing.get_type_hints(cls)
    return [field for field in dataclasses.fields(cls) if not dataclasses.is_dataclass(kinds[field.name])]


def _add_fields(
    parser: argparse.ArgumentParser, cls: type, given_only: bool = False, omitted: Sequence[str] = ()
) -> None:
    """Add one option per field of a settings dataclass, with its default; ``given_only``: the default is None."""
    kinds = typing.get_type_hints(cls)
    for field in _flags(cls):
        if field.name in omitted:
            continue
        kind, default = kinds[field.name], field.default
        if default is dataclasses.MISSING:
            default = typing.cast(Any, field.default_factory)()
        choices: list[Any] | None = None
        if typing.get_origin(kind) is Literal:
            choices, kind = list(typing.get_args(kind)), str
        elif typing.get_origin(kind) is tuple:
            kind = _tuple_of(typing.get_args(kind)[0])
        elif typing.get_origin(kind) is dict:
            kind, default = _dict_of(typing.get_args(kind)[1]), default or ""
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        help_text = f"{_HELP.get(field.name, field.name.replace('_', ' '))} (default: {shown or repr(shown)})"
        parser.add_argument(
            f"--{field.name}",
            dest=field.name,
            type=path_text if field.name in _PATHS else kind,
            default=None if given_only else default,
            choices=choices,
            help=help_text.replace("%", "%%"),
        )


def _tuple_of(kind: type) -> Any:
    def parse(text: str) -> tuple:
        return tuple(kind(item.strip()) for item in text.split(",") if item.strip())

    parse.__name__ = f"comma-separated {kind.__name__}"
    return parse


def _dict_of(kind: type) -> Any:
    def parse(text: str) -> dict:
        pairs = (item.partition("=") for item in text.split(",") if item.strip())
        return {name.strip(): kind(value.strip()) for name, _, value in pairs}

    parse.__name__ = f"comma-separated NAME={kind.__name__}"
    return parse


_PATHS = {"text_vocabulary", "tokenizer", "speech_vocabulary", "voice_files", "text_only"}
"""Fields of settings that are paths."""


def _settings(cls: type, args: argparse.Namespace) -> Any:
    return cls(**{field.name: getattr(args, field.name) for field in dataclasses.fields(cls)})
