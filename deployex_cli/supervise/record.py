"""The supervisor's own record of what it keeps alive: {app}.supervise.json.

Only the supervisor writes it, and the process that becomes the app, just before its exec: so there
is never an app that no record tells of. Check and status read it without asking the supervisor.
"""

import json
import os
from typing import NamedTuple

from deployex_cli.core.plan import Process
from deployex_cli.layout import files
from deployex_cli.supervise import procfs

SCHEMA_VERSION = 1
_BYTES = 4096  # of the file, always: one page, which is written as a whole
_LONGEST_TEXT = 400  # characters of last_exit; each may take six bytes
_ATTEMPTS = 3  # one who reads while it is written may see half of each


class Record(NamedTuple):
    """What the supervisor knows. A process is (pid, start): procfs.start_time of it."""

    boot_id: str
    supervisor: tuple[int, int]
    state: str = "STOPPED"
    app: tuple[int, int] | None = None
    folder: str | None = None  # of the release that runs, or ran last
    version: str | None = None
    started_at: float | None = None  # seconds since the epoch
    starts: int = 0  # how often it started the app
    crashes: int = 0  # in all
    crashes_in_a_row: int = 0  # back to zero once the app was healthy
    last_exit: str | None = None  # in words
    last_exit_at: float | None = None  # seconds since the epoch
    restart_at: float | None = None  # seconds since the epoch, in BACKOFF
    asked: tuple[int, int] | None = None  # the last app that ended because it was told to


def write_record(path: str, record: Record) -> None:
    """Puts the record in the place of the last one, in one write into blocks that are there.

    So a full disk cannot keep us from noting what runs, and a start pays for no rename. Not
    durable: after a power cut no process of it is left either. Raises OSError.
    """
    if record.last_exit is not None:
        record = record._replace(last_exit=record.last_exit[:_LONGEST_TEXT])
    document = {"schema_version": SCHEMA_VERSION, **record._asdict()}
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        os.pwrite(descriptor, json.dumps(document).encode().ljust(_BYTES - 1) + b"\n", 0)
    finally:
        os.close(descriptor)


def read_record(path: str) -> Record | None:
    """The record, or None: there is none, or it is none of ours."""
    for _ in range(_ATTEMPTS):
        found = _read(path)
        if found is not None or not os.path.exists(path):
            return found
    return None


def _read(path: str) -> Record | None:
    try:
        raw = files.read_file(path, _BYTES)
        document = json.loads(raw) if raw is not None else None
        if document is None or document.pop("schema_version") != SCHEMA_VERSION:
            return None
        document["supervisor"] = _process(document["supervisor"])
        for key in ("app", "asked"):
            document[key] = _process(document[key]) if document.get(key) is not None else None
        return Record(**document)
    except PermissionError:
        raise  # there may be one: that it cannot be read is not that nothing runs
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def lives(process: tuple[int, int] | None, record: Record) -> bool:
    """Whether that very process still lives."""
    return (
        process is not None
        and procfs.start_time(process[0]) == process[1]
        and record.boot_id == procfs.boot_id()
    )


def process_facts(record: Record | None) -> Process:
    """The record, held against the process table."""
    if record is None:
        return Process()
    running = lives(record.app, record)
    pid, start = record.app if running and record.app else (None, None)
    boot = procfs.boot_id()
    supervised = lives(record.supervisor, record)
    told = record.asked if record.boot_id == boot else None
    return Process(
        supervised=supervised,
        state=record.state if supervised else "STOPPED",
        running=running,
        folder=record.folder if running else None,
        uptime=procfs.uptime(start) if start is not None else None,
        pid=pid,
        vm=f"{boot}/{pid}/{start}" if pid is not None else None,
        boot=boot,
        asked=f"{boot}/{told[0]}/{told[1]}" if told is not None else None,
    )


def _process(pair: list[int]) -> tuple[int, int]:
    pid, start = pair
    if not (isinstance(pid, int) and isinstance(start, int)):
        raise TypeError("a process is two whole numbers")
    return pid, start
