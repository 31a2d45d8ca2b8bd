"""Reading flat trees with Orbax, onto devices or the host, with errors that name the array.

Arrays are restored from the stored shapes, in the stored dtype. TensorFlow is never imported
(``flax.training.checkpoints`` would).
"""

import errno
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from zipper_jax.checkpoint.manifest import ArrayTable, check_arrays
from zipper_jax.utils import storage
from zipper_jax.utils.errors import DamagedError, ServiceError, UserError
from zipper_jax.utils.storage import AnyPath
from zipper_jax.utils.trees import Flat, base_path, flatten, join_flat

PASSING_ERRNOS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)
_SERVICE = re.compile(r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|UNAUTHENTICATED|ABORTED|INTERNAL)\b:")
"""How TensorStore names the failures of a bucket's server, which say nothing about what is stored there."""


class Leaf(NamedTuple):
    """A parameter that is initialised or read lazily: ``make()`` returns the array, on the host."""

    shape: tuple[int, ...]
    dtype: Any
    make: Callable[[], np.ndarray]


def open_folder(folder: AnyPath, what: str) -> dict[str, Leaf]:
    """The flat tree that Orbax saved in ``folder``, each leaf read lazily; raises like `read_folder`."""
    with _reading(folder, what) as handler:
        stored = handler.metadata(epath.Path(folder)).tree

    def read(path: str) -> np.ndarray:
        node: Any = stored
        names = _names(stored, path)
        for name in names:
            node = node[name]
        item = {names[-1]: node}
        args = {names[-1]: ocp.RestoreArgs(restore_type=np.ndarray)}
        for name in reversed(names[:-1]):
            item, args = {name: item}, {name: args}
        with _reading(folder, what) as handler:
            restore = ocp.args.PyTreeRestore(item, restore_args=args, partial_restore=True)
            (found,) = flatten(handler.restore(epath.Path(folder), args=restore)).values()
        return found

    flat = flatten(stored)
    return {path: Leaf(tuple(x.shape), x.dtype, partial(read, path)) for path, x in flat.items()}


def proven(leaves: Mapping[str, Leaf], stored: ArrayTable | None, what: str) -> dict[str, Leaf]:
    """The leaves, each verified lazily against its stored digest (None: a format without digests).

    Raises:
        DamagedError: A leaf is missing; by `Leaf.make`: it is not what was saved.
    """
    if stored is None:
        return dict(leaves)
    if missing := [f"array {path} is missing" for path in stored if path not in leaves]:
        raise DamagedError(what, missing)

    def make(path: str, leaf: Leaf) -> np.ndarray:
        array = leaf.make()
        check_arrays({path: array}, {path: stored[path]}, what)
        return array

    return {path: leaf._replace(make=partial(make, path, leaf)) for path, leaf in leaves.items()}


def join_leaves(parts: Mapping[str, Leaf]) -> dict[str, Leaf]:
    """Join the slices of each leaf lazily; other leaves are unchanged. See `utils.trees.join_flat`."""
    slices: dict[str, dict[str, Leaf]] = {}
    for key, leaf in parts.items():
        slices.setdefault(base_path(key), {})[key] = leaf

    def join(path: str, pieces: Mapping[str, Leaf]) -> Leaf:
        if path in pieces:
            return pieces[path]
        first = next(iter(pieces.values()))
        shape = (sum(piece.shape[0] for piece in pieces.values()), *first.shape[1:])
        return Leaf(shape, first.dtype, lambda: join_flat({key: piece.make() for key, piece in pieces.items()})[path])

    return {path: join(path, pieces) for path, pieces in slices.items()}


def _names(tree: Mapping[str, Any], path: str) -> list[str]:
    """The keys that lead to ``path`` in a tree whose keys may have slashes in them."""
    for name, child in tree.items():
        if name == path and not isinstance(child, Mapping):
            return [name]
        inside = isinstance(child, Mapping) and path.startswith(f"{name}/")
        if inside and (found := _names(child, path[len(name) + 1 :])):
            return [name, *found]
    return []


def read_folder(folder: AnyPath, like: Mapping[str, Any] | None, what: str) -> Flat:
    """The flat tree that Orbax saved in ``folder``.

    Args:
        folder: An absolute path.
        like: Leaves with ``shape``, ``dtype`` and ``sharding``; None: NumPy arrays on the host.
        what: Name of the folder in errors.

    Raises:
        DamagedError: It cannot be read.
        UserError: Its paths or shapes are not those of ``like``.
    """
    with _reading(folder, what) as handler:
        stored = handler.metadata(epath.Path(folder)).tree
        shapes = flatten(stored)
        if like is not None:
            check_same(shapes, like, what)
        return flatten(handler.restore(epath.Path(folder), args=_restore_args(stored, shapes, like)))


@contextmanager
def _reading(folder: AnyPath, what: str) -> Iterator[ocp.PyTreeCheckpointHandler]:
    handler = ocp.PyTreeCheckpointHandler()
    try:
        yield handler
    except (UserError, ServiceError):
        raise
    except Exception as error:  # files that are cut or changed: Orbax raises many kinds, a bare Exception among them
        if storage.is_bucket(folder) and (failed := next(filter(_is_service, _causes(error)), None)) is not None:
            raise ServiceError(f"{str(folder)!r} cannot be read ({_first_line(failed)})") from error
        if any(_passing(cause) for cause in _causes(error)):
            raise  # the machine's fault, not the checkpoint's
        raise DamagedError(what, [f"{folder.name}: {_first_line(_causes(error)[-1])}"]) from error
    finally:
        handler.close()


def cast(array: Any, like: Any) -> Any:
    """The array in the dtype of ``like``; call after its digest, which is of the stored dtype, was compared."""
    return array if array.dtype == like.dtype else array.astype(like.dtype)


def check_same(stored: Mapping[str, Any], wanted: Mapping[str, Any], what: str) -> None:
    """Raise UserError naming the first difference between two flat trees' paths and shapes."""
    missing, extra = sorted(set(wanted) - set(stored)), sorted(set(stored) - set(wanted))
    if missing or extra:
        lacks = f"lacks {missing[0]} and {len(missing) - 1} more" if missing else ""
        has = f"has {extra[0]} and {len(extra) - 1} more that the model lacks" if extra else ""
        raise UserError(f"{what} {' and '.join(filter(None, (lacks, has)))}; model or freeze rules changed since")
    for key in wanted:
        if tuple(stored[key].shape) != tuple(wanted[key].shape):
            raise UserError(
                f"{what}: {key} has shape {tuple(stored[key].shape)}, the model's is {tuple(wanted[key].shape)}"
            )


def _restore_args(stored: Any, shapes: Flat, like: Mapping[str, Any] | None) -> ocp.args.PyTreeRestore:
    if like is None:
        return ocp.args.PyTreeRestore(
            stored, restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
        )

    def placed(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:  # nested as it is stored
        tree: dict[str, Any] = {}
        for name, child in node.items():
            path = f"{prefix}{name}"
            if isinstance(child, Mapping):
                tree[name] = placed(child, f"{path}/")
            else:
                leaf, dtype = like[path], shapes[path].dtype
                tree[name] = jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)
        return tree

    tree = placed(stored, "")
    return ocp.args.PyTreeRestore(tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree))


def _causes(error: BaseException) -> list[BaseException]:
    """The error and its chain of causes, the root cause last."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain


def _is_service(error: BaseException) -> bool:
    """Whether a bucket's server failed, in Orbax's own requests or in ours."""
    return isinstance(error, ServiceError) or _SERVICE.search(str(error)) is not None


def _passing(error: BaseException) -> bool:
    """Whether a later attempt may succeed: out of memory or of file handles."""
    exhausted = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
    return exhausted or getattr(error, "errno", None) in PASSING_ERRNOS


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
