"""What a hot upgrade puts into `current`: facts, copies, and a kill at any system call."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from deployex_cli.core.strategy import PackageFacts, RunningFacts, choose
from deployex_cli.errors import NotUpgradable, StateError
from deployex_cli.layout import files, upgrade_files
from deployex_cli.layout.otp_files import (
    HELD,
    KEPT,
    RELEASES,
    START_ERL,
    boots,
    keep_copies,
    make_boot,
    mend,
    read_holdings,
    write_releases,
)
from deployex_cli.layout.upgrade_files import (
    copy_libraries_of_priv_appups,
    package_facts,
    put_into,
    take_out,
)

APP = "counter"
ERTS = "15.2"


def write(path: Path, content: bytes | str, mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


def beam(code: bytes = b"code", compiled: bytes = b"/build") -> bytes:
    """A compiled module (OTP: beam_lib(3)), of a chunk that counts and one that only tells."""
    body = b"BEAM"
    for name, data in ((b"Code", code), (b"CInf", compiled)):
        body += name + struct.pack(">I", len(data)) + data + b"\0" * (-len(data) % 4)
    return b"FOR1" + struct.pack(">I", len(body)) + body


def release(folder: Path, version: str, origin: str | None = None) -> Path:
    """A release as Mix makes it, with instructions from `origin` if that is given."""
    write(folder / f"bin/{APP}", "#!/bin/sh\n", 0o755)
    write(folder / f"erts-{ERTS}/bin/beam.smp", "the emulator", 0o755)
    for library in ("kernel-10.2", "stdlib-6.2", "sasl-4.2", "poison-5.0"):
        name = library.partition("-")[0]
        write(folder / f"lib/{library}/ebin/{name}.beam", beam(name.encode()))
        write(folder / f"lib/{library}/ebin/{name}.appup", "of OTP")
    own = folder / f"lib/{APP}-{version}"
    write(own / f"ebin/{APP}.beam", beam(version.encode()))
    write(own / "priv/tool", "#!/bin/sh\n", 0o755)
    (own / "priv/latest").symlink_to("tool")
    (own / "priv/empty").mkdir()
    if origin:
        instructions(own, origin, version)
    inside = folder / f"releases/{version}"
    write(inside / f"{APP}.rel", f"the libraries of {version}")
    write(inside / "sys.config", "[].")
    write(inside / "consolidated/Elixir.Enumerable.beam", beam())
    write(folder / START_ERL, f"{ERTS} {version}\n")
    return folder


def instructions(library: Path, origin: str, version: str, **more: str) -> None:
    name = library.name.partition("-")[0]
    write(library / f"ebin/{name}.appup", f"from {origin}")
    document = {"name": name, "from": origin, "to": version, **more}
    write(library / "ebin/jellyfish.json", json.dumps(document))


@pytest.fixture
def current(tmp_path: Path) -> Path:
    """0.1.1 as it was put in place before it first started."""
    folder = release(tmp_path / "current", "0.1.1")
    write_releases(str(folder), APP)
    keep_copies(str(folder))
    return folder


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """0.1.2, unpacked, with the way from 0.1.1."""
    return release(tmp_path / "new", "0.1.2", "0.1.1")


def facts(new: Path, current: Path, origin: str = "0.1.1", target: str = "0.1.2") -> PackageFacts:
    return package_facts(str(new), str(current), APP, origin, target)


def put(new: Path, current: Path, to: str = "0.1.2") -> upgrade_files.Added:
    return put_into(str(current), str(new), APP, to)


def tree(folder: Path) -> dict[str, tuple[int, str | bytes]]:
    """All that is below: permissions, and the content, the link's target, or "" of a folder."""
    found: dict[str, tuple[int, str | bytes]] = {}
    for path in sorted(folder.rglob("*")):
        content: str | bytes = b"" if path.is_symlink() or path.is_dir() else path.read_bytes()
        content = str(path.readlink()) if path.is_symlink() else content
        found[str(path.relative_to(folder))] = (path.lstat().st_mode, content)
    return found


# --- facts --------------------------------------------------------------------------------------


def test_a_package_with_instructions_and_nothing_in_the_way_goes_hot(
    new: Path, current: Path
) -> None:
    found = facts(new, current)
    assert choose(found, RunningFacts(True), "elixir").reason == "ok"
    assert found.appups == (f"lib/{APP}-0.1.2/ebin/{APP}.appup",)
    assert (found.holds, found.app_runs, found.erts) == ("0.1.2", "0.1.1", (f"erts-{ERTS}",))
    assert (found.overlays, found.problem) == ((), "")
    (jellyfish,) = found.jellyfish
    assert jellyfish == (f"{APP}-0.1.2", "project", "0.1.1", "0.1.2", 1, "0.1.1")


def test_what_is_read_is_left_as_it_was(new: Path, current: Path) -> None:
    before = tree(new), tree(current)
    facts(new, current)
    assert (tree(new), tree(current)) == before


def test_the_appups_that_otp_ships_are_no_instructions(tmp_path: Path, current: Path) -> None:
    found = facts(release(tmp_path / "plain", "0.1.2"), current)
    assert found == PackageFacts("0.1.1", "0.1.2", holds="0.1.2")
    assert choose(found, RunningFacts(True), "elixir").reason == "not_found"


def test_a_dependency_and_an_umbrella_have_a_document_each(new: Path, current: Path) -> None:
    write(current / "lib/phrase-2.0.0/ebin/phrase.beam", beam(b"old"))
    for library in ("phrase-2.0.1", "web-0.1.2"):
        write(new / f"lib/{library}/ebin/{library.partition('-')[0]}.beam", beam(b"new"))
    instructions(new / "lib/phrase-2.0.1", "2.0.0", "2.0.1", type="dependency")
    instructions(new / "lib/web-0.1.2", "0.1.1", "0.1.2", type="project")
    found = facts(new, current)
    assert [(j.library, j.kind, j.runs) for j in found.jellyfish] == [
        (f"{APP}-0.1.2", "project", "0.1.1"),
        ("phrase-2.0.1", "dependency", "2.0.0"),
        ("web-0.1.2", "project", None),
    ]
    assert choose(found, RunningFacts(True), "elixir").reason == "ok"
    write(new / "lib/web-0.1.2/ebin/more.appup", "")
    assert choose(facts(new, current), RunningFacts(True), "elixir").reason == "not_found"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        ("[]", "it is no JSON object"),
        ("[" * 50_000, "recursion"),
        (b"\xff", "can't decode"),
        ('{"to": "0.1.2"}', '"from" is no version'),
        ('{"from": "0.1.1", "to": 2}', '"to" is no version'),
        (" " * (1 << 16) + " ", "it is longer than 65536 bytes"),
    ],
)
def test_a_document_that_cannot_be_used_is_named_with_what_is_wrong(
    new: Path, current: Path, content: bytes | str, problem: str
) -> None:
    path = f"lib/{APP}-0.1.2/ebin/jellyfish.json"
    write(new / path, content)
    found = facts(new, current)
    assert found.problem.startswith(f"{path}: ")
    assert problem in found.problem
    assert choose(found, RunningFacts(True), "elixir").reason == "error_reading_file"


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_a_document_that_is_no_file_is_neither_followed_nor_waited_for(
    new: Path, current: Path, tmp_path: Path, kind: str
) -> None:
    path = new / f"lib/{APP}-0.1.2/ebin/jellyfish.json"
    path.rename(tmp_path / "away.json")
    if kind == "link":
        path.symlink_to(tmp_path / "away.json")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    assert "jellyfish.json: " in facts(new, current).problem


def test_an_erlang_package_may_keep_its_appup_under_priv(tmp_path: Path, current: Path) -> None:
    folder = release(tmp_path / "plain", "0.1.2")
    path = f"lib/{APP}-0.1.2/priv/appup/{APP}.appup"
    write(folder / path, "from 0.1.1")
    assert facts(folder, current).appups == (path,)
    before = tree(folder)
    scratch = tmp_path / "scratch"
    copy_libraries_of_priv_appups(str(folder), str(scratch))
    placed = scratch / f"lib/{APP}-0.1.2/ebin/{APP}.appup"
    assert placed.read_text() == "from 0.1.1"
    assert tree(folder) == before, "a dry run leaves the release as it is"


def of_poison(change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda new: change(new / "lib/poison-5.0")


@pytest.mark.parametrize(
    ("change", "differing"),
    [
        (of_poison(lambda p: write(p / "ebin/poison.beam", beam(b"other"))), "ebin/poison.beam"),
        (of_poison(lambda p: write(p / "ebin/poison.beam", "no beam")), "ebin/poison.beam"),
        (of_poison(lambda p: write(p / "priv/a/b", "")), "priv"),
        (of_poison(lambda p: write(p / "ebin/a.app", "")), "ebin/a.app"),
        (of_poison(lambda p: (p / "ebin/poison.beam").unlink()), "ebin/poison.beam"),
        (of_poison(lambda p: (p / "ebin/poison.beam").chmod(0o755)), "ebin/poison.beam"),
        (of_poison(lambda p: (p / "ebin/x").symlink_to("y")), "ebin/x"),
    ],
)
def test_a_library_that_both_have_and_that_differs_is_named(
    new: Path, current: Path, change: Callable[[Path], object], differing: str
) -> None:
    change(new)
    found = facts(new, current)
    assert found.differing == (f"lib/poison-5.0/{differing}",)
    reason = choose(found, RunningFacts(True), "elixir").reason
    assert reason == "same_version_other_content"


def test_same_size_and_other_bytes_is_other_content_and_links_are_their_targets(
    new: Path, current: Path
) -> None:
    for folder, text, target in ((new, "one", "a"), (current, "two", "b")):
        write(folder / "lib/poison-5.0/priv/text", text)
        (folder / "lib/kernel-10.2/link").symlink_to(target)
    assert facts(new, current).differing == (
        "lib/kernel-10.2/link",
        "lib/poison-5.0/priv/text",
    )


def test_where_a_module_was_compiled_and_how_to_get_there_is_no_content(
    new: Path, current: Path
) -> None:
    library = new / "lib/poison-5.0"
    write(library / "ebin/poison.beam", beam(b"poison", b"/home/somebody/else"))
    instructions(library, "4.0", "5.0", type="dependency")
    found = facts(new, current)
    assert found.differing == ()
    assert choose(found, RunningFacts(True), "elixir").reason == "ok"


def test_another_kernel_or_a_missing_sasl_is_a_full_deployment(new: Path, current: Path) -> None:
    (new / "lib/kernel-10.2").rename(new / "lib/kernel-10.3")
    (current / "lib/sasl-4.2").rename(current / "lib/other-4.2")
    found = facts(new, current)
    assert found.runtime == ("kernel 10.2 to 10.3",)
    assert not found.has_sasl
    (new / f"erts-{ERTS}").rename(new / "erts-16.0")
    assert facts(new, current).erts == ("erts-16.0",)


def test_a_release_without_a_runtime_is_known_by_the_one_that_it_was_made_for(
    new: Path, current: Path
) -> None:
    for folder in (new, current):
        shutil.rmtree(folder / f"erts-{ERTS}")
    write(new / START_ERL, "16.0 0.1.2\n")
    found = facts(new, current)
    assert (found.erts, found.running_erts) == (("erts-16.0",), (f"erts-{ERTS}",))


def test_protocols_that_change_are_named_and_where_they_were_compiled_is_no_change(
    new: Path, current: Path
) -> None:
    consolidated = new / "releases/0.1.2/consolidated"
    write(consolidated / "Elixir.Enumerable.beam", beam(compiled=b"/elsewhere"))
    assert facts(new, current).protocols == ()
    write(consolidated / "Elixir.Enumerable.beam", beam(b"one implementation more"))
    write(consolidated / "Elixir.New.beam", beam())
    write(current / "releases/0.1.1/consolidated/Elixir.Gone.beam", beam())
    assert facts(new, current).protocols == ("Enumerable", "Gone", "New")


def test_what_a_hot_upgrade_leaves_as_it_was_is_said(new: Path, current: Path) -> None:
    write(new / "bin/tool", "")
    write(new / f"bin/{APP}", "#!/bin/sh\necho\n", 0o755)
    write(new / "overlay/deep/file", "")
    write(current / "tmp/of/the/app", "")
    assert facts(new, current).overlays == (f"bin/{APP}", "bin/tool", "overlay/deep/file")


@pytest.mark.parametrize("folder", ["current", "new"])
def test_a_missing_rel_file_is_said(tmp_path: Path, new: Path, current: Path, folder: str) -> None:
    version = {"current": "0.1.1", "new": "0.1.2"}[folder]
    path = tmp_path / folder / f"releases/{version}/{APP}.rel"
    path.rename(tmp_path / folder / f"releases/{APP}.rel")
    assert facts(new, current).without_rel == ()
    (tmp_path / folder / f"releases/{APP}.rel").unlink()
    assert facts(new, current).without_rel == (version,)
    assert choose(facts(new, current), RunningFacts(True), "elixir").reason == "relup_not_possible"


# --- into current -------------------------------------------------------------------------------


def test_what_current_has_not_is_put_in_and_all_else_stays(new: Path, current: Path) -> None:
    before, package = tree(current), tree(new)
    assert put(new, current) == ("0.1.2", (f"{APP}-0.1.2",))
    after = tree(current)
    added = {path: what for path, what in after.items() if path not in before}
    assert {path: after[path] for path in before} == before
    wanted = {
        path: what
        for path, what in package.items()
        if path.startswith((f"lib/{APP}-0.1.2", "releases/0.1.2"))
    }
    rel = {f"releases/{APP}-{v}.rel": f"the libraries of {v}".encode() for v in ("0.1.1", "0.1.2")}
    assert {path: what[1] for path, what in added.items() if path in rel} == rel
    assert {p: what for p, what in added.items() if p not in rel and p != HELD} == wanted


def test_nothing_that_is_put_in_shares_its_file_with_the_package(new: Path, current: Path) -> None:
    put(new, current)
    for path in current.rglob("*"):
        assert path.is_dir() or path.lstat().st_nlink == 1


def test_all_of_it_is_on_disk_before_the_node_hears_of_it(
    new: Path, current: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    there = current / "releases/0.1.2/sys.config"
    monkeypatch.setattr(files, "sync_filesystem", lambda _: seen.append(there.exists()))
    put(new, current)
    assert seen == [True]


@pytest.mark.parametrize("name", [f"{APP}.rel", f"{APP}-0.1.2.rel", f"0.1.2/{APP}-0.1.2.rel"])
def test_a_rel_file_is_found_wherever_the_build_tool_put_it(
    new: Path, current: Path, name: str
) -> None:
    (new / f"releases/0.1.2/{APP}.rel").rename(new / "releases" / name)
    (current / f"releases/0.1.1/{APP}.rel").rename(current / f"releases/{APP}.rel")
    put(new, current)
    for path in (f"{APP}-0.1.2.rel", f"0.1.2/{APP}.rel"):
        assert (current / "releases" / path).read_text() == "the libraries of 0.1.2"
    assert (current / f"releases/{APP}-0.1.1.rel").read_text() == "the libraries of 0.1.1"


def test_an_appup_under_priv_is_put_where_systools_looks(tmp_path: Path, current: Path) -> None:
    folder = release(tmp_path / "plain", "0.1.2")
    write(folder / f"lib/{APP}-0.1.2/priv/appup/{APP}.appup", "from 0.1.1")
    put(folder, current)
    assert (current / f"lib/{APP}-0.1.2/ebin/{APP}.appup").read_text() == "from 0.1.1"


def test_a_fixed_package_of_the_same_version_replaces_what_an_earlier_attempt_left(
    tmp_path: Path, new: Path, current: Path
) -> None:
    write(new / "lib/only_once-1.0/ebin/only_once.beam", beam())
    put(new, current)
    write(current / "releases/0.1.2/relup", "of the earlier attempt")
    fixed = release(tmp_path / "fixed", "0.1.2", "0.1.1")
    write(fixed / f"lib/{APP}-0.1.2/ebin/{APP}.beam", beam(b"fixed"))
    write(fixed / "releases/0.1.2/sys.config", "[fixed].")
    assert facts(fixed, current).differing == ()
    put(fixed, current)
    again = tree(current)
    shutil.rmtree(current)
    release(current, "0.1.1")
    write_releases(str(current), APP)
    keep_copies(str(current))
    put(fixed, current)
    assert tree(current) == again


def test_what_another_version_needs_is_never_replaced(tmp_path: Path, current: Path) -> None:
    """0.1.2 brought mate 1.0; a package of 0.1.3 with another mate 1.0 must not change it."""
    for version, origin in (("0.1.2", "0.1.1"), ("0.1.3", "0.1.2")):
        folder = release(tmp_path / version, version, origin)
        write(folder / "lib/mate-1.0/ebin/mate.beam", beam(version.encode()))
    put(tmp_path / "0.1.2", current)
    found = facts(tmp_path / "0.1.3", current, "0.1.2", "0.1.3")
    assert found.differing == ("lib/mate-1.0/ebin/mate.beam",)
    put(tmp_path / "0.1.3", current, "0.1.3")
    assert (current / "lib/mate-1.0/ebin/mate.beam").read_bytes() == beam(b"0.1.2")
    take_out(str(current), APP, "0.1.3")
    assert (current / "lib/mate-1.0/ebin/mate.beam").exists()
    assert not (current / f"lib/{APP}-0.1.3").exists()
    take_out(str(current), APP, "0.1.2")
    assert not (current / "lib/mate-1.0").exists()


def test_the_running_version_is_known_by_its_own_libraries(tmp_path: Path, current: Path) -> None:
    put(release(tmp_path / "0.1.2", "0.1.2", "0.1.1"), current)
    third = release(tmp_path / "0.1.3", "0.1.3", "0.1.2")
    found = facts(third, current, "0.1.2", "0.1.3")
    assert found.app_runs == "0.1.2"
    assert choose(found, RunningFacts(True), "elixir").reason == "ok"
    assert facts(third, current, "0.1.1", "0.1.3").app_runs == "0.1.1"


def test_what_is_no_such_package_is_refused_and_nothing_is_changed(
    new: Path, current: Path
) -> None:
    before = tree(current)
    for version in ("0.1.3", "0.1.1"):
        with pytest.raises(NotUpgradable):
            put(new, current, version)
    with pytest.raises(NotUpgradable):
        put(current, current, "0.1.1")
    assert tree(current) == before


def test_a_list_that_cannot_be_read_leads_to_a_full_deployment(new: Path, current: Path) -> None:
    for content in ("{", "[]", '{"schema_version": 2}'):
        write(current / HELD, content)
        reason = choose(facts(new, current), RunningFacts(True), "elixir").reason
        assert reason == "error_reading_file"
        with pytest.raises(StateError):
            put(new, current)
        with pytest.raises(StateError):
            take_out(str(current), APP, "0.1.2")
        assert mend(str(current)) == []


# --- and out of it ------------------------------------------------------------------------------


def without_list(folder: Path) -> dict[str, tuple[int, str | bytes]]:
    """What a version must not leave: all but the list, and the rel file of what runs."""
    ours = (HELD, f"releases/{APP}-0.1.1.rel")
    return {path: what for path, what in tree(folder).items() if path not in ours}


def test_what_was_put_in_is_taken_out_and_nothing_else(new: Path, current: Path) -> None:
    before = tree(current)
    take_out(str(current), APP, "0.1.2")
    assert tree(current) == before
    put(new, current)
    take_out(str(current), APP, "0.1.2", ("0.1.1",))
    assert without_list(current) == before
    take_out(str(current), APP, "0.1.2")
    assert without_list(current) == before
    held = read_holdings(str(current))
    assert held is not None
    assert [release.version for release in held.releases] == ["0.1.1"]


def test_what_boots_or_is_to_be_kept_is_never_taken_out(new: Path, current: Path) -> None:
    put(new, current)
    before = tree(current)
    with pytest.raises(ValueError, match="needed"):
        take_out(str(current), APP, "0.1.1")
    with pytest.raises(ValueError, match="needed"):
        take_out(str(current), APP, "0.1.2", ("0.1.1", "0.1.2"))
    assert tree(current) == before


# --- a kill at every system call ------------------------------------------------------------------

CALLS = (
    *("open", "read", "write", "rename", "mkdir", "symlink", "unlink", "rmdir", "chmod"),
    *("fchmod", "fsync", "copy_file_range", "scandir", "listdir"),
)


def killed_at(number: int, act: Callable[[], object]) -> bool:
    """Runs it in a process that is killed at its nth system call; False: it was done before."""
    child = os.fork()
    if child == 0:
        left = number

        def counted(call: Callable[..., object]) -> Callable[..., object]:
            def run(*args: object, **more: object) -> object:
                nonlocal left
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
                return call(*args, **more)

            return run

        status = 1
        try:
            for name in CALLS:
                setattr(os, name, counted(getattr(os, name)))
            act()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), status
    return status != 0


@pytest.fixture
def stale(tmp_path: Path, new: Path, current: Path) -> Path:
    """`current` with an earlier attempt at 0.1.2, of other content, in it."""
    earlier = release(tmp_path / "earlier", "0.1.2", "0.1.1")
    write(earlier / f"lib/{APP}-0.1.2/ebin/{APP}.beam", beam(b"broken"))
    write(earlier / "lib/only_once-1.0/ebin/only_once.beam", beam())
    put(earlier, current)
    write(current / "releases/0.1.2/relup", "of the earlier attempt")
    return current


def whole_or_absent(current: Path, done: dict[str, tuple[int, str | bytes]], version: str) -> None:
    """What stands under its own name is whole, and a release is there only with all it needs."""
    found = tree(current)
    if f"releases/{version}" in found:
        held = read_holdings(str(current))
        assert held is not None
        release = held.find(version)
        assert release is not None
        for library in release.libraries:
            inside = {path for path in done if path.startswith(f"lib/{library}")}
            assert inside <= found.keys()
    for kept in ("lib/kernel-10.2", "lib/poison-5.0", f"lib/{APP}-0.1.1", "releases/0.1.1"):
        for path in (path for path in done if path.startswith(kept)):
            assert found[path] == done[path]


@pytest.mark.parametrize("begin", ["fresh", "stale"])
def test_a_kill_while_putting_in_is_finished_or_taken_back(
    request: pytest.FixtureRequest, tmp_path: Path, new: Path, current: Path, begin: str
) -> None:
    original = without_list(current)
    if begin == "stale":
        request.getfixturevalue("stale")
    saved = tmp_path / "saved"
    shutil.copytree(current, saved, symlinks=True)

    def restore() -> None:
        shutil.rmtree(current)
        shutil.copytree(saved, current, symlinks=True)

    put(new, current)
    done = tree(current)
    restore()
    number = 0
    while killed_at(number, lambda: put(new, current)):
        whole_or_absent(current, done, "0.1.2")
        mend(str(current))
        assert boots(str(current)) == "0.1.1"
        if number % 2:
            take_out(str(current), APP, "0.1.2")
            rest = without_list(current)
            fresh = read_holdings(str(current)) is None
            assert {p: w for p, w in rest.items() if not (fresh and "tmp" in p)} == original | {
                RELEASES: rest[RELEASES]
            }
        put(new, current)
        assert {**tree(current), RELEASES: done[RELEASES]} == done
        restore()
        number += 1
    assert number > 60


def test_a_kill_while_taking_out_is_finished_by_the_next_call(
    tmp_path: Path, new: Path, current: Path
) -> None:
    original = without_list(current)
    put(new, current)
    done = tree(current)
    saved = tmp_path / "saved"
    shutil.copytree(current, saved, symlinks=True)
    number = 0
    while killed_at(number, lambda: take_out(str(current), APP, "0.1.2", ("0.1.1",))):
        whole_or_absent(current, done, "0.1.2")
        take_out(str(current), APP, "0.1.2", ("0.1.1",))
        assert without_list(current) == original
        if number % 3 == 0:
            put(new, current)
            assert tree(current) == done
        shutil.rmtree(current)
        shutil.copytree(saved, current, symlinks=True)
        number += 1
    assert number > 30


def statuses(current: Path) -> dict[str, str]:
    """{version: status} of a RELEASES of ours."""
    text = (current / RELEASES).read_text()
    pattern = r'\{release,"counter","([^"]*)",.*?\],(permanent|old)\}'
    return dict(re.findall(pattern, text, re.DOTALL))


def test_either_release_can_be_made_to_boot(new: Path, current: Path) -> None:
    put(new, current)
    for version in ("0.1.2", "0.1.1", "0.1.2"):
        make_boot(str(current), version)
        assert boots(str(current)) == version
        other = {"0.1.1", "0.1.2"} - {version}
        assert statuses(current) == {version: "permanent", other.pop(): "old"}
        kept = json.loads((current / KEPT).read_text())
        assert kept == {name: (current / name).read_text() for name in (START_ERL, RELEASES)}
        assert (current / START_ERL).stat().st_mode & 0o777 == 0o644


def test_a_kill_while_changing_what_boots_leaves_one_or_the_other(
    tmp_path: Path, new: Path, current: Path
) -> None:
    put(new, current)
    make_boot(str(current), "0.1.2")
    saved = tmp_path / "saved"
    shutil.copytree(current, saved, symlinks=True)
    make_boot(str(current), "0.1.1")
    done = tree(current)
    shutil.rmtree(current)
    shutil.copytree(saved, current, symlinks=True)
    number, seen = 0, set()
    while killed_at(number, lambda: make_boot(str(current), "0.1.1")):
        mend(str(current))
        version = boots(str(current))
        seen.add(version)
        assert statuses(current)[str(version)] == "permanent"
        assert list(statuses(current).values()).count("permanent") == 1
        make_boot(str(current), "0.1.1")
        left = {path: what for path, what in tree(current).items() if not path.endswith(".tmp")}
        assert left == done
        shutil.rmtree(current)
        shutil.copytree(saved, current, symlinks=True)
        number += 1
    assert seen == {"0.1.1", "0.1.2"}


# --- what OTP makes of it -------------------------------------------------------------------------


@pytest.fixture
def real(packages: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two versions of the example, unpacked as they would be: the one that runs, and a new one."""
    for name, version in (("current", "0.1.0"), ("new", "0.1.1")):
        (tmp_path / name).mkdir()
        with tarfile.open(packages / f"counter-{version}.tar.gz") as archive:
            archive.extractall(tmp_path / name, filter="tar")
    current, new = tmp_path / "current", tmp_path / "new"
    write_releases(str(current), APP)
    keep_copies(str(current))
    library = new / "lib/counter-0.1.1"
    instructions(library, "0.1.0", "0.1.1")
    ways = '[{"0.1.0",[]}]'
    write(library / "ebin/counter.appup", f'{{"0.1.1",{ways},{ways}}}.')
    return current, new


def ask(current: Path, program: str, version: str) -> str:
    """What the release's own runtime answers to Elixir, as `bin/counter eval`."""
    env = {
        **os.environ,
        "RELEASE_VSN": version,
        "RELEASE_COOKIE": "x",
        "ELIXIR_ERL_OPTIONS": "+fnu",
    }
    command = [current / f"bin/{APP}", "eval", program]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 0, done
    return done.stdout.strip()


WHICH = """
{:ok, _} = Application.ensure_all_started(:sasl)
for {_, version, libraries, status} <- :release_handler.which_releases() |> Enum.sort(),
  do: IO.puts("#{version} #{length(libraries)} #{status}")
"""
MAKE_RELUP = """
root = :code.root_dir()
{:ok, _} = Application.ensure_all_started(:sasl)
{:ok, '0.1.1'} = :release_handler.set_unpacked(root ++ '/releases/0.1.1/counter.rel', [])
way = root ++ '/releases/counter-0.1.0'
options = [:silent, path: [root ++ '/lib/*/ebin'], outdir: root ++ '/releases/0.1.1']
{:ok, _, _, []} = :systools.make_relup(root ++ '/releases/counter-0.1.1', [way], [way], options)
"""


@pytest.mark.beam
def test_otp_finds_all_that_an_upgrade_needs_and_reads_what_we_write(
    real: tuple[Path, Path],
) -> None:
    current, new = real
    found = package_facts(str(new), str(current), APP, "0.1.0", "0.1.1")
    assert choose(found, RunningFacts(True), "elixir").reason == "ok", found
    put_into(str(current), str(new), APP, "0.1.1")
    ask(current, MAKE_RELUP, "0.1.0")
    assert (current / "releases/0.1.1/relup").is_file()
    # what OTP itself wrote is whole, and its copy is the same after a power cut has torn it
    assert mend(str(current)) == []
    by_us = ask(current, WHICH, "0.1.0")
    number = len(list((current / "lib").iterdir())) - 1
    assert by_us.splitlines() == [f"0.1.0 {number} permanent", f"0.1.1 {number} old"]
    make_boot(str(current), "0.1.1")
    assert ask(current, WHICH, "0.1.1").splitlines() == [
        f"0.1.0 {number} old",
        f"0.1.1 {number} permanent",
    ]
    (current / RELEASES).write_bytes((current / RELEASES).read_bytes()[:100])
    assert mend(str(current)) == [RELEASES]
    assert ask(current, WHICH, "0.1.1").splitlines()[1] == f"0.1.1 {number} permanent"
    make_boot(str(current), "0.1.0")
    take_out(str(current), APP, "0.1.1")
    mend(str(current))
    assert ask(current, WHICH, "0.1.0").splitlines() == [f"0.1.0 {number} permanent"]
