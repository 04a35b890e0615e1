"""Whether the app is well, as its node says: one question, asked by each check.

Healthy: the node answers, the application is started, and the release that runs is the one that is
on trial or confirmed. Unreachable is neither healthy nor unhealthy.
"""

import os

from deployex_cli.config import AppConfig
from deployex_cli.core.plan import Node, Process
from deployex_cli.errors import NodeError
from deployex_cli.otp.identity import target_of
from deployex_cli.otp.node import connect
from deployex_cli.otp.terms import Atom, text

_SECONDS = 5.0


def ask(app: AppConfig, process: Process, version: str | None) -> Node:
    """What the node of the app's process says; `version`: the release that it should run."""
    if process.pid is None:
        return Node("unreachable", "it does not run")
    try:
        with connect(target_of(app, process.pid, os.environ), _SECONDS) as node:
            started, running = node.evaluate(_HEALTH, {"App": Atom(app.name)}, _SECONDS)
    except NodeError as error:
        return Node("unreachable", error.message)
    release = text(running) or None
    if started != "true":
        return Node("unhealthy", f"the application {app.name} is not started", release)
    if version is not None and release is not None and release != version:
        return Node("unhealthy", f"the node runs {release}, not {version}", release)
    return Node("healthy", "", release)


# An application that is not even loaded: the release has another name than its applications.
_HEALTH = """
Names = fun(List) -> [Name || {Name, _, _} <- List] end,
Started = lists:member(App, Names(application:which_applications())) orelse
    not lists:member(App, Names(application:loaded_applications())),
Running = case whereis(release_handler) of
    undefined -> "";
    _ ->
        Known = release_handler:which_releases(),
        Of = fun(Wanted) -> [Version || {_, Version, _, Status} <- Known, Status =:= Wanted] end,
        case Of(current) ++ Of(permanent) of [First | _] -> First; [] -> "" end
end,
{Started, Running}.
"""
