"""Memory that a process frees and asks for again: what XLA on CPU does with its temporary buffer in every step."""

import ctypes
import glob
import os
import platform

# malloc.h of glibc
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_KEPT = 2**31 - 1  # bytes; what `mallopt` takes at most
_ACCELERATORS = ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia[0-9]*")  # TPUs, newer ones, GPUs


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next request, where programs run on CPU; call it before jax is imported.

    XLA on CPU asks for one temporary buffer for every run of a program. One of 32 MiB or more comes from the kernel,
    page by page, every page zeroed, and goes back at the end: a quarter of a small decoder's training step. With this
    the process gives back only what is free at the end of its heap beyond 2 GiB.

    Returns:
        Whether it is done: False where the C library is another one, or where there is an accelerator that
        ``JAX_PLATFORMS`` does not rule out; there the memory is left to the system.
    """
    elsewhere = os.environ.get("JAX_PLATFORMS") != "cpu" and any(map(glob.glob, _ACCELERATORS))
    if elsewhere or platform.libc_ver()[0] != "glibc":
        return False
    # One arena: the others, of threads, hold no large blocks.
    mallopt = ctypes.CDLL(None).mallopt
    done = [mallopt(_MMAP_MAX, 0), mallopt(_ARENA_MAX, 1), mallopt(_TRIM_THRESHOLD, _KEPT)]
    return all(done)
