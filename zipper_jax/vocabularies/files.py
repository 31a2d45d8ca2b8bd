"""Files and digests of vocabularies."""

import hashlib
import json
from pathlib import Path
from typing import Any

from zipper_jax.utils.files import write_bytes

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
    write_bytes(Path(folder) / FILE_NAME, (json.dumps(header, indent=2) + "\n").encode())


def digest(*parts: bytes) -> str:
    """Return the SHA-256 of ``parts``, each prefixed by its length, so that different lists never hash alike."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little") + part)
    return total.hexdigest()
