"""Search paths of gin files, in a checkout and in an installed wheel."""

from pathlib import Path

import zipper_jax


def search_paths() -> list[str]:
    """Return the folders in which gin searches relative file names, in order.

    The working folder, its ``gin/``, then the package's files: ``gin/`` beside the package in a checkout,
    ``gin_files`` inside the package in a wheel.
    """
    package = Path(zipper_jax.__file__).resolve().parent
    ours = [package.parent / "gin", package / "gin_files"]
    # Check for towers/, because site-packages also has a folder gin/: the package of gin-config.
    found = [folder for folder in ours if (folder / "towers").is_dir() and not (folder / "__init__.py").exists()]
    return [".", "gin", *map(str, found)]


def known_files() -> set[str]:
    """Return the names of all gin files on the search path, except those of the working folder (which may be large)."""
    folders = [Path(folder) for folder in search_paths()[1:]]
    return {str(file.relative_to(folder)) for folder in folders for file in folder.rglob("*.gin")}
