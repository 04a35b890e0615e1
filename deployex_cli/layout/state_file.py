"""The state file and the history on disk: read, rebuilt when lost, written as a whole."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from deployex_cli.config import AppConfig
from deployex_cli.core.plan import Disk
from deployex_cli.core.recovery import rebuild
from deployex_cli.core.state import (
    State,
    StateTooNew,
    StateUnreadable,
    decode_state,
    encode_state,
)
from deployex_cli.errors import StateError
from deployex_cli.layout import files

HISTORY_LIMIT = 1000  # entries that are kept
_HISTORY_SLACK = 200  # so that the file is not rewritten at each entry


class Loaded(NamedTuple):
    """The state, and what had to be done to have one."""

    state: State
    warning: str | None = None


def load_state(app: AppConfig, disk: Disk, now: float) -> Loaded:
    """The state; rebuilt from markers and links, with a warning, when the file is lost or damaged.

    Raises StateError when a newer deployex wrote it.
    """
    path = app.paths.state
    try:
        raw = files.read_file(path)
    except OSError as error:
        raise StateError(f"{app.name}: {path} cannot be read: {error.strerror}") from None
    if raw is None:
        if disk.current is None:
            return Loaded(State())
        lost = f"{app.name}: {path} is lost; it is rebuilt from the releases on disk"
        return Loaded(rebuild(disk, now), lost)
    try:
        return Loaded(decode_state(raw))
    except StateTooNew as error:
        raise StateError(
            f"{app.name}: {path} was written by a newer deployex (schema {error.args[0]});"
            " install that one again, nothing was changed"
        ) from None
    except StateUnreadable as error:
        damaged = (
            f"{app.name}: {path} is damaged ({error}); it is rebuilt from the releases on disk"
        )
        return Loaded(rebuild(disk, now), damaged)


def save_state(app: AppConfig, state: State) -> None:
    """Writes the state; it is on disk when this returns."""
    files.write_file(app.paths.state, encode_state(state))


def append_history(app: AppConfig, entry: dict[str, Any]) -> None:
    """Adds an entry, on disk when this returns; one that is among the last already is not added.

    So a run that was killed before it could say that the entry is written may write it again; and
    a check that fails every few seconds for the same reason does not push all else out.
    """
    path = app.paths.history
    entries = list(read_history(app))
    if entry in entries[-20:] or (entries and _is_same_failure(entry, entries[-1])):
        return
    if len(entries) >= HISTORY_LIMIT + _HISTORY_SLACK:
        kept = [*entries[-HISTORY_LIMIT + 1 :], entry]
        files.write_file(path, b"".join(json.dumps(e).encode() + b"\n" for e in kept))
    else:
        files.append_line(path, json.dumps(entry).encode())


def _is_same_failure(entry: dict[str, Any], last: dict[str, Any]) -> bool:
    keys = ("event", "version", "reason")
    return entry["event"] == "failed" and all(entry.get(key) == last.get(key) for key in keys)


def read_history(app: AppConfig) -> Iterator[dict[str, Any]]:
    """The entries, oldest first; a line that a power cut tore is passed over."""
    for line in (files.read_file(app.paths.history) or b"").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry
