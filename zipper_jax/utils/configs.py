"""Conversion of configs (frozen dataclasses) to and from JSON, with errors that name the field.

Fields may be numbers, strings, booleans, None, Literals, other dataclasses, and tuples, lists and string-keyed dicts of
these. ``from_dict(cls, to_dict(config)) == config``.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union

from zipper_jax.utils.errors import UserError

T = TypeVar("T")


class FrozenDict(dict):
    """An immutable, hashable dict, for fields of frozen dataclasses."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a configuration is never changed; use dataclasses.replace")

    def __reduce__(self) -> Any:
        return FrozenDict, (dict(self),)

    __setitem__ = __delitem__ = update = setdefault = pop = popitem = clear = __ior__ = _refuse


def freeze(value: Any) -> Any:
    """``value`` with its dicts and lists replaced by hashable ones."""
    if isinstance(value, Mapping):
        return FrozenDict({key: freeze(item) for key, item in value.items()})
    return tuple(freeze(item) for item in value) if isinstance(value, list | tuple) else value


RENAMED = {
    "TowerConfig": {"width": "embed_dim", "mlp_width": "mlp_dim", "head_size": "head_dim"},
    "ProjectionConfig": {"hidden_width": "hidden_dim"},
    "ZipConfig": {"head_size": "head_dim"},
}
"""Class -> names that fields had until run format 2 -> today's. Stored configurations are read through it."""


def freeze_fields(config: Any, *names: str) -> None:
    """Make the named fields of a frozen dataclass hashable; for its ``__post_init__``."""
    for name in names:
        object.__setattr__(config, name, freeze(getattr(config, name)))


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'embed_dim'?`` to append to an error about an unknown ``name``; empty without a near match."""
    near = difflib.get_close_matches(name, sorted(set(known)), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def closest(name: str, known: Iterable[str]) -> str:
    """Suffix for an error about an unknown ``name``: ``; did you mean 'embed_dim'?``, or the known names."""
    names = sorted(set(known))
    near = nearest(name, names)
    if near:
        return near
    rest = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"; known: {', '.join(names[:20])}{rest}" if names else ""


def to_dict(config: Any) -> Any:
    """``config`` (a dataclass, or a field's value) as JSON-serialisable values.

    Raises:
        TypeError: An object of another type.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config) if field.init}
    if isinstance(config, Mapping):
        return {_key(key): to_dict(value) for key, value in config.items()}
    if isinstance(config, tuple | list):
        return [to_dict(value) for value in config]
    if config is None or isinstance(config, str | bool | int | float):
        return config
    raise TypeError(f"a config cannot hold {config!r} of type {type(config).__name__}")


def from_dict(cls: type[T], data: Mapping[str, Any]) -> T:
    """Inverse of `to_dict`; values of dataclass fields may also be instances.

    Missing fields take their defaults, so that configs stored before a field existed can be read.

    Raises:
        UserError: An unknown field (with the closest known name), a missing field without default, a value of another
            type, or one that the dataclass rejects. The message starts with the path of the field.
    """
    return _dataclass(cls, data, cls.__name__)


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"a config's dict keys are strings, not {key!r}")
    return key


def _dataclass(cls: type[T], data: Any, path: str) -> T:
    if not isinstance(data, Mapping):
        raise UserError(f"{path} = {data!r}: expected an object with the fields of {cls.__name__}")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for name in data:
        if name in RENAMED.get(cls.__name__, {}):
            raise UserError(f"{path}.{name} is now called {RENAMED[cls.__name__][name]}: write that")
        if name not in fields:
            raise UserError(f"{path}.{name}: {cls.__name__} has no such field{closest(str(name), fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise UserError(f"{path}.{name} is missing: give it a value")
    kinds = typing.get_type_hints(cls)
    return cls(**{name: _value(kinds[name], value, f"{path}.{name}") for name, value in data.items()})


def _value(kind: Any, value: Any, path: str) -> Any:
    """Convert a JSON ``value`` to the annotated type ``kind``."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        if isinstance(value, typing.cast(type, kind)):  # built already, by gin
            return value
        return _dataclass(typing.cast(type, kind), value, path)
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"{path} = {value!r}: give one of {', '.join(map(repr, arguments))}")
        return value
    if origin in (Union, types.UnionType):
        return _union(arguments, value, path)
    if kind is tuple or origin is tuple:
        return _tuple(arguments, value, path)
    if kind is list or origin in (list, Sequence):
        items = _items(value, path)
        return [_value(arguments[0] if arguments else Any, item, f"{path}[{i}]") for i, item in enumerate(items)]
    if kind is dict or origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise UserError(f"{path} = {value!r}: expected an object")
        inner = arguments[1] if arguments else Any
        return {key: _value(inner, item, f"{path}[{key!r}]") for key, item in value.items()}
    return _scalar(kind, value, path)


def _union(kinds: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    errors = []
    for kind in kinds:
        if kind is not type(None):
            try:
                return _value(kind, value, path)
            except UserError as error:
                errors.append(str(error))
    raise UserError(
        errors[0] if len(errors) == 1 else f"{path} = {value!r} fits none of its types: {'; '.join(errors)}"
    )


def _tuple(kinds: tuple[Any, ...], value: Any, path: str) -> tuple:
    items = _items(value, path)
    if not kinds:
        return tuple(items)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(items)
    if len(kinds) != len(items):
        raise UserError(f"{path} = {value!r}: expected {len(kinds)} values, got {len(items)}")
    return tuple(_value(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(zip(kinds, items, strict=True)))


def _items(value: Any, path: str) -> Sequence:
    if not isinstance(value, list | tuple):
        raise UserError(f"{path} = {value!r}: expected a list")
    return value


def _scalar(kind: Any, value: Any, path: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (int, float, str, bool) and type(value) is kind:
        return value
    if kind is type(None) and value is None:
        return None
    if kind not in (int, float, str, bool, type(None)):
        raise TypeError(f"{path}: configs cannot hold fields of type {kind!r}")
    raise UserError(f"{path} = {value!r}: expected a value of type {kind.__name__}")
