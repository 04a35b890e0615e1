"""Hot upgrades of the example on a real node: what goes right, and what fails before install."""

from __future__ import annotations

import fcntl
import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from deployex_cli.config import load_config
from deployex_cli.core.plan import OnDisk, Process, as_release
from deployex_cli.core.state import Deployment, Phase
from deployex_cli.layout.otp_files import HELD
from deployex_cli.layout.releases import read_disk
from deployex_cli.otp.identity import Cookie, target_of
from deployex_cli.otp.node import Node, connect
from deployex_cli.otp.terms import Atom, text
from deployex_cli.supervise.record import process_facts, read_record
from deployex_cli.upgrade import Upgrade
from tests.conftest import ROOT
from tests.world import Ran, World, eventually

pytestmark = pytest.mark.beam

LIBRARY = "lib/counter-0.1.2/ebin"
SERVER = f"{LIBRARY}/Elixir.Counter.Server.beam"
APPUP = f"{LIBRARY}/counter.appup"
JELLYFISH = f"{LIBRARY}/jellyfish.json"

FIXED = ("counter", "os_pid", "node", "greeting", "only_runtime", "port")  # of an answer

Files = dict[str, bytes]
Edit = Callable[[Files], None]


# --- the world, as far as a hot upgrade touches it ----------------------------------------------


class View(NamedTuple):
    """What serves, what it is made of, and what the node holds of ours."""

    answer: dict[str, Any]
    files: dict[str, int]  # of lib/ and releases/ in current, but RELEASES -> size
    releases_file: list[str]  # its entries, as the node reads them, in the order of versions
    boots: str
    known: dict[str, str]  # release_handler: version -> status
    terms: list[str]  # our keys of persistent_term
    links: tuple[str | None, ...]  # new, current, previous


_SEEN = """
Known = case whereis(release_handler) of
    undefined -> [];
    _ -> [{V, atom_to_list(Status)} || {_, V, _, Status} <- release_handler:which_releases()]
end,
Keys = [lists:flatten(io_lib:format("~tp", [Key])) || {Key, _} <- persistent_term:get()],
{ok, [Releases]} = file:consult(filename:join([code:root_dir(), "releases", "RELEASES"])),
Entries = lists:sort([setelement(5, R, lists:sort(element(5, R))) || R <- Releases]),
{Known, [Key || Key <- Keys, string:find(Key, "deployex") =/= nomatch],
    [lists:flatten(io_lib:format("~0tp", [R])) || R <- Entries]}.
"""


def node(world: World, cookie: bytes | None = None) -> Node:
    """The node of what runs in this world."""
    app = load_config(str(world.config), world.env).app(world.app)
    target = target_of(app, world.vms()[0], world.env)
    return connect(target if cookie is None else target._replace(cookie=Cookie(cookie)))


def look(world: World) -> View:
    with node(world) as beam:
        known, terms, entries = beam.evaluate(_SEEN)
    current = world.service / "current"
    inside = [path for part in ("lib", "releases") for path in (current / part).rglob("*")]
    sizes = {
        str(path.relative_to(current)): path.stat().st_size for path in inside if path.is_file()
    }
    sizes.pop("releases/RELEASES", None)
    return View(
        answer=json.loads(world.get()),
        files=sizes,
        releases_file=[text(entry) for entry in entries],
        boots=(current / "releases/start_erl.data").read_text().split()[1],
        known={text(version): text(status) for version, status in known},
        terms=[text(term) for term in terms],
        links=tuple(world.link(name) for name in ("new", "current", "previous")),
    )


def environment(world: World) -> str:
    """The configuration of the running counter, all of it."""
    with node(world) as beam:
        words = (
            'lists:flatten(io_lib:format("~0tp", [lists:sort(application:get_all_env(counter))]))'
        )
        return text(beam.evaluate(f"{words}."))


def held(world: World) -> set[str]:
    """The versions of the app that `current` holds anything of."""
    current = world.service / "current"
    names = [path.name for path in (*current.glob("lib/*"), *current.glob("releases/*"))]
    found = {name.removeprefix(f"{world.app}-").removesuffix(".rel") for name in names}
    return {version for version in found if version.startswith("0.")}


@pytest.fixture(scope="module", autouse=True)
def variants(packages: Path) -> None:
    """The example's packages with something odd in them are there, too."""
    with (packages.parent / "packages.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run([ROOT / "examples/counter/build", packages, "all"], check=True)


@pytest.fixture
def counter(world: World) -> World:
    """0.1.1 runs, is confirmed, and has counted to three."""
    prepare(world)
    return world


def prepare(world: World, base: Path | None = None) -> None:
    world.configure('min_healthy_time = "100ms"', env={"COUNTER_GREETING": "set at run time"})
    publish(world, base or world.package("0.1.1"))
    world.ok("check")
    world.answers("0.1.1")
    world.confirm()
    for _ in range(3):
        world.get("/increment")


def publish(world: World, package: Path, *words: str) -> None:
    world.ok("publish", str(package), *words)


def trial(world: World, lines: str = "") -> None:
    """From now on a trial lasts until `end_trial`."""
    env = {"COUNTER_GREETING": "set at run time"}
    world.configure(f'min_healthy_time = "1h"\n{lines}', env=env)


def end_trial(world: World) -> None:
    world.configure('min_healthy_time = "1ms"', env={"COUNTER_GREETING": "set at run time"})
    world.confirm()


def crash(world: World) -> None:
    """The VM is gone, by no fault of its own."""
    pid = world.vms()[0]
    world.kill(pid, signal.SIGKILL)
    eventually(lambda: pid not in world.vms())


def goes_hot(world: World, *words: str) -> str:
    """A check upgrades hot, and not in the end in full; its output."""
    out = world.ok("check", *words)
    assert ": hot upgrade: from " in out and ": upgraded to " in out, out
    return out


def upgrade(world: World, version: str) -> None:
    """Publishes a version, which goes hot, and ends its trial."""
    world.publish(version)
    goes_hot(world)
    end_trial(world)
    assert world.answers(version)


def assert_same_vm(before: View, world: World, version: str, state: int) -> View:
    """The version runs in the VM of `before`: with its counter, and its own configuration."""
    now = look(world)
    expected = {
        "version": version,
        "counter": before.answer["counter"],
        "os_pid": before.answer["os_pid"],
        "state": state,
        "greeting": "set at run time",
        "only_runtime": "set at run time",
        "port": world.port,
        "configured_by": version,
    }
    assert {key: now.answer[key] for key in expected} == expected
    assert len(world.vms()) == 1
    assert "deployex_configuration" not in now.terms, "it holds secrets"
    assert now.links[0] is None
    assert leftovers(world) == []
    return now


def leftovers(world: World) -> list[str]:
    return [path for path in world.leftovers() if not path.endswith(f"/{HELD}")]


# --- packages -----------------------------------------------------------------------------------


def built(world: World, variant: str, version: str = "0.1.2") -> Path:
    """One of the example's packages with something odd in it (examples/counter/build)."""
    return world.packages / variant / f"counter-{version}.tar.gz"


def made(world: World, edit: Edit, base: str | Path = "counter-0.1.2") -> Path:
    """A package of the world's own: the files of one that was built, edited."""
    modes, files = {}, {}
    with tarfile.open(world.packages / f"{base}.tar.gz") as source:
        for member in source:
            if member.isfile():
                inside = source.extractfile(member)
                assert inside is not None
                modes[member.name], files[member.name] = member.mode, inside.read()
    edit(files)
    path = world.scratch / f"{len(list(world.scratch.iterdir()))}.tar.gz"
    with (
        gzip.open(path, "wb", compresslevel=1) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            executable = name.startswith(("bin/", "erts-")) and "/bin/" in f"/{name}"
            member.mode = modes.get(name, 0o755 if executable else 0o644)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


# --- what goes right ----------------------------------------------------------------------------


def test_a_hot_upgrade_is_on_trial_then_permanent_then_confirmed_in_the_same_vm(
    counter: World,
) -> None:
    before = look(counter)
    trial(counter)
    counter.publish("0.1.2")
    out = goes_hot(counter)
    assert "counter: hot upgrade: from 0.1.1 to 0.1.2" in out
    assert "counter: upgraded to 0.1.2" in out
    on_trial = assert_same_vm(before, counter, "0.1.2", state=2)
    assert on_trial.boots == "0.1.1", "a VM that dies on trial boots the version before"
    assert on_trial.known == {"0.1.2": "current", "0.1.1": "permanent"}
    assert counter.history()[-1] == ("upgraded", "0.1.2")
    assert "on trial" in counter.ok("check", "-v")
    assert look(counter).boots == "0.1.1"
    assert counter.phase() == "installed"

    counter.configure('min_healthy_time = "1ms"', env={"COUNTER_GREETING": "set at run time"})
    counter.ok("check")
    assert counter.phase() == "permanent"
    permanent = assert_same_vm(before, counter, "0.1.2", state=2)
    assert permanent.boots == "0.1.2"
    assert permanent.known == {"0.1.2": "permanent", "0.1.1": "old"}
    assert permanent.terms == []
    counter.confirm()
    assert counter.history()[-1] == ("confirmed", "0.1.2")
    marker = json.loads((counter.service / "current/.deployex.json").read_text())
    assert marker["version"] == "0.1.2" and marker["confirmed_at"] is not None
    assert [path.name for path in (counter.service / "releases").iterdir()] == ["1-0.1.1"]


def test_after_a_crash_the_upgraded_version_boots_with_its_runtime_configuration(
    counter: World,
) -> None:
    upgrade(counter, "0.1.2")
    crash(counter)
    answer = counter.answers("0.1.2")
    assert (answer["counter"], answer["state"]) == (0, 2)
    assert answer["configured_by"] == "0.1.2"
    assert answer["only_runtime"] == "set at run time"
    now = look(counter)
    assert now.known == {"0.1.2": "permanent", "0.1.1": "old"}
    assert counter.ok("check", "-v").strip() == "counter: 0.1.2 is current"


def test_a_chain_of_hot_upgrades_and_back_twice_hot_each_time(world: World) -> None:
    world.configure('min_healthy_time = "100ms"')
    world.deploy("0.1.0")
    world.confirm()
    prepare(world)
    before = look(world)
    assert before.links == (None, "0.1.1", "0.1.0")
    upgrade(world, "0.1.2")
    upgrade(world, "0.1.3")
    up = assert_same_vm(before, world, "0.1.3", state=3)
    assert up.links == before.links, "previous is the version before the last full deployment"
    assert up.known == {"0.1.3": "permanent", "0.1.2": "old", "0.1.1": "old"}
    world.get("/increment")
    before = look(world)
    assert "0.1.2 is current again hot" in world.ok("rollback")
    assert_same_vm(before, world, "0.1.2", state=2)
    end_trial(world)
    assert "0.1.1 is current again hot" in world.ok("rollback")
    end_trial(world)
    down = assert_same_vm(before, world, "0.1.1", state=1)
    assert down.boots == "0.1.1"
    assert down.known["0.1.1"] == "permanent"
    assert down.terms == []
    assert down.links == before.links
    assert [ghost["version"] for ghost in world.status()["ghosts"]] == ["0.1.3", "0.1.2"]
    assert world.history()[-4:] == [
        ("rolled back", "0.1.2"),
        ("confirmed", "0.1.2"),
        ("rolled back", "0.1.1"),
        ("confirmed", "0.1.1"),
    ]
    world.ok("rollback")  # what is within current is used up: previous, by a restart
    world.answers("0.1.0")


def test_rollback_goes_back_hot_from_a_hot_upgrade_that_is_on_trial(counter: World) -> None:
    before = look(counter)
    trial(counter)
    counter.publish("0.1.2")
    counter.ok("check")
    counter.get("/increment")
    risen = look(counter)
    assert "0.1.1 is current again hot, in the same VM" in counter.ok("rollback")
    back = assert_same_vm(risen, counter, "0.1.1", state=1)
    assert back.answer["counter"] == before.answer["counter"] + 1
    assert back.boots == "0.1.1"
    assert back.known["0.1.1"] == "permanent"
    assert back.terms == []
    assert [ghost["version"] for ghost in counter.status()["ghosts"]] == ["0.1.2"]
    end_trial(counter)
    assert "ghosted" in counter.ok("check", "-v")


def test_what_was_rolled_back_from_hot_can_be_upgraded_to_again(counter: World) -> None:
    before = look(counter)
    upgrade(counter, "0.1.2")
    counter.ok("rollback")
    end_trial(counter)
    trial(counter)
    goes_hot(counter, "--force")
    assert_same_vm(before, counter, "0.1.2", state=2)
    end_trial(counter)
    assert counter.status()["ghosts"] == []


def test_rollback_full_restarts_the_version_before_out_of_the_store(counter: World) -> None:
    upgrade(counter, "0.1.2")
    before = look(counter)
    out = counter.ok("rollback", "--full")
    assert "hot" not in out
    answer = counter.answers("0.1.1")
    assert answer["os_pid"] != before.answer["os_pid"]
    assert (answer["counter"], answer["configured_by"]) == (0, "0.1.1")
    assert os.readlink(counter.service / "current") == "releases/2-0.1.1"
    assert held(counter) == {"0.1.1"}
    end_trial(counter)


def test_without_a_way_down_the_target_boots_out_of_current(counter: World) -> None:
    upgrade(counter, "0.1.2")
    upgrade(counter, "0.1.3")
    before = look(counter)
    out = counter.ok("rollback", "0.1.1")
    assert "in full, then" in out
    assert "0.1.1 is current again, on trial" in out
    answer = counter.answers("0.1.1")
    assert answer["os_pid"] != before.answer["os_pid"]
    assert (answer["counter"], answer["configured_by"]) == (0, "0.1.1")
    after = look(counter)
    assert after.links == (None, "0.1.1", None)
    assert os.readlink(counter.service / "current") == "releases/1-0.1.1"
    assert after.boots == "0.1.1"
    assert after.known["0.1.1"] == "permanent"
    assert after.terms == []
    end_trial(counter)
    crash(counter)
    counter.answers("0.1.1")


def test_a_fun_in_the_resolved_configuration_gets_there(counter: World) -> None:
    before = look(counter)
    publish(counter, built(counter, "provider_fun"))
    goes_hot(counter)
    now = assert_same_vm(before, counter, "0.1.2", state=2)
    assert now.answer["shouted"] == "HELLO"


@pytest.mark.parametrize("greeting", ["set at run time", ""])
def test_an_erlang_release_gets_what_its_start_script_fills_in(
    greeting: str, packages: Path, epmd_port: int
) -> None:
    world = World(packages, epmd_port, "erlang_counter")
    env = {"COUNTER_GREETING": greeting} if greeting else {}
    try:
        world.configure('language = "erlang"\nmin_healthy_time = "1ms"', env=env)
        world.deploy("0.1.1")
        world.confirm()
        world.get("/increment")
        before = look(world).answer
        assert before["greeting"] == (greeting or "hello from runtime")
        for version, state in (("0.1.2", 2), ("0.1.3", 3), ("0.1.2", 2), ("0.1.1", 1)):
            if state > before["state"]:
                world.publish(version)
                goes_hot(world)
            else:
                assert "hot, in the same VM" in world.ok("rollback")
            world.confirm()
            now = look(world)
            assert {key: now.answer[key] for key in FIXED} == {key: before[key] for key in FIXED}
            assert (now.answer["version"], now.answer["state"]) == (version, state)
            assert (now.boots, now.known[version], now.terms) == (version, "permanent", [])
            before = now.answer
    finally:
        world.end()


# --- dry runs -----------------------------------------------------------------------------------


def test_dry_runs_tell_the_instructions_and_leave_nothing_here_or_on_the_node(
    counter: World,
) -> None:
    counter.publish("0.1.2")
    temporary = counter.scratch / "tmp"
    temporary.mkdir()
    env = {"TMPDIR": str(temporary)}
    before, configured = look(counter), environment(counter)
    disk = sorted(str(path) for path in counter.root.rglob("*"))
    state = counter.state_file.read_bytes()
    counts = []
    for words in [("upgrade", "0.1.2"), ("check",)] * 2:
        out = counter.ok(*words, "--dry-run", env=env)
        assert "hot upgrade: from 0.1.1 to 0.1.2" in out
        lines = [line.strip() for line in out.splitlines()]
        assert lines.index("point_of_no_return") < lines.index(
            "{code_change,up,[{'Elixir.Counter.Server',[]}]}"
        )
        assert "set_env" not in out, "the hook is none of the package's instructions"
        counts.append(atoms(counter))
    assert counts[-1] - counts[0] < len(counts) - 1, "no run leaves an atom of its own"
    assert look(counter) == before
    assert environment(counter) == configured
    assert counter.state_file.read_bytes() == state
    assert sorted(str(path) for path in counter.root.rglob("*")) == disk
    assert list(temporary.iterdir()) == []


def atoms(world: World) -> int:
    with node(world) as beam:
        return int(beam.call("erlang", "system_info", [Atom("atom_count")]))


def test_a_dry_run_says_why_a_version_would_go_in_full(counter: World) -> None:
    publish(counter, made(counter, without(APPUP, JELLYFISH)))
    before = look(counter)
    for words in (("upgrade", "0.1.2", "--dry-run"), ("check", "--dry-run")):
        out = counter.ok(*words)
        assert "full deployment: the package holds no upgrade instructions" in out
    publish(counter, made(counter, refused_by_make_relup), "--replace")
    out = counter.ok("upgrade", "0.1.2", "--dry-run")
    assert "full deployment: " in out and "No.Such" in out
    assert look(counter) == before


@contextmanager
def staging(world: World) -> Iterator[tuple[Upgrade, Deployment, OnDisk]]:
    """A hot upgrade to 0.1.2, which is unpacked, and no engine that takes its steps."""
    app = load_config(str(world.config), world.env).app("counter")

    def process() -> Process:
        return process_facts(read_record(app.paths.record))

    disk = read_disk(app.paths)
    current, new = disk.find(disk.current), disk.holding("0.1.2", None)
    assert current is not None and new is not None
    deployment = Deployment(
        id=2,
        kind="deployment",
        strategy="hot_upgrade",
        target=as_release(new),
        origin=as_release(current),
        pre_commands=(),
        phase=Phase.PREPARED,
        intent=None,
        began_at=0.0,
        phase_at=0.0,
        by="",
        reason="",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", world.env)
        yield Upgrade(app, process, print), deployment, current


def test_staging_changes_nothing_that_runs_and_can_be_taken_back(counter: World) -> None:
    before, configured = look(counter), environment(counter)
    counter.publish("0.1.2")
    counter.ok("unpack", "0.1.2")
    with staging(counter) as (upgrade, deployment, current):
        upgrade.stage(deployment, current)
        staged = look(counter)
        assert staged.answer == before.answer
        assert environment(counter) == configured
        assert staged.known == {"0.1.1": "permanent", "0.1.2": "unpacked"}
        assert "deployex_configuration" in staged.terms
        with node(counter) as beam:  # it runs what stands before point_of_no_return
            answer = beam.call("release_handler", "check_install_release", ["0.1.2"])
        assert answer[0] == "ok"
        assert environment(counter) == configured
        assert "deployex_configuration" in look(counter).terms
        upgrade.stage(deployment, current)  # again, as after a kill
        assert look(counter) == staged
        upgrade.unstage(deployment, current)
    after = look(counter)
    assert after.terms == []
    assert after.known == before.known
    assert held(counter) == {"0.1.1"}
    assert after.releases_file == before.releases_file
    assert environment(counter) == configured


def test_a_dry_run_in_json_holds_the_strategy_why_and_the_instructions(counter: World) -> None:
    counter.publish("0.1.2")
    told = json.loads(counter.ok("upgrade", "0.1.2", "--dry-run", "--json"))
    assert (told["strategy"], told["reason"]) == ("hot_upgrade", "ok")
    assert "point_of_no_return" in told["instructions"]
    (due,) = json.loads(counter.ok("check", "--dry-run", "--json"))["apps"]
    assert [step["step"] for step in due["steps"]] == ["unpack", "prepare", "stage", "install"]
    publish(counter, made(counter, without(APPUP, JELLYFISH)), "--replace")
    told = json.loads(counter.ok("upgrade", "0.1.2", "--dry-run", "--json"))
    assert (told["strategy"], told["reason"]) == ("full_deployment", "not_found")
    assert told["instructions"] == []
    (due,) = json.loads(counter.ok("check", "--dry-run", "--json"))["apps"]
    assert "stop" in [step["step"] for step in due["steps"]]


def test_files_that_a_hot_upgrade_leaves_as_they_were_are_named(counter: World) -> None:
    publish(counter, made(counter, added("bin/counter", b"#!/bin/sh\n")))
    line = "counter: bin/counter differs, and stays that of 0.1.1"
    script = (counter.service / "current/bin/counter").read_bytes()
    assert line in counter.ok("upgrade", "0.1.2", "--dry-run")
    assert line in goes_hot(counter)
    assert (counter.service / "current/bin/counter").read_bytes() == script


# --- what a person may ask for, and does not get --------------------------------------------------


def test_where_nothing_was_ever_deployed_there_is_nothing_to_upgrade(world: World) -> None:
    world.publish("0.1.1")
    assert not world.service.exists()
    for words in (("--dry-run",), ()):
        ran = world.run("upgrade", "0.1.1", *words)
        assert (ran.code, "nothing is deployed, so there is nothing to upgrade" in ran.err) == (
            1,
            True,
        )


def test_an_upgrade_is_refused_while_another_is_on_trial_and_that_trial_goes_on(
    counter: World,
) -> None:
    before = look(counter)
    counter.publish("0.1.3")
    counter.publish("0.1.2")
    trial(counter)
    counter.ok("upgrade", "0.1.2")
    refused = counter.run("upgrade", "0.1.3")
    assert (refused.code, "the hot upgrade to 0.1.2 is still on trial" in refused.err) == (1, True)
    assert counter.phase() == "installed"
    end_trial(counter)
    after = assert_same_vm(before, counter, "0.1.2", state=2)
    assert after.boots == "0.1.2"


def test_an_app_that_is_stopped_is_not_upgraded_and_not_said_to_run(counter: World) -> None:
    counter.publish("0.1.2")
    counter.ok("stop")
    for version in ("0.1.1", "0.1.2"):
        ran = counter.run("upgrade", version)
        assert (ran.code, ran.out) == (1, "")
        assert "nothing runs that could be upgraded; `deployex start` starts 0.1.1" in ran.err
    assert counter.link("current") == "0.1.1"
    assert counter.is_silent()


# --- in full, and why ---------------------------------------------------------------------------


def without(*names: str) -> Edit:
    def edit(files: Files) -> None:
        for name in names:
            del files[name]

    return edit


def replaced(name: str, old: bytes, new: bytes) -> Edit:
    def edit(files: Files) -> None:
        assert old in files[name]
        files[name] = files[name].replace(old, new)

    return edit


def added(name: str, content: bytes) -> Edit:
    def edit(files: Files) -> None:
        files[name] = content

    return edit


def appup_alone(files: Files) -> None:
    without(JELLYFISH)(files)
    replaced(APPUP, b'{"0.1.1"', b'{"0.0.9"')(files)


def other_kernel(files: Files) -> None:
    """The same kernel by another name: the boot file names its folder."""
    (old,) = {name.split("/")[1] for name in files if name.startswith("lib/kernel-")}
    new = old[:-1] + ("8" if old[-1] == "9" else "9")
    for name in [name for name in files if name.startswith(f"lib/{old}/")]:
        files[name.replace(old, new)] = files.pop(name)
    for name in [name for name in files if name.endswith((".boot", "/counter.rel"))]:
        versions = old.replace("kernel-", 'kernel,"'), new.replace("kernel-", 'kernel,"')
        for ours, theirs in ((old, new), versions):
            files[name] = files[name].replace(ours.encode(), theirs.encode())


def refused_by_make_relup(files: Files) -> None:
    replaced(APPUP, b"[{add_module", b"[{update, 'No.Such', {advanced, []}}, {add_module")(files)


IN_FULL: Mapping[str, tuple[Edit | str, str]] = {
    "no instructions": (without(APPUP, JELLYFISH), "no jellyfish.json and no appup"),
    "from another version": (
        replaced(JELLYFISH, b"0.1.1", b"0.0.9"),
        "it leads from 0.0.9 to 0.1.2, and needed is 0.1.1 to 0.1.2",
    ),
    "two appups": (added(f"{LIBRARY}/other.appup", b"{}."), "2 appups stand beside"),
    "broken json": (added(JELLYFISH, b'{"from": '), "ebin/jellyfish.json: Expecting value"),
    "no appup of this version": (appup_alone, "counter.appup knows no way from 0.1.1"),
    "an appup that make_relup refuses": (refused_by_make_relup, "No.Such"),
    "an appup that is no term": ("bad_appup", "Could not parse file"),
    "a library without an appup": ("no_relup", "phrase"),
    "no rel": ("no_rel", "there is no .rel file of 0.1.2"),
    "other erts": ("other_erts", "full deployment: its runtime is erts-"),
    "other runtime": ("other_runtime", "the runtime changes (sasl "),
    "other kernel": (other_kernel, "the runtime changes (kernel "),
    "other content": ("other_lib", "lib/phrase-1.0.0/ebin/Elixir.Phrase.beam differs and its"),
    "other protocol": ("protocol", "consolidated protocols change (Counter.Describe)"),
}


@pytest.mark.parametrize("case", IN_FULL)
def test_what_cannot_go_hot_is_refused_by_upgrade_and_deployed_in_full_by_check(
    case: str, counter: World
) -> None:
    package, reason = IN_FULL[case]
    before = look(counter)
    publish(counter, made(counter, package) if callable(package) else built(counter, package))
    assert_refused(counter, reason, before)
    assert_goes_in_full(counter, reason, before)
    assert held(counter) == {"0.1.2"}


def assert_refused(world: World, reason: str, before: View) -> None:
    """`upgrade` does nothing by halves: it fails, and says why."""
    ran = world.run("upgrade", "0.1.2")
    assert (ran.code, reason in ran.err) == (1, True), ran
    assert look(world) == before
    assert leftovers(world) == []
    assert world.phase() == "abandoned"
    assert world.status()["ghosts"] == []


def assert_goes_in_full(world: World, reason: str, before: View) -> Ran:
    ran = world.run("check")
    assert (ran.code, reason in ran.out) == (0, True), ran
    answer = world.answers("0.1.2")
    assert answer["os_pid"] != before.answer["os_pid"]
    assert answer["counter"] == 0
    assert world.history()[-1] == ("deployed", "0.1.2")
    deployment = world.state()["deployment"]
    assert (deployment["strategy"], deployment["phase"]) == ("full_deployment", "started")
    assert world.link("current") == "0.1.2"
    assert world.link("previous") == "0.1.1"
    return ran


def test_an_elixir_release_without_jellyfish_goes_hot_by_its_appup(counter: World) -> None:
    before = look(counter)
    publish(counter, made(counter, without(JELLYFISH)))
    goes_hot(counter)
    assert_same_vm(before, counter, "0.1.2", state=2)


def test_without_sasl_in_the_release_that_runs_it_goes_in_full(world: World) -> None:
    prepare(world, built(world, "no_sasl", "0.1.1"))
    before = look(world)
    assert before.known == {}
    world.publish("0.1.2")
    reason = "the node runs no release_handler (sasl)"
    assert_refused(world, reason, before)
    assert_goes_in_full(world, reason, before)


def test_without_distribution_it_goes_in_full(world: World) -> None:
    prepare_without = 'distribution = "none"\nmin_healthy_time = "100ms"'
    world.configure(prepare_without)
    world.deploy("0.1.1")
    world.confirm()
    answer = json.loads(world.get())
    world.publish("0.1.2")
    ran = world.run("upgrade", "0.1.2")
    assert ran.code == 1
    assert 'distribution = "none", so its node is never asked' in ran.err
    assert json.loads(world.get()) == answer
    assert 'distribution = "none"' in world.ok("check")
    assert world.answers("0.1.2")["os_pid"] != answer["os_pid"]
    world.confirm()


def test_gleam_goes_in_full(packages: Path, epmd_port: int) -> None:
    world = World(packages, epmd_port, "gleam_counter")
    try:
        world.configure('language = "gleam"\nmin_healthy_time = "100ms"')
        publish(world, world.package("0.1.0"), "--version", "0.1.0")
        world.ok("check")
        answer = world.answers("0.1.0")
        publish(world, world.package("0.1.1"), "--version", "0.1.1")
        reason = "a Gleam package is no OTP release"
        ran = world.run("upgrade", "0.1.1")
        assert (ran.code, reason in ran.err) == (1, True), ran
        assert json.loads(world.get()) == answer
        assert reason in world.ok("check")
        assert world.answers("0.1.1")["os_pid"] != answer["os_pid"]
    finally:
        world.end()


# --- neither: the node does not answer ----------------------------------------------------------


def test_a_node_with_another_cookie_is_neither_upgraded_nor_restarted(counter: World) -> None:
    before = look(counter)
    set_cookie(counter, "other", b"monster")
    counter.publish("0.1.2")
    for words in (("check",), ("upgrade", "0.1.2")):
        ran = counter.run(*words)
        assert ran.code == 1
        assert "neither hot nor in full for now" in ran.err
        assert "cookie" in ran.err
    assert json.loads(counter.get()) == before.answer
    assert counter.status()["ghosts"] == []
    set_cookie(counter, "monster", b"other")
    assert look(counter) == before
    goes_hot(counter)
    assert_same_vm(before, counter, "0.1.2", state=2)


def set_cookie(world: World, cookie: str, known: bytes) -> None:
    with node(world, known) as beam:
        beam.evaluate(f"erlang:set_cookie(node(), {cookie}).")


def test_a_vm_that_stands_still_is_neither_upgraded_nor_restarted(counter: World) -> None:
    before = look(counter)
    pid = counter.vms()[0]
    counter.publish("0.1.2")
    counter.kill(pid, signal.SIGSTOP)
    try:
        ran = counter.run("check")
    finally:
        counter.kill(pid, signal.SIGCONT)
    assert ran.code == 1
    assert "neither hot nor in full for now" in ran.err
    assert look(counter) == before
    assert counter.status()["ghosts"] == []
    goes_hot(counter)
    assert_same_vm(before, counter, "0.1.2", state=2)


# --- not at all: what fails before install_release ----------------------------------------------


def assert_ghosted(world: World, ran: Ran, reason: str, before: View) -> None:
    """The version may not be deployed; what serves has noticed nothing."""
    assert (ran.code, reason in ran.err) == (1, True), ran
    assert look(world) == before
    assert leftovers(world) == []
    assert world.phase() == "abandoned"
    (ghost,) = world.status()["ghosts"]
    assert (ghost["version"], reason in ghost["reason"]) == ("0.1.2", True), ghost
    assert world.history()[-1] == ("failed", "0.1.2")
    again = world.ok("check", "-v")
    assert "0.1.2 is ghosted and not deployed" in again
    assert look(world) == before


def test_a_pre_command_that_fails_ends_a_hot_upgrade_before_anything_is_installed(
    counter: World,
) -> None:
    before = look(counter)
    words = ("--pre-command", "eval 'Counter.Release.fail()'")
    publish(counter, counter.package("0.1.2"), *words)
    assert_ghosted(counter, counter.run("check"), "exited with 1", before)


def test_pre_commands_of_a_hot_upgrade_run_once_out_of_the_new_release(counter: World) -> None:
    before = look(counter)
    notes = counter.scratch / "notes"
    command = f"eval 'Counter.Release.migrate(\"{notes}\")'"
    publish(counter, counter.package("0.1.2"), "--pre-command", command)
    goes_hot(counter)
    assert_same_vm(before, counter, "0.1.2", state=2)
    end_trial(counter)
    assert [line.split()[0] for line in notes.read_text().splitlines()] == ["0.1.2"]


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        ("no_list", "'Elixir.Counter.Provider':load/2 gave no configuration"),
        ("raises", "'Elixir.Counter.Provider':load/2 ended in error"),
    ],
)
def test_a_provider_that_fails_ghosts_the_version_and_touches_nothing(
    does: str, reason: str, counter: World
) -> None:
    before, configured = look(counter), environment(counter)
    publish(counter, built(counter, f"provider_{does}"))
    ran = counter.run("check")
    assert_ghosted(counter, ran, reason, before)
    assert environment(counter) == configured
    assert held(counter) == {"0.1.1"}


PROVIDER = f"{LIBRARY}/Elixir.Counter.Provider.beam"
OTHER_PROVIDER = """
-module('Elixir.Counter.Provider').
-export([init/1, load/2]).
init(Does) -> Does.
load(Config, _) -> Config.
"""
RUNTIME = "releases/0.1.2/runtime.exs"
NEW_CALL = b"""
{:ok, %{count: count}} = Counter.CodeChange.up(%{counter: 7})
config :counter, greeting: "counted #{count}"
"""

# The running VM resolves the new version's configuration with the code that it has. What that code
# cannot do says nothing against the version.
BY_NEW_CODE: Mapping[str, tuple[str, Edit, str]] = {
    "a provider that is new": (
        "new_provider",
        lambda files: None,
        "its provider 'Elixir.Counter.NewProvider' is new",
    ),
    "a provider that is changed": (
        "provider_fun",
        lambda files: files.update({PROVIDER: compiled(OTHER_PROVIDER)}),
        "its provider 'Elixir.Counter.Provider' is changed",
    ),
    "a call of a module that is new": (
        "",
        lambda files: files.update({RUNTIME: files[RUNTIME] + NEW_CALL}),
        "'Elixir.Config.Reader':load/2 ended in undef",
    ),
}


def compiled(source: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "Elixir.Counter.Provider.erl")
        path.write_text(source)
        subprocess.run(["erlc", "-o", folder, path], check=True)
        return path.with_suffix(".beam").read_bytes()


@pytest.mark.parametrize("case", BY_NEW_CODE)
def test_a_configuration_that_only_the_new_code_can_resolve_goes_in_full(
    case: str, counter: World
) -> None:
    variant, edit, reason = BY_NEW_CODE[case]
    before, configured = look(counter), environment(counter)
    publish(counter, made(counter, edit, Path(variant, "counter-0.1.2")))
    assert_refused(counter, reason, before)
    assert environment(counter) == configured
    assert_goes_in_full(counter, reason, before)
    if not variant:
        assert json.loads(counter.get())["greeting"] == "counted 7"


# --- once more ----------------------------------------------------------------------------------


def old_server(world: World) -> Edit:
    """The module of 0.1.1, whose state is another: what a fixed package must not leave."""

    def edit(files: Files) -> None:
        with tarfile.open(world.package("0.1.1")) as package:
            member = package.extractfile(SERVER.replace("0.1.2", "0.1.1"))
            assert member is not None
            files[SERVER] = member.read()

    return edit


@pytest.mark.parametrize("variant", ["", "provider_raises"])
def test_the_code_of_a_fixed_package_of_the_same_version_is_what_runs(
    variant: str, counter: World
) -> None:
    def broken(files: Files) -> None:
        old_server(counter)(files)
        if not variant:
            refused_by_make_relup(files)

    before = look(counter)
    publish(counter, made(counter, broken, Path(variant, "counter-0.1.2")))
    assert counter.run("upgrade", "0.1.2").code == 1
    assert look(counter) == before
    publish(counter, counter.package("0.1.2"), "--replace")
    goes_hot(counter)
    assert_same_vm(before, counter, "0.1.2", state=2)
    counter.get("/increment")
    assert json.loads(counter.get())["increments"] == 1


def test_what_a_killed_stage_left_is_no_hindrance(counter: World) -> None:
    before = look(counter)
    publish(counter, made(counter, old_server(counter)))
    counter.ok("unpack", "0.1.2")
    with staging(counter) as (upgrade, deployment, current):
        upgrade.stage(deployment, current)
    assert look(counter).known == {"0.1.1": "permanent", "0.1.2": "unpacked"}
    publish(counter, counter.package("0.1.2"), "--replace")
    goes_hot(counter)
    assert_same_vm(before, counter, "0.1.2", state=2)
    end_trial(counter)
    after = look(counter)
    assert after.known == {"0.1.2": "permanent", "0.1.1": "old"}
    assert after.terms == []


def test_beside_a_release_that_another_tool_left_unpacked_it_goes_in_full(counter: World) -> None:
    current = counter.service / "current"
    before = look(counter)
    with tarfile.open(counter.package("0.1.2")) as package:
        inside = ("lib/counter-0.1.2", "releases/0.1.2")
        names = [member for member in package if member.name.startswith(inside)]
        package.extractall(current, names, filter="data")
    (current / "releases/0.1.2/relup").write_text("stale")
    with node(counter) as beam:
        root = text(beam.call("code", "root_dir", []))
        rel = f"{root}/releases/0.1.2/counter.rel"
        answer = beam.call("release_handler", "set_unpacked", [rel, []])
        assert (answer[0], text(answer[1])) == ("ok", "0.1.2")
    counter.publish("0.1.2")
    assert_goes_in_full(counter, "full deployment: ", before)
    assert held(counter) == {"0.1.2"}
    assert look(counter).known == {"0.1.2": "permanent"}


def test_a_stale_library_of_other_content_never_runs(counter: World) -> None:
    before = look(counter)
    place = counter.service / "current/lib/counter-0.1.2"
    shutil.copytree(counter.service / "current/lib/counter-0.1.1", place)
    counter.publish("0.1.2")
    assert_goes_in_full(counter, "differs and its version does not", before)
    assert json.loads(counter.get())["state"] == 2
