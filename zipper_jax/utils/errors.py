"""The exceptions that users see."""

import re
from collections.abc import Sequence

_LONGEST = 1800  # characters of a message; the middle of a longer one is cut, its end says what to do
_END = 600
_BREAKS = re.compile(r"[\0-\x1f\x7f-\x9f\u2028\u2029]")
"""Control characters and ends of lines: they come from a user's file, and would break up the line."""


class UserError(Exception):
    """An error that the user can fix: the message names the field or file, the value found, and what to do.

    The command line prints it as one ``error: ...`` line and exits with status 2; no traceback is shown. Control
    characters are escaped, and a line of more than 1,800 characters is shortened in its middle.

    Args:
        message: The line.
        details: Lines to print below it, such as a list of differences.
    """

    def __init__(self, message: str = "", details: Sequence[str] = ()):
        super().__init__("\n  ".join(map(_line, [message, *details])))


def _line(text: str) -> str:
    text = _BREAKS.sub(lambda found: repr(found[0])[1:-1], text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - _END]} … {text[-_END:]}"


class ServiceError(Exception):
    """A bucket's server did not do what it was asked: unreachable, overloaded, expired credentials, no such right.

    It says nothing about what is stored, and a later attempt may succeed. So it is no `UserError`: nothing may take it
    for damage, and the command line exits with status 1, which launchers retry.
    """


class DamagedError(UserError):
    """A checkpoint is not what was saved. ``problems``: one line per array or file."""

    def __init__(self, what: str, problems: list[str]):
        self.problems = problems
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        super().__init__(f"{what} is damaged: {'; '.join(problems[:3])}{more}")
