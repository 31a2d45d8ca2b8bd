"""``zipper fuse``: an untrained zipper from towers."""

import argparse
from collections.abc import Sequence
from typing import Any

from zipper_jax.utils.errors import UserError
from zipper_jax.utils.paths import any_path, folder_text

TAKES_GIN_FLAGS = True
DESCRIPTION = """\
Zip towers into an untrained model, ready for `zipper train --gin_file=runs/fuse_from.gin --gin.FUSED=...`.

  zipper fuse --tower text=towers/text --tower speech=towers/speech --zips text=2,speech=3 --out fused0

--zips text=2,speech=3 joins blocks 2 and 3, 4 and 6, 6 and 9, ... up to the end of the shorter tower; --zips
text-speech=2-3,4-9 names the pairs. Give it once per pair of towers. Tower weights are copied unchanged; zips and input
projections are initialised, with all gates closed. Other options of the zips are gin bindings:
--gin.ZipConfig.num_heads=8, --gin.zip/ProjectionConfig.depth=1, --gin.input/ProjectionConfig.form=residual.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments (gin flags are read from the rest)."""
    parser.description = DESCRIPTION
    parser.add_argument("--tower", action="append", required=True, metavar="NAME=FOLDER", help="a run or model folder")
    parser.add_argument("--zips", action="append", required=True, help="blocks to join, see above")
    parser.add_argument("--seed", type=int, default=0, help="seed of the new parameters (default 0)")
    parser.add_argument("--out", required=True, type=folder_text, help="the folder to write; must not exist")
    parser.add_argument("--dry_run", action="store_true", help="print the plan and stop")


def run(args: argparse.Namespace, extra: Sequence[str]) -> int:
    """Print the plan and write the model; return 0."""
    from zipper_jax.conversion import fuse
    from zipper_jax.models.schedule import zip_pairs
    from zipper_jax.utils.files import require_new

    if not args.dry_run:
        require_new(args.out)
    sources = [fuse.TowerSource(*_tower(given)) for given in args.tower]
    names = [source.name for source in sources]
    if len(set(names)) != len(names):
        raise UserError(f"--tower names {', '.join(names)}: give each tower a different name")
    zips, input_projection = _configured([_zip(given) for given in args.zips], extra)
    model = fuse.plan(sources, zips, input_projection)
    for source in sources:
        t = source.tower
        added = f", {source.added} added tokens" if source.added else ""
        print(f"tower {source.name}: {source.folder}, {t.num_layers} blocks of width {t.embed_dim}{added}")
    for z in model.zips:
        pairs = ", ".join(f"{a}-{b}" for a, b in zip_pairs(z, model.towers))
        print(f"zip {'-'.join(z.towers)}: blocks {pairs}; into {', '.join(z.receivers)}")
    for part, count in fuse.describe(model).items():
        print(f"  {part}: {count:,} parameters{', fresh' if part.startswith(('zips', 'input')) else ''}")
    if not args.dry_run:
        fuse.write(sources, model, args.out, args.seed)
        print(f"{args.out}: untrained; its gates are closed")
    return 0


def _tower(given: str) -> tuple[str, str]:
    name, equals, folder = given.partition("=")
    if not (name and equals and folder):
        raise UserError(f"--tower = {given!r}: give NAME=FOLDER, e.g. text=towers/text")
    return name, any_path(folder, f"--tower {name}")


def _zip(given: str) -> dict[str, Any]:
    """Parse ``text=2,speech=3`` or ``text-speech=2-3,4-9`` to fields of ZipConfig."""
    try:
        first, *rest = given.split(",")
        names, _, numbers = first.partition("=")
        if "-" in names:
            a, b = names.split("-")
            pairs = [tuple(int(n) for n in pair.split("-")) for pair in (numbers, *rest)]
            if any(len(pair) != 2 for pair in pairs):
                raise ValueError
            return {"towers": (a, b), "pairs": tuple(pairs)}
        intervals = {name: int(number) for name, _, number in (part.partition("=") for part in (first, *rest))}
        a, b = intervals
        return {"towers": (a, b), "intervals": intervals}
    except ValueError:
        raise UserError(
            f"--zips = {given!r}: give text=2,speech=3 (intervals) or text-speech=2-3,4-9 (pairs)"
        ) from None


def _configured(zips: list[dict[str, Any]], extra: Sequence[str]) -> tuple[list[Any], Any]:
    """Return the ZipConfigs and the input projection, with the gin bindings applied."""
    import gin
    from zipper_jax.cli import (
        gin_bindings,  # noqa: F401  (registers what the flags may name)
        gin_flags,
    )

    gin_flags.apply(gin_flags.parse(extra))
    make_zip, make_projection = gin.get_configurable("ZipConfig"), gin.get_configurable("ProjectionConfig")
    with gin.config_scope("zip"):
        projection = make_projection()
    made = [make_zip(**fields, projection=projection) for fields in zips]
    with gin.config_scope("input"):
        return made, make_projection()
