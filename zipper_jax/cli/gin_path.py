"""Where the gin files are, in a checkout and in an installed wheel."""

from pathlib import Path

import zipper_jax


def search_paths() -> list[str]:
    """Folders that gin looks for relative file names in, first match first: the working folder, its ``gin/``, ours.

    A checkout's own files lie in ``gin/`` beside the package, the wheel's in the package as ``gin_files``.
    """
    package = Path(zipper_jax.__file__).resolve().parent
    ours = [package.parent / "gin", package / "gin_files"]
    # gin/towers beside pyproject.toml, not any folder of that name in site-packages (gin-config's own package is one).
    found = [folder for folder in ours if (folder / "towers").is_dir() and not (folder / "__init__.py").exists()]
    return [".", "gin", *map(str, found)]


def known_files() -> set[str]:
    """Names by which gin files can be given, of all but the working folder's own (which may hold anything)."""
    folders = [Path(folder) for folder in search_paths()[1:]]
    return {str(file.relative_to(folder)) for folder in folders for file in folder.rglob("*.gin")}
