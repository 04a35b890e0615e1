"""An interrupted deployment -> the steps that finish it or undo it.

Rules
1. What a killed run left half-made (temporary names) is swept away.
2. Left of the point of no return it is undone: nothing that serves was touched, and the next
   comparison begins anew, with what is on disk already.
3. But pre_commands run once: an intent of theirs without an outcome ends the deployment, ghosts the
   version and says so; and when they are done, it is finished rather than begun again.
4. Right of it, it is finished: stop, switch and start can all be done again. A hot upgrade is not
   installed again blindly: that step asks the node first what became of it.
5. An app that a person stopped is not started.
6. A lost or unreadable state is rebuilt from the markers and links.

Used by check and by supervise alike. PURE: no os, socket, clock or store.
"""

from typing import NamedTuple

from deployex_cli.core import plan
from deployex_cli.core.lifecycle import LEFT_OF_NO_RETURN, is_unfinished
from deployex_cli.core.plan import Disk, Facts, Step, as_release, folder_number
from deployex_cli.core.state import Deployment, Phase, State, StepName

MOVED = "moved by hand"  # the reason of a deployment by `deployex move`, which starts nothing


class Recovery(NamedTuple):
    """The steps that are due before anything is compared; `ghost`: why to ghost, if at all."""

    steps: tuple[Step, ...]
    reason: str = ""
    ghost: str | None = None


def recover(state: State, facts: Facts) -> Recovery:
    """What an interrupted run asks for; no steps when there was none."""
    sweep = _sweep(facts.disk)
    deployment = state.deployment
    if deployment is None or not is_unfinished(deployment):
        return Recovery(sweep)
    version = deployment.target.version
    gone = facts.disk.find(deployment.target.folder) is None
    if deployment.phase in LEFT_OF_NO_RETURN:
        if deployment.intent is StepName.PREPARE and deployment.pre_commands:
            reason = (
                f"the deployment of {version} was interrupted while its pre_commands ran;"
                " they are not run again by themselves (`deployex check --force` does)"
            )
            return Recovery((*sweep, Step(StepName.ABANDON, reason)), reason, ghost=reason)
        if deployment.strategy == "hot_upgrade" and state.wanted == "stopped":
            reason = f"the hot upgrade to {version} was interrupted, and the app stopped"
            return Recovery((*sweep, Step(StepName.ABANDON, reason)), reason)
        another = facts.process.vm != deployment.vm  # nothing of the staging is left in it
        if deployment.phase is Phase.STAGED and deployment.intent is None and another:
            reason = f"the hot upgrade to {version} was interrupted before its VM ended"
            return Recovery((*sweep, Step(StepName.ABANDON, reason)), reason)
        prepared = deployment.phase in (Phase.PREPARED, Phase.STAGED)
        if not prepared or (gone and deployment.intent is not StepName.INSTALL):
            where = deployment.intent or deployment.phase
            reason = f"the deployment of {version} was interrupted ({where.value}); it begins anew"
            return Recovery((*sweep, Step(StepName.ABANDON, reason)), reason)
    if deployment.reason == MOVED and deployment.phase is Phase.SWITCHED:
        reason = f"{version} was {MOVED}, and is to be started"
    else:
        phase = deployment.phase.value
        reason = f"the deployment of {version} was interrupted ({phase}); it goes on"
    return Recovery((*sweep, *remaining(state, facts)), reason)


def remaining(state: State, facts: Facts) -> tuple[Step, ...]:
    """The steps from the deployment's phase on; no start of an app that is to be stopped."""
    assert state.deployment is not None
    steps = plan.remaining(state.deployment, facts)
    if state.wanted == "stopped":
        steps = tuple(step for step in steps if step.name is not StepName.START)
    return steps


def rebuild(disk: Disk, now: float) -> State:
    """A state from the markers and links alone: what is current and not confirmed is on trial."""
    current = disk.find(disk.current)
    if current is None:
        return State()
    previous = disk.find(disk.previous)
    deployment = Deployment(
        id=max((folder_number(r.folder) for r in disk.releases), default=0),
        kind="deployment",
        strategy="full_deployment",
        target=as_release(current),
        origin=as_release(previous) if previous else None,
        pre_commands=(),
        phase=Phase.CONFIRMED if current.confirmed_at is not None else Phase.STARTED,
        intent=None,
        began_at=now,
        phase_at=now,
        by="recovery",
        reason="rebuilt from the release's marker",
    )
    return State(deployment=deployment)


def _sweep(disk: Disk) -> tuple[Step, ...]:
    if not disk.leftovers:
        return ()
    return (Step(StepName.SWEEP, "left half-made by a run that was killed", disk.leftovers),)
