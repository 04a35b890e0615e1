"""What a check has to do: each numbered rule of core/plan.py, the links and the pruning."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployex_cli.core.lifecycle import ON_TRIAL
from deployex_cli.core.manifest import Manifest
from deployex_cli.core.plan import (
    Disk,
    Facts,
    OnDisk,
    Plan,
    Policy,
    Process,
    as_release,
    begin,
    folder_number,
    links_after_switch,
    plan,
    prunable,
    rollback,
)
from deployex_cli.core.state import Deployment, Ghost, Kind, Phase, Release, State
from deployex_cli.errors import NotFound, Refused

A, B, C = "a" * 64, "b" * 64, "c" * 64
ONE = OnDisk("1-1.0.0", "1.0.0", A, "hash1", confirmed_at=100.0)
TWO = OnDisk("2-2.0.0", "2.0.0", B, "hash2", confirmed_at=None)
THREE = OnDisk("3-3.0.0", "3.0.0", C, "hash3", confirmed_at=None)
GONE = OnDisk("8-8.0.0", "8.0.0", None, "", None)  # somebody removed its folder
MANIFESTS = {
    "1.0.0": Manifest("1.0.0", "hash1", (), A),
    "2.0.0": Manifest("2.0.0", "hash2", (), B),
    "3.0.0": Manifest("3.0.0", "hash3", ("migrate", "seed"), C),
}
NOW = 1000.0
FULL = ["unpack", "prepare", "stop", "switch", "start"]


def running(folder: str | None, uptime: float = 60.0, state: str = "RUNNING") -> Process:
    return Process(supervised=True, state=state, running=True, folder=folder, uptime=uptime)


def facts(current: OnDisk | None = ONE, process: Process | None = None) -> Facts:
    """`current` and what came before it are on disk; it runs unless `process` says otherwise."""
    there = [ONE, TWO, THREE]
    known = there[: there.index(current) + 1] if current else []
    folder = current.folder if current else None
    previous = known[-2].folder if len(known) > 1 else None
    disk = Disk(tuple(known), None, folder, previous)
    return Facts(disk, running(folder) if process is None else process)


def on_trial(target: OnDisk = TWO) -> State:
    return State(deployment=moved(target, None)._replace(phase=Phase.STARTED))


def moved(target: OnDisk, origin: OnDisk | None, kind: Kind = "deployment") -> Deployment:
    made = begin(State(), Facts(), as_release(target), kind, (), NOW)
    return made._replace(origin=as_release(origin) if origin else None)


def decide(
    manifest: str | None,
    state: State = State(),  # noqa: B008  it is frozen
    known: Facts | None = None,
    *,
    force: bool = False,
) -> Plan:
    published = MANIFESTS[manifest] if manifest else None
    return plan(state, published, known or facts(), Policy(30.0, force), NOW)


def names(due: Plan) -> list[str]:
    return [step.name.value for step in due.steps]


# --- 2: an app that a person stopped --------------------------------------------------------


@pytest.mark.parametrize("manifest", [None, "1.0.0", "2.0.0"])
@pytest.mark.parametrize("force", [False, True])
def test_an_app_that_a_person_stopped_stays_stopped(manifest: str | None, force: bool) -> None:
    due = decide(manifest, State(wanted="stopped"), facts(process=Process()), force=force)
    assert due.steps == ()
    assert due.deployment is None
    assert ("2.0.0 waits" in due.reason) == (manifest == "2.0.0")
    assert "`deployex start`" in due.reason


def test_an_app_that_was_stopped_before_its_first_version_says_what_waits() -> None:
    assert "; 1.0.0 waits" in decide("1.0.0", State(wanted="stopped"), Facts()).reason


# --- 3: a version on trial ------------------------------------------------------------------


@pytest.mark.parametrize("manifest", [None, "2.0.0", "3.0.0"])
def test_what_has_lived_long_enough_on_trial_is_confirmed_whatever_is_published(
    manifest: str | None,
) -> None:
    due = decide(manifest, on_trial(), facts(TWO, running(TWO.folder, 30.0)))
    assert names(due)[0] == "confirm"


@pytest.mark.parametrize(
    "process",
    [
        running(TWO.folder, 29.9),
        running(TWO.folder, state="BACKOFF"),
        running(TWO.folder, state="STOPPING"),
        running(ONE.folder),
        running(None),
        Process(supervised=True, state="BACKOFF"),
        Process(supervised=True, state="RUNNING", running=True, folder=TWO.folder, uptime=None),
        Process(supervised=True, state="RUNNING", running=False, folder=TWO.folder, uptime=60.0),
        Process(),
    ],
)
def test_what_is_too_young_does_not_run_or_is_another_release_is_not_confirmed(
    process: Process,
) -> None:
    due = decide("2.0.0", on_trial(), facts(TWO, process))
    assert "confirm" not in names(due)
    assert due.deployment is None


@pytest.mark.parametrize("phase", sorted(set(Phase) - ON_TRIAL - {Phase.ABANDONED}))
def test_nothing_but_a_trial_is_confirmed(phase: Phase) -> None:
    state = State(deployment=moved(TWO, ONE)._replace(phase=phase))
    assert names(decide("2.0.0", state, facts(TWO))) == []


def test_an_attempt_that_was_abandoned_takes_nobodys_trial_away() -> None:
    state = State(deployment=moved(THREE, TWO)._replace(phase=Phase.ABANDONED))
    assert names(decide("2.0.0", state, facts(TWO)))[0] == "confirm"
    proven = TWO._replace(confirmed_at=5.0)
    known = Facts(Disk((ONE, proven), None, TWO.folder, ONE.folder), running(TWO.folder))
    assert names(decide("2.0.0", state, known)) == []


def test_what_runs_from_elsewhere_than_current_is_started_again() -> None:
    due = decide("2.0.0", State(), facts(TWO, running(ONE.folder)))
    assert names(due) == ["resume"]
    assert due.steps[0].why == f"{ONE.folder} runs, {TWO.folder} is current"


def test_a_confirmation_prunes_what_it_makes_superfluous() -> None:
    disk = Disk((ONE, TWO, THREE), None, THREE.folder, TWO.folder)
    due = decide("3.0.0", on_trial(THREE), Facts(disk, running(THREE.folder)))
    assert names(due) == ["confirm", "prune"]
    assert due.steps[1].folders == (ONE.folder,)


def test_what_is_about_to_be_confirmed_makes_an_older_confirmed_release_superfluous() -> None:
    disk = Disk((ONE, TWO), None, TWO.folder)
    due = decide("2.0.0", on_trial(), Facts(disk, running(TWO.folder)))
    assert [step.folders for step in due.steps] == [(), (ONE.folder,)]


# --- 4: no manifest -------------------------------------------------------------------------


def test_without_a_manifest_what_runs_goes_on_running() -> None:
    due = decide(None)
    assert (due.steps, due.deployment) == ((), None)
    assert "1.0.0 goes on" in due.reason


def test_without_a_manifest_and_without_a_release_it_is_worth_a_line() -> None:
    due = decide(None, known=Facts())
    assert (due.steps, due.notable) == ((), True)


# --- 5: the manifest's version is current ---------------------------------------------------


@pytest.mark.parametrize(
    ("state", "known", "reason"),
    [
        (State(), facts(ONE), "1.0.0 is current"),
        (on_trial(ONE), facts(ONE, running(ONE.folder, 18.0)), "1.0.0 is on trial, 12 s to go"),
        (on_trial(ONE), facts(ONE, running(None, 99.0)), "1.0.0 is on trial, 0 s to go"),
        (
            on_trial(ONE),
            facts(ONE, Process(True, "BACKOFF")),
            "1.0.0 is on trial and does not run (BACKOFF)",
        ),
    ],
)
def test_when_nothing_is_due_it_says_how_things_stand(
    state: State, known: Facts, reason: str
) -> None:
    assert decide("1.0.0", state, known) == Plan((), reason)


@pytest.mark.parametrize("manifest", [None, "1.0.0"])
@pytest.mark.parametrize(
    ("process", "steps"),
    [
        (running(ONE.folder), []),
        (Process(supervised=True, state="BACKOFF"), []),
        (Process(supervised=True, state="STARTING"), []),
        (Process(supervised=True, state="STOPPED"), ["resume"]),
        (Process(supervised=False, state="STOPPED"), ["resume"]),
        (Process(supervised=False, running=True, folder=ONE.folder, uptime=60.0), ["resume"]),
    ],
)
def test_the_app_is_started_when_nobody_else_sees_to_it(
    manifest: str | None, process: Process, steps: list[str]
) -> None:
    due = decide(manifest, known=facts(process=process))
    assert names(due) == steps
    assert due.deployment is None
    assert all(step.why for step in due.steps)


@pytest.mark.parametrize(("digest", "on_disk"), [(None, A), (A, None), (None, None)])
def test_a_digest_that_one_side_does_not_know_is_no_other_content(
    digest: str | None, on_disk: str | None
) -> None:
    disk = Disk((ONE._replace(digest=on_disk),), None, ONE.folder)
    manifest = Manifest("1.0.0", "hash1", (), digest)
    due = plan(State(), manifest, Facts(disk, running(ONE.folder)), Policy(), NOW)
    assert (due.steps, due.reason) == ((), "1.0.0 is current")


# --- 6: other content, and ghosts -----------------------------------------------------------


def test_other_content_under_the_same_version_is_said_aloud_and_not_deployed() -> None:
    due = plan(State(), Manifest("1.0.0", "", (), C), facts(), Policy(), NOW)
    assert (due.steps, due.deployment, due.notable) == ((), None, True)
    for said in ("other content", C[:12], A[:12], "--force"):
        assert said in due.reason


def test_other_content_under_the_same_version_is_deployed_by_force() -> None:
    due = plan(State(), Manifest("1.0.0", "", (), C), facts(), Policy(force=True), NOW)
    assert names(due) == FULL
    assert due.deployment is not None
    assert due.deployment.target == Release("1.0.0", C, "", None)


@pytest.mark.parametrize(("digest", "deployed"), [(B, False), (None, False), (C, True)])
def test_a_ghost_is_not_deployed_and_a_fixed_package_under_its_version_is(
    digest: str | None, deployed: bool
) -> None:
    state = State(ghosts=(Ghost("2.0.0", digest, "it crashed", 1.0),))
    due = decide("2.0.0", state)
    assert (due.deployment is not None) == deployed
    assert ("it crashed" in due.reason) != deployed


def test_a_ghost_on_a_machine_with_nothing_else_starts_nothing() -> None:
    state = State(ghosts=(Ghost("2.0.0", B, "it crashed", 1.0),))
    assert decide("2.0.0", state, Facts()).steps == ()


def test_a_ghost_is_deployed_by_force() -> None:
    state = State(ghosts=(Ghost("2.0.0", B, "it crashed", 1.0),))
    assert names(decide("2.0.0", state, force=True)) == FULL


def test_a_current_version_that_is_ghosted_goes_on_running() -> None:
    state = State(ghosts=(Ghost("1.0.0", A, "a person said so", 1.0),))
    assert decide("1.0.0", state).steps == ()


def test_beside_a_ghost_what_is_current_is_still_confirmed_and_started() -> None:
    ghosts = (Ghost("3.0.0", C, "it crashed", 1.0),)
    state = on_trial()._replace(ghosts=ghosts)
    assert names(decide("3.0.0", state, facts(TWO))) == ["confirm"]
    assert names(decide("3.0.0", state, facts(TWO, Process()))) == ["resume"]


# --- 7: any other version -------------------------------------------------------------------


def test_another_version_is_a_full_deployment_over_the_current_one() -> None:
    due = decide("3.0.0", State(deployment=moved(ONE, None)._replace(id=6, phase=Phase.CONFIRMED)))
    assert names(due) == FULL
    assert due.reason == "deploy 3.0.0 over 1.0.0"
    made = due.deployment
    assert made is not None
    assert (made.id, made.phase, made.intent) == (7, Phase.IDLE, None)
    assert (made.kind, made.strategy) == ("deployment", "full_deployment")
    assert made.target == Release("3.0.0", C, "hash3", None)
    assert made.origin == as_release(ONE)
    assert made.pre_commands == ("migrate", "seed")
    assert made.began_at == made.phase_at == NOW


def test_the_first_version_has_nothing_before_it() -> None:
    due = decide("1.0.0", known=Facts())
    assert names(due) == FULL
    assert due.deployment is not None
    assert due.deployment.origin is None
    assert due.deployment.id == 1


def test_an_older_version_is_deployed_like_any_other() -> None:
    due = decide("1.0.0", on_trial(), facts(TWO, running(TWO.folder, 1.0)))
    assert names(due) == FULL


def test_each_step_says_why_and_whether_the_release_is_there() -> None:
    assert [step.why for step in decide("1.0.0", known=facts(TWO)).steps] == [
        "1.0.0 is on disk already",
        "1.0.0 has no pre_commands",
        "2.0.0 makes way",
        "current becomes 1.0.0",
        "1.0.0 takes over",
    ]
    assert [step.why for step in decide("3.0.0", known=Facts()).steps][:3] == [
        "3.0.0 is not on disk",
        "2 pre_commands of 3.0.0",
        "nothing may run yet",
    ]


def test_the_same_version_with_other_content_on_disk_is_not_on_disk() -> None:
    due = plan(State(), Manifest("1.0.0", "", (), C), facts(TWO), Policy(), NOW)
    assert due.steps[0].why == "1.0.0 is not on disk"


# --- rollback -------------------------------------------------------------------------------


def test_a_rollback_goes_to_the_version_before_and_runs_no_pre_commands() -> None:
    due = rollback(State(), facts(TWO), None, NOW)
    assert names(due) == FULL
    made = due.deployment
    assert made is not None
    assert (made.kind, made.target, made.origin) == ("rollback", as_release(ONE), as_release(TWO))
    assert made.pre_commands == ()
    assert made.reason == "rolled back from 2.0.0"


def test_a_rollback_to_a_version_that_only_the_store_has_knows_only_its_name() -> None:
    due = rollback(State(), facts(TWO), "0.9.0", NOW)
    assert due.deployment is not None
    assert due.deployment.target == Release("0.9.0")


def test_a_rollback_takes_the_newest_of_several_folders_of_a_version() -> None:
    older, newer = ONE._replace(folder="9-1.0.0"), ONE._replace(folder="10-1.0.0")
    disk = Disk((newer, older, TWO), None, TWO.folder)
    due = rollback(State(), Facts(disk), "1.0.0", NOW)
    assert due.deployment is not None
    assert due.deployment.target.folder == "10-1.0.0"


def test_a_rollback_to_what_is_current_does_nothing() -> None:
    assert rollback(State(), facts(TWO), "2.0.0", NOW).steps == ()


def test_a_ghost_is_no_default_of_a_rollback_and_goes_when_it_is_named() -> None:
    state = State(ghosts=(Ghost("1.0.0", A, "it crashed", 1.0),))
    with pytest.raises(Refused, match=r"`deployex rollback 1\.0\.0`"):
        rollback(state, facts(TWO), None, NOW)
    assert names(rollback(state, facts(TWO), "1.0.0", NOW)) == FULL


@pytest.mark.parametrize(
    ("known", "version", "words"),
    [
        (Facts(), None, "nothing is deployed"),
        (Facts(), "1.0.0", "nothing is deployed"),
        (facts(ONE), None, "no version before 1.0.0"),
    ],
)
def test_a_rollback_from_nothing_or_to_nothing_says_so(
    known: Facts, version: str | None, words: str
) -> None:
    with pytest.raises(NotFound, match=words):
        rollback(State(), known, version, NOW)


# --- links ----------------------------------------------------------------------------------


def disk_of(current: str | None, previous: str | None, confirmed: frozenset[int]) -> Disk:
    releases = tuple(
        r._replace(confirmed_at=float(n) if n in confirmed else None)
        for n, r in enumerate((ONE, TWO, THREE))
    )
    return Disk(releases, None, current, previous)


@pytest.mark.parametrize(
    ("kind", "current", "previous", "target", "confirmed", "after"),
    [
        ("deployment", None, None, ONE, {}, (ONE, None)),
        ("deployment", ONE, None, TWO, {0}, (TWO, ONE)),
        ("deployment", ONE, None, TWO, {}, (TWO, ONE)),
        ("deployment", TWO, ONE, THREE, {0, 1}, (THREE, TWO)),
        ("deployment", TWO, ONE, THREE, {0}, (THREE, ONE)),
        ("deployment", TWO, ONE, ONE, {0, 1}, (ONE, TWO)),
        ("deployment", TWO, ONE, ONE, {0}, (ONE, TWO)),
        ("deployment", GONE, ONE, THREE, {0}, (THREE, ONE)),
        ("deployment", GONE, None, THREE, {0}, (THREE, None)),
        ("rollback", TWO, ONE, ONE, {0, 1}, (ONE, None)),
        ("rollback", THREE, ONE, TWO, {0, 1, 2}, (TWO, ONE)),
    ],
)
def test_previous_is_the_way_back_and_what_never_proved_itself_displaces_nothing_that_did(
    kind: Kind,
    current: OnDisk | None,
    previous: OnDisk | None,
    target: OnDisk,
    confirmed: set[int],
    after: tuple[OnDisk, OnDisk | None],
) -> None:
    folder = current.folder if current else None
    disk = disk_of(folder, previous.folder if previous else None, frozenset(confirmed))
    expected = (after[0].folder, after[1].folder if after[1] else None)
    assert links_after_switch(moved(target, current, kind), disk) == expected


folders = st.sampled_from([ONE.folder, TWO.folder, THREE.folder])
confirmed_sets = st.frozensets(st.integers(0, 2))


@given(
    kind=st.sampled_from(["deployment", "rollback"]),
    target=st.sampled_from([ONE, TWO, THREE]),
    origin=st.sampled_from([None, ONE, TWO, THREE]),
    previous=st.none() | folders | st.just("9-gone"),
    confirmed=confirmed_sets,
)
def test_a_switch_that_was_cut_anywhere_ends_at_the_same_links_when_it_is_done_again(
    kind: Kind,
    target: OnDisk,
    origin: OnDisk | None,
    previous: str | None,
    confirmed: frozenset[int],
) -> None:
    disk = disk_of(origin.folder if origin else None, previous, confirmed)
    deployment = moved(target, origin, kind)
    current, before = links_after_switch(deployment, disk)
    assert current == target.folder
    assert before != current
    # the engine's order: a way back is set before `current`, and taken away after it
    cuts = [disk._replace(current=current, previous=before)]
    if before is not None:
        cuts.append(disk._replace(previous=before))
    else:
        cuts.append(disk._replace(current=current))
    for cut in cuts:
        assert links_after_switch(deployment, cut) == (current, before)


# --- pruning --------------------------------------------------------------------------------

release_sets = st.lists(st.none() | st.floats(1, 1e9), max_size=6).map(
    lambda times: tuple(OnDisk(f"{n}-v", "v", None, "", at) for n, at in enumerate(times, 1))
)


@given(release_sets, st.data())
def test_nothing_that_is_linked_running_or_the_only_confirmed_release_is_ever_pruned(
    there: tuple[OnDisk, ...], data: st.DataObject
) -> None:
    any_folder = st.none() | st.sampled_from([*(r.folder for r in there), "99-gone"])
    new, current, previous, runs = (data.draw(any_folder) for _ in range(4))
    pruned = prunable(Disk(there, new, current, previous), runs)
    left = [r for r in there if r.folder not in pruned]
    assert not {new, current, previous, runs} & set(pruned)
    assert set(pruned) <= {r.folder for r in there}
    assert any(r.confirmed_at for r in there) == any(r.confirmed_at for r in left)
    kept_for_no_link = [r for r in left if r.folder not in {new, current, previous, runs}]
    assert len(kept_for_no_link) <= 1, "what nothing needs goes, all but one"
    for spare in kept_for_no_link:
        assert spare.confirmed_at == max(r.confirmed_at or 0.0 for r in there)


@pytest.mark.parametrize(
    ("folder", "number"),
    [("12-1.0.0", 12), ("0-x", 0), ("x-1", 0), ("-1", 0), ("", 0), ("1", 1), ("\u0661-1", 0)],
)
def test_the_number_of_a_folder_is_what_stands_before_its_first_dash(
    folder: str, number: int
) -> None:
    assert folder_number(folder) == number


def test_what_proved_itself_is_confirmed_before_the_next_version_takes_its_place() -> None:
    disk = Disk((ONE, TWO), None, TWO.folder, ONE.folder)
    due = decide("3.0.0", on_trial(), Facts(disk, running(TWO.folder)))
    assert names(due) == ["confirm", *FULL]
