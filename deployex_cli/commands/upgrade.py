"""`deployex upgrade V`: a hot upgrade of the running VM to V, or the reason why it cannot be."""

from __future__ import annotations

import time

from deployex_cli.commands.context import Say, locked_engine
from deployex_cli.commands.dry_run import dry_run
from deployex_cli.commands.steps import check_version, published
from deployex_cli.config import AppConfig, Config
from deployex_cli.core.lifecycle import find_ghost
from deployex_cli.core.plan import begin, on_hot_trial, remaining, serving
from deployex_cli.core.recovery import recover
from deployex_cli.errors import DeployexError, NotUpgradable, Refused
from deployex_cli.result import Result


def upgrade(
    config: Config, app: AppConfig, version: str, say: Say, *, only_say: bool = False
) -> Result:
    """Upgrades hot. Raises NotUpgradable, and what a deployment raises; nothing is done in full.

    `only_say` (--dry-run): the strategy, why, and the relup's instructions; nothing is changed.
    """
    check_version(version)
    if only_say:
        choice, lines = dry_run(app, version, say)
        data = {
            "app": app.name,
            "version": version,
            "strategy": choice.strategy,  # null: its node does not answer, so nobody knows
            "reason": choice.reason,
            "message": choice.words,
            "instructions": lines,
        }
        return Result("upgrade", data)
    with locked_engine(config, app, "deployex upgrade", say, only_hot=True) as engine:
        recovery = recover(engine.state, engine.facts())
        if recovery.steps:
            engine.recover(recovery)
        facts = engine.facts()
        current = serving(engine.state, facts)
        if current is None:
            raise DeployexError(
                f"{app.name}: nothing is deployed, so there is nothing to upgrade;"
                " `deployex check` deploys what is published"
            )
        if not facts.process.running:
            raise NotUpgradable(
                "nothing_runs",
                f"{app.name}: nothing runs that could be upgraded; `deployex start` starts"
                f" {current.version}",
            )
        if current.version == version:
            return _result(app, f"{version} runs already", version)
        if on_hot_trial(engine.state, facts):
            raise NotUpgradable(  # an attempt would displace the trial, which nobody then ends
                "other_upgrade_on_trial",
                f"{app.name}: the hot upgrade to {current.version} is still on trial; a check"
                " confirms it, `deployex rollback` ends it",
            )
        target, pre_commands = published(app, version)
        ghost = find_ghost(engine.state, version, target.digest)
        if ghost is not None:
            raise Refused(f"{app.name}: {version} is ghosted: {ghost.reason}")
        due = begin(engine.state, facts, target, "deployment", pre_commands, time.time())
        try:
            engine.run(remaining(due, facts), due)
        except NotUpgradable as error:
            error.message += "; nothing was changed: only `deployex check` deploys in full"
            raise
    return _result(app, f"{version} runs, on trial", version)


def _result(app: AppConfig, line: str, version: str) -> Result:
    data = {"app": app.name, "version": version, "message": line}
    return Result("upgrade", data, (f"{app.name}: {line}",))
