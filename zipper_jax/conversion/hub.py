"""Finds a Hugging Face model by folder or hub id.

Only the files that a conversion reads are downloaded, from the top folder: the safetensors that
``model.safetensors.index.json`` lists (or ``model.safetensors``), JSON, and the tokenizer's files; never pickles, which
can execute code, never code, never a second copy of the weights. They are stored in the shared Hugging Face cache
(HF_HOME).
"""

import fnmatch
import glob
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zipper_jax.checkpoint.safetensors_files import FILE, INDEX, listed, other_layout, read_weight_map
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.readable import size as readable_size
from zipper_jax.vocabularies.hugging_face import FILES

logger = logging.getLogger(__name__)

CONFIG = "config.json"
SMALL = ("*.json", "*.jinja", *FILES)
"""Files downloaded beside the weights."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
WEIGHTS = (".safetensors", *PICKLES, ".gguf", ".h5", ".msgpack")
"""Suffixes of weight files; no hub id has one."""

TIMEOUT = 30.0
"""Timeout of the hub's file list, in seconds; the library has no default."""

_SECRET = re.compile(r"https?://[^\s'\"]+|\bhf_\w+|Bearer\s+\S+", re.IGNORECASE)
_CLIENTS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


def model_folder(path_or_id: str, revision: str | None = None) -> Path:
    """The folder of a model; one that is on the hub is downloaded first, or found in the cache.

    An interrupted download keeps its complete files.

    Args:
      path_or_id: an existing folder, or an id of the hub: ``ORG/NAME`` or ``NAME``.
      revision: branch, tag or commit of a model on the hub; its main branch unless given.

    Raises:
      UserError: No such folder or model, no access, no safetensors, no network, or offline and not in the cache.
    """
    path = os.path.expanduser(path_or_id)
    if os.path.isdir(path):
        if revision is not None:
            raise UserError(f"revision {revision!r}: {path_or_id!r} is a folder; only models on the hub have revisions")
        return Path(path)
    if os.path.exists(path):
        raise UserError(f"{path_or_id!r} is a file: give the folder of the model")
    if not path or path_or_id.startswith((".", "/", "~")) or path.count("/") > 1 or path.endswith((*WEIGHTS, "/")):
        raise UserError(f"the folder {path_or_id!r} does not exist (the id of a model on the hub is ORG/NAME)")
    return _from_hub(path_or_id, revision)


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, RevisionNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"{name!r} is neither a folder nor an id of the hub, which is ORG/NAME") from error
    if constants.HF_HUB_OFFLINE:
        return _offline(name, revision)
    try:
        info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=TIMEOUT)
    except Exception as error:  # errors of several libraries: see `_what_happened`
        what = _what_happened(error, name, revision)
        found = None if isinstance(error, RevisionNotFoundError) else _cached(name, revision)
        if found is None:
            raise UserError(what) from error
        logger.info(f"{what}. For now the copy in the cache is used: {found}")
        return found
    commit = str(info.sha)
    sizes = {file.rfilename: file.size for file in info.siblings or () if "/" not in file.rfilename}
    try:
        wanted = _wanted(name, commit, sizes)
        missing = [file for file in wanted if not isinstance(try_to_load_from_cache(name, file, revision=commit), str)]
        if missing:
            logger.info(f"{name} ({commit[:12]}): downloading {_amount(missing, sizes)} to {constants.HF_HUB_CACHE}")
        # By its name, not by the commit: so the cache learns which commit the name stands for, and knows it offline.
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[glob.escape(file) for file in wanted]))
    except UserError:
        raise
    except Exception as error:  # as above
        raise UserError(_what_happened(error, name, revision)) from error
    if folder.name != commit:
        raise UserError(
            f"{name!r} was changed on the hub during the download, or the connection was lost: run this again"
        )
    return folder


def _wanted(name: str, commit: str, sizes: Mapping[str, int | None]) -> list[str]:
    """Select the files to download from the top folder.

    Raises:
        UserError: They are no model that can be read.
    """
    from huggingface_hub import hf_hub_download

    pickles = sorted(file for file in sizes if file.endswith(PICKLES))
    if FILE not in sizes and INDEX not in sizes and not pickles and (other := other_layout(name, sizes)):
        raise UserError(f"{other}; nothing was downloaded")
    if CONFIG not in sizes:
        raise UserError(f"{name!r} has no {CONFIG}: it is no transformers model; it has {listed(sorted(sizes))}")
    if FILE in sizes:
        weights = [FILE]
    elif INDEX in sizes:
        weights = _indexed(Path(hf_hub_download(name, INDEX, revision=commit)))
    else:
        found = f"only {pickles[0]}, a pickle, which can execute code" if pickles else "nor other weights"
        raise UserError(
            f"{name!r} has no safetensors, {found}; nothing was downloaded: give a revision that has them (perhaps a "
            "pull request: refs/pr/NUMBER), or save it with transformers' save_pretrained(FOLDER, "
            "safe_serialization=True) and give that folder"
        )
    lost = [file for file in weights if file not in sizes]
    if lost:
        raise UserError(f"{name!r}: {INDEX} lists {lost[0]!r}, which is missing: the model on the hub is incomplete")
    small = [file for file in sizes if any(fnmatch.fnmatchcase(file, pattern) for pattern in SMALL)]
    indices = [file for file in small if file.endswith(".index.json")]
    return [file for file in small if file not in indices or (file == INDEX and FILE not in sizes)] + weights


def _indexed(index: Path) -> list[str]:
    names = sorted(set(read_weight_map(index, "it is damaged: delete it and run this again").values()))
    wrong = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    if wrong:
        raise UserError(f"{index} lists {wrong[0]!r}, which is no safetensors file in the same folder: not downloaded")
    return names


def _offline(name: str, revision: str | None) -> Path:
    from huggingface_hub import constants

    found = _cached(name, revision)
    if found is None:
        variable = "HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE") else "TRANSFORMERS_OFFLINE"
        which = "" if revision is None else f" (revision {revision!r})"
        raise UserError(
            f"{name!r}{which} is not in the cache {constants.HF_HUB_CACHE}, or not completely, and {variable} is set: "
            f"unset {variable} once to download it, or give a local folder"
        )
    return found


def _cached(name: str, revision: str | None) -> Path | None:
    """The cached copy, if it has all the files that a conversion reads."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # Newer versions of the library check these files against the cached file list.
        files = [CONFIG, *FILES]
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=files))
    except LocalEntryNotFoundError:
        return None
    needed = [CONFIG, FILE]
    if not (folder / FILE).is_file() and (folder / INDEX).is_file():
        needed = [CONFIG, *_indexed(folder / INDEX)]
    return folder if all((folder / file).is_file() for file in needed) else None


def _what_happened(error: BaseException, name: str, revision: str | None) -> str:
    """One line for an error of the library or of those below it: what is wrong and what to do."""
    from huggingface_hub import constants, errors

    for cause in _causes(error):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        match cause:
            case errors.RevisionNotFoundError():
                return f"{name!r} has no revision {revision!r}: give a branch, tag or commit of it"
            case errors.GatedRepoError():
                return f"{name!r} is gated ({status}): accept its licence on the model's page, then {_LOGIN}"
            case errors.DisabledRepoError():
                return f"{name!r} has been disabled on the hub ({status}): give another model"
            case errors.EntryNotFoundError() if status == 404:
                return f"{name!r} lacks a file that it lists ({status}): run this again"
            case errors.RepositoryNotFoundError():
                return f"the hub shows no model {name!r} ({status}): check the spelling; if it is private, {_LOGIN}"
        if status == 401:
            return f"{name!r}: the hub asks for a valid token (401): {_LOGIN}"
        if status == 403:
            return f"{name!r}: you may not read it (403): accept its licence on the model's page, then {_LOGIN}"
        if status == 404:
            return f"the hub shows no model {name!r} (404): check the spelling; if it is private, {_LOGIN}"
        if status == 429:
            return f"{name!r}: too many requests to the hub (429): wait some minutes, or {_LOGIN}"
        if status is not None:
            return f"{name!r}: the hub answers with error {status}: run this again later"
        if isinstance(cause, ConnectionError | TimeoutError) or type(cause).__module__.split(".")[0] in _CLIENTS:
            return (
                f"{name!r}: no connection to the hub, or it was lost ({_line(cause)}): check the network, the proxy "
                "and HF_ENDPOINT, and run this again, or give a local folder"
            )
        if isinstance(cause, OSError) and cause.errno is not None:  # a full disk, no permission
            cache = constants.HF_HUB_CACHE
            return f"{name!r}: cannot write to the cache {cache} ({_line(cause)}): set HF_HOME to another folder"
    return (
        f"{name!r} cannot be downloaded ({_line(error)}): check the proxy and HF_ENDPOINT, and run this again, or give "
        "a local folder"
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and its chain of causes, outermost first."""
    seen: list[Any] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        yield cause
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__


def _line(error: BaseException) -> str:
    """An exception's message in one line, without URLs (they may be signed) and tokens."""
    return f"{type(error).__name__}: {_SECRET.sub('...', ' '.join(str(error).split()))[:200]}"


def _amount(files: list[str], sizes: Mapping[str, int | None]) -> str:
    known = [size for file in files if (size := sizes[file]) is not None]
    count = f"{len(files)} files" if len(files) > 1 else "1 file"
    if len(known) < len(files):
        return count
    return f"{count}, {readable_size(sum(known))},"
