"""What jax says where it has no device of the platform that was asked for."""

import os
from types import TracebackType

from zipper_jax.utils.errors import UserError


def no_device(error: BaseException) -> UserError | None:
    """``error`` as a user's error where jax raised it on the way to its devices, else None; jax is not imported."""
    seen: BaseException | None = error
    while seen is not None:
        if _in_jax_backends(seen.__traceback__):
            wanted = os.environ.get("JAX_PLATFORMS", "")
            # jax asserts, without a word, where the plugin of a GPU is not installed.
            reason = next(iter(str(seen).strip().splitlines()), "its plugin is not installed, or it has no device")
            return UserError(
                f"JAX_PLATFORMS = {wanted!r}: jax cannot start there ({reason}); unset it to use what is here, or see "
                "`zipper doctor`"
            )
        seen = seen.__cause__ or seen.__context__
    return None


def _in_jax_backends(trace: TracebackType | None) -> bool:
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_name in ("backends", "get_backend", "_get_backend_uncached") and "xla_bridge" in code.co_filename:
            return True
        trace = trace.tb_next
    return False
