"""What the kernel says of processes, proc(5).

A process is told by its pid and its start time: pids are used again. Start times count from boot,
so a boot's id belongs to them. No clock that anybody can set is asked.
"""

from __future__ import annotations

import os
import time

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def boot_id() -> str:
    """The id of this boot of the machine."""
    with open("/proc/sys/kernel/random/boot_id", "rb") as file:
        return file.read().decode().strip()


def start_time(pid: int, *, zombies: bool = False) -> int | None:
    """When the process started, in clock ticks since boot; None: there is none.

    A zombie is none either, unless `zombies`.
    """
    fields = _stat(pid)
    if fields is None or (fields[0] in (b"Z", b"X") and not zombies):
        return None
    return int(fields[19])


def uptime(started: int) -> float:
    """Seconds since a start time; the time that the machine slept counts too."""
    return max(time.clock_gettime(time.CLOCK_BOOTTIME) - started / _TICKS, 0.0)


def resident_bytes(pid: int) -> int | None:
    """The memory that the process holds, in bytes."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError):
        return None


def name(pid: int) -> str:
    """The process's short name, or "" when it is gone."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def is_epmd(pid: int) -> bool:
    """Whether it is OTP's port mapper, by what it executes: a name can be given to oneself."""
    return _program(pid) == "epmd"


def is_vm(pid: int) -> bool:
    """Whether it is a BEAM: beam.smp, or one that was built to be debugged."""
    return _program(pid).startswith("beam")


def children(pid: int) -> list[int]:
    """The process's children, zombies too."""
    found = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += [int(child) for child in file.read().split()]
    except OSError:
        # gone meanwhile, no descriptor left, or a kernel without CONFIG_PROC_CHILDREN
        return found or [child for child in _all() if _parent(child) == pid]
    return found


def descendants(pid: int) -> list[tuple[int, int]]:
    """All that the process has begotten and that still has a line of living parents to it.

    Each with its start time.
    """
    found: dict[int, int] = {}
    parents = [pid]
    while parents:
        for child in children(parents.pop()):
            started = start_time(child)
            if started is not None and child not in found:
                found[child] = started
                parents.append(child)
    return list(found.items())


def has_open(pid: int, file: os.stat_result) -> bool:
    """Whether the process has that file open; one that may not be looked into may have it."""
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except PermissionError:
        return True
    except OSError:
        return False
    for name in names:
        try:
            if os.path.samestat(os.stat(f"{folder}/{name}"), file):
                return True
        except OSError:
            continue  # closed meanwhile
    return False


def _program(pid: int) -> str:
    """The name of the file that the process executes, or ""."""
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)"))
    except OSError:
        return ""


def _all() -> list[int]:
    try:
        return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    except OSError:
        return []  # no descriptor left


def _parent(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def _stat(pid: int) -> list[bytes] | None:
    """The fields of /proc/pid/stat from the third (state) on; the second may hold anything."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
