"""Memory that a process frees and asks for again: what XLA on CPU does with its temporary buffer in every step."""

import ctypes
import platform

# malloc.h of glibc
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_KEPT = 2**31 - 1  # bytes; what `mallopt` takes at most


def keep_freed_memory() -> bool:
    """Let glibc keep up to 2 GiB of freed memory for the next request; call it before jax is imported.

    XLA on CPU asks for one temporary buffer for every run of a program. One of 32 MiB or more comes from the kernel,
    page by page, every page zeroed, and goes back at the end: a quarter of a small decoder's training step.

    Returns:
        Whether it is done: False where the C library is another one, which is left as it is.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    # One arena: the others, of threads, hold no large blocks.
    mallopt = ctypes.CDLL(None).mallopt
    done = [mallopt(_MMAP_MAX, 0), mallopt(_ARENA_MAX, 1), mallopt(_TRIM_THRESHOLD, _KEPT)]
    return all(done)
