"""What a command that fails prints, and its exit status."""

import sys

from zipper_jax.utils.devices import no_device
from zipper_jax.utils.errors import ServiceError, UserError
from zipper_jax.utils.files import is_no_room


def explained(error: BaseException) -> tuple[int, str] | None:
    """Exit status and line of an error; None: it is a fault of this package, whose traceback is worth more."""
    if isinstance(error, UserError):
        return 2, f"error: {error}"
    if isinstance(error, ServiceError):  # launchers retry
        return 1, f"error: {error}"
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted; run the same command again to resume"
    if isinstance(error, RuntimeError | AssertionError) and (reason := no_device(error)) is not None:
        return 2, f"error: {reason}"
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
        if is_no_room(error):
            return 2, f"error: {UserError(f'no room to write ({error}); make room, then run the same command again')}"
        if error.filename is not None:  # a folder instead of a file, no permission, …
            return 2, f"error: {UserError(f'{str(error.filename)!r}: {error.strerror}')}"
    return None


def close_bars() -> None:
    """Draw open progress bars a last time, so that what is printed next stands below them."""
    if progress := sys.modules.get("zipper_jax.utils.progress"):  # needs tqdm, which a machine may lack
        progress.close_bars()
