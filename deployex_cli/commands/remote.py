"""`deployex remote`: the running release's own remote shell, in our place."""

from __future__ import annotations

import os
from typing import NoReturn

from deployex_cli.config import AppConfig
from deployex_cli.errors import DeployexError
from deployex_cli.layout.files import check_trusted
from deployex_cli.supervise.command import remote_command
from deployex_cli.supervise.record import process_facts, read_record


def remote(app: AppConfig) -> NoReturn:
    """Becomes the shell. Raises DeployexError when the app does not run, and UnsafeFolder."""
    process = process_facts(read_record(app.paths.record))
    if not process.running or process.folder is None:
        raise DeployexError(
            f"{app.name}: it does not run, so there is no node to open a shell on; `deployex start`"
        )
    for folder in (app.paths.service, os.path.dirname(app.paths.record)):
        check_trusted(folder)  # or it would be somebody else's script
    command = remote_command(app, app.paths.release(os.path.basename(process.folder)), os.environ)
    try:
        os.execve(command.words[0], command.words, command.env)
    except OSError as error:
        raise DeployexError(
            f"{app.name}: {command.words[0]} cannot be executed: {error.strerror}"
        ) from None
