"""`unpack V`, `move`, `start`, `stop`, `restart`: the steps of a full deployment, each alone.

All can be done again with no harm. `stop` is remembered: no check starts an app that a person
stopped.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from deployex_cli.commands.context import Say, locked_engine
from deployex_cli.config import AppConfig, Config
from deployex_cli.core.lifecycle import displaced, find_ghost, succeed
from deployex_cli.core.manifest import parse_manifest
from deployex_cli.core.names import version_problem
from deployex_cli.core.plan import Step, as_release, begin
from deployex_cli.core.recovery import MOVED, recover
from deployex_cli.core.state import Phase, Release, State, StepName
from deployex_cli.errors import ConfigError, DeployexError, NotFound, Refused, in_words
from deployex_cli.result import Result
from deployex_cli.storage import open_store

if TYPE_CHECKING:
    from deployex_cli.engine import Engine


def unpack(config: Config, app: AppConfig, version: str, say: Say) -> Result:
    """Fetches, verifies and unpacks a version, and points `new` to it."""
    check_version(version)
    with locked_engine(config, app, "deployex unpack", say) as engine:
        disk = engine.facts().disk
        target, _ = published(app, version)
        ghost = find_ghost(engine.state, version, target.digest)
        if ghost is not None:
            raise Refused(f"{app.name}: {version} is ghosted: {ghost.reason}")
        current = disk.find(disk.current)
        if current is not None and _is(current.version, current.digest, target):
            return _result("unpack", app, f"{version} is current already", version)
        release = engine.fetch(target)
    return _result("unpack", app, f"new is {version} ({release.folder})", version)


def move(config: Config, app: AppConfig, say: Say) -> Result:
    """`previous` becomes what `current` was, `current` what `new` is."""
    with locked_engine(config, app, "deployex move", say) as engine:
        recovery = recover(engine.state, engine.facts())
        if recovery.steps and not _waits_for_a_start(engine.state):
            engine.recover(recovery)
        facts = engine.facts()
        new, current = facts.disk.find(facts.disk.new), facts.disk.find(facts.disk.current)
        if new is None:
            last = engine.state.deployment
            if current is not None and last and last.target.folder == current.folder:
                return _result(
                    "move", app, f"current is {current.version} already", current.version
                )
            raise NotFound(
                f"{app.name}: nothing is unpacked; `deployex unpack VERSION` comes first"
            )
        if new != current:
            _take_over(engine, as_release(new))
        runs = facts.process.running and facts.process.folder != new.folder
        hint = "; the app still runs from before, `deployex restart`" if runs else ""
    return _result("move", app, f"current is {new.version}{hint}", new.version)


def start(config: Config, app: AppConfig, say: Say) -> Result:
    """Makes the app run out of `current`; nothing happens when it does."""
    return _run(config, app, "start", say)


def restart(config: Config, app: AppConfig, say: Say) -> Result:
    """Stops the app, and starts it out of `current`."""
    return _run(config, app, "restart", say)


def stop(config: Config, app: AppConfig, say: Say) -> Result:
    """Stops the app, which stays stopped; returns when all of it is gone."""
    with locked_engine(config, app, "deployex stop", say) as engine:
        disk = engine.facts().disk
        current = disk.find(disk.current)
        if current is None:  # what never ran is not stopped by a person
            engine.process.stop()
            return _result("stop", app, "nothing is deployed, so nothing was stopped", None)
        trouble = None
        try:
            engine.save(engine.state._replace(wanted="stopped"))
        except OSError as error:  # a full disk is when one needs this
            trouble = error
        engine.process.stop()
        if trouble is not None:
            raise DeployexError(
                f"{app.name}: stopped, but that it is to stay so could not be noted"
                f" ({in_words(trouble)}): the next check starts it; make room and stop it again"
            )
        engine.save(engine.state, engine.entry("stopped", current.version))
    return _result("stop", app, "stopped", current.version)


def check_version(version: str) -> None:
    """Raises ConfigError when a version on the command line could not be a folder's name."""
    problem = version_problem(version)
    if problem:
        raise ConfigError(f"the version {version!r} {problem}")


def published(app: AppConfig, version: str) -> tuple[Release, tuple[str, ...]]:
    """The version and its pre_commands as the manifest has it; bare when it names another."""
    store = open_store(app)
    raw = store.read_manifest()
    if raw is not None:
        manifest = parse_manifest(raw, store.manifest_address())
        if manifest.version == version:
            return Release(version, manifest.sha256, manifest.hash), manifest.pre_commands
    return Release(version), ()


def _run(config: Config, app: AppConfig, verb: str, say: Say) -> Result:
    with locked_engine(config, app, f"deployex {verb}", say) as engine:
        disk = engine.facts().disk
        current = disk.find(disk.current)
        if current is None:
            raise DeployexError(
                f"{app.name}: nothing is deployed, so there is nothing to {verb};"
                " `deployex check` deploys what is published"
            )
        engine.save(engine.state._replace(wanted="running"))
        recovery = recover(engine.state, engine.facts())
        if recovery.steps:
            engine.recover(recovery)
            disk = engine.facts().disk
            current = disk.find(disk.current) or current
        if verb == "restart" and not any(s.name is StepName.START for s in recovery.steps):
            engine.process.restart()
        else:
            engine.process.start()
        engine.save(engine.state, engine.entry(f"{verb}ed", current.version))
        pid = engine.process.pid()
    return _result(verb, app, f"{current.version} runs (pid {pid})", current.version)


def _take_over(engine: Engine, target: Release) -> None:
    """A deployment by hand: it enters at the switch, and the next start goes on with it."""
    now = time.time()
    deployment = begin(engine.state, engine.facts(), target, "deployment", (), now)
    deployment = deployment._replace(phase=Phase.STOPPED, by=engine.by, reason=MOVED)
    engine.save(succeed(engine.state, deployment, displaced(engine.state.deployment)))
    engine.run((Step(StepName.SWITCH, "asked for"),))


def _waits_for_a_start(state: State) -> bool:
    """Whether all but the start is done: another move may come before that."""
    return state.deployment is not None and state.deployment.phase is Phase.SWITCHED


def _is(version: str, digest: str | None, target: Release) -> bool:
    return version == target.version and target.digest in (None, digest)


def _result(verb: str, app: AppConfig, line: str, version: str | None) -> Result:
    return Result(
        verb, {"app": app.name, "version": version, "message": line}, (f"{app.name}: {line}",)
    )
