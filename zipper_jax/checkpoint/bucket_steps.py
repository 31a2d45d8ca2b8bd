"""The steps of a run in a bucket, as Orbax's CheckpointManager lists them.

Orbax's own listing needs Google's client library, and finds out with it whether the bucket has real folders.
"""

from collections.abc import Iterator

from etils import epath
from orbax.checkpoint import path as orbax_path

from zipper_jax.utils import storage


def complete_steps(folder: storage.AnyPath) -> list[int]:
    """Numbers of the complete steps in ``checkpoints/``, in order."""
    return sorted(int(name) for name in storage.complete_subfolders(folder) if name.isdecimal())


class BucketSteps(orbax_path.step.NameFormat[orbax_path.step.Metadata]):
    """Steps are called by their number; one without its marker does not exist."""

    def build_name(self, step: int) -> str:
        """The folder's name."""
        return str(step)

    def find_all(self, base_path: epath.PathLike) -> Iterator[orbax_path.step.Metadata]:
        """All complete steps."""
        root = epath.Path(base_path)
        for step in complete_steps(root):
            yield orbax_path.step.Metadata(step=step, path=root / str(step))

    def find_step(self, base_path: epath.PathLike, step: int) -> orbax_path.step.Metadata:
        """The step; ValueError where it is not complete."""
        path = epath.Path(base_path) / str(step)
        if not storage.is_complete(path):
            raise ValueError(f"no step {step} in {base_path}")
        return orbax_path.step.Metadata(step=step, path=path)
