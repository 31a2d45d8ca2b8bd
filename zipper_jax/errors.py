"""The one exception that a user's mistake may raise."""


class UserError(Exception):
    """Something the user can mend: the message names the field or file, the value found, and what to do.

    The command line prints it as one ``error: ...`` line and exits with status 2; no traceback is shown.
    """
