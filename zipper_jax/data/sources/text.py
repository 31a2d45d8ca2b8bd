"""Text without audio: .txt (one document per line or paragraph) and .jsonl, compressed or not; files or folders."""

import os
from collections.abc import Iterator
from pathlib import Path

from zipper_jax.data.sources import lines
from zipper_jax.data.sources.columns import warn_unused
from zipper_jax.data.sources.rows import NOT_UTF8, ImportSettings, Row, files_below, split_of
from zipper_jax.utils import user_json
from zipper_jax.utils.errors import UserError

_ENDINGS = (".txt", ".jsonl")


def read(path: Path, settings: ImportSettings) -> Iterator[Row]:
    """Yield the rows. A file or folder called train, dev, valid, test, … is that split; "split" of a line overrides."""
    for file, name in _files(path):
        split = _split(file, path)
        yield from (_jsonl if lines.ending(file) == ".jsonl" else _txt)(file, name, split, settings)


def _split(file: Path, path: Path) -> str:
    """Return the name that gives the split of ``file``: its own (valid.txt, wiki.valid.txt), else a folder's."""
    stem = lines.stem(file)
    folders = [*Path(os.path.abspath(path)).parts[-1:], *file.relative_to(path).parts[:-1]] if path.is_dir() else []
    return next(filter(split_of, [stem, *stem.split("."), *reversed(folders)]), "")


def _files(path: Path) -> list[tuple[Path, str]]:
    """Return the files and the id prefix of their rows."""
    kinds = f"{' or '.join(_ENDINGS)} (also {', '.join(lines.COMPRESSED)})"
    if path.is_dir():
        found = [file for file in files_below(path) if lines.ending(file) in _ENDINGS]
        if not found:
            raise UserError(f"folder {str(path)!r} holds no text: give one with files that end in {kinds}")
        return [(file, "-".join([*file.relative_to(path).parts[:-1], lines.stem(file)])) for file in found]
    if lines.ending(path) not in _ENDINGS:
        raise UserError(f"{str(path)!r} has an unknown ending: give {kinds}, or a folder of such files")
    return [(path, lines.stem(path))]


def _txt(file: Path, name: str, split: str, settings: ImportSettings) -> Iterator[Row]:
    paragraph: list[str] = []
    began = 1

    def row() -> Row:
        return Row(f"{name}-{began}", f"{file}:{began}", split, "\n".join(paragraph))

    for number, line in lines.lines(file):
        if line is None:
            yield Row(f"{name}-{number}", f"{file}:{number}", split, problem=NOT_UTF8)
        elif line.strip():
            began = number if not paragraph else began
            paragraph.append(line.strip())
            if settings.documents == "paragraphs":
                continue
        if paragraph:
            yield row()
            paragraph.clear()
    if paragraph:
        yield row()


def _jsonl(file: Path, name: str, split: str, settings: ImportSettings) -> Iterator[Row]:
    field, there = settings.text_field or "text", dict[str, None]()
    for number, line in lines.lines(file):
        own, place = f"{name}-{number}", f"{file}:{number}"
        if line is None:
            yield Row(own, place, split, problem=NOT_UTF8)
            continue
        if not line.strip():
            continue
        try:
            value = user_json.decode(line, place, "")
        except user_json.NotUnicodeError:
            yield Row(own, place, split, problem=NOT_UTF8)
            continue
        except user_json.JsonError:
            yield Row(own, place, split, problem="line that is no JSON object")
            continue
        there |= dict.fromkeys(value)
        if not isinstance(value.get(field), str) or not value[field].strip():
            yield Row(own, place, split, problem=f"no text in field {field!r}")
        elif not isinstance(value.get("split"), str | None):
            yield Row(own, place, split, problem="split that is no name")
        else:
            yield Row(own, place, value.get("split") or split, value[field].strip(), more=settings.more(value))
    warn_unused(file, there, [field, "split", *settings.fields], "fields")
