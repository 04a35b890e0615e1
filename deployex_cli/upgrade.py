"""A hot upgrade on the node and on disk: what the engine's STAGE, INSTALL and MAKE_PERMANENT do.

    put into current -> set_unpacked -> make_relup -> check_install_release
    -> runtime configuration -> hook || install_release -> make_permanent

Up and down are the same: a rollback takes the way down of the relup that is there. Each part can be
done again; what was installed is asked of the node and never guessed.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

from deployex_cli.config import AppConfig
from deployex_cli.core.plan import Node as NodeFacts
from deployex_cli.core.plan import OnDisk, Process
from deployex_cli.core.state import Deployment
from deployex_cli.core.strategy import (
    Appup,
    Choice,
    Language,
    PackageFacts,
    RunningFacts,
    choose,
    named,
)
from deployex_cli.errors import (
    InstallFailed,
    LostAfter,
    NodeError,
    NodeUnreachable,
    NotUpgradable,
)
from deployex_cli.layout import upgrade_files
from deployex_cli.otp import health, release_handler, runtime_config
from deployex_cli.otp.identity import target_of
from deployex_cli.otp.node import Node, connect

_GONE_SECONDS = 10.0  # a VM whose code_change fails takes 2 s to end
_POLL_SECONDS = 0.05

Say = Callable[[str], None]


class Upgrade:
    """The hot way between two versions of one app. `process` tells what runs now."""

    def __init__(self, app: AppConfig, process: Callable[[], Process], say: Say) -> None:
        self._app = app
        self._process = process
        self._say = say

    # --- before -----------------------------------------------------------------------------

    def choose(self, folder: str, version: str, current: OnDisk | None) -> Choice:
        """Hot or in full, and why; `folder` holds the new release.

        The node is only asked when all else speaks for a hot upgrade.
        """
        app, process = self._app, self._process()
        language = cast(Language, app.language)
        running = RunningFacts(runs=process.running, asked=app.distribution != "none")
        if current is None or not (running.runs and running.asked):
            return choose(None, running, language)
        there = app.paths.release(current.folder)
        package = upgrade_files.package_facts(folder, there, app.name, current.version, version)
        choice = choose(package, running, language)
        if choice.strategy != "hot_upgrade":
            return choice
        try:
            with self._node() as node:
                running = _asked(node, running, package, folder)
        except NodeError as error:
            running = running._replace(unreachable=error.message)
        choice = choose(package, running, language)
        if choice.strategy == "hot_upgrade" and package.overlays:
            files = named(package.overlays)
            self._say(f"{app.name}: {files} differs, and stays that of {current.version}")
        return choice

    def preview(
        self, folder: str, version: str, current: OnDisk, scratch: str
    ) -> tuple[Choice, list[str]]:
        """The choice, and the relup's way up in words; the relup is made in `scratch`."""
        choice = self.choose(folder, version, current)
        if choice.strategy != "hot_upgrade":
            return choice, []
        name, there = self._app.name, self._app.paths.release(current.folder)
        for release, number in ((folder, version), (there, current.version)):
            rel = upgrade_files.find_rel(release, name, number)
            if rel is not None:
                shutil.copyfile(rel, f"{scratch}/{name}-{number}.rel")
        upgrade_files.copy_libraries_of_priv_appups(folder, scratch)
        to, origin = f"{scratch}/{name}-{version}", f"{scratch}/{name}-{current.version}"
        try:
            with self._node() as node:
                libraries = [f"{scratch}/lib", f"{folder}/lib", f"{there}/lib"]
                warnings = release_handler.make_relup(node, to, origin, libraries, scratch)
                lines = release_handler.instructions(node, f"{scratch}/relup")
        except NotUpgradable as error:
            words = f"full deployment: {error.message}"
            return Choice("full_deployment", "relup_not_possible", words), []
        return choice, [*(f"warning: {line}" for line in warnings), *lines]

    # --- the steps --------------------------------------------------------------------------

    def stage(self, deployment: Deployment, current: OnDisk) -> None:
        """Makes the way ready, on disk and in the VM; nothing that serves is changed.

        Raises NotUpgradable, ProviderFailed and NodeError; what it left is `unstage`'s.
        """
        version, before = deployment.target.version, _origin(deployment)
        folder = self._app.paths.release(current.folder)
        with self._node() as node:
            found = self._releases(node, folder)
            if found.running == version:
                return  # an attempt before this one got as far
            if found.running != before:
                raise NotUpgradable(
                    "no_match_versions", f"the node runs {found.running}, not {before}"
                )
            if deployment.kind == "deployment":
                self._unpack(node, deployment, folder, found.root)
            release_handler.check_install(node, version)
            runtime_config.resolve(node, found.root, version)
            holder = version if deployment.kind == "deployment" else before
            runtime_config.hook(node, f"{found.root}/releases/{holder}/relup")
            release_handler.set_mark(node, version)

    def _unpack(self, node: Node, deployment: Deployment, folder: str, root: str) -> None:
        """Puts the new version's files into `current`, and makes its relup."""
        version, before = deployment.target.version, _origin(deployment)
        new = self._app.paths.release(deployment.target.folder or "")
        release_handler.set_removed(node, version)  # of an earlier attempt, its files with it
        upgrade_files.put_into(folder, new, self._app.name, version)
        rel = f"{root}/releases/{version}/{self._app.name}.rel"
        release_handler.set_unpacked(node, rel, version)
        to, origin = (f"{root}/releases/{self._app.name}-{v}" for v in (version, before))
        out = f"{root}/releases/{version}"
        for warning in release_handler.make_relup(node, to, origin, [f"{root}/lib"], out):
            self._say(f"{self._app.name}: relup: {warning}")

    def install(self, deployment: Deployment) -> None:
        """Makes the new version run in this VM: the point of no return.

        Raises InstallFailed when it does not, and NodeUnreachable while nobody knows.
        """
        version = deployment.target.version
        try:
            with self._node() as node:
                if self._is_installed(node, version):
                    return
                release_handler.install(node, version)
        except (LostAfter, NodeUnreachable) as error:
            self._wait_for_outcome(deployment, error)

    def make_permanent(self, deployment: Deployment) -> None:
        """Makes the VM boot what it runs. Raises InstallFailed when it would not, NodeError."""
        version = deployment.target.version
        with self._node() as node:
            for line in release_handler.lingering(node):
                self._say(f"{self._app.name}: in old code, and ended by make_permanent: {line}")
            trouble = release_handler.make_permanent(node, version)
            found = release_handler.which_releases(node)
            boots = upgrade_files.boots(found.root)
            if found.permanent == version and boots not in (None, version):
                # make_permanent of another failed half-way, and this one is permanent in the VM
                upgrade_files.make_boot(found.root, version)
                boots = version
            if trouble is not None or found.permanent != version or boots != version:
                raise InstallFailed(
                    f"make_permanent of {version}: {trouble or 'no error'}; the node holds"
                    f" {found.permanent} permanent and would boot {boots}"
                )
            release_handler.forget(node)

    def unstage(self, deployment: Deployment, current: OnDisk) -> None:
        """Takes back what `stage` left, as far as the node can be asked."""
        version = deployment.target.version
        try:
            with self._node() as node:
                runtime_config.erase(node)
                release_handler.forget(node)
                if deployment.kind == "deployment":
                    release_handler.set_removed(node, version)
        except NodeError:
            pass  # a VM that is gone has forgotten it
        if deployment.kind == "deployment":
            self.take_out(version, current)

    def forget(self, version: str, current: OnDisk) -> None:
        """Takes out a version that does not run, on the node, where it answers, and on disk."""
        try:
            with self._node() as node:
                release_handler.set_removed(node, version)
        except NodeError:
            pass  # it knows of it until it boots
        self.take_out(version, current)

    def take_out(self, version: str, current: OnDisk) -> None:
        """Removes a version's files from `current`, which does not run them."""
        keep = (current.version, *(release.version for release in current.within))
        folder = self._app.paths.release(current.folder)
        upgrade_files.take_out(folder, self._app.name, version, keep)

    # --- what is so -------------------------------------------------------------------------

    def health(self, version: str | None) -> NodeFacts:
        """What the node says; `version`: the release that it should run."""
        return health.ask(self._app, self._process(), version)

    def _is_installed(self, node: Node, version: str) -> bool:
        """Whether the version runs already; False: it is staged here, and nobody began.

        Raises InstallFailed when an attempt ended, or the VM is another one.
        """
        found = release_handler.which_releases(node)
        if found.running == version:
            return True
        deadline = time.monotonic() + 1.0
        while True:
            mark = release_handler.mark(node)
            if mark is None or mark[0] != version:
                raise InstallFailed(f"the VM was restarted before {version} was installed")
            if mark[1] == "staged":
                return False
            if mark[1] == "ended" or time.monotonic() > deadline:
                raise InstallFailed(f"install_release: {mark[2] or 'it was cut short'}")
            time.sleep(_POLL_SECONDS)  # between its end and its mark

    def _wait_for_outcome(self, deployment: Deployment, error: NodeError) -> None:
        """The connection was lost while installing: the node, or its end, says what came of it."""
        version = deployment.target.version
        deadline = time.monotonic() + _GONE_SECONDS
        while time.monotonic() < deadline:
            if self._process().vm != deployment.vm:
                raise InstallFailed(f"the VM ended while {version} was installed")
            try:
                with self._node() as node:
                    if self._is_installed(node, version):
                        return
                    raise error  # it is staged, and nobody began: the next check does
            except NodeUnreachable:
                time.sleep(_POLL_SECONDS)
        raise error

    def _releases(self, node: Node, folder: str) -> release_handler.Releases:
        found = release_handler.which_releases(node)
        if not found.status:
            raise NotUpgradable("no_release_handler", "the running release has no sasl")
        if os.path.realpath(found.root) != os.path.realpath(folder):
            raise NotUpgradable("no_match_versions", f"the node runs out of {found.root}")
        return found

    @contextmanager
    def _node(self) -> Iterator[Node]:
        process = self._process()
        if process.pid is None:
            raise NodeUnreachable(f"{self._app.name}: it does not run")
        with connect(target_of(self._app, process.pid, os.environ)) as node:
            yield node


def _asked(node: Node, running: RunningFacts, package: PackageFacts, folder: str) -> RunningFacts:
    """What only the node can say: its releases, and the appup, which is Erlang text."""
    found = release_handler.which_releases(node)
    version = None if found.running == package.target else found.running  # done before, and lost
    running = running._replace(has_release_handler=bool(found.status), version=version)
    if found.running != found.permanent and version is not None:
        running = running._replace(on_trial=found.running)
    if not package.appups:
        return running
    path = package.appups[0]
    try:
        target, ups, downs = release_handler.appup(node, f"{folder}/{path}")
    except NotUpgradable as error:
        return running._replace(appup=Appup(path, problem=error.message))
    return running._replace(appup=Appup(path, target, ups, downs))


def _origin(deployment: Deployment) -> str:
    assert deployment.origin is not None
    return deployment.origin.version
