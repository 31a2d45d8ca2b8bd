"""NumPy files (.npy, .npz) that may be damaged; never pickles, which can run code."""

import numpy as np

from zipper_jax.utils.errors import ServiceError, UserError
from zipper_jax.utils.storage import AnyPath


def read_array(path: AnyPath, fix: str, mapped: bool = False) -> np.ndarray:
    """Return the array in a .npy file, or a memory map of it. Raises UserError, which names the file, with ``fix``."""
    try:
        if mapped:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        with path.open("rb") as file:  # opened here, because numpy leaves the file of a damaged archive open
            found = np.load(file, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        found.close()
        error: Exception = ValueError("an archive, not one array")
    except ServiceError:
        raise
    except Exception as reason:  # numpy, zipfile and zlib raise many kinds for a damaged file, MemoryError among them
        error = reason
    raise UserError(_message(path, error, fix)) from error


def read_archive(path: AnyPath, fix: str) -> dict[str, np.ndarray]:
    """Return name -> array of an .npz file. Raises UserError, which names the file, with ``fix``."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except ServiceError:
        raise
    except Exception as error:  # as above; a single array is no context manager
        raise UserError(_message(path, error, fix)) from error


def _message(path: AnyPath, error: Exception, fix: str) -> str:
    why = " ".join(str(error).split()) or type(error).__name__
    if "allow_pickle" in why:  # numpy's advice, which is for trusted files
        why = "pickled, or another format"
    return f"{str(path)!r} cannot be read (damaged, or no NumPy file of plain arrays: {why}); {fix}"
