"""plan(state, manifest, facts, now) -> Plan: which steps are due, and why.

Rules of a check, in this order
1. What was interrupted is finished or undone first (recovery.py).
2. An app that a person stopped stays stopped.
3. A version on trial that has lived `min_healthy_time` by the supervisor's record is confirmed.
4. No manifest: what runs goes on running.
5. The manifest's version is current: the app is started if it should run and does not.
6. The same version with another digest, or a ghost, is deployed only by force.
7. Any other version: a full deployment.
A release is never pruned while a link names it or the app runs from it, nor while it is the only
confirmed one.

PURE: facts in, steps out; `now` is read once by the caller, in seconds since the epoch.
"""

from typing import NamedTuple

from deployex_cli.core.lifecycle import find_ghost, on_trial
from deployex_cli.core.manifest import Manifest
from deployex_cli.core.state import Deployment, Kind, Phase, Release, State, StepName
from deployex_cli.errors import NotFound, Refused


class OnDisk(NamedTuple):
    """An unpacked release, as its marker tells."""

    folder: str  # "{n}-{version}"
    version: str
    digest: str | None
    hash: str
    confirmed_at: float | None  # seconds since the epoch


class Disk(NamedTuple):
    """What the service folder holds. A link to a folder without a marker counts as absent."""

    releases: tuple[OnDisk, ...] = ()
    new: str | None = None
    current: str | None = None
    previous: str | None = None
    leftovers: tuple[str, ...] = ()  # half-made entries of a killed run

    def find(self, folder: str | None) -> OnDisk | None:
        """The release in that folder, or None."""
        return next((r for r in self.releases if r.folder == folder), None)

    def holding(self, version: str, digest: str | None) -> OnDisk | None:
        """The newest release with that content; a digest of None matches any."""
        for release in sorted(self.releases, key=lambda r: folder_number(r.folder), reverse=True):
            if release.version == version and digest in (None, release.digest):
                return release
        return None


class Process(NamedTuple):
    """The supervisor and the app, by the supervisor's record and the process table."""

    supervised: bool = False  # the supervisor lives
    state: str = "STOPPED"  # its own word: STOPPED STARTING RUNNING BACKOFF STOPPING
    running: bool = False  # the app's process lives
    folder: str | None = None  # the release it runs from
    uptime: float | None = None  # seconds it has lived


class Facts(NamedTuple):
    """What is so, as against what was intended."""

    disk: Disk = Disk()
    process: Process = Process()


class Policy(NamedTuple):
    """What the configuration and the command line say about one app's deployments."""

    min_healthy_time: float = 30.0  # seconds
    force: bool = False


class Step(NamedTuple):
    """One step, and why it is due."""

    name: StepName
    why: str
    folders: tuple[str, ...] = ()  # for PRUNE and SWEEP


class Plan(NamedTuple):
    """Steps to take in order; none: nothing is due. `deployment` is the one that they begin."""

    steps: tuple[Step, ...]
    reason: str
    deployment: Deployment | None = None
    notable: bool = False  # worth a line even when nothing is due and nobody watches


def plan(state: State, manifest: Manifest | None, facts: Facts, policy: Policy, now: float) -> Plan:
    """What a check has to do once nothing is interrupted any more."""
    disk = facts.disk
    current = disk.find(disk.current)
    if state.wanted == "stopped":
        return Plan((), _stopped_reason(state, current, manifest))
    judged = _judge(state, facts, policy)
    if manifest is None:
        if current is None:
            return Plan((), "no version is published yet", notable=True)
        reason = f"no version is published; {current.version} goes on"
        return Plan((*judged, *_resume(facts)), reason)
    if current is not None and current.version == manifest.version:
        if _same_content(current, manifest):
            return Plan((*judged, *_resume(facts)), _settled_reason(state, facts, current, policy))
        if not policy.force:
            reason = (
                f"{manifest.version} was published again with other content"
                f" (sha256 {_short(manifest.sha256)}, deployed is {_short(current.digest)});"
                " it is deployed only with --force"
            )
            return Plan((*judged, *_resume(facts)), reason, notable=True)
    ghost = find_ghost(state, manifest.version, manifest.sha256)
    if ghost is not None and not policy.force:
        reason = (
            f"{manifest.version} is ghosted and not deployed: {ghost.reason}"
            " (`deployex check --force` deploys it all the same)"
        )
        return Plan((*judged, *_resume(facts)), reason)
    deployment = begin(state, facts, _release(manifest), "deployment", manifest.pre_commands, now)
    origin = deployment.origin
    reason = f"deploy {manifest.version}" + (f" over {origin.version}" if origin else "")
    return Plan((*judged, *full_deployment(deployment, facts)), reason, deployment)


def begin(
    state: State,
    facts: Facts,
    target: Release,
    kind: Kind,
    pre_commands: tuple[str, ...],
    now: float,
    reason: str = "",
) -> Deployment:
    """A deployment of `target` that has not done anything yet; the engine says by whom."""
    current = facts.disk.find(facts.disk.current)
    return Deployment(
        id=(state.deployment.id if state.deployment else 0) + 1,
        kind=kind,
        strategy="full_deployment",
        target=target,
        origin=as_release(current) if current else None,
        pre_commands=pre_commands,
        phase=Phase.IDLE,
        intent=None,
        began_at=now,
        phase_at=now,
        by="",
        reason=reason,
    )


def rollback(state: State, facts: Facts, version: str | None, now: float) -> Plan:
    """The way back to `previous`, or to `version`, which is on disk or in the release store.

    Raises NotFound when nothing is deployed or there is no version before, Refused when the target
    is a ghost that nobody named.
    """
    disk = facts.disk
    current = disk.find(disk.current)
    if current is None:
        raise NotFound("nothing is deployed, so there is nothing to go back from")
    if version is None:
        target = disk.find(disk.previous)
        if target is None or target == current:  # equal: a switch was cut short, its state lost
            raise NotFound(
                f"there is no version before {current.version} on this machine; name one:"
                " `deployex rollback VERSION`"
            )
        ghost = find_ghost(state, target.version, target.digest)
        if ghost is not None:
            raise Refused(
                f"the version before, {target.version}, is ghosted ({ghost.reason});"
                f" `deployex rollback {target.version}` goes there all the same"
            )
    else:
        if version == current.version:
            return Plan((), f"{version} is current already")
        target = disk.holding(version, None)
    release = as_release(target) if target else Release(version or "")
    reason = f"rolled back from {current.version}"
    deployment = begin(state, facts, release, "rollback", (), now, reason)
    steps = full_deployment(deployment, facts)
    return Plan(steps, f"go back from {current.version} to {release.version}", deployment)


def full_deployment(deployment: Deployment, facts: Facts) -> tuple[Step, ...]:
    """All steps of a full deployment, from the first."""
    version = deployment.target.version
    there = facts.disk.holding(version, deployment.target.digest)
    number = len(deployment.pre_commands)
    unpack = f"{version} is on disk already" if there else f"{version} is not on disk"
    prepare = f"{number} pre_commands of {version}" if number else f"{version} has no pre_commands"
    return (
        Step(StepName.UNPACK, unpack),
        Step(StepName.PREPARE, prepare),
        *switch_over(deployment),
    )


def switch_over(deployment: Deployment) -> tuple[Step, ...]:
    """The steps from the point of no return on."""
    version = deployment.target.version
    origin = deployment.origin
    return (
        Step(StepName.STOP, f"{origin.version} makes way" if origin else "nothing may run yet"),
        Step(StepName.SWITCH, f"current becomes {version}"),
        Step(StepName.START, f"{version} takes over"),
    )


def links_after_switch(deployment: Deployment, disk: Disk) -> tuple[str | None, str | None]:
    """What `current` and `previous` must name after the switch; the same when it is done again.

    `previous` is the way back, so one that never proved itself does not displace one that did.
    """
    target, origin = deployment.target.folder, deployment.origin
    previous = disk.previous
    if deployment.kind == "deployment" and origin is not None:
        known = disk.find(origin.folder)
        proven = known is not None and known.confirmed_at is not None
        # the target itself is no way back from it
        if known is not None and (proven or previous == target or disk.find(previous) is None):
            previous = origin.folder
    return target, previous if previous != target else None


def prunable(disk: Disk, running: str | None) -> tuple[str, ...]:
    """The folders that nothing needs: see the last rule above."""
    keep = {disk.new, disk.current, disk.previous, running}
    spare = [r for r in disk.releases if r.folder not in keep]
    if not any(r.confirmed_at is not None for r in disk.releases if r.folder in keep):
        confirmed = [r for r in spare if r.confirmed_at is not None]
        if confirmed:
            spare.remove(max(confirmed, key=lambda r: r.confirmed_at or 0.0))
    return tuple(r.folder for r in spare)


def as_release(release: OnDisk) -> Release:
    """The release on disk as the identity that state and history speak of."""
    return Release(release.version, release.digest, release.hash, release.folder)


def folder_number(folder: str) -> int:
    """n of "{n}-{version}"; 0 for a folder that is none of ours."""
    number = folder.partition("-")[0]
    return int(number) if number.isascii() and number.isdigit() else 0


def _judge(state: State, facts: Facts, policy: Policy) -> tuple[Step, ...]:
    """Confirms the version on trial, and prunes what its success makes superfluous."""
    process, disk = facts.process, facts.disk
    healthy = (
        process.running
        and process.state == "RUNNING"
        and process.folder == disk.current
        and process.uptime is not None
        and process.uptime >= policy.min_healthy_time
    )
    current = disk.find(disk.current)
    if not healthy or current is None or not _is_on_trial(state, current):
        return ()
    steps = [Step(StepName.CONFIRM, f"it has lived {policy.min_healthy_time:g} s")]
    # as if the confirmation were on disk already, for it will be by then
    confirmed = tuple(r._replace(confirmed_at=0.0) if r is current else r for r in disk.releases)
    folders = prunable(disk._replace(releases=confirmed), process.folder)
    if folders:
        steps.append(Step(StepName.PRUNE, "no link names them any more", folders))
    return tuple(steps)


def _is_on_trial(state: State, current: OnDisk) -> bool:
    """Whether what is current has still to prove itself.

    An attempt at another version that came to nothing takes nobody's trial away.
    """
    if on_trial(state.deployment):
        return True
    attempt = state.deployment is not None and state.deployment.phase is Phase.ABANDONED
    return attempt and current.confirmed_at is None


def _resume(facts: Facts) -> tuple[Step, ...]:
    """Starts the app when what should run does not, and nobody sees to it."""
    process, disk = facts.process, facts.disk
    if disk.current is None:
        return ()
    if not process.supervised:
        return (Step(StepName.RESUME, "no supervisor runs"),)
    if process.state == "STOPPED":
        return (Step(StepName.RESUME, "it should run and is stopped"),)
    # when both were lost, the state and a start
    if process.running and process.folder not in (None, disk.current):
        return (Step(StepName.RESUME, f"{process.folder} runs, {disk.current} is current"),)
    return ()


def _same_content(current: OnDisk, manifest: Manifest) -> bool:
    return manifest.sha256 is None or current.digest is None or manifest.sha256 == current.digest


def _settled_reason(state: State, facts: Facts, current: OnDisk, policy: Policy) -> str:
    process = facts.process
    if not _is_on_trial(state, current):
        return f"{current.version} is current"
    if not process.running or process.uptime is None:
        return f"{current.version} is on trial and does not run ({process.state})"
    left = max(policy.min_healthy_time - process.uptime, 0.0)
    return f"{current.version} is on trial, {left:.0f} s to go"


def _stopped_reason(state: State, current: OnDisk | None, manifest: Manifest | None) -> str:
    waiting = ""
    if manifest is not None and (current is None or current.version != manifest.version):
        ghost = find_ghost(state, manifest.version, manifest.sha256)
        waiting = f"; {manifest.version} {'is ghosted' if ghost else 'waits'}"
    version = current.version if current is not None else "it"
    return f"stopped by a person; `deployex start` makes {version} run again{waiting}"


def _release(manifest: Manifest) -> Release:
    return Release(manifest.version, manifest.sha256, manifest.hash)


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "unknown"
