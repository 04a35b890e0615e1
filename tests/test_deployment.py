"""The main job, on real releases: deployed, kept alive, replaced, brought back."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.world import World, eventually

pytestmark = pytest.mark.beam


def test_a_published_version_is_deployed_and_answers(world: World) -> None:
    world.publish("0.1.0")
    out = world.ok("check")
    answer = world.answers("0.1.0")
    assert "deployed to 0.1.0" in out
    assert answer["only_runtime"] is not None, "runtime.exs was applied"
    assert answer["port"] == world.port
    assert int(answer["os_pid"]) == world.record()["app"][0], "what we spawned is the BEAM itself"
    assert world.link("current") == "0.1.0"
    assert world.link("new") is None
    assert world.leftovers() == []


def test_the_next_version_takes_over_and_the_one_before_stays_as_the_way_back(world: World) -> None:
    world.deploy("0.1.0")
    world.confirm()
    world.deploy("0.1.1")
    assert world.link("previous") == "0.1.0"
    assert len(world.vms()) == 1
    world.confirm()
    assert world.history() == [
        ("deployed", "0.1.0"),
        ("confirmed", "0.1.0"),
        ("deployed", "0.1.1"),
        ("confirmed", "0.1.1"),
    ]


def test_it_is_confirmed_by_a_later_check_and_not_at_the_spawn(world: World) -> None:
    world.configure('min_healthy_time = "1h"')
    world.deploy("0.1.0")
    assert "on trial" in world.ok("check", "-v")
    assert world.phase() == "started"
    world.configure('min_healthy_time = "100ms"')
    eventually(lambda: world.status()["uptime_seconds"] > 0.1)
    assert "0.1.0 is confirmed" in world.ok("check")
    marker = json.loads((world.service / "current/.deployex.json").read_text())
    assert marker["confirmed_at"] is not None


def test_a_check_with_nothing_to_do_changes_nothing_and_says_nothing(world: World) -> None:
    world.deploy("0.1.0")
    world.confirm()
    before = world.state_file.stat()
    pid = world.vms()
    ran = world.run("check")
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert world.state_file.stat().st_mtime_ns == before.st_mtime_ns
    assert world.vms() == pid


def test_rollback_brings_the_version_before_back_and_ghosts_the_one_that_is_left(
    world: World,
) -> None:
    world.deploy("0.1.0")
    world.confirm()
    world.deploy("0.1.1")
    world.ok("rollback")
    world.answers("0.1.0")
    # a check that confirms says that, and the next one why nothing is due
    eventually(lambda: "ghosted" in world.ok("check", "-v"))
    assert world.answers("0.1.0")
    assert [g["version"] for g in world.status()["ghosts"]] == ["0.1.1"]
    again = world.run("rollback")
    assert again.code == 1
    assert "no version before 0.1.0" in again.err


def test_rollback_goes_to_a_version_that_only_the_store_has(world: World) -> None:
    world.publish("0.1.2")
    world.deploy("0.1.0")
    world.ok("rollback", "0.1.2")
    world.answers("0.1.2")
    assert world.link("current") == "0.1.2"


def test_a_version_that_never_proved_itself_does_not_displace_the_way_back(world: World) -> None:
    world.deploy("0.1.0")
    world.confirm()
    world.configure('min_healthy_time = "1h"')
    world.publish("0.2.0")
    world.ok("check")
    world.deploy("0.3.0")
    assert world.link("previous") == "0.1.0"
    world.ok("rollback")
    world.answers("0.1.0")


def test_a_version_that_fails_at_boot_is_started_again_and_never_confirmed(world: World) -> None:
    world.configure('min_healthy_time = "20s"')
    world.publish("0.2.0")
    world.ok("check")
    eventually(lambda: world.status()["crashes"] >= 2)
    assert world.run("check").code == 0
    assert world.phase() == "started"
    assert world.status()["last_exit"].startswith("exited with")
    assert list((world.service / "work").glob("erl_crash.dump")), "dumps land in its own folder"


def test_force_deploys_a_ghost(world: World) -> None:
    world.deploy("0.1.0")
    world.confirm()
    world.deploy("0.1.1")
    world.ok("rollback")
    world.answers("0.1.0")
    world.ok("check", "--force")
    world.answers("0.1.1")
    assert world.status()["ghosts"] == []


def test_the_same_version_with_other_content_is_said_and_needs_force(world: World) -> None:
    world.deploy("0.1.0")
    manifest = json.loads(world.manifest.read_text())
    manifest["sha256"] = "0" * 64
    world.manifest.write_text(json.dumps(manifest))
    ran = world.run("check")
    assert ran.code == 0
    assert "was published again with other content" in ran.out
    forced = world.run("check", "--force")
    assert forced.code == 3
    assert "sha256" in forced.err
    assert world.answers("0.1.0")


def test_dry_run_prints_each_step_with_its_reason_and_changes_nothing(world: World) -> None:
    world.publish("0.1.0")
    before = sorted(str(path) for path in world.root.rglob("*"))
    out = world.ok("check", "--dry-run")
    assert sorted(str(path) for path in world.root.rglob("*")) == before
    for word in ("unpack", "prepare", "stop", "switch", "start", "0.1.0 is not on disk"):
        assert word in out


def test_without_a_manifest_nothing_happens_and_it_says_so(world: World) -> None:
    ran = world.run("check")
    assert (ran.code, ran.err) == (0, "")
    assert "no version is published yet" in ran.out
    assert world.processes() == []


def test_a_manifest_that_goes_away_leaves_the_app_running(world: World) -> None:
    world.deploy("0.1.0")
    world.manifest.unlink()
    world.ok("check")
    assert world.answers("0.1.0")


def test_the_steps_alone_make_a_deployment(world: World) -> None:
    world.publish("0.1.0")
    world.publish("0.1.1")
    world.ok("unpack", "0.1.0")
    world.ok("unpack", "0.1.0")
    assert world.link("new") == "0.1.0"
    world.ok("move")
    world.ok("move")
    assert world.link("current") == "0.1.0"
    world.ok("start")
    pid = int(world.answers("0.1.0")["os_pid"])
    world.ok("start")
    assert int(world.answers("0.1.0")["os_pid"]) == pid
    world.ok("unpack", "0.1.1")
    assert "still runs from before" in world.ok("move")
    assert world.answers("0.1.0")
    world.ok("restart")
    world.answers("0.1.1")
    assert len(list((world.service / "releases").iterdir())) == 2
    world.ok("stop")
    world.ok("stop")
    assert world.is_silent()
    assert world.vms() == []


def test_move_with_nothing_unpacked_fails_and_says_what_comes_first(world: World) -> None:
    ran = world.run("move")
    assert ran.code == 1
    assert "deployex unpack VERSION" in ran.err


def test_an_app_that_a_person_stopped_stays_stopped_until_started(world: World) -> None:
    world.deploy("0.1.0")
    world.ok("stop")
    world.publish("0.1.1")
    assert "; 0.1.1 waits" in world.ok("check", "-v")
    assert world.is_silent()
    world.kill(world.supervisor(), signal.SIGTERM)
    eventually(lambda: not world.processes())
    world.ok("check")
    assert world.processes() == []
    world.ok("start")
    world.answers("0.1.0")
    world.ok("check")
    world.answers("0.1.1")


def test_a_check_starts_the_app_again_when_its_supervisor_is_gone(world: World) -> None:
    world.deploy("0.1.0")
    world.kill(world.supervisor(), signal.SIGTERM)
    eventually(lambda: not world.vms())
    world.ok("check")
    world.answers("0.1.0")


def test_superfluous_releases_are_pruned_when_a_version_is_confirmed(world: World) -> None:
    for version in ("0.1.0", "0.1.1", "0.3.0"):  # which are all deployed in full
        world.deploy(version)
        world.confirm()
    there = sorted(path.name for path in (world.service / "releases").iterdir())
    assert there == ["2-0.1.1", "3-0.3.0"]


def test_only_one_vm_runs_at_any_time_of_an_update(world: World) -> None:
    world.deploy("0.1.0")
    world.publish("0.1.1")
    most = 0
    process = world.begin("check")
    while process.poll() is None:
        most = max(most, len(world.vms()))
    process.communicate()
    world.answers("0.1.1")
    assert most == 1


@pytest.mark.parametrize("app", ["erlang_counter", "gleam_counter"])
def test_erlang_and_gleam_are_deployed_replaced_and_brought_back(
    app: str, packages: object, epmd_port: int
) -> None:
    world = World(packages, epmd_port, app)  # type: ignore[arg-type]
    try:
        world.configure(f'language = "{app.partition("_")[0]}"')
        for version in ("0.1.0", "0.1.1"):
            world.ok("publish", str(world.package(version)), "--version", version)
            world.ok("check")
            answer = world.answers(version)
            assert int(answer["os_pid"]) == world.vms()[0]
            assert answer["node"].startswith(world.node)
            world.confirm()
        world.ok("rollback")
        world.answers("0.1.0")
        line = Path(f"/proc/{world.vms()[0]}/cmdline").read_bytes()
        if app == "gleam_counter":
            assert b"monster" not in line, "our own command lines never show the cookie"
        world.ok("stop")
        assert world.vms() == []
    finally:
        world.end()


def test_two_apps_are_checked_in_one_run_and_one_that_fails_keeps_nobody_from_its_turn(
    world: World,
) -> None:
    text = world.config.read_text().replace(
        f"[apps.{world.app}]", f"[apps.aaa]\n[apps.{world.app}]"
    )
    world.config.write_text(text)
    bad = world.root / "store/versions/aaa/local"
    bad.mkdir(parents=True)
    (bad / "current.json").write_text("{")
    world.ok("publish", str(world.package("0.1.0")), "--app", "counter")
    ran = world.run("check")
    assert ran.code == 1
    assert "aaa" in ran.err
    world.answers("0.1.0")
    refused = world.run("restart")
    assert refused.code == 2
    assert "aaa, counter" in refused.err


def test_the_environment_is_scrubbed_and_the_apps_own_table_wins(world: World) -> None:
    world.configure(env={"WITH_SPACES": "a b 'c' $d", "RELEASE_NOTES": "mine"})
    inherited = {
        "RELEASE_VSN": "9.9.9",
        "RELEASE_ROOT": "/nowhere",
        "RELEASE_MINE": "kept",
        "ERL_FLAGS": "-nonsense",
        "DEPLOYEX_ERLANG_COOKIE": "monster",
        "NOTIFY_SOCKET": "/nowhere",
    }
    world.publish("0.1.0")
    world.ok("check", env=inherited)
    world.answers("0.1.0")
    environ = dict(
        item.split("=", 1)
        for item in Path(f"/proc/{world.vms()[0]}/environ").read_text().split("\0")
        if "=" in item
    )
    assert environ["WITH_SPACES"] == "a b 'c' $d"
    assert environ["RELEASE_NOTES"] == "mine"
    assert environ["RELEASE_MINE"] == "kept"
    assert environ["RELEASE_VSN"] == "0.1.0"
    for gone in ("ERL_FLAGS", "DEPLOYEX_ERLANG_COOKIE", "NOTIFY_SOCKET"):
        assert gone not in environ
    assert os.path.realpath(environ["RELEASE_ROOT"]).startswith(str(world.service))


@pytest.mark.parametrize("left", [b"", b"\0" * 40], ids=["empty", "zeros"])
def test_files_that_a_power_cut_tore_are_put_right_before_the_vm_reads_them(
    world: World, left: bytes
) -> None:
    world.deploy("0.1.0")
    world.ok("stop")
    for name in ("start_erl.data", "RELEASES"):
        (world.service / "current/releases" / name).write_bytes(left)
    world.ok("start")
    world.answers("0.1.0")
    said = (world.root / "log/counter-supervise.log").read_text()
    assert said.count("was torn or missing: put right") == 2
