"""plan(state, manifest, facts, now) -> Plan: which steps are due, and why.

Rules of a check, in this order
1. What was interrupted is finished or undone first (recovery.py).
2. An app that a person stopped stays stopped.
   One that runs all the same is stopped.
3. A version on trial that has been healthy for `min_healthy_time` is confirmed, a hot upgrade made
   permanent first. A hot upgrade whose VM has gone, or that is unhealthy, is gone back from.
4. No manifest: what runs goes on running.
5. The manifest's version is current: the app is started if it should run and does not.
6. The same version with another digest, or a ghost, is deployed only by force.
7. Any other version is deployed; hot or in full (strategy.py) is known when it is unpacked. It
   waits while a hot upgrade is on trial.
A release is never pruned while a link names it or the app runs from it, nor while it is the only
confirmed one.

PURE: facts in, steps out; `now` is read once by the caller, in seconds since the epoch.
"""

from typing import Literal, NamedTuple

from deployex_cli.core.lifecycle import STEPS, find_ghost, next_step, on_trial
from deployex_cli.core.manifest import Manifest
from deployex_cli.core.state import Deployment, Kind, Phase, Release, State, StepName
from deployex_cli.errors import NotFound, Refused

# which is nobody's fault
REBOOTED = "the machine was rebooted in its trial"
STOPPED = "somebody ended its VM in its trial"


class OnDisk(NamedTuple):
    """An unpacked release, as its marker tells."""

    folder: str  # "{n}-{version}"
    version: str
    digest: str | None
    hash: str
    confirmed_at: float | None  # seconds since the epoch
    within: tuple[Release, ...] = ()  # what it was upgraded from hot, and holds; the last one last


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
    pid: int | None = None
    vm: str | None = None  # this very process, on this boot of the machine: "{boot}/{pid}/{start}"
    boot: str = ""  # of the machine
    asked: str | None = None  # the last `vm` that ended because it was told to


class Node(NamedTuple):
    """What the Erlang node answered, if it was asked."""

    verdict: Literal["unasked", "healthy", "unhealthy", "unreachable"] = "unasked"
    why: str = ""  # of all but healthy
    release: str | None = None  # the version that runs, where release_handler knows it


class Facts(NamedTuple):
    """What is so, as against what was intended."""

    disk: Disk = Disk()
    process: Process = Process()
    node: Node = Node()


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
    current = serving(state, facts)
    if state.wanted == "stopped":
        process = facts.process
        runs = process.running or process.state == "BACKOFF"  # or will, again and again
        end = (Step(StepName.END, "it runs all the same"),) if runs else ()
        return Plan(end, _stopped_reason(state, current, manifest))
    judged = _judge(state, facts, policy, now)
    if judged and judged[0].name is StepName.GO_BACK:
        # what serves is only known after it: the next check compares
        return Plan((*_resume(facts), *judged), judged[0].why)
    if manifest is None:
        if current is None:
            return Plan((), "no version is published yet", notable=True)
        reason = f"no version is published; {current.version} goes on"
        return Plan((*judged, *_resume(facts)), reason)
    if current is not None and current.version == manifest.version:
        if _same_content(current, manifest):
            return Plan(
                (*judged, *_resume(facts)), _settled_reason(state, facts, current, policy, now)
            )
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
    if on_hot_trial(state, facts) and not policy.force:
        trial = _settled_reason(state, facts, current, policy, now) if current else ""
        reason = f"{manifest.version} waits for the end of a trial: {trial}"
        return Plan((*judged, *_resume(facts)), reason)
    deployment = begin(state, facts, _release(manifest), "deployment", manifest.pre_commands, now)
    origin = deployment.origin
    reason = f"deploy {manifest.version}" + (f" over {origin.version}" if origin else "")
    # nothing else would serve while they run, nor after one that failed
    first = _resume(facts) if deployment.pre_commands else ()
    return Plan((*judged, *first, *remaining(deployment, facts)), reason, deployment)


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
    current = serving(state, facts)
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


def rollback(
    state: State, facts: Facts, version: str | None, now: float, *, full: bool = False
) -> Plan:
    """The way back to the version before, or to `version`.

    The way back of a hot upgrade lies in `current`, which holds both: there it is gone hot; else it
    is a full deployment of what is on disk or in the release store. `full` forces the latter.
    Raises NotFound when nothing is deployed or there is no version before, Refused when the target
    is a ghost that nobody named.
    """
    disk = facts.disk
    current = serving(state, facts)
    if current is None:
        raise NotFound("nothing is deployed, so there is nothing to go back from")
    target: Release | None
    if version is None:
        target = version_before(disk, current)
        if target is None:
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
        inside = [release for release in current.within if release.version == version]
        there = disk.holding(version, None)
        target = inside[-1] if inside else as_release(there) if there else Release(version)
    reason = f"rolled back from {current.version}"
    within = target in current.within
    if within and full:
        target = target._replace(folder=None)  # another folder, out of the release store
    deployment = begin(state, facts, target, "rollback", (), now, reason)
    if within and not full:
        deployment = deployment._replace(strategy="hot_upgrade", phase=Phase.PREPARED)
    steps = remaining(deployment, facts)
    return Plan(steps, f"go back from {current.version} to {target.version}", deployment)


def serving(state: State, facts: Facts) -> OnDisk | None:
    """What is current; in the trial of a hot upgrade the version that the VM runs, not boots."""
    current = facts.disk.find(facts.disk.current)
    deployment = state.deployment
    if current is None or deployment is None or not on_hot_trial(state, facts):
        return current
    target = deployment.target
    if target.version == current.version:  # a hot rollback
        return current
    return after_upgrade(current, target)


def on_hot_trial(state: State, facts: Facts) -> bool:
    """Whether a hot upgrade runs in the VM that it was installed in, and is not permanent."""
    deployment = state.deployment
    return (
        deployment is not None
        and deployment.phase is Phase.INSTALLED
        and facts.process.vm is not None
        and facts.process.vm == deployment.vm
    )


def remaining(deployment: Deployment, facts: Facts) -> tuple[Step, ...]:
    """The steps from the deployment's phase up to its trial."""
    due = next_step(deployment)
    names = STEPS[deployment.strategy]
    todo = names[names.index(due) :] if due is not None else ()
    return tuple(Step(name, _why(name, deployment, facts)) for name in todo)


def _why(name: StepName, deployment: Deployment, facts: Facts) -> str:
    version, origin = deployment.target.version, deployment.origin
    number = len(deployment.pre_commands)
    there = facts.disk.holding(version, deployment.target.digest)
    before = origin.version if origin else None
    words = {
        StepName.UNPACK: f"{version} is {'on disk already' if there else 'not on disk'}",
        StepName.PREPARE: (
            f"{number} pre_commands of {version}" if number else f"{version} has no pre_commands"
        ),
        StepName.STOP: f"{before} makes way" if before else "nothing may run yet",
        StepName.SWITCH: f"current becomes {version}",
        StepName.START: f"{version} takes over",
        StepName.STAGE: f"the way from {before} to {version}",
        StepName.INSTALL: f"{version} takes over in the running VM",
    }
    return words[name]


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


def after_upgrade(current: OnDisk, target: Release) -> OnDisk:
    """What `current` is once `target`, which it holds, is what it boots: up, or back."""
    known = [release.version for release in current.within]
    if target.version in known:
        within = current.within[: known.index(target.version)]
    else:
        within = (*current.within, as_release(current))
    return OnDisk(current.folder, target.version, target.digest, target.hash, None, within)


def as_release(release: OnDisk) -> Release:
    """The release on disk as the identity that state and history speak of."""
    return Release(release.version, release.digest, release.hash, release.folder)


def folder_number(folder: str) -> int:
    """n of "{n}-{version}"; 0 for a folder that is none of ours."""
    number = folder.partition("-")[0]
    return int(number) if number.isascii() and number.isdigit() else 0


def version_before(disk: Disk, current: OnDisk) -> Release | None:
    """The version before: of a hot upgrade within `current`, else what `previous` names."""
    if current.within:
        return current.within[-1]
    previous = disk.find(disk.previous)
    # equal: a switch was cut short, its state lost
    return as_release(previous) if previous and previous.folder != current.folder else None


def _judge(state: State, facts: Facts, policy: Policy, now: float) -> tuple[Step, ...]:
    """What the trial comes to: nothing yet, a confirmation, or the way back of a hot upgrade."""
    current = facts.disk.find(facts.disk.current)
    deployment = state.deployment
    if current is None or not _is_on_trial(state, current):
        return ()
    phase = deployment.phase if deployment else None
    if phase in (Phase.INSTALLED, Phase.PERMANENT):
        why = _has_failed(state, facts)
        if why:
            return (Step(StepName.GO_BACK, why),)
    if not _is_healthy(facts) or _seconds_left(state, facts, policy, now) > 0:
        return ()
    lived = f"it has been healthy for {policy.min_healthy_time:g} s"
    if phase is Phase.INSTALLED:
        return (Step(StepName.MAKE_PERMANENT, lived),)
    return (Step(StepName.CONFIRM, lived), *_prune(facts, current))


def _has_failed(state: State, facts: Facts) -> str:
    """Why the trial of a hot upgrade is over; "" while it is not."""
    deployment, process = state.deployment, facts.process
    if facts.node.verdict == "unhealthy" and process.running:
        return facts.node.why
    if deployment is None or deployment.phase is not Phase.INSTALLED or on_hot_trial(state, facts):
        return ""
    if deployment.vm is not None and deployment.vm.partition("/")[0] != process.boot:
        return REBOOTED
    if deployment.vm is not None and deployment.vm == process.asked:
        return STOPPED
    return "its VM ended in the trial"


def _is_healthy(facts: Facts) -> bool:
    process = facts.process
    return (
        process.running
        and process.state == "RUNNING"
        and process.folder == facts.disk.current
        and facts.node.verdict in ("unasked", "healthy")
    )


def _seconds_left(state: State, facts: Facts, policy: Policy, now: float) -> float:
    """Of the time that the version on trial has to be healthy for."""
    deployment, uptime = state.deployment, facts.process.uptime or 0.0
    if deployment is not None and deployment.phase in (Phase.INSTALLED, Phase.PERMANENT):
        # what was permanent by then has had its time; a way back is short, and has it after that
        hurried = (deployment.kind == "rollback") == (deployment.phase is Phase.INSTALLED)
        since = max(now - deployment.phase_at, 0.0)
        return 0.0 if hurried else max(policy.min_healthy_time - min(since, uptime), 0.0)
    return max(policy.min_healthy_time - uptime, 0.0)


def _prune(facts: Facts, current: OnDisk) -> tuple[Step, ...]:
    # as if the confirmation were on disk already, for it will be by then
    confirmed = tuple(
        r._replace(confirmed_at=0.0) if r is current else r for r in facts.disk.releases
    )
    folders = prunable(facts.disk._replace(releases=confirmed), facts.process.folder)
    return (Step(StepName.PRUNE, "no link names them any more", folders),) if folders else ()


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


def _settled_reason(state: State, facts: Facts, current: OnDisk, policy: Policy, now: float) -> str:
    process = facts.process
    if not _is_on_trial(state, current):
        return f"{current.version} is current"
    if not process.running or process.uptime is None:
        return f"{current.version} is on trial and does not run ({process.state})"
    if facts.node.verdict in ("unhealthy", "unreachable"):
        return f"{current.version} is on trial and {facts.node.verdict}: {facts.node.why}"
    return f"{current.version} is on trial, {_seconds_left(state, facts, policy, now):.0f} s to go"


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
