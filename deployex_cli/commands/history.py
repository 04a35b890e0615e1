"""`deployex history`: what happened to an app, newest last."""

from __future__ import annotations

from typing import Any

from deployex_cli.config import AppConfig
from deployex_cli.layout.state_file import read_history
from deployex_cli.result import Result, Table
from deployex_cli.words import iso


def history(app: AppConfig, limit: int | None) -> Result:
    """The last `limit` entries, or all."""
    entries = [{**entry, "at": iso(entry.get("at"))} for entry in read_history(app)]
    if limit is not None:
        entries = entries[-limit:] if limit else []
    columns = ("at", "event", "version", "from", "git hash", "strategy", "took", "by", "reason")
    table = Table("", columns, tuple(_row(entry) for entry in entries))
    data = {"app": app.name, "entries": entries}
    if not entries:
        return Result("history", data, (f"{app.name}: nothing happened yet",))
    return Result("history", data, tables=(table,))


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    took = entry.get("seconds")
    return (
        str(entry["at"]),
        str(entry.get("event", "")),
        str(entry.get("version") or "-"),
        str(entry.get("origin") or "-"),
        str(entry.get("hash") or "-")[:12],
        str(entry.get("strategy") or "-"),
        f"{took:.1f} s" if isinstance(took, (int, float)) else "-",
        str(entry.get("by") or "-"),
        str(entry.get("reason") or ""),
    )
