"""Hypothesis strategies: valid files, damaged and distorted as users' files are, and files of random bytes."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

SMALL = st.none() | st.booleans() | st.integers(-3, 70_000) | st.floats() | st.text(max_size=5)
STRANGE = st.sampled_from(
    [
        None, True, 0, -1, 1, 1.5, 2**31, 2**63, -(2**63), 10**30, 1e-300, 1e308, float("nan"), float("inf"),
        float("-inf"), "", " ", "x", "0", "a\nb", "\u2028", "\0", "\ud800", "é", "/", "..", "../x", "x" * 300, [], {},
        [[]], [None], {"": None}, ["x"], [0], [-1], {"x": 1},
    ]
)  # fmt: skip
VALUES = STRANGE | st.recursive(
    SMALL,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip
TOKENS = st.sampled_from(
    [
        b"\xef\xbb\xbf", b"\0", b"\r", b"\r\n", b"\n", b"\n\n", b"\xff", b"\xed\xa0\x80", b"\\ud800", b"\xe2\x80\xa8",
        b"\x1c", b"\x85", b"NaN", b"Infinity", b"-1", b"1e999", b"9" * 25, b"9" * 5000, b"[" * 20_000,
        b'{"a":' * 20_000, b"null", b"../", *(bytes([letter]) for letter in b"\"',\t| %@=(#/\\{}[]-."),
    ]
)  # fmt: skip
PLACES = st.integers(0, 2**20)
"""A position in any file, by its remainder."""


def flip(content: bytes, place: int, value: int) -> bytes:
    if not content:
        return content
    place %= len(content)
    return content[:place] + bytes([content[place] ^ (value or 1)]) + content[place + 1 :]


def replace_line(content: bytes, place: int, change: Callable[[list[bytes], int], None]) -> bytes:
    lines = content.split(b"\n")
    change(lines, place % len(lines))
    return b"\n".join(lines)


def replace_value(content: bytes, place: int, value: Any, how: str) -> bytes:
    """Set, remove or rename a value of JSON: of the whole file, else of one of its lines."""
    try:
        return _changed(content, place, value, how)
    except (ValueError, RecursionError):
        pass
    lines = content.split(b"\n")
    number = place % len(lines)
    try:
        lines[number] = _changed(lines[number], place // len(lines), value, how)
    except (ValueError, RecursionError):
        return content
    return b"\n".join(lines)


def _changed(content: bytes, place: int, value: Any, how: str) -> bytes:
    document = json.loads(content)
    holders = list(_holders(document))
    if not holders:
        return json.dumps(value).encode()
    holder, key = holders[place % len(holders)]
    if how == "set":
        holder[key] = value
    elif how == "remove":
        del holder[key]
    elif isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    else:
        holder.append(value)
    return json.dumps(document).encode()


def _holders(value: Any) -> Iterator[tuple[Any, Any]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in list(inner)[:64]:
        yield value, key
        yield from _holders(part)


def _double(lines: list[bytes], n: int) -> None:
    lines.insert(n, lines[n])


def _remove(lines: list[bytes], n: int) -> None:
    del lines[n]


def _move(lines: list[bytes], n: int) -> None:
    lines.append(lines.pop(n))


def _reencode(content: bytes, encoding: str) -> bytes:
    return content.decode("utf-8", "replace").encode(encoding, "replace")


CHANGES = st.one_of(
    st.builds(lambda n, v: lambda c: flip(c, n, v), PLACES, st.integers(1, 255)),
    st.builds(lambda n: lambda c: c[: n % (len(c) + 1)], PLACES),
    st.builds(lambda n, t: lambda c: c[: n % (len(c) + 1)] + t + c[n % (len(c) + 1) :], PLACES, TOKENS),
    st.builds(lambda n, t: lambda c: c[: n % (len(c) + 1)] + t + c[n % (len(c) + 1) + len(t) :], PLACES, TOKENS),
    st.builds(lambda n, k: lambda c: c[: n % (len(c) + 1)] + c[n % (len(c) + 1) + k :], PLACES, st.integers(1, 12)),
    st.builds(lambda n, f: lambda c: replace_line(c, n, f), PLACES, st.sampled_from([_double, _remove, _move])),
    st.sampled_from([
        lambda c: b"\xef\xbb\xbf" + c,
        lambda c: c.replace(b"\n", b"\r\n"),
        lambda c: c.replace(b"\n", b"\r"),
        lambda c: _reencode(c, "utf-16"),
        lambda c: _reencode(c, "latin-1"),
        lambda c: c + c,
    ]),
)  # fmt: skip
JSON_CHANGES = st.builds(
    lambda n, v, how: lambda c: replace_value(c, n, v, how),
    PLACES,
    VALUES,
    st.sampled_from(["set", "set", "remove", "add"]),
)  # fmt: skip


def mutated(valid: Sequence[bytes], is_json: bool) -> st.SearchStrategy[bytes]:
    """Files near the ``valid`` ones, the valid ones themselves, and random ones.

    Args:
        valid: Contents.
        is_json: Whether values of JSON in them are replaced, too.
    """
    changes = JSON_CHANGES | JSON_CHANGES | CHANGES if is_json else CHANGES

    def apply(content: bytes, functions: list[Callable[[bytes], bytes]]) -> bytes:
        for function in functions:
            content = function(content)
        return content

    near = st.builds(apply, st.sampled_from(list(valid)), st.lists(changes, max_size=4))
    random = st.binary(max_size=200) | st.text(max_size=100).map(lambda t: t.encode("utf-8", "surrogatepass"))
    return st.one_of(near, near, near, near, near, near, near, random)
