"""Tells the C library's allocator to keep freed memory for the next tensors.

glibc hands large freed blocks back to the kernel, and the next tensor's pages are then zeroed again, one fault each. On
a CPU with small models that takes longer than the arithmetic: see `benchmarks/reward_speed.py`.
"""

from __future__ import annotations

import ctypes
import sys

# Numbers of glibc's <malloc.h>, and bytes: 32 MiB is the largest block that glibc lets its heap serve.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_OPTIONS = {_TRIM_THRESHOLD: 512 << 20, _TOP_PAD: 64 << 20, _MMAP_THRESHOLD: 32 << 20}


def keep_freed_memory() -> bool:
    """Whether this process's C library now keeps freed memory (glibc only; elsewhere nothing changes).

    Affects the whole process, so only programs call this (`rlt` does, for its stages), never an import. Up to 512 MiB of
    free memory are not returned to the system.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all([mallopt(option, value) == 1 for option, value in _OPTIONS.items()])
