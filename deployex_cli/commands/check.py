"""`deployex check`: recover what was interrupted, compare with the manifest, do what is due.

A timer calls this every few seconds for years, and nearly always nothing is due: what only a
deployment needs is imported when there is one.
"""

import os
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from deployex_cli.commands.context import Say, all_apps, prepare_folders, who
from deployex_cli.config import AppConfig, Config
from deployex_cli.core.manifest import Manifest, parse_manifest
from deployex_cli.core.plan import Facts, Plan, Policy, Step, plan, remaining, serving
from deployex_cli.core.recovery import Recovery, recover
from deployex_cli.core.state import State
from deployex_cli.errors import (
    DeployexError,
    ManifestError,
    RollbackFailed,
    StoreUnreachable,
    UnsafeFolder,
)
from deployex_cli.layout.files import check_trusted
from deployex_cli.layout.lock import AppLock
from deployex_cli.layout.releases import read_disk
from deployex_cli.layout.state_file import load_state
from deployex_cli.result import Failure, Result, failure_of
from deployex_cli.storage import open_store
from deployex_cli.supervise.record import process_facts, read_record

if TYPE_CHECKING:
    from deployex_cli.storage.store import ReleaseStore


class Options(NamedTuple):
    """How to check; `chatty`: say also that nothing is due."""

    app: str | None = None
    dry_run: bool = False
    force: bool = False
    chatty: bool = False


def check(config: Config, options: Options, say: Say) -> Result:
    """Checks all apps that are meant; one that fails does not keep the others from their turn."""
    outcomes: list[dict[str, Any]] = []
    failures: list[Failure] = []
    for app in all_apps(config, options.app):
        try:
            outcomes.append(_check_app(config, app, options, say))
        except Exception as error:  # a bug in one app's turn is no reason to leave out the others
            failure = failure_of(error)
            failures.append(failure)
            outcomes.append({"app": app.name, "outcome": "failed", "reason": failure.message})
        if told_to_end():
            break
    return Result("check", {"apps": outcomes}, failures=tuple(failures))


def told_to_end() -> bool:
    """Whether a signal came while steps were taken: then no other app's turn, nor check, begins."""
    interrupts = sys.modules.get("deployex_cli.interrupts")  # a check without steps has none
    return interrupts is not None and interrupts.came is not None


def _check_app(config: Config, app: AppConfig, options: Options, say: Say) -> dict[str, Any]:
    store = open_store(app)
    if options.dry_run:
        return _dry_run(app, store, options, say)
    prepare_folders(app)
    with AppLock(app.paths.lock, app.name, "deployex check") as lock:
        state, facts, sound = _look(app)
        recovery, failed = recover(state, facts), None
        if recovery.steps or state.unlogged or not sound:
            state, facts, failed = _recover(config, app, lock, store, recovery, say)
        manifest, trouble = _manifest(store)
        if trouble is not None and facts.disk.current is None:
            raise trouble
        facts = _with_node(app, state, facts)
        due = plan(state, manifest, facts, _policy(app, options), time.time())
        if failed is not None and due.deployment is None:
            raise failed
        taken: list[Step] = []
        if due.steps:
            engine = _engine(config, app, lock, store, say)
            engine.run(due.steps, due.deployment)
            taken = engine.taken
        if trouble is not None:
            raise trouble  # what needs no network is done by now
    notable = due.notable and not os.environ.get("INVOCATION_ID")  # not in a journal, every 5 s
    if notable or (options.chatty and not due.steps):
        where = f" ({store.manifest_address()})" if manifest is None else ""
        say(f"{app.name}: {due.reason}{where}")
    outcome = "done" if due.steps or recovery.steps else "nothing_to_do"
    return _outcome(app, due, (*recovery.steps, *taken), outcome)


def _dry_run(app: AppConfig, store: "ReleaseStore", options: Options, say: Say) -> dict[str, Any]:
    """The plan and the reason for each step; nothing is changed."""
    if os.path.exists(app.paths.service):
        check_trusted(app.paths.service)
    state, facts, _ = _look(app)
    recovery = recover(state, facts)
    if recovery.steps:
        say(f"{app.name}: would recover: {recovery.reason or recovery.steps[0].why}")
        _say_steps(recovery.steps, say)
    manifest, trouble = _manifest(store)
    if trouble is not None:
        raise trouble
    due = plan(state, manifest, _with_node(app, state, facts), _policy(app, options), time.time())
    say(f"{app.name}: {'would ' if due.deployment else ''}{due.reason}")
    deployment, steps = due.deployment, due.steps
    if deployment is not None and facts.disk.current is not None:
        from deployex_cli.commands.dry_run import dry_run

        choice, _ = dry_run(app, deployment.target.version, say)
        if choice.strategy == "hot_upgrade":  # a plan is for a full deployment until it is unpacked
            before = steps[: len(steps) - len(remaining(deployment, facts))]
            hot = deployment._replace(strategy=choice.strategy)
            steps = (*before, *remaining(hot, facts))
    _say_steps(steps, say)
    return _outcome(app, due, (*recovery.steps, *steps), "dry_run")


def _say_steps(steps: tuple[Step, ...], say: Say) -> None:
    for number, step in enumerate(steps, 1):
        say(f"  {number}. {step.name.value}: {step.why}")


def _look(app: AppConfig) -> tuple[State, Facts, bool]:
    """State and facts, and whether the state file was sound; the engine says what was wrong."""
    disk = read_disk(app.paths)
    loaded = load_state(app, disk, time.time())
    facts = Facts(disk, process_facts(read_record(app.paths.record)))
    return loaded.state, facts, loaded.warning is None


def _with_node(app: AppConfig, state: State, facts: Facts) -> Facts:
    """What the node says, too, where there is one to ask."""
    if app.distribution == "none" or state.wanted == "stopped" or not facts.process.running:
        return facts
    from deployex_cli.otp.health import ask

    current = serving(state, facts)
    is_current = current is not None and facts.process.folder == current.folder
    version = current.version if current is not None and is_current else None
    return facts._replace(node=ask(app, facts.process, version))


def _manifest(store: "ReleaseStore") -> tuple[Manifest | None, DeployexError | None]:
    try:
        raw = store.read_manifest()
        return parse_manifest(raw, store.manifest_address()) if raw is not None else None, None
    except (StoreUnreachable, ManifestError, UnsafeFolder) as error:
        return None, error


def _policy(app: AppConfig, options: Options) -> Policy:
    return Policy(app.min_healthy_time, options.force)


def _recover(
    config: Config,
    app: AppConfig,
    lock: AppLock,
    store: "ReleaseStore",
    recovery: Recovery,
    say: Say,
) -> tuple[State, Facts, RollbackFailed | None]:
    engine = _engine(config, app, lock, store, say)
    failed = engine.recover_for_another(recovery)
    return engine.state, engine.facts(), failed


def _engine(config: Config, app: AppConfig, lock: AppLock, store: "ReleaseStore", say: Say) -> Any:
    from deployex_cli.engine import Engine
    from deployex_cli.supervise.handle import AppProcess

    return Engine(app, lock, AppProcess(app, config.file), say, who(), store)


def _outcome(app: AppConfig, due: Plan, steps: tuple[Step, ...], outcome: str) -> dict[str, Any]:
    told = [{"step": step.name.value, "reason": step.why} for step in steps]
    return {"app": app.name, "outcome": outcome, "reason": due.reason, "steps": told}
