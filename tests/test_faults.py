"""A part of the enumerated faults; `python -m tests.faults` runs all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import kills, power, pre_commands, recovery, strace
from tests.faults.__main__ import Trial, survive, trials
from tests.faults.disk import Disk
from tests.faults.scenarios import TEMPLATES, build_template

needs_strace = pytest.mark.skipif(
    not strace.is_here(), reason="strace is not installed, or may not trace here"
)
EVERY = {"update": 61, "rollback": 53, "publish": 11, "prune": 31, "migration": 37}


@pytest.fixture
def template(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    build_template(TEMPLATES[request.param], tmp_path / "template")
    return tmp_path / "template"


@needs_strace
@pytest.mark.parametrize(("name", "template"), [(n, n) for n in EVERY], indirect=["template"])
def test_a_known_version_runs_and_nothing_is_left_whatever_is_killed_or_refused(
    name: str, template: Path
) -> None:
    found = trials({name: template}, [name], None)
    spread = found[:: EVERY[name]]
    assert len(spread) > 5
    assert [failure for failure in map(survive, spread) if failure is not None] == []


@needs_strace
@pytest.mark.parametrize("template", ["update"], indirect=True)
def test_a_point_that_is_not_survived_is_told(
    template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing_is_ever_well(*_: object) -> None:
        raise AssertionError("it is not well")

    monkeypatch.setitem(kills.AFTERMATHS, "the next check", nothing_is_ever_well)
    point = kills.points_of_command("update", template)[50]
    trial = Trial("", "", str(point), kills.kill_command, (point, template, "the next check"))
    assert "it is not well" in str(survive(trial))


@needs_strace
@pytest.mark.parametrize("template", ["migration"], indirect=True)
def test_a_pre_command_and_its_child_have_points_from_their_fork_to_their_last_change(
    template: Path,
) -> None:
    found = pre_commands.points(template)
    both = [(p.call.name, p.born) for p in found if p.program == "pre_command"]
    child = [(p.call.name, p.born) for p in found if p.program == "pre_command's child"]
    assert both[:2] == [("setsid", True), ("execve", True)]
    assert both[-1] == ("unlink", False)
    assert child[0] == ("execve", True)
    assert child[-1] == ("fsync", False)
    assert {"rename", "fsync", "wait4"} <= {name for name, _ in both}


@needs_strace
def test_the_steps_of_a_check_are_told_apart_and_so_are_their_calls(tmp_path: Path) -> None:
    scenario = recovery.SCENARIOS["update"]
    build_template(scenario, tmp_path / "template")
    found = recovery.points(scenario, tmp_path / "template")
    assert list(found) == ["unpack", "prepare", "stop", "switch", "start"]
    assert {call.name for call in found["switch"]} & {"rename", "fsync", "symlink"}


def test_a_call_that_nobody_has_classified_fails_the_run(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text('execve("/bin/x", ["x"], 0x1 /* 1 vars */) = 0\nunheard_of(1, 2) = 0\n')
    with pytest.raises(strace.Unknown, match="unheard_of"):
        strace.effects(log)


def test_what_changes_something_is_told_from_what_does_not(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "\n".join(
            [
                'execve("/bin/x", ["x"], 0x1 /* 1 vars */) = 0',
                'openat(AT_FDCWD</x>, "/etc/passwd", O_RDONLY|O_CLOEXEC) = 3</etc/passwd>',
                'openat(AT_FDCWD</x>, "/x/new", O_WRONLY|O_CREAT|O_TRUNC, 0600) = 3</x/new>',
                'write(3</x/new>, "abc", 3) = 3',
                'write(1<pipe:[12]>, "said", 4) = 4',
                'rename("/x/new", "/x/old") = -1 EACCES (Permission denied)',
                'connect(4<socket:[5]>, {sa_family=AF_UNIX, sun_path="/s"}, 5 <unfinished ...>',
            ]
        )
    )
    shown = [(call.name, call.nth, strace.kind(call)) for call in strace.effects(log)]
    assert shown == [
        ("openat", 2, "disk"),
        ("write", 1, "disk"),
        ("rename", 1, "disk"),
        ("connect", 1, "socket"),
    ]


# --- the disk that forgets ----------------------------------------------------------------------


def contents(disk: Disk) -> list[dict[str, bytes]]:
    """What may be in the files that are there, for each image."""
    images = {image.digest(): image for image in disk.images()}.values()
    return [
        {name: content for name, (kind, _, content) in image.found.items() if kind == "file"}
        for image in images
    ]


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    (tmp_path / "var").mkdir()
    (tmp_path / "var/file").write_bytes(b"old")
    return Disk(tmp_path, ("var",))


def replaced(disk: Disk, *, file_synced: bool, folder_synced: bool) -> list[dict[str, bytes]]:
    disk.create(f"{disk.root}/var/.tmp", 0o600, truncate=True)
    disk.write(f"{disk.root}/var/.tmp", b"newer!", None)
    if file_synced:
        disk.sync(f"{disk.root}/var/.tmp")
    disk.rename(f"{disk.root}/var/.tmp", f"{disk.root}/var/file")
    if folder_synced:
        disk.sync(f"{disk.root}/var")
    return contents(disk)


def test_a_file_that_was_synced_and_whose_folder_was_is_there_and_whole(disk: Disk) -> None:
    assert replaced(disk, file_synced=True, folder_synced=True) == [{"var/file": b"newer!"}]


def test_without_the_folders_sync_it_is_the_old_one_or_the_new_one(disk: Disk) -> None:
    found = replaced(disk, file_synced=True, folder_synced=False)
    assert {image["var/file"] for image in found} == {b"old", b"newer!"}


def test_without_the_files_own_sync_it_may_be_empty_torn_or_zeros(disk: Disk) -> None:
    found = replaced(disk, file_synced=False, folder_synced=True)
    assert {image["var/file"] for image in found} == {b"", b"new", b"\0" * 6, b"newer!"}


def test_what_was_appended_may_be_lost_but_not_what_was_there_before(disk: Disk) -> None:
    disk.write(f"{disk.root}/var/file", b"more", None)
    assert {image["var/file"] for image in contents(disk)} == {
        b"old",
        b"oldmo",
        b"old\0\0\0\0",
        b"oldmore",
    }


@needs_strace
@pytest.mark.parametrize("template", ["publish"], indirect=True)
def test_the_model_is_played_what_a_command_really_does(template: Path) -> None:
    found = power.cuts("publish", template)
    first, last = found[0].image.found, found[-1].image.found
    assert "store/dist/tiny/tiny-0.1.1.tar.gz" not in first
    assert b'"version": "0.1.1"' in last["store/versions/tiny/local/current.json"][2]
    whole = (template / "packages/tiny-0.1.1.tar.gz").read_bytes()
    assert last["store/dist/tiny/tiny-0.1.1.tar.gz"][2] == whole
