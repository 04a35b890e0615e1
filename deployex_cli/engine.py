"""Runs the steps of a plan: the intent to disk, the step, the outcome to disk.

The one place that changes what is deployed. Every step can be done again; a run that is killed
anywhere in here is finished or undone by the next one (core/recovery.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

from deployex_cli.config import AppConfig
from deployex_cli.core import lifecycle
from deployex_cli.core.lifecycle import Event
from deployex_cli.core.plan import (
    REBOOTED,
    STOPPED,
    Facts,
    OnDisk,
    Step,
    after_upgrade,
    as_release,
    begin,
    links_after_switch,
    remaining,
)
from deployex_cli.core.recovery import Recovery
from deployex_cli.core.state import (
    Deployment,
    Ghost,
    Phase,
    Release,
    State,
    StepName,
    Strategy,
)
from deployex_cli.errors import (
    DeployexError,
    FailedMidway,
    InstallFailed,
    Interrupted,
    NodeUnreachable,
    NotFound,
    NotUpgradable,
    PreCommandFailed,
    ProviderFailed,
    RollbackFailed,
    RolledBack,
    SupervisorLost,
    SupervisorUnavailable,
    in_words,
)
from deployex_cli.interrupts import Interrupts, undoing
from deployex_cli.layout import files, releases
from deployex_cli.layout.lock import AppLock
from deployex_cli.layout.otp_files import read_holdings, renew_copies
from deployex_cli.layout.state_file import append_history, load_state, save_state
from deployex_cli.storage import open_store
from deployex_cli.storage.store import ReleaseStore
from deployex_cli.supervise.handle import AppProcess

if TYPE_CHECKING:
    from deployex_cli.upgrade import Upgrade

Say = Callable[[str], None]


class Engine:
    """One app's steps, for one who holds the app's lock."""

    def __init__(
        self,
        app: AppConfig,
        lock: AppLock,
        process: AppProcess,
        say: Say,
        by: str,
        store: ReleaseStore | None = None,
        clock: Callable[[], float] = time.time,
        only_hot: bool = False,
    ) -> None:
        self.app = app
        self._lock = lock
        self.process = process
        self._say = say
        self.by = by
        self._store = store or open_store(app)
        self._clock = clock
        self._only_hot = only_hot  # a person asked for a hot upgrade, or for nothing
        self._interrupts = Interrupts()
        self.taken: list[Step] = []
        loaded = load_state(app, releases.read_disk(app.paths), clock())
        self.state = loaded.state
        if loaded.warning:
            say(loaded.warning)
            self.save(self.state)
        self._log()

    def facts(self) -> Facts:
        """What is so now, on disk and in the process table."""
        return Facts(releases.read_disk(self.app.paths), self.process.facts())

    def run(self, steps: tuple[Step, ...], deployment: Deployment | None = None) -> None:
        """Takes the steps; those of `deployment` begin it, and it is carried on to its trial.

        Raises the step's own error when nothing that serves was changed, RolledBack,
        RollbackFailed and FailedMidway when something was.
        """
        with self._interrupts:
            for step in steps:
                if deployment is not None and step.name in lifecycle.STEPS[deployment.strategy]:
                    self._begin(deployment)
                    self._carry_on()
                    break
                if deployment is not None and step.name is StepName.RESUME:
                    self._try(step)
                else:
                    self._take(step)

    def _try(self, step: Step) -> None:
        """What was current may be the very version that cannot start: no reason to keep it."""
        try:
            self._take(step)
        except DeployexError as error:
            self._say(f"{self.app.name}: {error.message}")

    def recover(self, recovery: Recovery) -> None:
        """Takes the steps that finish or undo what was interrupted."""
        if recovery.reason:
            self._say(f"{self.app.name}: {recovery.reason}")
        deployment = self.state.deployment
        if recovery.ghost and deployment is not None:
            self.state = self._with_ghost(deployment.target, recovery.ghost)
        with self._interrupts:
            for step in recovery.steps:
                if step.name in lifecycle.OUTCOME:
                    self._carry_on()
                    break
                self._take(step)

    def recover_for_another(self, recovery: Recovery) -> RollbackFailed | None:
        """As `recover`, for one who may have another version: the way out of a failed rollback."""
        try:
            self.recover(recovery)
        except RollbackFailed as error:
            return error
        return None

    def fetch(self, target: Release) -> OnDisk:
        """Puts the release on disk and points `new` to it, all of it or nothing."""
        with self._interrupts, undoing():
            return self._put_in_new(target)

    def save(self, state: State, entry: dict[str, Any] | None = None) -> None:
        """Makes `state` the one on disk, and `entry` one of the history.

        The entry is in the state until it is in the history: it is told if and only if it is so.
        """
        if entry is not None:
            state = state._replace(unlogged=(*state.unlogged, entry))
        save_state(self.app, state)
        self.state = state
        self._log()

    def entry(self, event: str, version: str | None, **more: Any) -> dict[str, Any]:
        """An entry of the history, for `save`."""
        return {"at": self._clock(), "event": event, "version": version, "by": self.by, **more}

    def _log(self) -> None:
        if self.state.unlogged:
            for entry in self.state.unlogged:
                append_history(self.app, entry)
            self.state = self.state._replace(unlogged=())
            save_state(self.app, self.state)

    # --- one step ---------------------------------------------------------------------------

    def _carry_on(self) -> None:
        """Takes the steps of the deployment under way, each as the last one left it."""
        while lifecycle.next_step(self.state.deployment) is not None:
            step = remaining(self._deployment, self.facts())[0]
            if step.name is StepName.START and self.state.wanted == "stopped":
                return
            self._take(step)
        if self._deployment.phase is Phase.INSTALLED:
            self._look_at_once()

    def _take(self, step: Step) -> None:
        self.taken.append(step)
        try:
            self._do(step)
        except OSError as error:  # the intent or the outcome could not be written
            message = f"{self.app.name}: {step.name.value}: {in_words(error)}"
            if lifecycle.is_unfinished(self.state.deployment):
                raise FailedMidway(f"{message}; the next check goes on") from None
            raise DeployexError(message) from None

    def _do(self, step: Step) -> None:
        if step.name is StepName.CONFIRM and not lifecycle.on_trial(self.state.deployment):
            self._confirm_by_fact()
        elif step.name in lifecycle.OUTCOME:
            self._take_of_deployment(step)
        elif step.name is StepName.ABANDON:
            self._abandon(step.why)
        elif step.name is StepName.RESUME:
            self.process.ensure_supervisor()
            self._say(f"{self.app.name}: {step.why}: starts it")
            self.process.start()
        elif step.name is StepName.END:
            self.process.stop()
            self._say(f"{self.app.name}: a person stopped it, and it ran: stopped")
        elif step.name is StepName.GO_BACK:
            self._leave_trial(step.why)
        elif step.name is StepName.SWEEP:
            for path in step.folders:
                self._remove_leftover(path)
        elif step.name is StepName.PRUNE:
            for folder in step.folders:
                files.remove_tree(self.app.paths.release(folder))

    def _take_of_deployment(self, step: Step) -> None:
        """A step of the deployment under way, between its intent and its outcome."""
        self.save(lifecycle.intend(self.state, step.name, self._clock()))
        phase = self._deployment.phase
        left = phase in (Phase.IDLE, Phase.UNPACKED) or step.name is StepName.STAGE
        try:
            with undoing() if left else nullcontext():
                self._EFFECTS[step.name](self)
        except SupervisorUnavailable as error:
            if left:
                self._failed(step, phase, error)
            raise FailedMidway(
                f"{error.message}; the next check goes on with {self._deployment.target.version}"
            ) from None
        except (DeployexError, OSError) as error:
            if step.name in self._HOT:
                self._failed_hot(step, error)
                return
            self._failed(step, phase, error)
        self._advance(lifecycle.OUTCOME[step.name])

    def _failed(self, step: Step, phase: Phase, error: DeployexError | OSError) -> None:
        """Undoes, or goes back, and raises."""
        version = self._deployment.target.version
        ours = isinstance(error, OSError)  # a failure of this machine, not of the version
        if isinstance(error, OSError):
            message = f"{self.app.name}: {step.name.value} of {version}: {in_words(error)}"
            error = DeployexError(message)
        if phase in (Phase.IDLE, Phase.UNPACKED):
            # a signal that came before they were asked for has begun none of them
            why = error.__cause__ if isinstance(error, Interrupted) else error
            begun = isinstance(why, (PreCommandFailed, SupervisorLost))
            if begun and step.name is StepName.PREPARE:
                if not isinstance(error, PreCommandFailed):
                    error.message += f": the pre_commands of {version} go on, and are not repeated"
                self.state = self._with_ghost(self._deployment.target, error.message)
            self._abandon(error.message)
            raise error
        if step.name is StepName.STOP:
            raise FailedMidway(f"{error.message}; the next check stops it again")
        if step.name is StepName.CONFIRM:
            raise error
        if ours and (step.name is StepName.START or self._way_back() is None):
            raise FailedMidway(f"{error.message}; the next check goes on")
        self._go_back(error.message)

    def _failed_hot(self, step: Step, error: DeployexError | OSError) -> None:
        """Goes on in full, abandons or goes back. Returns when the deployment goes on."""
        deployment, name = self._deployment, self.app.name
        version = deployment.target.version
        message = error.message if isinstance(error, DeployexError) else in_words(error)
        message = f"{name}: {step.name.value} of {version}: {message}"
        if step.name is StepName.MAKE_PERMANENT and isinstance(error, InstallFailed):
            # it is healthy, and serves: that its files cannot be written is this machine's trouble
            raise FailedMidway(f"{message}; the next check tries again")
        if deployment.kind == "rollback" and not isinstance(error, OSError):
            self._fall_back(message)
            return
        if step.name is StepName.STAGE:
            self._unstage()
            if isinstance(error, NotUpgradable) and not self._only_hot:
                self._fall_back(message)
                return
            if isinstance(error, ProviderFailed):
                self.state = self._with_ghost(deployment.target, message)
            self._abandon(message)
            raise _reworded(error, message)
        if not isinstance(error, InstallFailed):
            raise FailedMidway(f"{message}; the next check asks the node what became of it")
        if deployment.vm and deployment.vm.partition("/")[0] != self.process.facts().boot:
            self._say(f"{message}; the machine was rebooted, and the next check begins anew")
            self._abandon(message)
        elif self.app.on_upgrade_failure == "full":
            self._fall_back(message)
        else:
            self._go_back(message)

    def _fall_back(self, reason: str) -> None:
        """The hot upgrade goes on in full; a way back within `current` by a restart in place."""
        self._say(f"{reason}; in full, then")
        self.save(lifecycle.fall_back(self.state, self._clock(), reason))
        self._carry_on()

    def _unpack(self) -> None:
        deployment = self._deployment
        disk = self.facts().disk
        release = self._put_in_new(deployment.target)
        known = as_release(release)
        target = known._replace(hash=deployment.target.hash or known.hash)
        strategy = deployment.strategy
        if deployment.kind == "deployment":
            folder = self.app.paths.release(release.folder)
            current = disk.find(disk.current)
            choice = self._upgrade().choose(folder, release.version, current)
            if choice.strategy is None:
                raise NodeUnreachable(f"{self.app.name}: {choice.words}")
            if choice.strategy == "full_deployment" and self._only_hot:
                raise NotUpgradable(choice.reason, f"{self.app.name}: {choice.words}")
            self._say(f"{self.app.name}: {choice.words}")
            strategy = choice.strategy
        deployment = deployment._replace(target=target, strategy=strategy)
        self.state = self.state._replace(deployment=deployment)

    def _prepare(self) -> None:
        deployment = self._deployment
        if deployment.pre_commands:
            self._say(f"{self.app.name}: runs {len(deployment.pre_commands)} pre_commands")
            folder = deployment.target.folder or ""
            self.process.run_pre_commands(folder, deployment.pre_commands, self._lock.fileno())

    def _stop(self) -> None:
        self.process.stop()

    def _switch(self) -> None:
        disk, target = self.facts().disk, self._deployment.target
        if disk.find(target.folder) is None:
            raise NotFound(f"{self.app.name}: the release {target.version} is gone from the disk")
        current, previous = links_after_switch(self._deployment, disk)
        paths = self.app.paths
        if current == disk.current:
            self._boot_in_place()
        if previous is not None:
            releases.point(paths, "previous", previous)
        releases.point(paths, "current", current)
        if previous is None:
            releases.point(paths, "previous", None)
        releases.point(paths, "new", None)

    def _start(self) -> None:
        self.process.start()

    def _boot_in_place(self) -> None:
        """Makes `current`, which holds both, boot the version before; the app does not run."""
        from deployex_cli.layout import upgrade_files

        disk, target = self.facts().disk, self._deployment.target
        there = disk.find(disk.current)
        if there is None:
            return
        folder = self.app.paths.release(there.folder)
        if read_holdings(folder) is None:
            return  # it was never upgraded: the switch is only done again
        upgrade_files.make_boot(folder, target.version)
        if there.version != target.version:
            releases.write_marker(folder, after_upgrade(there, target))

    def _stage(self) -> None:
        disk = self.facts().disk
        current = disk.find(disk.current)
        if current is None:
            raise NotUpgradable("no_match_versions", "nothing is current")
        staged = self._deployment._replace(vm=self.process.facts().vm)
        self.state = self.state._replace(deployment=staged)
        self._upgrade().stage(staged, current)

    def _install(self) -> None:
        self._upgrade().install(self._deployment)
        disk = self.facts().disk
        target = self._deployment.target._replace(folder=disk.current)
        self.state = self.state._replace(deployment=self._deployment._replace(target=target))
        releases.point(self.app.paths, "new", None)

    def _make_permanent(self) -> None:
        self._upgrade().make_permanent(self._deployment)
        disk, target = self.facts().disk, self._deployment.target
        there = disk.find(disk.current)
        if there is not None:
            folder = self.app.paths.release(there.folder)
            renew_copies(folder)
            if there.version != target.version:
                releases.write_marker(folder, after_upgrade(there, target))

    def _confirm(self) -> None:
        disk = self.facts().disk
        current = disk.find(disk.current)
        if current is not None and current.confirmed_at is None:
            confirmed = current._replace(confirmed_at=self._clock())
            releases.write_marker(self.app.paths.release(current.folder), confirmed)
        if current is not None:
            self._forget_what_was_left(current)

    def _forget_what_was_left(self, current: OnDisk) -> None:
        """Takes out of `current` the version that a way back within it has left for good."""
        deployment = self.state.deployment
        if deployment is None or deployment.kind != "rollback" or deployment.origin is None:
            return
        held = (current.version, *(release.version for release in current.within))
        if deployment.origin.folder == current.folder and deployment.origin.version not in held:
            self._upgrade().forget(deployment.origin.version, current)

    def _confirm_by_fact(self) -> None:
        """Of a version whose trial an abandoned attempt at another has outlived in the state."""
        self._confirm()
        disk = self.facts().disk
        current = disk.find(disk.current)
        if current is not None:
            self.save(self.state, self.entry("confirmed", current.version, hash=current.hash))
            self._say(f"{self.app.name}: {current.version} is confirmed")

    _EFFECTS: ClassVar[dict[StepName, Callable[[Engine], None]]] = {
        StepName.UNPACK: _unpack,
        StepName.PREPARE: _prepare,
        StepName.STOP: _stop,
        StepName.SWITCH: _switch,
        StepName.START: _start,
        StepName.STAGE: _stage,
        StepName.INSTALL: _install,
        StepName.MAKE_PERMANENT: _make_permanent,
        StepName.CONFIRM: _confirm,
    }

    _HOT: ClassVar[frozenset[StepName]] = frozenset(
        {StepName.STAGE, StepName.INSTALL, StepName.MAKE_PERMANENT}
    )

    # --- deployments ------------------------------------------------------------------------

    @property
    def _deployment(self) -> Deployment:
        assert self.state.deployment is not None
        return self.state.deployment

    def _begin(self, deployment: Deployment) -> None:
        """Puts a deployment in the place of the last one."""
        event = lifecycle.displaced(self.state.deployment)
        self.save(lifecycle.succeed(self.state, deployment._replace(by=self.by), event))

    def _advance(self, event: Event) -> None:
        """Writes the outcome of a step, and what the history tells of it."""
        state = lifecycle.advance(self.state, event, self._clock())
        version, entry = self._deployment.target.version, None
        if event in (Event.STARTED, Event.INSTALLED):
            verb = "deployed" if event is Event.STARTED else "upgraded"
            verb = "rolled back" if self._deployment.kind == "rollback" else verb
            entry = self._entry_of_deployment(verb)
        elif event is Event.CONFIRMED:
            entry = self._entry_of_deployment("confirmed")
        self.save(state, entry)
        line = {
            Event.STAGED: f"{version} is staged on the node",
            Event.MADE_PERMANENT: f"{version} is permanent",
            Event.CONFIRMED: f"{version} is confirmed",
        }.get(event)
        if line is None and entry is not None:
            line = f"{entry['event']} to {version}"
        if line is not None:
            self._say(f"{self.app.name}: {line}")

    def _abandon(self, reason: str) -> None:
        """Ends a deployment left of the point of no return; what serves was not touched."""
        if self._deployment.phase is Phase.STAGED or self._deployment.intent is StepName.STAGE:
            self._unstage()
        releases.point(self.app.paths, "new", None)
        entry = self._entry_of_deployment("failed", reason)
        ended = lifecycle.advance(self.state, Event.ABANDONED, self._clock(), reason)
        self.save(ended, entry)

    def _go_back(self, reason: str) -> None:
        """Right of the point of no return: the version before takes over again. Always raises."""
        failed = self._deployment
        version, app = failed.target.version, self.app.name
        if failed.kind == "rollback":
            raise RollbackFailed(
                f"{reason}; {app} does not run, the next check tries {version} again"
            )
        way_back = self._way_back()
        if way_back is None:
            entry = self._entry_of_deployment("failed", reason)
            ghosted = self._with_ghost(failed.target, reason)
            self.process.stop()
            releases.point(self.app.paths, "current", None)
            ended = lifecycle.advance(ghosted, Event.ROLLED_BACK, self._clock(), reason)
            self.save(ended, entry)
            raise RolledBack(
                f"{reason}; there is no version before {version}: {app} is stopped and {version}"
                " ghosted, publish another version"
            )
        self._roll_back(as_release(way_back), "full_deployment", reason)

    def _roll_back(self, target: Release, strategy: Strategy, reason: str) -> None:
        """Puts a rollback in the place of a deployment that failed. Always raises."""
        failed = self._deployment
        entry = self._entry_of_deployment("failed", reason)
        state = self._with_ghost(failed.target, reason)
        rollback = begin(state, self.facts(), target, "rollback", (), self._clock(), reason)
        rollback = rollback._replace(
            phase=Phase.PREPARED, strategy=strategy, origin=failed.target, by=self.by
        )
        self.save(lifecycle.succeed(state, rollback, Event.ROLLED_BACK), entry)
        try:
            self._carry_on()
        except RollbackFailed:
            raise
        except DeployexError as error:
            raise RollbackFailed(f"{reason}; and going back failed: {error.message}") from None
        version = failed.target.version
        raise RolledBack(f"{reason}; {version} is ghosted and {target.version} serves again")

    def _look_at_once(self) -> None:
        """The first look at what was just installed; a way back is made permanent by it."""
        deployment = self._deployment
        seen = self._upgrade().health(deployment.target.version)
        if seen.verdict == "unhealthy":
            self._leave_trial(seen.why)
        elif deployment.kind == "rollback" and seen.verdict == "healthy":
            self._take(Step(StepName.MAKE_PERMANENT, "it runs"))

    def _leave_trial(self, why: str) -> None:
        """Ends the trial of a hot upgrade that failed it: back, hot where the VM is up.

        Raises RolledBack, RollbackFailed and FailedMidway, but after a reboot of the machine, which
        is no fault of the version: it is deployed again.
        """
        from deployex_cli.layout import upgrade_files

        failed, facts, name = self._deployment, self.facts(), self.app.name
        version = failed.target.version
        current = facts.disk.find(facts.disk.current)
        if failed.kind == "rollback":
            self._fall_back(f"{name}: {version}: {why}")
            return
        assert current is not None
        permanent = failed.phase is Phase.PERMANENT or current.version == version
        before = current.within[-1] if permanent else as_release(current)
        before = before._replace(folder=current.folder)
        same_vm = failed.vm is not None and facts.process.vm == failed.vm
        boots = upgrade_files.boots(self.app.paths.release(current.folder))
        if failed.intent is StepName.MAKE_PERMANENT and boots == version and not same_vm:
            # it has lived through its trial, and the VM ended when that was done
            self._take(Step(StepName.MAKE_PERMANENT, f"{version} is what boots already"))
            return
        if same_vm or permanent:
            strategy: Strategy = "hot_upgrade" if facts.process.running else "full_deployment"
            self._roll_back(before, strategy, f"{name}: {version}: {why}")
        if boots != before.version:
            self._roll_back(before, "full_deployment", f"{name}: {version}: {why}")
        reason = f"{name}: the trial of {version} is over: {why}"
        entry = self._entry_of_deployment("failed", reason)
        if why not in (REBOOTED, STOPPED):
            self.state = self._with_ghost(failed.target, reason)
        self.save(lifecycle.advance(self.state, Event.ROLLED_BACK, self._clock(), reason), entry)
        self._upgrade().take_out(version, current)
        if why in (REBOOTED, STOPPED):
            self._say(f"{reason}; {before.version} boots, and the next check begins anew")
            return
        raise RolledBack(f"{reason}; {version} is ghosted and {before.version} serves again")

    def _unstage(self) -> None:
        """Takes back what staging left on the node and within `current`."""
        disk = self.facts().disk
        current = disk.find(disk.current)
        if current is not None:
            self._upgrade().unstage(self._deployment, current)

    def _upgrade(self) -> Upgrade:
        from deployex_cli.upgrade import Upgrade

        return Upgrade(self.app, self.process.facts, self._say)

    def _way_back(self) -> OnDisk | None:
        """The release that served before the deployment under way, if it is still there."""
        origin = self._deployment.origin
        return self.facts().disk.find(origin.folder) if origin else None

    def _with_ghost(self, release: Release, reason: str) -> State:
        ghost = Ghost(release.version, release.digest, reason, self._clock())
        return lifecycle.ghosted(self.state, ghost)

    def _entry_of_deployment(self, event: str, reason: str = "") -> dict[str, Any]:
        deployment = self._deployment
        return self.entry(
            event,
            deployment.target.version,
            deployment=deployment.id,
            origin=deployment.origin.version if deployment.origin else None,
            hash=deployment.target.hash,
            strategy=deployment.strategy,
            seconds=round(max(self._clock() - deployment.began_at, 0.0), 3),
            reason=reason or deployment.reason,
        )

    # --- releases ---------------------------------------------------------------------------

    def obtain(self, target: Release) -> OnDisk:
        """The release on disk: found there, or fetched, verified and unpacked."""
        disk = self.facts().disk
        there = disk.holding(target.version, target.digest)
        if there is not None:
            return there
        from deployex_cli.layout.install import install

        self._say(f"{self.app.name}: unpacks {self._store.package_address(target.version)}")
        with self._store.open_package(target.version) as package:
            return install(self.app, disk, package, target, self._lock.fileno())

    def _put_in_new(self, target: Release) -> OnDisk:
        release = self.obtain(target)
        releases.point(self.app.paths, "new", release.folder)
        return release

    def _remove_leftover(self, path: str) -> None:
        if os.path.isdir(path) and not os.path.islink(path):
            files.remove_tree(path)
        else:
            files.remove(path)


def _reworded(error: DeployexError | OSError, message: str) -> DeployexError:
    """The error with all of its words, and the class that scripts key on."""
    if isinstance(error, DeployexError):
        error.message = message
        return error
    return DeployexError(message)
