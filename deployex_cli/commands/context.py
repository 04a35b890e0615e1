"""What most verbs need: which apps are meant, their folders, the lock, an engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from deployex_cli.config import AppConfig, Config
from deployex_cli.errors import ConfigError, DeployexError
from deployex_cli.layout import files
from deployex_cli.layout.lock import AppLock

if TYPE_CHECKING:
    from deployex_cli.engine import Engine

Say = Callable[[str], None]


def one_app(config: Config, name: str | None) -> AppConfig:
    """The app that is meant. Raises ConfigError, naming them, when there are several."""
    if name is not None:
        return config.app(name)
    if len(config.apps) > 1:
        names = ", ".join(app.name for app in config.apps)
        raise ConfigError(f"several apps are configured ({names}); name one with --app")
    return config.apps[0]


def all_apps(config: Config, name: str | None) -> tuple[AppConfig, ...]:
    """The app that is named, or all."""
    return (config.app(name),) if name is not None else config.apps


def prepare_folders(app: AppConfig) -> None:
    """Makes the app's folders, each for us alone. Raises UnsafeFolder."""
    paths = app.paths
    try:
        for folder in (
            os.path.dirname(paths.lock),
            os.path.dirname(paths.state),
            paths.service,
            paths.releases,
            paths.work,
        ):
            files.private_folder(folder)
        files.trusted_folder(os.path.dirname(paths.stdout), shared=True)
    except OSError as error:
        raise DeployexError(
            f"{app.name}: {error.filename} cannot be made: {error.strerror}"
        ) from None


def who() -> str:
    """Who runs this, for the history: "timer" under systemd, else a user's name."""
    if os.environ.get("INVOCATION_ID"):
        return "timer"
    if os.environ.get("SUDO_USER"):
        return os.environ["SUDO_USER"]
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"user {os.getuid()}"


@contextmanager
def locked_engine(
    config: Config, app: AppConfig, what: str, say: Say, *, only_hot: bool = False
) -> Iterator[Engine]:
    """An engine that holds the app's lock. Raises Locked."""
    from deployex_cli.engine import Engine
    from deployex_cli.supervise.handle import AppProcess

    prepare_folders(app)
    with AppLock(app.paths.lock, app.name, what) as lock:
        yield Engine(app, lock, AppProcess(app, config.file), say, who(), only_hot=only_hot)
