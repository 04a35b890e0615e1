"""What an interrupted run asks for: each rule, and that it always leads to an end or a trial."""

from __future__ import annotations

from itertools import product

import pytest

from deployex_cli.core import lifecycle
from deployex_cli.core.lifecycle import ENDED, LEFT_OF_NO_RETURN, OUTCOME, Event
from deployex_cli.core.plan import Disk, Facts, OnDisk, Plan, Policy, Process, as_release, plan
from deployex_cli.core.recovery import Recovery, rebuild, recover
from deployex_cli.core.state import (
    Deployment,
    Kind,
    Phase,
    Release,
    State,
    StepName,
    Wanted,
)

ONE = OnDisk("1-1.0.0", "1.0.0", "a" * 64, "hash1", confirmed_at=100.0)
TWO = OnDisk("2-2.0.0", "2.0.0", "b" * 64, "hash2", confirmed_at=None)
DISK = Disk((ONE, TWO), TWO.folder, ONE.folder, None)
UNFINISHED = [
    Phase.IDLE,
    Phase.UNPACKED,
    Phase.PREPARED,
    Phase.STOPPED,
    Phase.SWITCHED,
]


def interrupted(
    phase: Phase,
    intent: StepName | None = None,
    *,
    pre_commands: tuple[str, ...] = (),
    wanted: Wanted = "running",
    kind: Kind = "deployment",
) -> State:
    """A deployment of TWO over ONE that a killed run left there."""
    left = Deployment(
        id=2,
        kind=kind,
        strategy="full_deployment",
        target=as_release(TWO) if phase is not Phase.IDLE else Release("2.0.0", "b" * 64),
        origin=as_release(ONE),
        pre_commands=pre_commands,
        phase=phase,
        intent=intent,
        began_at=1.0,
        phase_at=1.0,
        by="timer",
        reason="",
    )
    return State(wanted, left)


def names(recovery: Recovery) -> list[str]:
    return [step.name.value for step in recovery.steps]


# --- 1: what was left half-made -------------------------------------------------------------


@pytest.mark.parametrize(
    "state", [State(), interrupted(Phase.IDLE), interrupted(Phase.SWITCHED)], ids=["", "i", "s"]
)
def test_what_was_left_half_made_is_swept_before_anything_else(state: State) -> None:
    clean = recover(state, Facts(DISK))
    swept = recover(state, Facts(DISK._replace(leftovers=("/x/.staging-3-3.0.0", "/x/.t.tmp"))))
    assert names(swept) == ["sweep", *names(clean)]
    assert swept.steps[0].folders == ("/x/.staging-3-3.0.0", "/x/.t.tmp")


@pytest.mark.parametrize("phase", sorted(ENDED | {Phase.STARTED}))
@pytest.mark.parametrize("intent", [None, *OUTCOME])
def test_what_has_ended_or_is_on_trial_asks_for_nothing(
    phase: Phase, intent: StepName | None
) -> None:
    assert recover(interrupted(phase, intent), Facts(DISK)) == Recovery(())


def test_no_deployment_asks_for_nothing() -> None:
    assert recover(State(), Facts(DISK)) == Recovery(())


# --- 2: left of the point of no return ------------------------------------------------------


@pytest.mark.parametrize("intent", [None, StepName.UNPACK, StepName.PREPARE])
@pytest.mark.parametrize("phase", [Phase.IDLE, Phase.UNPACKED])
def test_left_of_the_point_of_no_return_it_is_undone_and_the_version_is_no_ghost(
    phase: Phase, intent: StepName | None
) -> None:
    recovery = recover(interrupted(phase, intent), Facts(DISK))
    assert names(recovery) == ["abandon"]
    assert recovery.ghost is None
    assert "2.0.0 was interrupted" in recovery.reason
    assert f"({intent or phase}); it begins anew" in recovery.reason


# --- 3: pre_commands ------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["running", "stopped"])
def test_pre_commands_without_an_outcome_end_it_and_ghost_the_version(wanted: Wanted) -> None:
    state = interrupted(Phase.UNPACKED, StepName.PREPARE, pre_commands=("migrate",), wanted=wanted)
    recovery = recover(state, Facts(DISK))
    assert names(recovery) == ["abandon"]
    assert recovery.ghost == recovery.reason
    assert "pre_commands" in recovery.reason
    assert "`deployex check --force`" in recovery.reason


def test_pre_commands_that_were_not_begun_are_no_reason_to_ghost() -> None:
    state = interrupted(Phase.UNPACKED, StepName.UNPACK, pre_commands=("migrate",))
    assert recover(state, Facts(DISK)).ghost is None


@pytest.mark.parametrize("intent", [None, StepName.STOP])
def test_when_the_pre_commands_are_done_it_is_finished_and_they_are_not_run_again(
    intent: StepName | None,
) -> None:
    state = interrupted(Phase.PREPARED, intent, pre_commands=("migrate",))
    assert names(recover(state, Facts(DISK))) == ["stop", "switch", "start"]


def test_when_they_are_done_and_the_release_is_gone_from_disk_it_is_undone() -> None:
    state = interrupted(Phase.PREPARED, pre_commands=("migrate",))
    recovery = recover(state, Facts(Disk((ONE,), None, ONE.folder)))
    assert names(recovery) == ["abandon"]
    assert recovery.ghost is None


# --- 4 and 5: right of it -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "wanted", "steps"),
    [
        (Phase.PREPARED, "running", ["stop", "switch", "start"]),
        (Phase.STOPPED, "running", ["switch", "start"]),
        (Phase.SWITCHED, "running", ["start"]),
        (Phase.PREPARED, "stopped", ["stop", "switch"]),
        (Phase.STOPPED, "stopped", ["switch"]),
        (Phase.SWITCHED, "stopped", []),
    ],
)
@pytest.mark.parametrize("kind", ["deployment", "rollback"])
@pytest.mark.parametrize("intent", [None, *OUTCOME])
def test_from_the_point_of_no_return_on_it_is_finished_and_a_stopped_app_is_not_started(
    phase: Phase, wanted: Wanted, steps: list[str], kind: Kind, intent: StepName | None
) -> None:
    recovery = recover(interrupted(phase, intent, wanted=wanted, kind=kind), Facts(DISK))
    assert names(recovery) == steps
    assert "goes on" in recovery.reason


# --- every interruption leads somewhere -----------------------------------------------------


def carry_out(state: State, recovery: Recovery) -> State:
    """What the engine makes of it, without the world: each step's intent and outcome."""
    for step in recovery.steps:
        if step.name is StepName.ABANDON:
            state = lifecycle.advance(state, Event.ABANDONED, 2.0, step.why)
        elif step.name in OUTCOME:
            state = lifecycle.intend(state, step.name, 2.0)
            state = lifecycle.advance(state, OUTCOME[step.name], 2.0)
    return state


CASES = list(
    product(
        UNFINISHED,
        [None, *OUTCOME],
        ["deployment", "rollback"],
        [(), ("migrate",)],
        ["running", "stopped"],
        [DISK, Disk((ONE,), None, ONE.folder), Disk()],
    )
)


def test_every_interruption_ends_or_is_on_trial_unless_it_waits_for_a_person_to_start_it() -> None:
    for phase, intent, kind, pre_commands, wanted, disk in CASES:
        state = interrupted(phase, intent, pre_commands=pre_commands, wanted=wanted, kind=kind)
        recovery = recover(state, Facts(disk))
        after = carry_out(state, recovery).deployment
        case = (phase, intent, kind, pre_commands, wanted)
        assert after is not None
        if wanted == "stopped" and phase not in LEFT_OF_NO_RETURN:
            assert after.phase is Phase.SWITCHED, case
        elif wanted == "running":
            assert after.phase in (Phase.ABANDONED, Phase.STARTED), case
        else:
            assert after.phase in (Phase.ABANDONED, Phase.SWITCHED), case
        assert after.intent is None or not recovery.steps, case


def test_after_a_recovery_there_is_nothing_more_to_recover() -> None:
    for phase, intent, kind, pre_commands, wanted, disk in CASES:
        state = interrupted(phase, intent, pre_commands=pre_commands, wanted=wanted, kind=kind)
        once = carry_out(state, recover(state, Facts(disk)))
        assert recover(once, Facts(disk)).steps == ()


def test_no_recovery_repeats_the_pre_commands() -> None:
    for phase, intent, kind, pre_commands, wanted, disk in CASES:
        state = interrupted(phase, intent, pre_commands=pre_commands, wanted=wanted, kind=kind)
        assert {"unpack", "prepare"}.isdisjoint(names(recover(state, Facts(disk))))


# --- 6: a state that was lost ---------------------------------------------------------------


@pytest.mark.parametrize(("confirmed_at", "phase"), [(None, Phase.STARTED), (5.0, Phase.CONFIRMED)])
def test_a_lost_state_is_rebuilt_and_what_never_proved_itself_is_on_trial(
    confirmed_at: float | None, phase: Phase
) -> None:
    two = TWO._replace(confirmed_at=confirmed_at)
    rebuilt = rebuild(Disk((ONE, two), None, two.folder, ONE.folder), 9.0)
    made = rebuilt.deployment
    assert made is not None
    assert made.phase is phase
    assert (made.target, made.origin) == (as_release(two), as_release(ONE))
    assert made.id == 2, "the next deployment's number is one that the history does not have"
    assert rebuilt.wanted == "running"
    assert rebuilt.ghosts == ()
    assert recover(rebuilt, Facts(DISK)).steps == ()


def test_a_rebuilt_state_of_a_first_version_has_nothing_before_it() -> None:
    made = rebuild(Disk((ONE,), None, ONE.folder), 9.0).deployment
    assert made is not None
    assert made.origin is None
    assert made.phase is Phase.CONFIRMED


@pytest.mark.parametrize("disk", [Disk(), Disk((ONE,)), Disk((ONE,), None, "7-gone")])
def test_without_a_current_release_there_is_nothing_to_rebuild(disk: Disk) -> None:
    assert rebuild(disk, 9.0) == State()


def test_a_rebuilt_state_deploys_nothing_that_is_current_and_confirms_what_lives() -> None:
    disk = Disk((ONE, TWO), None, TWO.folder, ONE.folder)
    lives = Process(True, "RUNNING", True, TWO.folder, 60.0)
    due: Plan = plan(rebuild(disk, 9.0), None, Facts(disk, lives), Policy(), 9.0)
    assert [step.name for step in due.steps] == [StepName.CONFIRM]
    assert due.deployment is None
