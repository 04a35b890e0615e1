"""The system calls that Python lacks, through ctypes; every failure is an OSError.

Imported only by what needs one of them: ctypes costs a few milliseconds.
"""

from __future__ import annotations

import ctypes
import os

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syncfs.argtypes = [ctypes.c_int]
_libc.syncfs.restype = ctypes.c_int
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_libc.prctl.restype = ctypes.c_int


def syncfs(fd: int) -> None:
    """Write the whole file system that holds `fd` to its disk, and wait for it (syncfs(2)).

    Raise OSError: EBADF, or EIO, ENOSPC, EDQUOT for what could not be written since `fd` was
    opened (Linux 5.8 and later): open it before the writing.
    """
    _check(_libc.syncfs(fd))


def set_child_subreaper() -> None:
    """Make this process the parent of its orphaned descendants (prctl(2)); raise OSError."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def _check(result: int) -> None:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
