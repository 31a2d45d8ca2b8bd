"""Fuses towers into an untrained zipper: copies their weights and initialises zips and input projections."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zipper_jax.checkpoint.checkpoints import load_params
from zipper_jax.checkpoint.model_folder import Loaded, Weights, is_model_folder, write_model_folder
from zipper_jax.checkpoint.run_format import read_model
from zipper_jax.checkpoint.safetensors_files import Reader, Writer
from zipper_jax.models import zipper
from zipper_jax.models.config import ProjectionConfig, ZipConfig, ZipperConfig
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.storage import AnyPath, as_path
from zipper_jax.utils.trees import flatten


class TowerSource:
    """One tower of a run or a model folder, to be fused under the name ``name``.

    Raises:
        UserError: No such folder, or it has several towers and none of that name.
    """

    def __init__(self, name: str, folder: str | AnyPath):
        self.name, self.folder = name, as_path(folder)
        model = read_model(folder)[1]
        self.there = name if name in model.towers else next(iter(model.towers))
        if name not in model.towers and len(model.towers) > 1:
            raise UserError(f"--tower {name}={folder}: it has the towers {', '.join(sorted(model.towers))}; name one")
        self.tower = model.towers[self.there]
        # A tower's only modality takes the tower's new name: `--tower speech=towers/text2` has modality speech.
        own = {m: place for m, place in model.modalities.items() if place.tower == self.there}
        self.modalities = {name if len(own) == 1 else m: (m, place) for m, place in own.items()}
        self.added = model.added_tokens.get(self.there, 0)

    def weights(self) -> Weights:
        """Open the weights; a model folder's are read leaf by leaf, a run's all at once."""
        return Reader(self.folder) if is_model_folder(self.folder) else Loaded(load_params(self.folder)[1])


def plan(
    sources: Sequence[TowerSource],
    zips: Sequence[ZipConfig],
    input_projection: ProjectionConfig = ProjectionConfig(),
) -> ZipperConfig:
    """Build the fused model's configuration; every tower gets ``input_projection``.

    Raises:
        UserError: The zips do not fit the towers, or two modalities have one name.
    """
    modalities: dict[str, Any] = {}
    for source in sources:
        for name, (_, place) in source.modalities.items():
            if name in modalities:
                raise UserError(f"two towers have a modality {name!r}; give the towers other names")
            modalities[name] = type(place)(source.name, place.size, place.offset)
    projected = {} if input_projection.form == "none" else {source.name: input_projection for source in sources}
    return ZipperConfig(
        towers={source.name: source.tower for source in sources},
        modalities=modalities,
        zips=tuple(zips),
        input_projections=projected,
        added_tokens={source.name: source.added for source in sources if source.added},
    )


def write(sources: Sequence[TowerSource], model: ZipperConfig, out: str | AnyPath, seed: int = 0) -> None:
    """Write the fused model's folder, copying leaf by leaf.

    Raises:
        UserError: ``out`` exists, or a tower's folder is damaged.
    """
    weights = {source.name: source.weights() for source in sources}
    copied: dict[str, tuple[Weights, str]] = {}
    for source in sources:
        for top in ("towers", "added_embeddings"):
            there, here = f"{top}/{source.there}/", f"{top}/{source.name}/"
            for leaf in weights[source.name].names:
                if leaf.startswith(there):
                    copied[here + leaf.removeprefix(there)] = (weights[source.name], leaf)
    shapes = flatten(zipper.abstract_params(model))
    leaves = {
        path: (np.dtype(copied[path][0].dtype(copied[path][1])) if path in copied else np.dtype(np.float32), leaf.shape)
        for path, leaf in shapes.items()
    }

    def fill(writer: Writer) -> None:
        for path, (source, leaf) in copied.items():
            writer.write(path, source.read(leaf))
        for path, draw in zipper.initialisers(model, seed).items():
            if path not in copied:
                writer.write(path, draw())

    vocabularies = {
        name: source.folder / "vocabularies" / there
        for source in sources
        for name, (there, _) in source.modalities.items()
    }
    write_model_folder(out, model, leaves, fill, vocabularies, source={s.name: str(s.folder) for s in sources})


def describe(model: ZipperConfig) -> Mapping[str, int]:
    """Number of parameters of each part of a model: ``towers/text``, ``zips/speech-text``, ..."""
    counts: dict[str, int] = {}
    for path, leaf in flatten(zipper.abstract_params(model)).items():
        part = "/".join(path.split("/")[:2])
        counts[part] = counts.get(part, 0) + int(np.prod(leaf.shape))
    return counts
