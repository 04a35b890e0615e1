"""A machine in memory, and every order of events on it: the model that test_model.py explores.

The commands, the Engine, the rules of core/ and the process handle are the real ones. Only what
they touch is a value here: the disk, the state file, the release store, the supervisor and its app.
Each change of that value is one micro-step, and what a killed run leaves is the value after any of
them. So one run of a command shows all of its kills; its failures take a run each.

    World   = published manifest, Disk, State file, processes, and what the rules have to remember
    event   = a command (whole, killed after any micro-step, or with one failure), or what happens
              to the machine by itself: a crash, a power cut, a lost file, time that passes

What the code never looks at is made equal (`canonical`): times, numbers, reasons, and what an ended
deployment was. So the worlds are finite, and `explore` visits all of them. Not in the model: two
commands at once (the lock's tests), torn files (the fault tests), and what a supervisor does second
by second; of its own decisions two are asked of the real one (`ending_error`,
`state_after_unseen_end`).
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import pytest

from deployex_cli import engine as engine_module
from deployex_cli import interrupts
from deployex_cli.commands import check, context, rollback, steps, supervise
from deployex_cli.config import AppConfig, AppPaths, Config
from deployex_cli.core.lifecycle import ENDED, RIGHT_OF_NO_RETURN
from deployex_cli.core.manifest import Manifest, encode_manifest
from deployex_cli.core.plan import Disk, OnDisk, Process, folder_number
from deployex_cli.core.state import Deployment, Ghost, Phase, Release, State, StepName
from deployex_cli.engine import Engine
from deployex_cli.errors import (
    DeployexError,
    DigestMismatch,
    PreCommandFailed,
    StoreUnreachable,
    SupervisorError,
    SupervisorLost,
    SupervisorUnavailable,
)
from deployex_cli.layout import install as install_module
from deployex_cli.layout import state_file
from deployex_cli.result import failure_of
from deployex_cli.supervise import control, handle
from deployex_cli.supervise import supervisor as supervisor_module
from deployex_cli.supervise.record import Record
from deployex_cli.supervise.supervisor import Supervisor

NOW = 1000.0
HEALTHY = 30.0  # seconds
# rounds of time and a check that must do: finish what was interrupted, go back, deploy, confirm
ROUNDS = 5
NOT_ON_DISK = frozenset({Phase.IDLE}) | (ENDED - {Phase.CONFIRMED})
AT_REST = (Phase.SWITCHED, Phase.STARTED, Phase.CONFIRMED)

NOBODYS = Deployment(
    1, "deployment", "full_deployment", Release(""), None, (), Phase.IDLE, None, NOW, NOW, "", ""
)

# --- the invariants -------------------------------------------------------------------------

ONLY_CONFIRMED = "a confirmed version is never deleted while it is the only one"
IN_USE = "what a link names or the app runs from is never deleted"
ONE_VM = "never two VMs where one is meant"
GHOST = "a ghost is never deployed by a machine"
ONCE = "no machine repeats pre_commands whose outcome is unknown"
AGREE = "journal and disk agree"
WAY_BACK = "the way back is a version that proved itself, if there was one"
STOPPED = "an app that a person stopped is not started by a machine"
STAYS_STOPPED = "an app that a person stopped does not run for long"
FORGIVEN = "a ghost is one until its version takes over"
ELSEWHERE = "a rollback goes elsewhere"
UNTOUCHED = "what serves is only touched right of the point of no return"
LEGAL = "no command ends in anything but success or an error of ours"
INNOCENT = "a good version becomes a ghost only by a person or by its pre_commands"
TOLD = "the history tells what is so: all of it, and nothing else"
ENDS_UP = "a good version that is published long enough ends up running"


class Broken(BaseException):
    """An invariant does not hold. No Exception: nothing on the way may take it for an error."""

    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant = invariant
        self.detail = detail


# --- values ---------------------------------------------------------------------------------


class Content(NamedTuple):
    """What somebody may publish."""

    version: str
    digest: str
    pre_commands: tuple[str, ...] = ()
    starts: bool = True  # it can be executed
    lives: bool = True  # it does not die before it is healthy

    @property
    def good(self) -> bool:
        return self.starts and self.lives


class Processes(NamedTuple):
    """The supervisor and what it started."""

    up: bool = False  # the supervisor lives
    state: str = "STOPPED"  # its own word, while it lives
    vm: str | None = None  # the release folder that the app runs from, if it lives
    old: bool = False  # the app has lived for min_healthy_time
    unseen: bool = False  # it died while no supervisor lived: the record says that it runs
    job: bool = False  # pre_commands whose check is gone; they hold the app's lock


class World(NamedTuple):
    """All that survives the end of a command."""

    published: Content | None = None
    disk: Disk = Disk()
    state: State | str | None = None  # None: there is no such file; text: its damaged bytes
    processes: Processes = Processes()
    told: tuple[bool, ...] = ()  # which of the state's unlogged entries are in the history
    begun: frozenset[tuple[str, str | None]] = frozenset()  # pre_commands without an outcome


# kinds of events that a configuration may leave out; besides: "kills" of commands, "failures" in
# them, "losses" of the state file, "check --force", "rollback", "the app crashes"
BY_HAND = frozenset({"unpack", "move", "start", "stop"})
DEATHS = frozenset({"the supervisor is killed", "power cut"})

Words = str | Callable[[], str]  # put into words only when they are needed
Move = tuple[Words, World]


def canonical(world: World, *, thorough: bool = False) -> World:
    """The world with everything made equal that no code looks at, or tells apart.

    Times, reasons and names of people; what the numbers are, as long as the folders of one version
    keep their order; what exactly is half-made; an intent, but for that of pre_commands; what was
    to come of a deployment that will be abandoned, and where one came from that has started. Only
    a thorough machine keeps what is half-made until it is swept.
    """
    disk, state, p = world.disk, world.state, world.processes
    names: dict[str | None, str | None] = {None: None}
    releases = sorted(disk.releases, key=lambda r: (r.version, folder_number(r.folder)))
    for number, found in enumerate(releases, 1):
        names[found.folder] = name = f"{number}-{found.version}"
        if name != found.folder:
            releases[number - 1] = found._replace(folder=name)
    if isinstance(state, State):
        state = _canonical_state(state, names, bare=disk.current is None)
    elif disk.current is not None:
        state = None  # rebuilt all the same
    return World(
        world.published,
        Disk(
            tuple(releases),
            names[disk.new],
            names[disk.current],
            names[disk.previous],
            disk.leftovers if thorough else (),
        ),
        state,
        Processes(p.up, p.state if p.up else "STOPPED", names[p.vm], p.old, p.unseen, p.job),
        (False,) * len(state.unlogged) if isinstance(state, State) else (),
        world.begun,
    )


def _canonical_state(state: State, names: dict[str | None, str | None], *, bare: bool) -> State:
    ghosts = sorted(Ghost(g.version, g.digest, "", NOW) for g in state.ghosts)
    unlogged = tuple(("entry", number) for number, _ in enumerate(state.unlogged))
    deployment = state.deployment
    if deployment is not None:
        deployment = _canonical_deployment(deployment, names, bare=bare)
    return State(state.wanted, deployment, tuple(ghosts), unlogged=unlogged)


def _canonical_deployment(
    deployment: Deployment, names: dict[str | None, str | None], *, bare: bool
) -> Deployment:
    phase, intent, commands = deployment.phase, deployment.intent, deployment.pre_commands
    preparing = phase is Phase.UNPACKED and intent is StepName.PREPARE and bool(commands)
    if phase is Phase.IDLE or (phase is Phase.UNPACKED and not preparing):
        return NOBODYS
    if phase in ENDED and phase is not Phase.CONFIRMED:
        return NOBODYS._replace(phase=phase)
    on_the_way = phase in (Phase.PREPARED, Phase.STOPPED, Phase.SWITCHED)
    makes_way = phase is Phase.SWITCHED and bare

    def release(found: Release) -> Release:
        # one that is gone must not become equal to one that is there
        folder = names.get(found.folder, f"0-{found.version}")
        return Release(found.version, found.digest, "", folder)

    origin = deployment.origin
    return Deployment(
        1,
        deployment.kind if on_the_way else "deployment",
        "full_deployment",
        release(deployment.target),
        release(origin) if origin is not None and on_the_way else None,
        commands if preparing else (),
        phase,
        intent if preparing or makes_way else None,
        NOW,
        NOW,
        "",
        "",
    )


# --- the machine ----------------------------------------------------------------------------


class Machine:
    """One world that commands work on, micro-step by micro-step, with at most one failure each."""

    def __init__(
        self, contents: tuple[Content, ...], without: frozenset[str], *, thorough: bool = False
    ) -> None:
        self.contents = contents
        self.without = without
        self.versions = tuple(dict.fromkeys(c.version for c in contents))
        self.thorough = thorough
        self.world = World()
        self.steps: list[Move] = []
        self._count = 0  # of micro-steps
        self._chance = 0  # of failures
        self.runs = 0
        self._person = False
        self._failure: tuple[int, int] | None = None  # which chance, and which way of failing
        self._chances: list[tuple[str, ...]] = []
        self._failed = ""
        self._proven = False  # before the switch, a link named a proven version
        self._checked: dict[World, World] = {}
        paths = AppPaths(**{field: f"/model/{field}" for field in AppPaths._fields})
        self.app = AppConfig(
            name="counter",
            language="elixir",
            node="n",
            cookie=None,
            env=(),
            env_inherit=None,
            min_healthy_time=HEALTHY,
            stop_timeout=1.0,
            pre_command_timeout=1.0,
            max_entries=1,
            max_unpacked=1,
            distribution="none",
            dist_port=None,
            connect_host=None,
            epmd_port=None,
            cookie_file=None,
            tls_ca=None,
            tls_cert=None,
            tls_key=None,
            on_upgrade_failure="full",
            environment="local",
            paths=paths,
        )
        self.config = Config("local", "local", (self.app,), {}, {}, None)

    # --- one command ------------------------------------------------------------------------

    def run(
        self, world: World, command: Callable[[], object], *, person: bool, fails: bool = True
    ) -> Iterator[Move]:
        """What the command may leave: whole, killed after any micro-step, with any one failure."""
        yield from self._run_once(world, command, person, None)
        if not fails or "failures" in self.without:
            return
        for chance, ways in enumerate(self._chances):
            for way in range(len(ways)):
                yield from self._run_once(world, command, person, (chance, way))

    def _run_once(
        self,
        world: World,
        command: Callable[[], object],
        person: bool,
        failure: tuple[int, int] | None,
    ) -> Iterator[Move]:
        self.world, self.steps, self._person = world, [], person
        self._failure, self._failed = failure, ""
        interrupts.came = None
        chances: list[tuple[str, ...]] = []
        if failure is None:
            self._chances = chances
        self._count = self._chance = 0
        self.runs += 1
        try:
            result = command()
        except (DeployexError, OSError):
            result = None
        except Exception as error:
            raise Broken(LEGAL, f"{type(error).__name__}: {error}{self._failed}") from error
        except Broken as broken:
            broken.detail += self._failed
            raise
        if failure is None and not person and not getattr(result, "failures", True):
            self._check_done()
        steps, failed = self.steps, self._failed
        if self._count:
            yield failed, self.world
        if "kills" in self.without:
            return
        for what, left in steps[:-1]:
            yield lambda what=what: f"{failed}, killed after: {_text(what)}", left

    def _fails(self, *ways: str) -> str | None:
        """How it fails here, or None: in each run of a command at most one thing does."""
        if self._failure is None:
            self._chances.append(ways)
            return None
        here, self._chance = self._chance, self._chance + 1
        if here != self._failure[0]:
            return None
        way = ways[self._failure[1]]
        self._failed = f", {way}"
        return way

    def _set(self, what: Words, **changes: Any) -> None:
        """One micro-step; up to a failure it is one that the run without it has shown."""
        self.world = self.world._replace(**changes)
        self._count += 1
        if self._failure is None or self._failed:
            check_world(self.world)
            self.steps.append((what, self.world))

    def _set_processes(self, what: str, **changes: Any) -> None:
        self._set(what, processes=self.world.processes._replace(**changes))

    def _set_disk(self, what: str, **changes: Any) -> None:
        self._set(what, disk=self.world.disk._replace(**changes))

    def _writes(self, what: str) -> None:
        if self.thorough and self._fails(f"no room for {what}"):
            raise OSError(28, "No space left on device", what)

    @property
    def state(self) -> State:
        """The state on disk; an empty one when there is none."""
        return self.world.state if isinstance(self.world.state, State) else State()

    def _check_done(self) -> None:
        """A check that succeeded leaves running what is current, or nothing: as a person wants."""
        state, processes, current = self.state, self.world.processes, self.world.disk.current
        if _runs_though_stopped(self.world):
            raise Broken(STAYS_STOPPED, f"a check went well, and {_though_stopped(processes)}")
        if state.wanted == "running" and current is not None:
            if processes.vm not in (None, current):
                raise Broken(ONE_VM, f"{processes.vm} runs and {current} is current")
            if processes.vm is None and processes.state != "BACKOFF":
                raise Broken(ENDS_UP, f"a check went well and {current} does not run")

    # --- the state file and the history -----------------------------------------------------

    def load_state(self, app: AppConfig, disk: Disk, now: float) -> state_file.Loaded:
        state = self.world.state
        if not isinstance(state, State):
            with pytest.MonkeyPatch.context() as patch:  # the real one: it is lost, or damaged
                raw = state.encode() if state is not None else None
                patch.setattr(state_file, "files", SimpleNamespace(read_file=lambda _: raw))
                return REAL_LOAD_STATE(app, disk, now)
        entries = tuple({"event": event, "version": version} for event, version in state.unlogged)
        return state_file.Loaded(state._replace(unlogged=entries))

    def save_state(self, app: AppConfig, state: State) -> None:
        self._writes("the state")
        before, world = self.state, self.world
        entries = tuple((e["event"], e["version"]) for e in state.unlogged)
        told = world.told
        if entries != before.unlogged:
            if entries == ():
                if not all(told):
                    raise Broken(TOLD, f"{before.unlogged} is not in the history")
                told = ()
            elif entries[: len(before.unlogged)] == before.unlogged:
                told = (*told, *(False for _ in entries[len(before.unlogged) :]))
            else:
                raise Broken(TOLD, f"{before.unlogged} became {entries}")
        self._check_ghosts(before, state)
        self._check_switch(before, state)
        begun, made, last = world.begun, state.deployment, before.deployment
        left = (Phase.IDLE, Phase.UNPACKED, Phase.ABANDONED)
        asked = self._person and (last is None or made is None or made.id != last.id)
        if made is not None and (asked or made.phase not in left):
            version, digest = made.target.version, made.target.digest
            begun = frozenset(b for b in begun if b[0] != version or digest not in (None, b[1]))
        self._set(
            lambda: f"the state says {_in_words(state)}",
            state=state._replace(unlogged=entries),
            told=told,
            begun=begun,
        )

    def append_history(self, app: AppConfig, entry: dict[str, Any]) -> None:
        self._writes("the history")
        key = (entry["event"], entry["version"])
        unlogged = self.state.unlogged
        if key not in unlogged:
            raise Broken(TOLD, f"{key} is in the history, and the state does not know it")
        told = list(self.world.told)
        for place, logged in enumerate(unlogged):
            if logged == key and not told[place]:
                told[place] = True
                self._set(f"the history says {key[0]} {key[1]}", told=tuple(told))
                return

    def _check_ghosts(self, before: State, state: State) -> None:
        made, last = state.deployment, before.deployment
        if made is None:
            return
        begins = last is None or made.id != last.id
        if begins and made.kind == "deployment" and not self._person:
            for ghost in before.ghosts:
                same = ghost.digest in (None, made.target.digest) or made.target.digest is None
                if ghost.version == made.target.version and same:
                    raise Broken(GHOST, f"{made.target.version} is deployed and is a ghost")
        origin = made.origin
        if begins and made.kind == "rollback" and origin and origin.folder == made.target.folder:
            raise Broken(ELSEWHERE, f"it goes from {origin.folder} to the same")
        takes_over = (
            made.phase is Phase.SWITCHED and last is not None and last.phase is not made.phase
        )
        for ghost in before.ghosts:
            there = any(g[:2] == ghost[:2] for g in state.ghosts)
            if not there and not (takes_over and made.target[:2] == ghost[:2]):
                raise Broken(
                    FORGIVEN, f"{ghost.version} is {made.phase.value}, and no ghost any more"
                )
        for ghost in state.ghosts:
            if any((g.version, g.digest) == (ghost.version, ghost.digest) for g in before.ghosts):
                continue
            if any(c[:2] == ghost[:2] and not c.starts for c in self.contents):
                continue
            left = made.kind == "rollback" and made.phase is Phase.SWITCHED and origin is not None
            if left and origin is not None and origin.version == ghost.version:
                continue  # a person went back from it
            # its pre_commands had been begun, for all that the journal knows; or the switch itself
            # failed, which would otherwise stop the app with every check until there is room
            unknown = last is not None and last.intent is StepName.PREPARE and last.pre_commands
            if not unknown and "no room" not in self._failed:
                raise Broken(INNOCENT, f"{ghost.version} became a ghost: {ghost.reason}")

    def _check_switch(self, before: State, state: State) -> None:
        made, disk = state.deployment, self.world.disk
        if made is None or made.kind != "deployment":
            return
        last = before.deployment
        if made.phase is Phase.STOPPED and made.intent is StepName.SWITCH:
            linked = [disk.find(f) for f in (disk.current, disk.previous)]
            self._proven = any(
                r is not None and r.confirmed_at is not None and r.folder != made.target.folder
                for r in linked
            )
        elif made.phase is Phase.SWITCHED and last is not None and last.phase is Phase.STOPPED:
            previous = disk.find(disk.previous)
            if self._proven and (previous is None or previous.confirmed_at is None):
                raise Broken(WAY_BACK, f"previous is {disk.previous} after the switch")

    # --- the disk ---------------------------------------------------------------------------

    def read_disk(self, paths: AppPaths) -> Disk:
        return self.world.disk

    def point(self, paths: AppPaths, link: str, folder: str | None) -> None:
        disk = self.world.disk
        if getattr(disk, link) == folder:
            return
        if link == "current":
            made = self.state.deployment
            right = made is not None and made.phase in RIGHT_OF_NO_RETURN and made.intent
            if not right:
                raise Broken(UNTOUCHED, f"current becomes {folder} and nobody meant to")
        if folder is not None:
            self._writes(f"the link {link}")
            self._set_disk(f"a temporary link for {link}", leftovers=("/leftover",))
        self._set_disk(f"{link} is {folder}", **{link: folder, "leftovers": disk.leftovers})

    def write_marker(self, path: str, release: OnDisk) -> None:
        self._writes("the marker")
        there = self.world.disk.releases
        changed = tuple(release if r.folder == release.folder else r for r in there)
        self._set_disk(f"{release.folder} is marked", releases=changed)

    def install(
        self, app: AppConfig, disk: Disk, package: Content, target: Release, *_: object
    ) -> OnDisk:
        before = self.world.disk
        self._set_disk(f"half of {target.version} is unpacked", leftovers=("/leftover",))
        if self._fails("the package cannot be unpacked"):
            self._set_disk("what is half unpacked is removed", leftovers=before.leftovers)
            raise DeployexError("it cannot be unpacked")
        if target.digest not in (None, package.digest):
            self._set_disk("what is half unpacked is removed", leftovers=before.leftovers)
            raise DigestMismatch("other content")
        number = max((folder_number(r.folder) for r in before.releases), default=0) + 1
        release = OnDisk(f"{number}-{target.version}", target.version, package.digest, "", None)
        there = (*before.releases, release)
        self._set_disk(f"{target.version} is unpacked", releases=there, leftovers=before.leftovers)
        return release

    def remove_tree(self, path: str) -> None:
        disk = self.world.disk
        folder = path.rpartition("/")[2]
        gone = disk.find(folder)
        if gone is None:
            self._set_disk("what was half-made is removed", leftovers=())
            return
        left = tuple(r for r in disk.releases if r != gone)
        if gone.confirmed_at is not None and all(r.confirmed_at is None for r in left):
            raise Broken(ONLY_CONFIRMED, f"{folder} is removed, {[r.folder for r in left]} stay")
        if folder in (disk.new, disk.current, disk.previous, self.world.processes.vm):
            raise Broken(IN_USE, f"{folder} is removed")
        self._set_disk(f"{folder} is half removed", releases=left, leftovers=("/leftover",))
        self._set_disk(f"{folder} is removed", leftovers=disk.leftovers)

    def remove_leftover(self, path: str) -> None:
        self._set_disk("what was half-made is removed", leftovers=())

    # --- the release store ------------------------------------------------------------------

    def content(self, version: str, digest: str | None) -> Content:
        """What a version is; without a digest, what the store holds under it."""
        published = self.world.published
        if digest is None and published is not None and published.version == version:
            return published
        return next(c for c in self.contents if c.version == version and digest in (None, c.digest))

    def read_manifest(self) -> bytes | None:
        if self.thorough and self._fails("the release store does not answer"):
            raise StoreUnreachable("no answer")
        published = self.world.published
        return encoded(published) if published is not None else None

    # --- the supervisor ---------------------------------------------------------------------

    def facts(self, record: object = None) -> Process:
        p = self.world.processes
        uptime = (2 * HEALTHY if p.old else 0.0) if p.vm else None
        state = p.state if p.up else "STOPPED"
        return Process(p.up, state, p.vm is not None, p.vm, uptime)

    def is_listening(self, app: AppConfig) -> bool:
        return self.world.processes.up

    def start_detached(self) -> None:
        """A supervisor that finds the lock taken: it waits for what the command says."""
        if self._fails("no supervisor comes up"):
            raise SupervisorUnavailable("it was not ready")
        self.boot(start=False)

    def boot(self, *, start: bool) -> None:
        """As Supervisor.prepare."""
        processes = self.world.processes
        if processes.vm is not None:
            self._set_processes("a supervisor adopts the app", up=True, state="RUNNING")
            return
        state = state_after_unseen_end(self.app, start=start) if processes.unseen else "STOPPED"
        if state == "BACKOFF" and not start and not self._person and self.state.wanted == "stopped":
            raise Broken(STOPPED, "the supervisor takes its end for a crash, and starts it again")
        self._set_processes("a supervisor is up", up=True, state=state, unseen=False)
        if start and state == "STOPPED":
            self._start_current()

    def _start_current(self) -> None:
        if self.world.disk.current is not None:
            self._spawn(asked=False)

    def ask(self, app: AppConfig, command: str, **arguments: Any) -> dict[str, Any]:
        """As Supervisor._handle."""
        if not self.world.processes.up:
            raise SupervisorUnavailable("nobody listens")
        if command == "run":
            return self._run_pre_commands(arguments["folder"])
        failed = self._fails(
            f"the supervisor dies before `{command}`",
            f"the supervisor ends instead of `{command}`",
        )
        if failed is not None and "before" in failed:
            self._set_processes("the supervisor is dead", up=False)
            raise SupervisorLost("it ended")
        if failed is not None and "instead" in failed:  # SIGTERM: it takes the app with it
            self._set_processes("the supervisor and the app are gone", up=False, vm=None)
            raise ending_error(self.app)("the supervisor is ending")
        error = self._do(command)
        if error is not None:
            raise SupervisorError(error)
        return {"ok": True}

    def _do(self, command: str) -> str | None:
        processes, current = self.world.processes, self.world.disk.current
        if command != "stop":
            if current is None:
                return "no release is deployed"
            if processes.vm == current and command == "start":
                return None
        if processes.vm is not None or command == "stop":
            self._check_touched(processes)
            self._set_processes("the app is stopped", vm=None, old=False, state="STOPPED")
        return None if command == "stop" else self._spawn(asked=True)

    def _spawn(self, *, asked: bool) -> str | None:
        current = self.world.disk.current
        release = self.world.disk.find(current)
        assert release is not None
        if self.state.wanted == "stopped" and not self._person:
            raise Broken(STOPPED, f"{current} is started")
        if self.world.processes.vm is not None:
            raise Broken(ONE_VM, f"{current} is started and {self.world.processes.vm} runs")
        if not self.content(release.version, release.digest).starts:
            state = "STOPPED" if asked else "BACKOFF"
            self._set_processes(f"{current} cannot be started", state=state)
            return "it cannot be executed"
        self._set_processes(f"{current} is started", vm=current, old=False, state="RUNNING")
        return None

    def _check_touched(self, processes: Processes) -> None:
        """A machine stops what serves only where the journal says that it is about to."""
        made = self.state.deployment
        stops = made is not None and (
            (made.phase is Phase.PREPARED and made.intent is StepName.STOP)
            or made.phase in RIGHT_OF_NO_RETURN
        )
        stops = stops or self.state.wanted == "stopped"
        serves = processes.vm is not None and processes.vm == self.world.disk.current
        if serves and not self._person and not stops:
            raise Broken(UNTOUCHED, f"{processes.vm} is stopped and nobody meant to")

    def _run_pre_commands(self, folder: str) -> dict[str, Any]:
        release = self.world.disk.find(folder)
        assert release is not None
        key = (release.version, release.digest)
        if key in self.world.begun and not self._person:
            raise Broken(ONCE, f"the pre_commands of {release.version} are begun again")
        self._set(
            f"the pre_commands of {release.version} run",
            begun=self.world.begun | {key},
            processes=self.world.processes._replace(job=True),
        )
        failed = self._fails(
            "a pre_command fails",
            "the supervisor dies while pre_commands run",
            "SIGTERM comes while pre_commands run",
        )
        if failed is not None and "SIGTERM" in failed:  # it ends the connection
            interrupts.came = "SIGTERM"
            raise SupervisorLost("the connection was shut down")
        if failed is not None and "dies" in failed:
            self._set_processes("the supervisor is dead", up=False)
            raise SupervisorLost("it ended")
        self._set_processes("the pre_commands have ended", job=False)
        if failed is not None:
            raise PreCommandFailed("it failed")
        return {"ok": True, "failed": None}

    # --- events -----------------------------------------------------------------------------

    def moves(self, world: World) -> Iterator[Move]:
        """Every event, in words, and the world after it."""
        yield from self._from_outside(world)
        if world.processes.job:  # its lock keeps every command away
            if not world.processes.up:
                yield from self._supervise(world)
            return
        if not world.processes.up:
            yield from self._supervise(world)
        yield from self._named("check", self.run(world, self._check, person=False))
        if "check --force" not in self.without:
            yield from self._named("check --force", self.run(world, self._force, person=True))
        verbs: list[tuple[str, Callable[[], object]]] = [
            ("stop", lambda: steps.stop(self.config, self.app, say)),
            ("start", lambda: steps.start(self.config, self.app, say)),
            ("move", lambda: steps.move(self.config, self.app, say)),
            ("rollback", lambda: rollback.rollback(self.config, self.app, None, say)),
        ]
        for version in self.versions:
            verbs += [
                (f"rollback {version}", self._rollback(version)),
                (f"unpack {version}", self._unpack(version)),
            ]
        for name, verb in verbs:
            if name.split()[0] in self.without:
                continue
            fails = self.thorough or name.startswith("rollback")
            yield from self._named(name, self.run(world, verb, person=True, fails=fails))

    def after(self, world: World, event: str) -> World:
        """The world after that event, whole and with no failure."""
        return next(after for words, after in self.moves(world) if _text(words) == event)

    def _named(self, name: str, moves: Iterator[Move]) -> Iterator[Move]:
        try:
            for suffix, world in moves:
                yield lambda suffix=suffix: name + _text(suffix), world
        except Broken as broken:
            broken.add_note(name)
            raise

    def _check(self) -> object:
        return check.check(self.config, check.Options(), say)

    def _force(self) -> object:
        return check.check(self.config, check.Options(force=True), say)

    def _rollback(self, version: str) -> Callable[[], object]:
        return lambda: rollback.rollback(self.config, self.app, version, say)

    def _unpack(self, version: str) -> Callable[[], object]:
        return lambda: steps.unpack(self.config, self.app, version, say)

    def _supervise(self, world: World) -> Iterator[Move]:
        """A supervisor begins, and recovers; one whose helper is killed starts what is current."""
        for words, after in self._named(
            "supervise begins", self.run(world, self._begin, person=False)
        ):
            yield words, after
            p = after.processes
            idle = p.up and p.vm is None and p.state == "STOPPED" and not p.job
            wanted = isinstance(after.state, State) and after.state.wanted == "running"
            if idle and wanted and after.disk.current is not None:
                started = self._restarted(after._replace(processes=p._replace(state="BACKOFF")))
                yield (
                    lambda words=words: f"{_text(words)}, and starts what is current",
                    (after._replace(processes=started)),
                )

    def _begin(self) -> None:
        """As supervise.supervise, whose lock is a dead check's as long as pre_commands run."""
        if self.world.processes.job:
            self.boot(start=True)
            return
        recovers = False

        def read(descriptor: int, size: int) -> bytes:
            """The helper waits here until the supervisor listens."""
            nonlocal recovers
            recovers = True
            self.boot(start=False)
            return b"."

        child = SimpleNamespace(
            pipe=lambda: (0, 0),
            fork=lambda: 0,
            close=lambda descriptor: None,
            read=read,
            _exit=lambda code: None,  # the child is this process, and ends by returning
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(supervise, "os", child)
            start, _ = supervise._begin_recovery(self.app, None, Lock())
        if not recovers:
            self.boot(start=start)
        elif start and self.world.processes.state in ("STOPPED", "BACKOFF"):
            self._start_current()

    def _from_outside(self, world: World) -> Iterator[Move]:
        p = world.processes
        for content in self.contents:
            if content != world.published:
                kind = "" if content.good else " (bad)"
                name = f"publish {content.version}{kind}, content {content.digest[0]}"
                yield name, world._replace(published=content)
        for name, after in self._of_processes(world):
            if name in self.without:
                continue
            yield name, world._replace(processes=after)
        if world.state is not None and "losses" not in self.without:
            lost = world._replace(told=(), begun=frozenset())
            yield "the state file is lost", lost._replace(state=None)
            if world.state != DAMAGED:
                yield "the state file is damaged", lost._replace(state=DAMAGED)
        if p != Processes() and "power cut" not in self.without:
            yield "power cut", world._replace(processes=Processes())

    def _of_processes(self, world: World) -> Iterator[tuple[str, Processes]]:
        p = world.processes
        if p.vm is not None:
            if p.up:
                yield "the app crashes", p._replace(vm=None, old=False, state="BACKOFF")
            else:
                yield "the app crashes", p._replace(vm=None, old=False, unseen=True)
            if not p.old and self._of(world, p.vm).lives:
                yield "the app lives min_healthy_time", p._replace(old=True)
        if p.up and p.state == "BACKOFF":
            after = self._restarted(world)
            if after != p:
                yield "the supervisor starts it again", after
        if p.up:
            yield "the supervisor is killed", p._replace(up=False, state="STOPPED")
        if p.job:
            yield "the pre_commands end", p._replace(job=False)

    def _of(self, world: World, folder: str | None) -> Content:
        release = world.disk.find(folder)
        assert release is not None
        return next(
            c for c in self.contents if (c.version, c.digest) == (release.version, release.digest)
        )

    def _restarted(self, world: World) -> Processes:
        """As Supervisor._restart_due."""
        p, current = world.processes, world.disk.current
        if current is None or not self._of(world, current).starts:
            return p
        return p._replace(vm=current, old=False, state="RUNNING")

    # --- what must come in the end ----------------------------------------------------------

    def settle(self, world: World) -> str | None:
        """What is wrong after time and checks enough, with no more failures; None: nothing."""
        for _ in range(ROUNDS):
            if self._excused(world):
                break
            wrong = self._missing(world)
            if wrong is None:
                return None
            world = self._round(world)
        for _ in range(ROUNDS):
            if not _runs_though_stopped(world):
                return None if self._excused(world) else self._missing(world)
            world = self._round(world)
        raise Broken(STAYS_STOPPED, _though_stopped(world.processes))

    def _round(self, world: World) -> World:
        """Time passes, and there is a check."""
        found = self._checked.get(world)
        if found is None:
            p = world.processes._replace(job=False)
            if p.up and p.state == "BACKOFF":
                p = self._restarted(world._replace(processes=p))
            if p.vm is not None and self._of(world, p.vm).lives:
                p = p._replace(old=True)
            later = world._replace(processes=p)
            for _ in self._run_once(later, self._check, False, None):
                pass
            found = self._checked[world] = canonical(self.world, thorough=self.thorough)
        return found

    def _excused(self, world: World) -> bool:
        """Whether a person or the version itself forbids that what is published runs."""
        published, state = world.published, world.state
        if published is None or not published.good:
            return True
        key = (published.version, published.digest)
        current = world.disk.find(world.disk.current)
        same_version = current is not None and current.version == published.version
        if current is not None and same_version and current.digest != published.digest:
            return True  # it is said, and waits for --force
        if not isinstance(state, State):
            return False
        ghost = any((g.version, g.digest) == key for g in state.ghosts)
        return state.wanted == "stopped" or ghost or key in world.begun

    def _missing(self, world: World) -> str | None:
        published, state, disk = world.published, world.state, world.disk
        assert published is not None
        current = disk.find(disk.current)
        if current is None or (current.version, current.digest) != published[:2]:
            return f"{disk.current} is current"
        if world.processes.vm != current.folder:
            return f"{current.folder} does not run"
        if current.confirmed_at is None:
            return f"{current.folder} is not confirmed"
        if not isinstance(state, State) or state.deployment is None or state.unlogged:
            return "the journal is not settled"
        if state.deployment.phase not in ENDED:
            return f"the journal says {state.deployment.phase.value}"
        if disk.leftovers:
            return "something half-made is left"
        return None


REAL_LOAD_STATE = state_file.load_state
DAMAGED = "{"


class Lock:
    """The app's lock, which nobody else holds."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def fileno(self) -> int:
        return 3


class NoSignals:
    """No handler is set: the model says itself where a signal comes."""

    def __enter__(self) -> NoSignals:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def say(line: str) -> None:
    """Nobody listens."""


def _failure_of(error: Exception) -> object:
    """What is no error of ours, and is passed over in silence, is found here."""
    if not isinstance(error, (DeployexError, OSError)):
        raise Broken(LEGAL, f"{type(error).__name__}: {error}")
    return failure_of(error)


def _say_of_supervise(line: str) -> None:
    error = sys.exc_info()[1]
    if isinstance(error, Exception):
        _failure_of(error)


@cache
def encoded(content: Content) -> bytes:
    """Its manifest."""
    return encode_manifest(Manifest(content.version, "", content.pre_commands, content.digest))


@cache
def ending_error(app: AppConfig) -> type[DeployexError]:
    """What a command gets to see when it asks a supervisor that is ending: by the real ones."""
    answers: list[dict[str, Any]] = []
    ending: Any = object.__new__(Supervisor)
    ending._ending = True
    ending._server = SimpleNamespace(answer=lambda client, answer: answers.append(answer))
    ending._handle(None, {"command": "start"})
    connection = MagicMock()
    connection.__enter__.return_value.recv.return_value = json.dumps(answers[0]).encode() + b"\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control, "socket", MagicMock(socket=lambda *_: connection))
        try:
            control.ask(app, "start", timeout=1.0)
        except DeployexError as error:
            return type(error)
    raise AssertionError("it answered as if it were not ending")


@cache
def state_after_unseen_end(app: AppConfig, *, start: bool) -> str:
    """The state of a supervisor whose record tells of an app that is dead: by the real one."""
    record = Record("boot", (1, 1), "RUNNING", (2, 2), "1-1", "1")
    proc = MagicMock(boot_id=lambda: "boot", start_time=lambda pid, **_: 3, children=lambda _: [])
    proc.uptime.return_value = 1.0
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ControlServer", "select", "libc", "notify", "write_record"):
            patch.setattr(supervisor_module, name, MagicMock())
        patch.setattr(supervisor_module, "procfs", proc)
        patch.setattr(supervisor_module, "read_record", lambda path: record)
        patch.setattr(supervisor_module, "lives", lambda process, record: False)
        for name in ("_receive_signals", "_say"):
            patch.setattr(Supervisor, name, lambda *_: None)
        # what it would start now; that it wants to is all that is asked
        patch.setattr(Supervisor, "_try_start", lambda self: self._update(state="BACKOFF"))
        patch.setattr(Supervisor, "_start_current", lambda self: self._update(state="STOPPED"))
        found: Any = Supervisor(app, MagicMock(), 0, MagicMock())
        found.prepare(start=start, restart=start)
        return str(found._record.state)


def _runs_though_stopped(world: World) -> bool:
    """Whether an app that a person stopped lives, or is about to."""
    p, state = world.processes, world.state
    stopped = isinstance(state, State) and state.wanted == "stopped"
    return stopped and (p.vm is not None or (p.up and p.state == "BACKOFF"))


def _though_stopped(p: Processes) -> str:
    return f"{p.vm} runs" if p.vm is not None else "the supervisor starts it again"


def _text(words: Words) -> str:
    return words if isinstance(words, str) else words()


def _in_words(state: State) -> str:
    deployment = state.deployment
    if deployment is None:
        return "nothing"
    intent = f", about to {deployment.intent.value}" if deployment.intent else ""
    return f"{deployment.target.version} {deployment.phase.value}{intent}"


def check_world(world: World) -> None:
    """Journal and disk agree, at every micro-step."""
    disk, state = world.disk, world.state
    folders = {None, *(r.folder for r in disk.releases)}
    if not folders.issuperset((disk.new, disk.current, disk.previous, world.processes.vm)):
        raise Broken(AGREE, "a link names, or the app runs from, a release that is not there")
    if not isinstance(state, State) or state.deployment is None:
        return
    made = state.deployment
    phase, folder = made.phase, made.target.folder
    if phase in NOT_ON_DISK:
        return
    if folder is None or folder not in folders:
        raise Broken(AGREE, f"the state says {_in_words(state)}, and {folder} is not there")
    if phase in AT_REST and disk.current != folder:
        # without a way back, what failed to start makes way for nothing
        leaves = phase is Phase.SWITCHED and made.intent is StepName.START and not disk.current
        if not leaves:
            raise Broken(AGREE, f"the state says {_in_words(state)}, current is {disk.current}")
    if phase is Phase.CONFIRMED:
        target = disk.find(folder)
        if target is None or target.confirmed_at is None:
            raise Broken(AGREE, f"the state says {_in_words(state)}, and its marker does not")


@contextmanager
def installed(machine: Machine) -> Iterator[pytest.MonkeyPatch]:
    """In this block the real commands work on the machine's world."""
    clock = SimpleNamespace(time=lambda: NOW)
    store = SimpleNamespace(
        read_manifest=machine.read_manifest,
        manifest_address=lambda: "current.json",
        package_address=lambda version: version,
        open_package=lambda version: nullcontext(machine.content(version, None)),
    )
    disk = SimpleNamespace(
        read_disk=machine.read_disk, point=machine.point, write_marker=machine.write_marker
    )

    class ModelEngine(Engine):
        """The real one, at a standing clock."""

        def __init__(self, *what: Any, **more: Any) -> None:
            super().__init__(*what, **more, clock=clock.time)

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("INVOCATION_ID", raising=False)
        for module in (check, context):
            patch.setattr(module, "prepare_folders", lambda app: None)
            patch.setattr(module, "who", lambda: "somebody")
            patch.setattr(module, "AppLock", Lock)
        for module in (check, steps, engine_module):
            patch.setattr(module, "open_store", lambda app: store)
        for module in (check, steps, rollback):
            patch.setattr(module, "time", clock)
        for module in (check, supervise, handle):
            patch.setattr(module, "read_record", lambda path: None)
            patch.setattr(module, "process_facts", machine.facts)
        for module in (check, supervise):
            patch.setattr(module, "read_disk", machine.read_disk)
        for module in (check, supervise, engine_module):
            patch.setattr(module, "load_state", machine.load_state)
        patch.setattr(engine_module, "releases", disk)
        files = SimpleNamespace(remove_tree=machine.remove_tree, remove=machine.remove_leftover)
        patch.setattr(engine_module, "files", files)
        patch.setattr(engine_module, "read_holdings", lambda folder: None)  # never upgraded hot
        patch.setattr(engine_module, "save_state", machine.save_state)
        patch.setattr(engine_module, "append_history", machine.append_history)
        patch.setattr(engine_module, "Engine", ModelEngine)
        patch.setattr(engine_module, "Interrupts", NoSignals)
        patch.setattr(interrupts, "came", None)
        patch.setattr(install_module, "install", machine.install)
        patch.setattr(handle, "ask", machine.ask)
        patch.setattr(handle, "is_listening", machine.is_listening)
        patch.setattr(handle.AppProcess, "_start_detached", lambda _: machine.start_detached())
        # both go on whatever is raised
        patch.setattr(check, "failure_of", _failure_of)
        patch.setattr(supervise, "_say", _say_of_supervise)
        yield patch


# --- the exploration ------------------------------------------------------------------------


class Explored(NamedTuple):
    """What was seen, and the shortest way to what must not be."""

    worlds: int
    transitions: int
    runs: int  # of real commands
    broken: str | None = None  # the invariant
    events: tuple[str, ...] = ()  # the counterexample, in words

    def __str__(self) -> str:
        counts = f"{self.worlds} worlds, {self.transitions} transitions, {self.runs} commands run"
        if self.broken is None:
            return counts
        lines = [f"  {number}. {event}" for number, event in enumerate(self.events, 1)]
        return "\n".join([f"broken: {self.broken} (after {counts})", *lines])


def explore(machine: Machine, limit: int | None = None) -> Explored:
    """All worlds, the nearest first, until one breaks an invariant or there are no more."""
    start = canonical(World())
    came_from: dict[World, tuple[World, Words] | None] = {start: None}
    waiting = deque([start])
    transitions = 0

    def events(world: World, *last: str) -> tuple[str, ...]:
        found = list(reversed(last))
        while (step := came_from[world]) is not None:
            world, name = step
            found.append(_text(name))
        return tuple(reversed(found))

    while waiting:
        world = waiting.popleft()
        try:
            wrong = machine.settle(world)
        except Broken as broken:
            last = ("then checks alone", f"=> {broken.detail}")
            return Explored(
                len(came_from), transitions, machine.runs, broken.invariant, events(world, *last)
            )
        if wrong is not None:
            last = (f"then {ROUNDS} times: time passes, check", f"=> {wrong}")
            return Explored(
                len(came_from), transitions, machine.runs, ENDS_UP, events(world, *last)
            )
        try:
            for name, after in machine.moves(world):
                transitions += 1
                if after in came_from:
                    continue
                reached = canonical(after, thorough=machine.thorough)
                if reached not in came_from:
                    came_from[reached] = (world, name)
                    waiting.append(reached)
        except Broken as broken:
            last = (*broken.__notes__, f"=> {broken.detail}")
            return Explored(
                len(came_from), transitions, machine.runs, broken.invariant, events(world, *last)
            )
        if limit is not None and len(came_from) > limit:
            break
    return Explored(len(came_from), transitions, machine.runs)
