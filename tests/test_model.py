"""Every order of events, explored to the last world: what must never be, and what must come.

Each configuration of tests/model.py leaves out some kinds of events, so that all of them together
take less than a minute; `DEPLOYEX_MODEL=deep` leaves out next to nothing, and takes half an hour.
`-s` shows how many worlds and transitions were explored, and how each broken rule was caught.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from deployex_cli import engine
from deployex_cli.commands import check, rollback, steps, supervise
from deployex_cli.core import lifecycle, plan, recovery
from deployex_cli.core.lifecycle import LEFT_OF_NO_RETURN, RIGHT_OF_NO_RETURN, TABLE, Event
from deployex_cli.core.plan import Disk, Facts, Plan, Policy, Step
from deployex_cli.core.recovery import Recovery
from deployex_cli.core.state import Deployment, Phase, State, StepName
from deployex_cli.engine import Engine
from deployex_cli.supervise.handle import AppProcess
from tests import model
from tests.model import BY_HAND, DEATHS, Content, Explored, Machine, World, explore, installed

ONE = Content("1", "a" * 64)
TWO = Content("2", "b" * 64)
TWO_WITH_PRE_COMMANDS = Content("2", "b" * 64, ("migrate",))
TWO_CANNOT_START = Content("2", "c" * 64, starts=False)
TWO_DIES = Content("2", "d" * 64, lives=False)
ONE_AGAIN = Content("1", "e" * 64)  # other content under the same version
THREE = Content("3", "f" * 64)


class Bounds(NamedTuple):
    """What may be published, and which events are left out."""

    contents: tuple[Content, ...]
    without: frozenset[str] = frozenset()
    thorough: bool = False


BOUNDS = {
    "one version and every event": Bounds((ONE,), thorough=True),
    "one version with pre_commands and every event": Bounds(
        (TWO_WITH_PRE_COMMANDS,), thorough=True
    ),
    "a successor with pre_commands, killed anywhere": Bounds(
        (ONE, TWO_WITH_PRE_COMMANDS), BY_HAND | {"losses", "failures", "check --force"}
    ),
    "a successor that cannot start, killed and failing anywhere": Bounds(
        (ONE, TWO_CANNOT_START), BY_HAND | DEATHS | {"losses", "check --force"}
    ),
    "a successor that dies, and a state file that is lost": Bounds(
        (ONE, TWO_DIES), BY_HAND | DEATHS | {"failures", "check --force"}
    ),
    "other content under the same version": Bounds(
        (ONE, ONE_AGAIN), BY_HAND | DEATHS | {"losses", "failures"}
    ),
    "steps by hand, killed anywhere": Bounds(
        (ONE, TWO_CANNOT_START),
        DEATHS | {"the app crashes", "losses", "failures", "check --force"},
    ),
    "steps by hand after pre_commands, killed anywhere": Bounds(
        (ONE, TWO_WITH_PRE_COMMANDS),
        DEATHS | {"the app crashes", "losses", "failures", "check --force", "rollback", "stop"},
    ),
    "three versions, one of them bad": Bounds(
        (ONE, TWO_CANNOT_START, THREE), BY_HAND | DEATHS | {"losses", "failures", "kills"}
    ),
}
DEEP = {
    "pre_commands": Bounds((ONE, TWO_WITH_PRE_COMMANDS)),
    "cannot start": Bounds((ONE, TWO_CANNOT_START)),
    "dies": Bounds((ONE, TWO_DIES)),
    "other content": Bounds((ONE, ONE_AGAIN)),
    "three versions": Bounds(
        (ONE, TWO_CANNOT_START, THREE), BY_HAND | DEATHS | {"losses", "check --force"}
    ),
}
CHOSEN = DEEP if os.environ.get("DEPLOYEX_MODEL") == "deep" else BOUNDS


Break = Callable[[pytest.MonkeyPatch], None]


def explored(bounds: Bounds, break_it: Break | None = None, limit: int | None = None) -> Explored:
    """What there is to see within the bounds."""
    machine = Machine(bounds.contents, bounds.without, thorough=bounds.thorough)
    with installed(machine) as patch:
        if break_it is not None:
            break_it(patch)
        return explore(machine, limit)


@pytest.mark.parametrize("bounds", CHOSEN.values(), ids=CHOSEN)
def test_no_order_of_events_breaks_an_invariant_and_a_good_version_always_ends_up_running(
    bounds: Bounds,
) -> None:
    found = explored(bounds)
    print(f"\n{found}")
    assert found.broken is None, str(found)
    assert found.worlds > 500, "it did explore"


# rows that no event of the model leads to, and where they are looked at instead
NOT_HERE = {
    (Phase.PREPARED, Event.ABANDONED): "somebody removed the release's folder: test_recovery.py",
    (Phase.STARTED, Event.ROLLED_BACK): "a trial that fails: nothing judges that yet",
    (Phase.STOPPED, Event.ROLLED_BACK): "a disk that fails in the switch: the faults",
}
# the app of the model has no node, so nothing goes hot: those rows are taken on real nodes,
# in test_hot_upgrade.py and test_hot_failures.py
HOT = {
    (Phase.PREPARED, Event.STAGED),
    (Phase.STAGED, Event.INSTALLED),
    (Phase.STAGED, Event.ABANDONED),
    (Phase.STAGED, Event.ROLLED_BACK),
    (Phase.INSTALLED, Event.MADE_PERMANENT),
    (Phase.INSTALLED, Event.ROLLED_BACK),
    (Phase.INSTALLED, Event.SUPERSEDED),
    (Phase.PERMANENT, Event.CONFIRMED),
    (Phase.PERMANENT, Event.ROLLED_BACK),
    (Phase.PERMANENT, Event.SUPERSEDED),
}


def test_every_row_of_the_table_is_taken() -> None:
    """Or what the explorer says of the table would be about a part of it."""
    taken: set[tuple[Phase, Event]] = set()
    advance, succeed = lifecycle.advance, lifecycle.succeed

    def advanced(state: State, event: Event, *rest: Any) -> State:
        assert state.deployment is not None
        taken.add((state.deployment.phase, event))
        return advance(state, event, *rest)

    def succeeded(state: State, made: Deployment, event: Event | None = None) -> State:
        if state.deployment is not None and event is not None:
            taken.add((state.deployment.phase, event))
        return succeed(state, made, event)

    def watch(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(lifecycle, "advance", advanced)
        patch.setattr(lifecycle, "succeed", succeeded)
        patch.setattr(steps, "succeed", succeeded)

    contents = (ONE, TWO_WITH_PRE_COMMANDS._replace(starts=False))
    explored(Bounds(contents, DEATHS | {"losses"}), watch, limit=1000)
    assert set(TABLE) - taken == {*NOT_HERE, *HOT}, set(TABLE) - taken


def test_a_person_gets_back_from_a_rollback_to_a_version_that_cannot_start() -> None:
    machine = Machine((ONE, TWO_CANNOT_START), frozenset())
    with installed(machine):
        world = machine.after(World(ONE), "check")
        world = machine.after(world, "rollback 2")
        assert world.processes.vm is None, "it cannot start"
        world = machine.after(world, "rollback 1")
    assert world.disk.current == world.processes.vm == "1-1"


# --- rules that are broken on purpose -------------------------------------------------------


def repeats_pre_commands(patch: pytest.MonkeyPatch) -> None:
    """Recovery takes pre_commands that were begun for a step that can be done again."""

    def careless(state: State, facts: Facts) -> Recovery:
        if state.deployment is not None:
            state = state._replace(deployment=state.deployment._replace(intent=None))
        return recovery.recover(state, facts)

    for module in (check, rollback, supervise):
        patch.setattr(module, "recover", careless)


def abandons_right_of_no_return(patch: pytest.MonkeyPatch) -> None:
    """Recovery undoes what can only be finished."""
    patch.setattr(recovery, "LEFT_OF_NO_RETURN", LEFT_OF_NO_RETURN | RIGHT_OF_NO_RETURN)


def ghosts_what_was_interrupted(patch: pytest.MonkeyPatch) -> None:
    """Recovery forbids a version because a run of ours was killed."""

    def severe(state: State, facts: Facts) -> Recovery:
        found = recovery.recover(state, facts)
        return found._replace(ghost=found.reason or None)

    for module in (check, rollback, supervise):
        patch.setattr(module, "recover", severe)


def starts_what_a_person_stopped(patch: pytest.MonkeyPatch) -> None:
    """A deployment goes on to the start whatever a person wanted."""

    def eager(self: Engine) -> None:
        while lifecycle.next_step(self.state.deployment) is not None:
            self._take(engine.remaining(self._deployment, self.facts())[0])

    patch.setattr(Engine, "_carry_on", eager)


def leaves_running_what_a_person_stopped(patch: pytest.MonkeyPatch) -> None:
    """A check has nothing to do with an app that a person stopped, whether it runs or not."""

    def idle(state: State, *rest: Any) -> Plan:
        found = plan.plan(state, *rest)
        return found._replace(steps=()) if state.wanted == "stopped" else found

    patch.setattr(check, "plan", idle)


def overlooks_what_will_run_again(patch: pytest.MonkeyPatch) -> None:
    """A check ends what runs, and not what the supervisor is about to start again."""

    def hasty(state: State, manifest: Any, facts: Facts, *rest: Any) -> Plan:
        found = plan.plan(state, manifest, facts, *rest)
        waits = state.wanted == "stopped" and not facts.process.running
        return found._replace(steps=()) if waits else found

    patch.setattr(check, "plan", hasty)


def forgives_too_early(patch: pytest.MonkeyPatch) -> None:
    """A ghost that a person deploys all the same is none any more before it has come so far."""
    succeed = lifecycle.succeed

    def kind(state: State, made: Deployment, event: Event | None = None) -> State:
        return lifecycle.unghosted(succeed(state, made, event), made.target)

    patch.setattr(lifecycle, "succeed", kind)


def ignores_ghosts(patch: pytest.MonkeyPatch) -> None:
    """A check deploys what is published, ghost or not."""
    patch.setattr(plan, "find_ghost", lambda *_: None)


def prunes_the_way_back(patch: pytest.MonkeyPatch) -> None:
    """Pruning looks at what runs, and not at what the links name."""

    def greedy(disk: Disk, running: str | None) -> tuple[str, ...]:
        return tuple(r.folder for r in disk.releases if r.folder != running)

    patch.setattr(plan, "prunable", greedy)


def prunes_before_it_confirms(patch: pytest.MonkeyPatch) -> None:
    """Pruning takes the confirmation for granted, and comes before it."""
    prunes_the_way_back(patch)
    judge = plan._judge

    def hasty(state: State, facts: Facts, policy: Policy, now: float) -> tuple[Step, ...]:
        return tuple(reversed(judge(state, facts, policy, now)))

    patch.setattr(plan, "_judge", hasty)


def never_confirms(patch: pytest.MonkeyPatch) -> None:
    """A trial has no end."""
    patch.setattr(plan, "_judge", lambda *_: ())


def loses_previous(patch: pytest.MonkeyPatch) -> None:
    """The switch forgets what it switches from."""

    def forgetful(deployment: Deployment, disk: Disk) -> tuple[str | None, str | None]:
        return deployment.target.folder, None

    patch.setattr(engine, "links_after_switch", forgetful)


def confirms_without_a_marker(patch: pytest.MonkeyPatch) -> None:
    """The journal says that it is confirmed, and the disk does not."""
    patch.setitem(Engine._EFFECTS, StepName.CONFIRM, lambda self: None)


def stops_too_early(patch: pytest.MonkeyPatch) -> None:
    """What serves is stopped while the deployment can still be abandoned."""
    prepare = Engine._prepare

    def impatient(self: Engine) -> None:
        prepare(self)
        self.process.stop()

    patch.setitem(Engine._EFFECTS, StepName.PREPARE, impatient)


def leaves_the_old_one_running(patch: pytest.MonkeyPatch) -> None:
    """A start is content with whatever runs."""
    start = AppProcess.start

    def content(self: AppProcess) -> None:
        if not self.facts().running:
            start(self)

    patch.setattr(AppProcess, "start", content)


def tells_what_is_not_yet_so(patch: pytest.MonkeyPatch) -> None:
    """The history is written before the state, and not through it."""
    save = Engine.save

    def talkative(self: Engine, state: State, entry: dict[str, Any] | None = None) -> None:
        if entry is not None:
            engine.append_history(self.app, entry)
        save(self, state)

    patch.setattr(Engine, "save", talkative)


GHOSTS_AND_KILLS = Bounds((ONE, TWO_CANNOT_START), BY_HAND | DEATHS | {"losses", "failures"})
PRE_COMMANDS = Bounds((ONE, TWO_WITH_PRE_COMMANDS), DEATHS | {"losses", "failures"})
STEPS = Bounds((ONE, TWO), DEATHS | {"losses", "failures"})
MUTATIONS: list[tuple[Break, Bounds, str]] = [
    (repeats_pre_commands, PRE_COMMANDS, model.ONCE),
    (abandons_right_of_no_return, STEPS, model.LEGAL),
    (ghosts_what_was_interrupted, STEPS, model.INNOCENT),
    (starts_what_a_person_stopped, STEPS, model.STOPPED),
    (leaves_running_what_a_person_stopped, STEPS, model.STAYS_STOPPED),
    (overlooks_what_will_run_again, STEPS, model.STAYS_STOPPED),
    (ignores_ghosts, GHOSTS_AND_KILLS, model.GHOST),
    (forgives_too_early, GHOSTS_AND_KILLS, model.FORGIVEN),
    (prunes_the_way_back, STEPS, model.IN_USE),
    (prunes_before_it_confirms, STEPS, model.ONLY_CONFIRMED),
    (never_confirms, STEPS, model.ENDS_UP),
    (loses_previous, STEPS, model.WAY_BACK),
    (confirms_without_a_marker, STEPS, model.AGREE),
    (stops_too_early, STEPS, model.UNTOUCHED),
    (leaves_the_old_one_running, STEPS, model.ONE_VM),
    (tells_what_is_not_yet_so, STEPS, model.TOLD),
]


@pytest.mark.parametrize(
    ("break_it", "bounds", "invariant"), MUTATIONS, ids=[m[0].__name__ for m in MUTATIONS]
)
def test_a_rule_that_is_broken_on_purpose_is_caught_by_the_invariant_that_forbids_it(
    break_it: Break, bounds: Bounds, invariant: str
) -> None:
    found = explored(bounds, break_it)
    print(f"\n{found}")
    assert found.broken == invariant, str(found)
    assert found.events, "there is a way to it, in words"
