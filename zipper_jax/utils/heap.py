"""Memory that a process frees and asks for again: what XLA on CPU does with its temporary buffer in every step."""

import ctypes
import glob
import mmap
import os
import platform
import resource
from pathlib import Path

# malloc.h of glibc
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_KEPT = 2**31 - 1  # bytes; what `mallopt` takes at most
_IN_HUGE_PAGES = 2**30  # bytes
_HUGE_PAGE_SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
_ACCELERATORS = ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia[0-9]*")  # TPUs, newer ones, GPUs


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next request, where programs run on CPU; call it before jax is imported.

    XLA on CPU asks for one temporary buffer for every run of a program. One of 32 MiB or more comes from the kernel,
    page by page, every page zeroed, and goes back at the end: a quarter of a small decoder's training step. With this
    the process gives back only what is free at the end of its heap beyond 2 GiB. The next 1 GiB of the heap is in huge
    pages where the kernel has them for the asking: a step finds its memory in fewer entries of the page table.

    Returns:
        Whether it is done: False where the C library is another one, or where there is an accelerator that
        ``JAX_PLATFORMS`` does not rule out; there the memory is left to the system.
    """
    elsewhere = os.environ.get("JAX_PLATFORMS") != "cpu" and any(map(glob.glob, _ACCELERATORS))
    if elsewhere or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # One arena: the others, of threads, hold no large blocks.
    done = [libc.mallopt(_MMAP_MAX, 0), libc.mallopt(_ARENA_MAX, 1), libc.mallopt(_TRIM_THRESHOLD, _KEPT)]
    if all(done):
        _ask_for_huge_pages(libc)
    return all(done)


def _ask_for_huge_pages(libc: ctypes.CDLL) -> None:
    """For the addresses that the heap will use next; none of them is in memory yet.

    Not where addresses are limited or counted as memory, or malloc writes to what it gives (MALLOC_PERTURB_).
    """
    limits = [resource.getrlimit(limit)[0] for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    written = "MALLOC_PERTURB_" in os.environ or "perturb" in os.environ.get("GLIBC_TUNABLES", "")
    if written or limits != [resource.RLIM_INFINITY] * 2 or not _HUGE_PAGE_SIZE.is_file():
        return
    page = int(_HUGE_PAGE_SIZE.read_text())
    if page > _IN_HUGE_PAGES // 32 or (_OVERCOMMIT.is_file() and _OVERCOMMIT.read_text().strip() == "2"):
        return
    libc.malloc.restype = ctypes.c_void_p
    block = libc.malloc(ctypes.c_size_t(_IN_HUGE_PAGES))
    if block is None:
        return
    first = -(-block // page) * page
    size = (block + _IN_HUGE_PAGES - first) // page * page
    libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), mmap.MADV_HUGEPAGE)  # refused: pages stay small
    libc.free(ctypes.c_void_p(block))
