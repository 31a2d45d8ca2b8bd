"""The exceptions that users see."""


class UserError(Exception):
    """An error that the user can fix: the message names the field or file, the value found, and what to do.

    The command line prints it as one ``error: ...`` line and exits with status 2; no traceback is shown.
    """


class DamagedError(UserError):
    """A checkpoint is not what was saved. ``problems``: one line per array or file."""

    def __init__(self, what: str, problems: list[str]):
        self.problems = problems
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        super().__init__(f"{what} is damaged: {'; '.join(problems[:3])}{more}")
