"""ENOSPC, EIO, EROFS, EMFILE, EACCES: what the kernel may answer to a call that changes something.

A disk that takes no new files and one that was mounted read-only stay so until the program ends,
the other errors strike once. The program must say what happened and end with a code of its own;
the next check, on a machine that is well again, must put right whatever was left.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.faults import strace
from tests.faults.aftermath import EXIT_CODES, by_the_next_check
from tests.faults.kills import LIVES, Point, live
from tests.faults.scenarios import SCENARIOS, machine_before
from tests.tiny import is_alive

LASTING = ("ENOSPC", "EROFS")
_NAMES = ("ENOSPC", "EROFS", "EACCES", "EIO")
# by man page: what each call can fail with, of the five (fork knows none of them but a full table)
POSSIBLE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("openat", "open", "creat"), (*_NAMES, "EMFILE")),
    **dict.fromkeys(("mkdir", "mkdirat", "symlink", "symlinkat", "link", "linkat"), _NAMES),
    **dict.fromkeys(("rename", "renameat", "renameat2"), _NAMES),
    **dict.fromkeys(("unlink", "unlinkat", "rmdir"), ("EROFS", "EACCES", "EIO")),
    **dict.fromkeys(("chmod", "fchmod", "fchmodat", "fchmodat2"), ("EROFS", "EACCES", "EIO")),
    **dict.fromkeys(("chown", "fchown", "fchownat", "utimensat"), ("EROFS", "EACCES", "EIO")),
    **dict.fromkeys(("write", "writev", "pwrite64", "fsync", "fdatasync"), ("ENOSPC", "EIO")),
    **dict.fromkeys(("syncfs", "ftruncate", "truncate", "fallocate"), ("ENOSPC", "EIO")),
    **dict.fromkeys(("copy_file_range", "sendfile"), ("ENOSPC", "EIO")),
    **dict.fromkeys(("fork", "vfork", "clone", "clone3"), ("EAGAIN",)),
    **dict.fromkeys(("accept", "accept4"), ("EMFILE",)),
    **dict.fromkeys(("recvmsg",), ("EMFILE",)),
    **dict.fromkeys(("bind",), ("EACCES", "EROFS", "ENOSPC")),
    **dict.fromkeys(("connect", "execve", "kill", "tgkill"), ("EACCES",)),
    **dict.fromkeys(("flock",), ("EIO",)),
    # what can fail only for reasons that are none of the five
    **dict.fromkeys(("listen", "prctl", "recvfrom", "sendmsg", "sendto", "setsid", "wait4"), ()),
}


class Trouble(NamedTuple):
    """One answer of the kernel to one call."""

    point: Point
    error: str

    @property
    def fault(self) -> str:
        # `write` goes to pipes and sockets, too, and `openat` also reads: these go on well
        writes_only = self.point.call.name not in ("write", "pwrite64", "openat")
        lasts = self.error in LASTING and writes_only
        lasting = "+" if lasts else ""
        return f"{self.point.call.name}:error={self.error}:when={self.point.call.when}{lasting}"

    def __str__(self) -> str:
        point = self.point
        return f"{point.scenario}: {point.program} gets {self.error} of {point.call}"


def troubles(points: list[Point]) -> list[Trouble]:
    """All that can happen at these points. Raises Unknown for a call that nobody has judged."""
    found = []
    for point in points:
        if point.call.name not in POSSIBLE:
            raise strace.Unknown(f"{point.call}: how can it fail? See tests/faults/errors.py")
        found += [Trouble(point, error) for error in POSSIBLE[point.call.name]]
    return found


def trouble_for_command(trouble: Trouble, template: Path) -> None:
    """The scenario's command meets the trouble; what it says, and what becomes of it."""
    scenario = SCENARIOS[trouble.point.scenario]
    machine = machine_before(scenario, template)
    try:
        with tempfile.NamedTemporaryFile() as log:
            ran = machine.under_strace(Path(log.name), trouble.fault, *scenario.words)
        assert ran.code in EXIT_CODES, f"{trouble}: {ran}"
        assert "Traceback" not in ran.err, f"{trouble}: {ran}"
        assert ran.code == 0 or "error: " in ran.err, f"{trouble}: ended without a word: {ran}"
        by_the_next_check(machine, scenario)
    finally:
        machine.end()


def trouble_for_supervisor(trouble: Trouble, template: Path) -> None:
    """A supervisor meets it: it ends with a word of why, or goes on, and never leaves the app."""
    name = trouble.point.scenario
    with tempfile.NamedTemporaryFile() as log:
        machine = live(name, template, Path(log.name), trouble.fault)
    try:
        assert machine.traced is not None
        said = machine.said_by_traced
        assert "Traceback" not in said, f"{trouble}: {said}"
        assert machine.traced.returncode in EXIT_CODES, f"{trouble}: {said}"
        record = machine.record() if machine.record_file.exists() else None
        if machine.traced.returncode == 0 and record is not None and record["app"] is not None:
            assert not is_alive(record["app"][0]), f"{trouble}: it left the app behind: {said}"
        by_the_next_check(machine, SCENARIOS[LIVES[name][0]])
    finally:
        machine.end()
