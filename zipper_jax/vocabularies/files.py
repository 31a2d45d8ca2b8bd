"""Files and digests of vocabularies."""

import hashlib
import json
from typing import Annotated, Any

import msgspec

from zipper_jax.utils import user_json
from zipper_jax.utils.files import write_bytes
from zipper_jax.utils.storage import as_path

_Id = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class Header(msgspec.Struct):
    """The fields of every ``vocabulary.json``."""

    kind: str
    size: _Id
    begin_id: _Id
    end_id: _Id
    digest: str


class SymbolHeader(Header):
    """Of symbols."""

    symbols: list[str]


class RowsHeader(Header):
    """Of a tokenizer for a tower of ``rows`` tokens."""

    rows: _Id


class UnitHeader(Header):
    """Of units."""

    num_units: _Id
    rate_hz: user_json.Number
    codebook: str = ""
    first: _Id = 0


FILE_NAME = "vocabulary.json"


def write_header(folder: Any, vocabulary: Any, **more: Any) -> None:
    """Write ``vocabulary.json``; call it last, so that a folder which has it is complete."""
    header = {
        "kind": vocabulary.kind,
        "size": vocabulary.size,
        "begin_id": vocabulary.begin_id,
        "end_id": vocabulary.end_id,
        "digest": vocabulary.digest,
        **more,
    }
    write_bytes(as_path(folder) / FILE_NAME, (json.dumps(header, indent=2) + "\n").encode())


def digest(*parts: bytes) -> str:
    """Return the SHA-256 of ``parts``, each prefixed by its length, so that different lists never hash alike."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little") + part)
    return total.hexdigest()
