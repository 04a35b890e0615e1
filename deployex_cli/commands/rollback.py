"""`deployex rollback [V]`: back to the version before, or to any on disk or in the store.

The version that is left is ghosted, so that the next check does not bring it back. A rollback runs
no pre_commands.
"""

from __future__ import annotations

import time

from deployex_cli.commands.context import Say, locked_engine
from deployex_cli.commands.steps import check_version
from deployex_cli.config import AppConfig, Config
from deployex_cli.core import plan
from deployex_cli.core.plan import serving
from deployex_cli.core.recovery import recover
from deployex_cli.errors import DeployexError, NotFound, Refused
from deployex_cli.result import Result


def rollback(
    config: Config, app: AppConfig, version: str | None, say: Say, *, full: bool = False
) -> Result:
    """Goes back; `full`: by a full deployment, also where it could be gone hot.

    Raises NotFound, Refused, and what a deployment raises.
    """
    if version is not None:
        check_version(version)
    with locked_engine(config, app, "deployex rollback", say) as engine:
        recovery = recover(engine.state, engine.facts())
        failed = engine.recover_for_another(recovery) if recovery.steps else None
        try:
            due = plan.rollback(engine.state, engine.facts(), version, time.time(), full=full)
        except (NotFound, Refused) as error:
            raise type(error)(f"{app.name}: {error.message}") from None
        if failed is not None and due.deployment is None:
            raise failed
        if due.deployment is not None:
            if engine.state.wanted == "stopped":
                engine.save(engine.state._replace(wanted="running"))
            engine.run(due.steps, due.deployment)
        current = serving(engine.state, engine.facts())
        last = engine.state.deployment
    if current is None:
        raise DeployexError(f"{app.name}: nothing is current after the rollback")
    strategy = last.strategy if last and due.deployment is not None else None
    hot = " hot, in the same VM" if strategy == "hot_upgrade" else ""
    line = due.reason
    if strategy is not None:
        line = f"{current.version} is current again{hot}, on trial"
    data = {"app": app.name, "version": current.version, "strategy": strategy, "message": line}
    return Result("rollback", data, (f"{app.name}: {line}",))
