"""`deployex status`: what is deployed, what runs, and what is due. Reads files, asks no lock."""

from __future__ import annotations

import time
from typing import Any

from deployex_cli.commands.context import all_apps
from deployex_cli.config import AppConfig, Config
from deployex_cli.core.manifest import parse_manifest
from deployex_cli.core.plan import Facts, Policy, plan
from deployex_cli.core.recovery import recover
from deployex_cli.errors import DeployexError, ManifestError, StoreUnreachable, UnsafeFolder
from deployex_cli.layout.releases import read_disk
from deployex_cli.layout.state_file import load_state
from deployex_cli.result import Failure, Result, Table, failure_of
from deployex_cli.storage import open_store
from deployex_cli.supervise import procfs
from deployex_cli.supervise.record import process_facts, read_record
from deployex_cli.words import iso, mebibytes, seconds


def status(config: Config, app_name: str | None) -> Result:
    """The status of the apps that are meant."""
    found: list[dict[str, Any]] = []
    failures: list[Failure] = []
    for app in all_apps(config, app_name):
        try:
            found.append(_status_of(app))
        except (DeployexError, OSError) as error:
            failures.append(failure_of(error))
    tables = (_details(found[0]),) if len(found) == 1 else (_overview(found),) if found else ()
    return Result("status", {"apps": found}, tables=tables, failures=tuple(failures))


def _status_of(app: AppConfig) -> dict[str, Any]:
    now = time.time()
    disk = read_disk(app.paths)
    loaded = load_state(app, disk, now)
    state, record = loaded.state, read_record(app.paths.record)
    process = process_facts(record)
    current, previous = disk.find(disk.current), disk.find(disk.previous)
    published, due = _published(app, Facts(disk, process), state, now)
    deployment = state.deployment
    pid = record.app[0] if process.running and record and record.app else None
    memory = procfs.resident_bytes(pid) if pid else None
    return {
        "app": app.name,
        "version": current.version if current else None,
        "hash": current.hash if current else None,
        "sha256": current.digest if current else None,
        "confirmed_at": iso(current.confirmed_at) if current else None,
        "previous": previous.version if previous else None,
        "deployment": {
            "version": deployment.target.version,
            "kind": deployment.kind,
            "phase": deployment.phase.value,
            "strategy": deployment.strategy,
            "began_at": iso(deployment.began_at),
            "phase_at": iso(deployment.phase_at),
            "by": deployment.by,
            "reason": deployment.reason,
        }
        if deployment
        else None,
        "wanted": state.wanted,
        "supervisor": {
            "running": process.supervised,
            "pid": record.supervisor[0] if record and process.supervised else None,
            "state": process.state,
        },
        "pid": pid,
        "runs": record.version if record and process.running else None,
        "uptime_seconds": round(process.uptime, 1) if process.uptime is not None else None,
        "memory_bytes": memory,
        "crashes": record.crashes if record else 0,
        "crashes_in_a_row": record.crashes_in_a_row if record else 0,
        "last_exit": record.last_exit if record else None,
        "last_exit_at": iso(record.last_exit_at) if record else None,
        "ghosts": [
            {"version": g.version, "sha256": g.digest, "reason": g.reason, "at": iso(g.at)}
            for g in state.ghosts
        ],
        "published": published,
        "due": due,
        "warning": loaded.warning,
    }


def _published(
    app: AppConfig, facts: Facts, state: Any, now: float
) -> tuple[dict[str, Any] | None, str]:
    """What the store has, and what the next check would do."""
    store = open_store(app)
    try:
        raw = store.read_manifest()
        manifest = parse_manifest(raw, store.manifest_address()) if raw is not None else None
    except (StoreUnreachable, ManifestError, UnsafeFolder) as error:
        return None, error.message
    published = {"version": manifest.version, "hash": manifest.hash} if manifest else None
    interrupted = recover(state, facts).reason
    if interrupted:
        return published, interrupted
    return published, plan(state, manifest, facts, Policy(app.min_healthy_time), now).reason


def _details(one: dict[str, Any]) -> Table:
    deployment = one["deployment"]
    last = "-"
    if deployment:
        what = "rollback to" if deployment["kind"] == "rollback" else "to"
        last = (
            f"{deployment['strategy']} {what} {deployment['version']}"
            f" by {deployment['by']} at {deployment['began_at']}"
        )
    exit_words = f"{one['last_exit']} at {one['last_exit_at']}" if one["last_exit"] else "-"
    rows = [
        ("version", _or_dash(one["version"])),
        ("git hash", _or_dash(one["hash"])),
        ("phase", _phase(one)),
        ("last deployment", last),
        ("version before", _or_dash(one["previous"])),
        ("supervisor", _supervisor(one)),
        ("OS pid", _or_dash(one["pid"]) + _other(one)),
        ("uptime", seconds(one["uptime_seconds"])),
        ("memory", mebibytes(one["memory_bytes"])),
        ("crashes", f"{one['crashes']} ({one['crashes_in_a_row']} in a row)"),
        ("last exit", exit_words),
        ("ghosted", ", ".join(g["version"] for g in one["ghosts"]) or "-"),
        ("published", _published_words(one)),
        ("due", one["due"]),
    ]
    if one["warning"]:
        rows.append(("warning", one["warning"]))
    return Table("", (one["app"], ""), tuple(rows))


def _overview(found: list[dict[str, Any]]) -> Table:
    columns = ("app", "version", "phase", "supervisor", "pid", "uptime", "memory", "crashes")
    rows = tuple(
        (
            one["app"],
            _or_dash(one["version"]),
            _phase(one),
            _supervisor(one),
            _or_dash(one["pid"]),
            seconds(one["uptime_seconds"]),
            mebibytes(one["memory_bytes"]),
            str(one["crashes"]),
            _published_words(one),
            one["due"],
        )
        for one in found
    )
    return Table("", (*columns, "published", "due"), rows)


def _other(one: dict[str, Any]) -> str:
    """What runs, if it is not what is current."""
    runs = one["runs"]
    return f" (runs {runs}, until the next start)" if runs not in (None, one["version"]) else ""


def _phase(one: dict[str, Any]) -> str:
    deployment = one["deployment"]
    if deployment is None:
        return "idle"
    phase = str(deployment["phase"])
    if one["version"] is not None and phase == "abandoned":  # an attempt: what is current stays so
        phase = "confirmed" if one["confirmed_at"] else "started"
    return "on trial" if phase == "started" else phase.replace("_", " ")


def _supervisor(one: dict[str, Any]) -> str:
    if not one["supervisor"]["running"]:
        return "none"
    return str(one["supervisor"]["state"])


def _published_words(one: dict[str, Any]) -> str:
    published = one["published"]
    if published is None:
        return "-"
    return f"{published['version']} {published['hash'][:12]}".strip()


def _or_dash(value: object) -> str:
    return "-" if value in (None, "") else str(value)
