"""The life of a deployment: the table, walked by every path, and what stands beside it."""

from __future__ import annotations

from collections import deque
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from deployex_cli.core.lifecycle import (
    ENDED,
    LEFT_OF_NO_RETURN,
    ON_TRIAL,
    OUTCOME,
    RIGHT_OF_NO_RETURN,
    STEPS,
    TABLE,
    Event,
    IllegalEvent,
    advance,
    fall_back,
    find_ghost,
    ghosted,
    intend,
    is_unfinished,
    next_step,
    on_trial,
    succeed,
)
from deployex_cli.core.state import (
    Deployment,
    Ghost,
    Kind,
    Phase,
    Release,
    State,
    StepName,
    Strategy,
)

OLD, NEW = Release("1.0.0", "a" * 64, "", "1-1.0.0"), Release("2.0.0", "b" * 64, "", "2-2.0.0")
UNFINISHED = sorted(set(Phase) - ENDED)

# written out once more, so that a row that slips into the table, or out of it, is noticed
EXPECTED = {
    "idle": {"unpacked": "unpacked", "abandoned": "abandoned"},
    "unpacked": {"prepared": "prepared", "abandoned": "abandoned"},
    "prepared": {"stopped": "stopped", "staged": "staged", "abandoned": "abandoned"},
    "stopped": {"switched": "switched", "rolled_back": "rolled_back"},
    "switched": {"started": "started", "rolled_back": "rolled_back"},
    "started": {
        "confirmed": "confirmed",
        "rolled_back": "rolled_back",
        "superseded": "superseded",
    },
    "staged": {
        "installed": "installed",
        "abandoned": "abandoned",
        "rolled_back": "rolled_back",
    },
    "installed": {
        "made_permanent": "permanent",
        "rolled_back": "rolled_back",
        "superseded": "superseded",
    },
    "permanent": {
        "confirmed": "confirmed",
        "rolled_back": "rolled_back",
        "superseded": "superseded",
    },
    "confirmed": {},
    "abandoned": {},
    "rolled_back": {},
    "superseded": {},
}


def deployment(
    phase: Phase = Phase.IDLE, kind: Kind = "deployment", intent: StepName | None = None
) -> Deployment:
    return Deployment(
        id=1,
        kind=kind,
        strategy="full_deployment",
        target=NEW,
        origin=OLD,
        pre_commands=(),
        phase=phase,
        intent=intent,
        began_at=1.0,
        phase_at=1.0,
        by="",
        reason="the reason",
    )


def reached_from(phase: Phase) -> set[Phase]:
    found, waiting = {phase}, deque([phase])
    while waiting:
        here = waiting.popleft()
        for (source, _), target in TABLE.items():
            if source is here and target not in found:
                found.add(target)
                waiting.append(target)
    return found


@pytest.mark.parametrize(("phase", "event"), list(product(Phase, Event)))
def test_an_event_does_what_the_table_says_or_is_refused(phase: Phase, event: Event) -> None:
    state = State(deployment=deployment(phase))
    after = EXPECTED[phase.value].get(event.value)
    if after is None:
        with pytest.raises(IllegalEvent, match=f"{event.value} in {phase.value}"):
            advance(state, event, 2.0)
    else:
        moved = advance(state, event, 2.0).deployment
        assert moved is not None
        assert moved.phase == after


@pytest.mark.parametrize("event", Event)
def test_without_a_deployment_nothing_can_happen_to_it(event: Event) -> None:
    with pytest.raises(IllegalEvent, match="in nothing"):
        advance(State(), event, 2.0)


def test_every_phase_is_reached_from_the_first() -> None:
    assert reached_from(Phase.IDLE) == set(Phase)


@pytest.mark.parametrize("phase", UNFINISHED)
def test_every_unfinished_phase_has_a_way_to_an_end_and_an_ended_one_goes_nowhere(
    phase: Phase,
) -> None:
    assert reached_from(phase) & ENDED
    for end in ENDED:
        assert reached_from(end) == {end}


def test_no_way_leads_back_so_that_every_deployment_ends() -> None:
    for phase in Phase:
        after = {target for (source, _), target in TABLE.items() if source is phase}
        assert not any(phase in reached_from(target) for target in after)


def test_only_left_of_the_point_of_no_return_can_it_be_abandoned() -> None:
    assert {p for p, e in TABLE if e is Event.ABANDONED} == LEFT_OF_NO_RETURN
    assert {p for p, e in TABLE if e is Event.ROLLED_BACK} == {
        *RIGHT_OF_NO_RETURN,
        *ON_TRIAL,
        Phase.STAGED,  # install_release failed
    }


def test_the_phases_are_left_right_on_trial_or_ended_and_never_two_of_them() -> None:
    groups = [LEFT_OF_NO_RETURN, RIGHT_OF_NO_RETURN, ON_TRIAL, ENDED]
    assert sorted(phase for group in groups for phase in group) == sorted(Phase)


@pytest.mark.parametrize("strategy", STEPS)
def test_the_steps_of_a_strategy_lead_from_the_first_phase_to_its_trial(strategy: Strategy) -> None:
    state = State(deployment=deployment()._replace(strategy=strategy))
    taken = []
    while (step := next_step(state.deployment)) is not None:
        taken.append(step)
        state = advance(state, OUTCOME[step], 2.0)
    assert tuple(taken) == STEPS[strategy]
    assert on_trial(state.deployment)


@pytest.mark.parametrize("phase", [Phase.PREPARED, Phase.STAGED])
def test_a_hot_upgrade_that_cannot_be_goes_on_in_full_and_prepares_nothing_twice(
    phase: Phase,
) -> None:
    hot = deployment(phase)._replace(strategy="hot_upgrade", intent=StepName.INSTALL)
    after = fall_back(State(deployment=hot), 2.0, "why").deployment
    assert after is not None
    assert (after.strategy, after.phase, after.intent) == (
        "full_deployment",
        Phase.PREPARED,
        None,
    )
    assert next_step(after) is StepName.STOP


@pytest.mark.parametrize("phase", Phase)
def test_a_deployment_is_unfinished_until_it_is_started_or_has_ended(phase: Phase) -> None:
    assert is_unfinished(deployment(phase)) == (phase in LEFT_OF_NO_RETURN | RIGHT_OF_NO_RETURN)
    assert on_trial(deployment(phase)) == (phase in ON_TRIAL)


def test_no_deployment_is_neither_unfinished_nor_on_trial() -> None:
    assert not is_unfinished(None)
    assert not on_trial(None)


def test_the_first_deployment_takes_nobodys_place() -> None:
    assert succeed(State(), deployment()) == State(deployment=deployment())


def test_an_intent_says_what_and_when_and_moves_nothing() -> None:
    moved = intend(State(deployment=deployment()), StepName.UNPACK, 5.0).deployment
    assert moved == deployment(intent=StepName.UNPACK)._replace(phase_at=5.0)


def test_a_reason_that_is_given_takes_the_place_of_the_one_before() -> None:
    state = State(deployment=deployment())
    abandoned = advance(state, Event.ABANDONED, 2.0, "the disk is full").deployment
    unpacked = advance(state, Event.UNPACKED, 2.0).deployment
    assert abandoned is not None and abandoned.reason == "the disk is full"
    assert unpacked is not None and unpacked.reason == "the reason"


class Lives(RuleBasedStateMachine):
    """Any steps in any order: deployments and rollbacks that follow each other."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State(deployment=deployment())
        self.now = 1.0

    @property
    def current(self) -> Deployment:
        assert self.state.deployment is not None
        return self.state.deployment

    @rule(step=st.sampled_from(list(OUTCOME)))
    def begins_a_step(self, step: StepName) -> None:
        before = self.current
        self.state = intend(self.state, step, self.now)
        assert self.current.intent is step
        assert self.current._replace(intent=before.intent, phase_at=before.phase_at) == before

    @rule(event=st.sampled_from(Event))
    def hears_an_event(self, event: Event) -> None:
        before, self.now = self.state, self.now + 1
        if event.value not in EXPECTED[self.current.phase.value]:
            with pytest.raises(IllegalEvent):
                advance(self.state, event, self.now)
            return
        self.state = advance(self.state, event, self.now)
        if event is Event.ABANDONED and before.trial is not None:
            trial = before.trial._replace(id=before.deployment.id)  # type: ignore[union-attr]
            assert self.state == before._replace(deployment=trial, trial=None)
            return
        taken_over = event in (Event.SWITCHED, Event.INSTALLED)
        assert self.state.trial == (None if taken_over else before.trial)
        assert self.current.intent is None
        assert self.current.phase_at == self.now
        assert (
            self.current._replace(
                phase=before.deployment.phase,  # type: ignore[union-attr]
                intent=before.deployment.intent,  # type: ignore[union-attr]
                phase_at=before.deployment.phase_at,  # type: ignore[union-attr]
            )
            == before.deployment
        )
        gone_back = self.current.kind == "rollback" and taken_over
        assert (self.state.ghosts != before.ghosts) <= gone_back
        if gone_back:
            assert find_ghost(self.state, OLD.version, OLD.digest)

    @rule(
        kind=st.sampled_from(["deployment", "rollback"]),
        event=st.none() | st.sampled_from(Event),
    )
    def is_followed(self, kind: Kind, event: Event | None) -> None:
        before = self.state
        allowed = self.current.phase in ENDED or (
            event is not None and event.value in EXPECTED[self.current.phase.value]
        )
        if not allowed:
            with pytest.raises(IllegalEvent, match="another deployment in"):
                succeed(before, deployment(kind=kind), event)
            return
        self.state = succeed(before, deployment(kind=kind), event)
        kept = self.was_on_hot_trial(before.deployment) and event is Event.SUPERSEDED
        trial = before.deployment if kept else None
        assert self.state == before._replace(deployment=deployment(kind=kind), trial=trial)

    @staticmethod
    def was_on_hot_trial(before: Deployment | None) -> bool:
        return before is not None and before.phase is Phase.INSTALLED

    @precondition(lambda self: self.current.phase in ENDED)
    @rule()
    def has_ended_for_good(self) -> None:
        for event in Event:
            with pytest.raises(IllegalEvent):
                advance(self.state, event, self.now)

    @invariant()
    def no_version_is_ghosted_twice(self) -> None:
        keys = [(ghost.version, ghost.digest) for ghost in self.state.ghosts]
        assert len(keys) == len(set(keys))


TestLives = Lives.TestCase


# --- ghosts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("phase", "event"), TABLE)
@pytest.mark.parametrize("kind", ["deployment", "rollback"])
def test_the_version_that_is_left_is_ghosted_when_a_rollback_takes_over_and_at_no_other_time(
    kind: Kind, phase: Phase, event: Event
) -> None:
    state = advance(State(deployment=deployment(phase, kind)), event, 9.0)
    if kind == "rollback" and event in (Event.SWITCHED, Event.INSTALLED):
        assert state.ghosts == (Ghost(OLD.version, OLD.digest, "the reason", 9.0),)
    else:
        assert state.ghosts == ()


def test_a_rollback_from_nothing_ghosts_nothing() -> None:
    back = deployment(Phase.STOPPED, "rollback")._replace(origin=None)
    assert advance(State(deployment=back), Event.SWITCHED, 9.0).ghosts == ()


def test_a_ghost_that_is_there_keeps_its_reason() -> None:
    first, again = Ghost("1", "aa", "first", 1.0), Ghost("1", "aa", "again", 2.0)
    other = Ghost("1", "bb", "other content", 3.0)
    assert ghosted(ghosted(State(), first), again).ghosts == (first,)
    assert ghosted(ghosted(State(), first), other).ghosts == (first, other)


@pytest.mark.parametrize(
    ("ghost", "asked", "forbidden"),
    [
        (("1", "aa"), ("1", "aa"), True),
        (("1", "aa"), ("1", "bb"), False),
        (("1", "aa"), ("2", "aa"), False),
        (("1", "aa"), ("1", None), True),
        (("1", None), ("1", "aa"), True),
        (("1", None), ("1", None), True),
        (("1", None), ("2", None), False),
    ],
)
def test_a_ghost_forbids_its_version_unless_both_digests_are_known_and_differ(
    ghost: tuple[str, str | None], asked: tuple[str, str | None], forbidden: bool
) -> None:
    found = find_ghost(State(ghosts=(Ghost(*ghost, "it failed", 1.0),)), *asked)
    assert (found is not None) == forbidden


@given(st.lists(st.tuples(st.sampled_from("12"), st.sampled_from(["aa", "bb"])), max_size=6))
def test_what_was_ghosted_is_found_and_nothing_else(marked: list[tuple[str, str]]) -> None:
    state = State()
    for version, digest in marked:
        state = ghosted(state, Ghost(version, digest, "it failed", 1.0))
    for version, digest in product("12", ["aa", "bb"]):
        assert (find_ghost(state, version, digest) is not None) == ((version, digest) in marked)


def test_a_hot_trial_is_on_again_when_what_was_to_replace_it_comes_to_nothing() -> None:
    trial = deployment(Phase.INSTALLED)._replace(strategy="hot_upgrade", vm="boot/1/2")
    other = deployment()._replace(id=2)
    state = succeed(State(deployment=trial), other, Event.SUPERSEDED)
    assert state.trial == trial
    assert advance(state, Event.ABANDONED, 2.0) == State(deployment=trial._replace(id=2))


def test_a_hot_trial_is_over_when_what_replaces_it_has_taken_over() -> None:
    trial = deployment(Phase.INSTALLED)._replace(strategy="hot_upgrade")
    state = succeed(State(deployment=trial), deployment()._replace(id=2), Event.SUPERSEDED)
    for event in (Event.UNPACKED, Event.PREPARED, Event.STOPPED):
        state = advance(state, event, 2.0)
        assert state.trial == trial
    assert advance(state, Event.SWITCHED, 2.0).trial is None
