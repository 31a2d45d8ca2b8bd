"""The property of every entry point: a right result, or one line that names the file; never another exception.

name    the entry point; a folder in ``corpus``
files   file -> valid contents; each example replaces one of them
call    reads the folder as the product does, and checks what can be counted
"""

import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from mutating import mutated

from zipper_jax.utils.errors import UserError

ENTRIES: dict[str, Callable[[], "Entry"]] = {}
"""Name -> its entry, built when it is first used, because some need a model or a vocabulary."""
CORPUS = Path(__file__).parent / "corpus"
_LONGEST = 2000  # characters of a message
_JSON = (".json", ".jsonl", ".partial", ".dropped", "metadata", "METADATA")


@dataclass(frozen=True)
class Entry:
    """An entry point.

    Attributes:
        name: Name.
        files: File (relative path) -> contents that are valid, the first of which is written where another file varies.
        call: Reads the folder that it is given; a second, empty folder is for outputs. Raises only UserError.
        modules: Source files, relative to the package, whose lines the long form counts.
        fuzzed: The files that vary; none: all.
        names_file: Whether messages name the file or its folder; arguments are in no file.
        short: Examples of the short form.
    """

    name: str
    files: Mapping[str, Sequence[bytes]]
    call: Callable[[Path, Path], Any]
    modules: tuple[str, ...]
    fuzzed: tuple[str, ...] = ()
    names_file: bool = True
    short: int = 25

    def examples(self) -> st.SearchStrategy[tuple[str, bytes]]:
        """File, and its content."""
        return st.one_of(
            st.tuples(st.just(name), mutated(self.files[name], name.endswith(_JSON)))
            for name in self.fuzzed or self.files
        )

    def valid(self) -> list[tuple[str, bytes]]:
        """The valid files as examples: all first contents at once, then each of the others."""
        first = next(iter(self.files))
        others = [(name, content) for name, contents in self.files.items() for content in contents[1:]]
        return [(first, self.files[first][0]), *others]

    def kept(self) -> list[tuple[str, bytes]]:
        """The inputs of the corpus; each is named FILE@DIGEST, with "+" for "/"."""
        paths = sorted((CORPUS / self.name).glob("*@*"))
        return [(path.name.rpartition("@")[0].replace("+", "/"), path.read_bytes()) for path in paths]


def entry_point(build: Callable[[], Entry]) -> Callable[[], Entry]:
    """Register a function that builds an entry; the entry has its name."""
    ENTRIES[build.__name__] = cache(build)
    return build


def check(entry: Entry, folder: Path, file: str, content: bytes) -> str:
    """Run one example; return the message of its error, or "".

    Raises:
        Exception: Whatever is not a UserError.
        AssertionError: A message of several lines, of extreme length, or that does not name the file or folder.
    """
    source, out = folder / "in", folder / "out"
    for place in (source, out):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
    for name, contents in entry.files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content if name == file else contents[0])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", RuntimeWarning)
            entry.call(source, out)
    except UserError as error:
        message = str(error)
    except OSError as error:  # the command line names the file and the reason
        if error.filename is None:
            raise
        message = str(UserError(f"{str(error.filename)!r}: {error.strerror}"))
    else:
        return ""
    assert len(message.splitlines()) == 1, f"a message of several lines: {message!r}"
    assert len(message) <= _LONGEST, f"a message of {len(message)} characters: {message[:200]!r}"
    assert not entry.names_file or str(source) in message or Path(file).name in message, (
        f"a message that names no file: {message!r}"
    )
    return message.replace(str(folder), "")
