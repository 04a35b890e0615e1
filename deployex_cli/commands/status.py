"""`deployex status`: what is deployed, what runs, how its node is, and what is due.

Reads files and asks the nodes, all at once and for a second at most; asks no lock.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from deployex_cli.commands.context import all_apps
from deployex_cli.config import AppConfig, Config
from deployex_cli.core.manifest import parse_manifest
from deployex_cli.core.plan import Facts, OnDisk, Policy, Process, plan, serving, version_before
from deployex_cli.core.recovery import recover
from deployex_cli.errors import (
    DeployexError,
    ManifestError,
    NodeError,
    StoreUnreachable,
    UnsafeFolder,
)
from deployex_cli.layout.releases import read_disk
from deployex_cli.layout.state_file import load_state
from deployex_cli.otp.identity import target_of
from deployex_cli.otp.inspect import Count, NodeStatus, ask_all
from deployex_cli.result import Failure, Result, Table, failure_of
from deployex_cli.storage import open_store
from deployex_cli.supervise import procfs
from deployex_cli.supervise.record import Record, process_facts, read_record
from deployex_cli.words import iso, mebibytes, seconds

_NODE_SECONDS = 1.0  # for all nodes together


def status(config: Config, app_name: str | None) -> Result:
    """The status of the apps that are meant."""
    found: list[dict[str, Any]] = []
    failures: list[Failure] = []
    apps = all_apps(config, app_name)
    nodes = _ask_nodes(apps)  # which takes time: the files are read meanwhile
    for app in apps:
        try:
            found.append(_status_of(app))
        except (DeployexError, OSError) as error:
            failures.append(failure_of(error))
    answers = nodes()
    for one in found:
        one["node"] = answers[one["app"]]
    tables = (_details(found[0]),) if len(found) == 1 else (_overview(found),) if found else ()
    return Result("status", {"apps": found}, tables=tables, failures=tuple(failures))


def _status_of(app: AppConfig) -> dict[str, Any]:
    now = time.time()
    disk = read_disk(app.paths)
    loaded = load_state(app, disk, now)
    state, record = loaded.state, read_record(app.paths.record)
    process = process_facts(record)
    facts = Facts(disk, process)
    current = serving(state, facts)
    before = version_before(disk, current) if current else None
    published, due = _published(app, facts, state, now)
    deployment = state.deployment
    pid = record.app[0] if process.running and record and record.app else None
    memory = procfs.resident_bytes(pid) if pid else None
    return {
        "app": app.name,
        "version": current.version if current else None,
        "hash": current.hash if current else None,
        "sha256": current.digest if current else None,
        "confirmed_at": iso(current.confirmed_at) if current else None,
        "previous": before.version if before else None,
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
        "runs": _runs(record, process, current),
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


# --- the node -----------------------------------------------------------------------------------


def _ask_nodes(apps: tuple[AppConfig, ...]) -> Callable[[], dict[str, dict[str, Any]]]:
    """Begins to ask the node of each app that runs; what it returns waits for the answers."""
    silent: dict[str, dict[str, Any]] = {}
    asked: dict[str, partial[Any]] = {}
    for app in apps:
        if app.distribution == "none":
            silent[app.name] = _no_node("distribution_none", 'distribution = "none"')
            continue
        try:
            process = process_facts(read_record(app.paths.record))
        except OSError:
            process = process_facts(None)  # _status_of says what is wrong
        if process.pid is None:
            silent[app.name] = _no_node("not_running", "it does not run")
        else:
            asked[app.name] = partial(target_of, app, process.pid, os.environ)
    wait = ask_all(tuple(asked.values()), _NODE_SECONDS)

    def answers() -> dict[str, dict[str, Any]]:
        told = zip(asked, wait(), strict=True)
        return {**silent, **{name: _node(answer) for name, answer in told}}

    return answers


def _node(answer: NodeStatus | NodeError) -> dict[str, Any]:
    """The node's part of the status; the keys are in README, "Status"."""
    if isinstance(answer, NodeError):
        return _no_node(answer.code, answer.message)
    return {
        "reachable": True,
        "reason": None,
        "message": None,
        "name": answer.name,
        "otp_release": answer.otp_release,
        "tls": answer.tls,
        "running_release": answer.running,
        "permanent_release": answer.permanent,
        "release_handler": answer.release_handler,
        "uptime_ms": answer.uptime_ms,
        "memory_bytes": answer.memory,
        "processes": answer.processes._asdict(),
        "atoms": answer.atoms._asdict(),
        "ports": answer.ports._asdict(),
        "run_queue": answer.run_queue,
        "applications": [application._asdict() for application in answer.applications],
    }


def _no_node(reason: str, message: str) -> dict[str, Any]:
    return {"reachable": False, "reason": reason, "message": message}


def _node_rows(node: dict[str, Any]) -> list[tuple[str, str]]:
    if not node["reachable"]:
        asked = node["reason"] not in ("not_running", "distribution_none")
        return [("node", f"not reachable: {node['message']}" if asked else "-")]
    uptime = seconds(node["uptime_ms"] / 1000)
    loaded = [app for app in node["applications"] if not app["started"]]
    rows = [
        ("node", f"{node['name']}, OTP {node['otp_release']}, {_wire(node)}"),
        ("running release", _releases(node)),
        ("VM uptime", uptime),
        ("VM memory", mebibytes(node["memory_bytes"])),
        *((what, _of(Count(**node[what]))) for what in ("processes", "atoms", "ports")),
        ("run queue", str(node["run_queue"])),
        ("applications", _versions(app for app in node["applications"] if app["started"])),
    ]
    return [*rows, ("loaded only", _versions(loaded))] if loaded else rows


def _wire(node: dict[str, Any]) -> str:
    return "TLS" if node["tls"] else "no TLS"


def _releases(node: dict[str, Any]) -> str:
    if node["release_handler"] == "busy":
        return "its release handler is busy: an install may be under way"
    running, permanent = node["running_release"], node["permanent_release"]
    if running == permanent:
        return _or_dash(running)
    return f"{running}; a restart boots {permanent}"


def _of(count: Count) -> str:
    return f"{count.used} of {count.limit} ({count.percent:.1f} %)"


def _versions(applications: Iterable[dict[str, Any]]) -> str:
    return ", ".join(f"{app['name']} {app['version']}" for app in applications) or "-"


def _node_word(node: dict[str, Any]) -> str:
    """The node in one word, for a row among others."""
    return "reachable" if node["reachable"] else str(node["reason"]).replace("_", " ")


# --- the store ----------------------------------------------------------------------------------


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


# --- for people ---------------------------------------------------------------------------------


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
        *_node_rows(one["node"]),
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
    columns = (
        "app",
        "version",
        "phase",
        "supervisor",
        "pid",
        "uptime",
        "memory",
        "node",
        "crashes",
    )
    rows = tuple(
        (
            one["app"],
            _or_dash(one["version"]),
            _phase(one),
            _supervisor(one),
            _or_dash(one["pid"]),
            seconds(one["uptime_seconds"]),
            mebibytes(one["memory_bytes"]),
            _node_word(one["node"]),
            str(one["crashes"]),
            _published_words(one),
            one["due"],
        )
        for one in found
    )
    return Table("", (*columns, "published", "due"), rows)


def _runs(record: Record | None, process: Process, current: OnDisk | None) -> str | None:
    """The version that the app's process runs; a hot upgrade changes it within the process."""
    if record is None or not process.running:
        return None
    if current is not None and process.folder == current.folder:
        return current.version
    return record.version


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
