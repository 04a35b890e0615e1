"""The life of one deployment: PHASE x EVENT -> PHASE, as one table.

                           .-- || STOPPED -> SWITCHED -> STARTED ----.   full deployment
    IDLE -> UNPACKED -> PREPARED                                      -> CONFIRMED
                           '-- STAGED || INSTALLED -> PERMANENT -----'   hot upgrade

Rules
1. A phase is something that is on disk or runs. Fetching, verifying and unpacking are one pass over
   the bytes, and what they leave before the folder has its name is nothing; so they are one phase.
2. || is the point of no return: the stop of the version that serves, or install_release. Left of it
   a failure ends in ABANDONED, and what serves was not touched. Right of it a deployment only ends
   by going on, or by another deployment (`rollback`) that takes its place: ROLLED_BACK.
3. STARTED, INSTALLED and PERMANENT are the trial: only a later look confirms it. A newer version
   that is deployed in its place makes it SUPERSEDED; until that one has taken over, the trial of a
   hot upgrade is kept in `trial`, and is on again when the newer one is ABANDONED.
4. `intent` names a step that was begun and whose outcome is not on disk. Only `advance` clears it.
5. A rollback ghosts the version that it leaves, in the same write that makes the other one serve
   (SWITCHED, INSTALLED): before that the version still serves, after that no machine may bring it
   back. There, too, a version that a person deploys all the same is a ghost no more.
6. A hot upgrade that cannot be becomes a full deployment of the same release (`fall_back`), never
   the other way round: so every deployment ends.

PURE: no os, socket, clock or store.
"""

from __future__ import annotations

from enum import StrEnum

from deployex_cli.core.state import (
    Deployment,
    Ghost,
    Phase,
    Release,
    State,
    StepName,
    Strategy,
)


class Event(StrEnum):
    """What happened to a deployment."""

    UNPACKED = "unpacked"
    PREPARED = "prepared"
    STOPPED = "stopped"
    SWITCHED = "switched"
    STARTED = "started"
    STAGED = "staged"
    INSTALLED = "installed"
    MADE_PERMANENT = "made_permanent"
    CONFIRMED = "confirmed"
    ABANDONED = "abandoned"
    ROLLED_BACK = "rolled_back"
    SUPERSEDED = "superseded"


TABLE: dict[tuple[Phase, Event], Phase] = {
    (Phase.IDLE, Event.UNPACKED): Phase.UNPACKED,
    (Phase.UNPACKED, Event.PREPARED): Phase.PREPARED,
    (Phase.PREPARED, Event.STOPPED): Phase.STOPPED,  # || the point of no return
    (Phase.STOPPED, Event.SWITCHED): Phase.SWITCHED,
    (Phase.SWITCHED, Event.STARTED): Phase.STARTED,
    (Phase.STARTED, Event.CONFIRMED): Phase.CONFIRMED,
    (Phase.PREPARED, Event.STAGED): Phase.STAGED,
    (Phase.STAGED, Event.INSTALLED): Phase.INSTALLED,  # || the point of no return
    (Phase.INSTALLED, Event.MADE_PERMANENT): Phase.PERMANENT,
    (Phase.PERMANENT, Event.CONFIRMED): Phase.CONFIRMED,
    # left of ||: nothing that serves was touched
    (Phase.IDLE, Event.ABANDONED): Phase.ABANDONED,
    (Phase.UNPACKED, Event.ABANDONED): Phase.ABANDONED,
    (Phase.PREPARED, Event.ABANDONED): Phase.ABANDONED,
    (Phase.STAGED, Event.ABANDONED): Phase.ABANDONED,
    # right of ||: the way back is a deployment of its own
    (Phase.STOPPED, Event.ROLLED_BACK): Phase.ROLLED_BACK,
    (Phase.SWITCHED, Event.ROLLED_BACK): Phase.ROLLED_BACK,
    (Phase.STARTED, Event.ROLLED_BACK): Phase.ROLLED_BACK,
    (Phase.STARTED, Event.SUPERSEDED): Phase.SUPERSEDED,
    (Phase.STAGED, Event.ROLLED_BACK): Phase.ROLLED_BACK,  # install_release failed
    (Phase.INSTALLED, Event.ROLLED_BACK): Phase.ROLLED_BACK,
    (Phase.INSTALLED, Event.SUPERSEDED): Phase.SUPERSEDED,
    (Phase.PERMANENT, Event.ROLLED_BACK): Phase.ROLLED_BACK,
    (Phase.PERMANENT, Event.SUPERSEDED): Phase.SUPERSEDED,
}

ENDED = frozenset({Phase.CONFIRMED, Phase.ABANDONED, Phase.ROLLED_BACK, Phase.SUPERSEDED})
LEFT_OF_NO_RETURN = frozenset({Phase.IDLE, Phase.UNPACKED, Phase.PREPARED, Phase.STAGED})
RIGHT_OF_NO_RETURN = frozenset({Phase.STOPPED, Phase.SWITCHED})
ON_TRIAL = frozenset({Phase.STARTED, Phase.INSTALLED, Phase.PERMANENT})

# which step leads to which event; the step's name is what stands in `intent`
OUTCOME: dict[StepName, Event] = {
    StepName.UNPACK: Event.UNPACKED,
    StepName.PREPARE: Event.PREPARED,
    StepName.STOP: Event.STOPPED,
    StepName.SWITCH: Event.SWITCHED,
    StepName.START: Event.STARTED,
    StepName.STAGE: Event.STAGED,
    StepName.INSTALL: Event.INSTALLED,
    StepName.MAKE_PERMANENT: Event.MADE_PERMANENT,
    StepName.CONFIRM: Event.CONFIRMED,
}

# the steps of each strategy, in order; the trial's own come when a later look has judged it
STEPS: dict[Strategy, tuple[StepName, ...]] = {
    "full_deployment": (
        StepName.UNPACK,
        StepName.PREPARE,
        StepName.STOP,
        StepName.SWITCH,
        StepName.START,
    ),
    "hot_upgrade": (StepName.UNPACK, StepName.PREPARE, StepName.STAGE, StepName.INSTALL),
}


class IllegalEvent(Exception):
    """An event that the table does not allow in this phase: a bug of ours, never of the world."""


def is_unfinished(deployment: Deployment | None) -> bool:
    """Whether a deployment was left between its first step and its start (a trial is not)."""
    return deployment is not None and deployment.phase not in ENDED | ON_TRIAL


def on_trial(deployment: Deployment | None) -> bool:
    """Whether the version that runs still has to prove itself."""
    return deployment is not None and deployment.phase in ON_TRIAL


def next_step(deployment: Deployment | None) -> StepName | None:
    """The step that is due in this phase; None: it has ended, or is on trial."""
    if deployment is None or not is_unfinished(deployment):
        return None
    for step in STEPS[deployment.strategy]:
        if (deployment.phase, OUTCOME[step]) in TABLE:
            return step
    return None


def displaced(deployment: Deployment | None) -> Event | None:
    """What another deployment in its place does to this one; None: it has ended already."""
    if deployment is None or deployment.phase in ENDED:
        return None
    if deployment.phase in LEFT_OF_NO_RETURN:
        return Event.ABANDONED
    return Event.SUPERSEDED if on_trial(deployment) else Event.ROLLED_BACK


def intend(state: State, step: StepName, now: float) -> State:
    """The state to write before `step` begins."""
    assert state.deployment is not None
    return state._replace(deployment=state.deployment._replace(intent=step, phase_at=now))


def advance(state: State, event: Event, now: float, reason: str = "") -> State:
    """The state to write after `event`. Raises IllegalEvent when the table has no such row."""
    deployment = state.deployment
    if deployment is None or (deployment.phase, event) not in TABLE:
        raise IllegalEvent(
            f"{event.value} in {deployment.phase.value if deployment else 'nothing'}"
        )
    moved = deployment._replace(
        phase=TABLE[deployment.phase, event],
        intent=None,
        phase_at=now,
        reason=reason or deployment.reason,
    )
    state = state._replace(deployment=moved)
    if event is Event.ABANDONED and state.trial is not None:
        # nothing that serves was touched: the hot upgrade that was on trial still is
        trial = state.trial._replace(id=moved.id)
        state = state._replace(deployment=trial, trial=None)
    if event in (Event.SWITCHED, Event.INSTALLED):
        state = unghosted(state._replace(trial=None), moved.target)
        if moved.kind == "rollback" and moved.origin is not None:
            leaving = moved.origin
            state = ghosted(state, Ghost(leaving.version, leaving.digest, moved.reason, now))
    return state


def fall_back(state: State, now: float, reason: str) -> State:
    """The state in which a hot upgrade goes on as a full deployment, from where both begin."""
    assert state.deployment is not None
    deployment = state.deployment._replace(
        strategy="full_deployment", phase=Phase.PREPARED, intent=None, phase_at=now, reason=reason
    )
    return state._replace(deployment=deployment)


def succeed(state: State, deployment: Deployment, event: Event | None = None) -> State:
    """The state in which `deployment` takes the place of the one before.

    `event` is what that does to the one before: SUPERSEDED or ROLLED_BACK; None when it has ended.
    Raises IllegalEvent when the one before has not ended and the table does not allow the event.
    """
    before = state.deployment
    ended = before is None or before.phase in ENDED
    if before is not None and not ended and (event is None or (before.phase, event) not in TABLE):
        raise IllegalEvent(f"another deployment in {before.phase.value}")
    hot = before is not None and before.phase is Phase.INSTALLED
    kept = before if hot and event is Event.SUPERSEDED else None  # else it was gone back from
    return state._replace(deployment=deployment, trial=kept)


def ghosted(state: State, ghost: Ghost) -> State:
    """The state with one more ghost; one that is there keeps its reason."""
    if any((g.version, g.digest) == (ghost.version, ghost.digest) for g in state.ghosts):
        return state
    return state._replace(ghosts=(*state.ghosts, ghost))


def unghosted(state: State, release: Release) -> State:
    """The state in which this release is no ghost any more."""
    ghost = find_ghost(state, release.version, release.digest)
    return state._replace(ghosts=tuple(g for g in state.ghosts if g != ghost))


def find_ghost(state: State, version: str, digest: str | None) -> Ghost | None:
    """The ghost that forbids a version with this digest, or None.

    A digest that either side does not know matches: without one, nobody can say that it is another.
    """
    for ghost in state.ghosts:
        same = digest is None or ghost.digest is None or ghost.digest == digest
        if ghost.version == version and same:
            return ghost
    return None
