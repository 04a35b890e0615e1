"""`upgrade V --dry-run` and `check --dry-run`: which strategy, why, and the relup in words.

The package is unpacked into a temporary folder where it is not on disk, and the relup is computed
on the node into another: nothing of it is left behind, here or there.
"""

from __future__ import annotations

import os
import tempfile
import time

from deployex_cli.commands.context import Say
from deployex_cli.commands.steps import published
from deployex_cli.config import AppConfig
from deployex_cli.core.lifecycle import find_ghost
from deployex_cli.core.plan import Disk, Facts, serving
from deployex_cli.core.state import Release
from deployex_cli.core.strategy import Choice
from deployex_cli.errors import DeployexError
from deployex_cli.layout import files
from deployex_cli.layout.install import install
from deployex_cli.layout.releases import read_disk
from deployex_cli.layout.state_file import load_state
from deployex_cli.storage import open_store
from deployex_cli.supervise.record import process_facts, read_record
from deployex_cli.upgrade import Upgrade


def dry_run(app: AppConfig, version: str, say: Say) -> tuple[Choice, list[str]]:
    """Says and returns the strategy, and the relup's instructions up to `version` if it is hot."""
    if os.path.exists(app.paths.service):
        files.check_trusted(app.paths.service)
    disk = read_disk(app.paths)
    facts = Facts(disk, process_facts(read_record(app.paths.record)))
    state = load_state(app, disk, time.time()).state
    current = serving(state, facts)
    if current is None:
        raise DeployexError(
            f"{app.name}: nothing is deployed, so there is nothing to upgrade;"
            " `deployex check` deploys what is published"
        )
    target, _ = published(app, version)
    upgrade = Upgrade(app, lambda: facts.process, say)
    with tempfile.TemporaryDirectory(prefix="deployex-") as scratch:
        there = disk.holding(version, target.digest)
        folder = app.paths.release(there.folder) if there else _unpacked(app, target, scratch)
        choice, lines = upgrade.preview(folder, version, current, scratch)
    say(f"{app.name}: {choice.words}")
    for line in lines:
        say(f"  {line}")
    ghost = find_ghost(state, version, target.digest)
    if ghost is not None:
        say(f"{app.name}: {version} is ghosted: {ghost.reason}")
    return choice, lines


def _unpacked(app: AppConfig, target: Release, scratch: str) -> str:
    """The package, unpacked below `scratch`."""
    paths = app.paths._replace(releases=scratch)
    with open_store(app).open_package(target.version) as package:
        release = install(app._replace(paths=paths), Disk(), package, target)
    return paths.release(release.folder)
