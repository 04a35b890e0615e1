"""Files, links and folders on disk: whole or not at all, and never where somebody else points."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deployex_cli.errors import UnsafeFolder
from deployex_cli.layout import files

ROOT = Path(__file__).parent.parent
NOBODY = 65534


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def as_nobody(act: Callable[[str], None], path: Path) -> str:
    """What `act` says of `path` in a process of another user: the error's name and text, or "ok".

    (A fork: that user may not even be allowed to execute this Python.)
    """
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            act(str(path))
            said = "ok"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader) as pipe:
        return pipe.read()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- write_file -----------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("before", [None, b"", b"the old content, which is longer"])
@pytest.mark.parametrize("data", [b"", b"new", bytes(range(256)) * 20_000])
def test_a_file_is_replaced_as_a_whole_and_nothing_else_is_left(
    tmp_path: Path, data: bytes, before: bytes | None, durable: bool
) -> None:
    path = tmp_path / "state.json"
    if before is not None:
        path.write_bytes(before)
    files.write_file(str(path), data, durable=durable)
    assert path.read_bytes() == data
    assert names(tmp_path) == ["state.json"]


@pytest.mark.parametrize("wanted", [0o600, 0o644, 0o400])
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_file_has_the_mode_that_was_asked_for_whatever_the_umask_and_the_file_before(
    tmp_path: Path, wanted: int, umask: int
) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(b"old")
    path.chmod(0o666)
    before = os.umask(umask)
    try:
        files.write_file(str(path), b"new", mode=wanted)
    finally:
        os.umask(before)
    assert mode(path) == wanted


def test_one_who_reads_meanwhile_keeps_the_whole_old_content(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        files.write_file(str(path), b"new")
        assert reader.read() == b"old"


def test_a_link_with_the_final_name_is_replaced_and_what_it_names_is_not_touched(
    tmp_path: Path,
) -> None:
    victim, path = tmp_path / "victim", tmp_path / "state.json"
    victim.write_bytes(b"precious")
    path.symlink_to(victim)
    files.write_file(str(path), b"new")
    assert not path.is_symlink()
    assert (path.read_bytes(), victim.read_bytes()) == (b"new", b"precious")


@pytest.mark.parametrize("dangling", [True, False])
def test_a_link_with_the_temporary_name_is_not_followed(tmp_path: Path, dangling: bool) -> None:
    victim, path = tmp_path / "victim", tmp_path / "state.json"
    if not dangling:
        victim.write_bytes(b"precious")
    path.write_bytes(b"old")
    Path(files.temporary(str(path))).symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        files.write_file(str(path), b"new")
    assert path.read_bytes() == b"old"
    assert victim.exists() != dangling
    assert dangling or victim.read_bytes() == b"precious"


def test_what_a_killed_run_left_half_written_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    Path(files.temporary(str(path))).write_bytes(b"half-written and longer")
    files.write_file(str(path), b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["state.json"]


def test_a_full_disk_leaves_the_old_content_and_nothing_half_made(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(b"old")
    program = f"""
import resource, signal
from deployex_cli.layout import files
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
try:
    files.write_file({str(path)!r}, b"x" * 20)
except OSError:
    raise SystemExit(7)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT)
    assert done.returncode == 7
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["state.json"]


def test_reading_follows_no_link_and_a_missing_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"content")
    (tmp_path / "link").symlink_to("real")
    assert files.read_file(str(tmp_path / "real")) == b"content"
    assert files.read_file(str(tmp_path / "missing")) is None
    with pytest.raises(OSError, match="symbolic links"):
        files.read_file(str(tmp_path / "link"))


def test_a_file_is_for_us_alone_unless_somebody_says_otherwise(tmp_path: Path) -> None:
    files.write_file(str(tmp_path / "state.json"), b"new")
    assert mode(tmp_path / "state.json") == 0o600


# --- what a power cut leaves ----------------------------------------------------------------


class Seen:
    """What reaches the disk, in its order: each call is made, and written down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        for name in ("rename", "symlink", "unlink"):
            monkeypatch.setattr(os, name, self._told(name, getattr(os, name)))
        monkeypatch.setattr(os, "fsync", self._synced(os.fsync))

    def _told(self, name: str, call: Callable[..., None]) -> Callable[..., None]:
        def told(*paths: str, **more: object) -> None:
            self.calls.append(f"{name} {Path(paths[-1]).name}")
            call(*paths, **more)

        return told

    def _synced(self, call: Callable[[int], None]) -> Callable[[int], None]:
        def synced(descriptor: int) -> None:
            self.calls.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
            call(descriptor)

        return synced


@pytest.mark.parametrize(
    ("act", "order"),
    [
        (
            lambda at: files.write_file(f"{at}/state.json", b"new"),
            ["fsync .state.json.tmp", "rename state.json", "fsync box"],
        ),
        (lambda at: files.write_file(f"{at}/x", b"", durable=False), ["rename x"]),
        (lambda at: files.append_line(f"{at}/new", b"x"), ["fsync new", "fsync box"]),
        (lambda at: files.append_line(f"{at}/file", b"x"), ["fsync file"]),
        (
            lambda at: files.set_link(f"{at}/link", "new"),
            ["unlink .link.tmp", "symlink .link.tmp", "rename link", "fsync box"],
        ),
        (lambda at: files.set_link(f"{at}/link", "old"), []),
        (lambda at: files.remove_link(f"{at}/link"), ["unlink link", "fsync box"]),
        (lambda at: files.remove_link(f"{at}/missing"), ["unlink missing"]),
        (lambda at: files.remove_tree(f"{at}/folder"), ["rename .trash-folder", "fsync box"]),
        (lambda at: files.remove_tree(f"{at}/.staging"), []),
    ],
)
def test_a_name_is_given_after_its_content_is_on_disk_and_the_folder_is_synced_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[Path], None], order: list[str]
) -> None:
    box = tmp_path / "box"
    for name in ("folder", ".staging"):
        (box / name).mkdir(parents=True)
    (box / "link").symlink_to("old")
    (box / "file").write_bytes(b"old\n")
    descriptors = os.listdir("/proc/self/fd")
    with monkeypatch.context() as patch:
        seen = Seen(patch)
        act(box)
    assert seen.calls == order
    assert os.listdir("/proc/self/fd") == descriptors, "none is left open"


# --- append_line ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, b"new\n"),
        (b"", b"new\n"),
        (b"old\n", b"old\nnew\n"),
        (b"old\nto", b"old\nto\nnew\n"),
        (b"to", b"to\nnew\n"),
        (b"\n", b"\nnew\n"),
    ],
)
def test_a_line_is_added_behind_a_torn_one_that_is_closed_first(
    tmp_path: Path, before: bytes | None, after: bytes
) -> None:
    path = tmp_path / "history.jsonl"
    if before is not None:
        path.write_bytes(before)
    files.append_line(str(path), b"new")
    assert path.read_bytes() == after


def test_a_file_that_a_line_begins_is_for_us_alone(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    files.append_line(str(path), b"new")
    assert mode(path) == 0o600


def test_a_line_is_not_added_to_what_a_link_names(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "history.jsonl"
    victim.write_bytes(b"precious")
    path.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        files.append_line(str(path), b"new")
    assert victim.read_bytes() == b"precious"


# --- links ----------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [None, "old", "releases/1-1.0.0", "a file"])
def test_a_link_names_what_was_asked_for_whatever_had_its_name(
    tmp_path: Path, before: str | None
) -> None:
    link = tmp_path / "current"
    if before == "a file":
        link.write_text("content")
    elif before is not None:
        link.symlink_to(before)
    files.set_link(str(link), "releases/1-1.0.0")
    assert files.read_link(str(link)) == "releases/1-1.0.0"
    assert names(tmp_path) == ["current"]


def test_a_link_that_is_right_already_is_not_touched(tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to("releases/1-1.0.0")
    before = link.lstat()
    files.set_link(str(link), "releases/1-1.0.0")
    assert link.lstat().st_ino == before.st_ino


def test_what_a_killed_run_left_of_a_link_is_in_nobodys_way(tmp_path: Path) -> None:
    link = tmp_path / "current"
    Path(files.temporary(str(link))).symlink_to("elsewhere")
    files.set_link(str(link), "releases/1-1.0.0")
    assert files.read_link(str(link)) == "releases/1-1.0.0"
    assert names(tmp_path) == ["current"]


def test_a_link_to_a_folder_is_replaced_and_the_folder_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "current").symlink_to("one")
    files.set_link(str(tmp_path / "current"), "two")
    assert files.read_link(str(tmp_path / "current")) == "two"
    assert names(tmp_path / "one") == []


def test_what_is_no_link_names_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert files.read_link(str(tmp_path / "file")) is None
    assert files.read_link(str(tmp_path / "missing")) is None


def test_a_link_is_removed_once_and_what_it_named_stays(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "current").symlink_to("one")
    files.remove_link(str(tmp_path / "current"))
    files.remove_link(str(tmp_path / "current"))
    assert names(tmp_path) == ["one"]
    assert not files.remove(str(tmp_path / "current"))


# --- remove_tree ----------------------------------------------------------------------------


def release(folder: Path) -> Path:
    """A folder as releases are: with a link out of it, and folders that may not be written."""
    (folder / "lib/deep").mkdir(parents=True)
    (folder / "lib/deep/file").write_text("content")
    (folder / "outside").symlink_to("/")
    (folder / "lib/deep").chmod(0o555)
    (folder / "lib").chmod(0o500)
    return folder


def test_a_folder_goes_with_all_that_is_in_it_and_nothing_that_it_points_to(
    tmp_path: Path,
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").touch()
    doomed = release(tmp_path / "1-1.0.0")
    (doomed / "away").symlink_to(victim)
    victim.chmod(0o755)
    files.remove_tree(str(doomed))
    assert names(tmp_path) == ["victim"]
    assert names(victim) == ["precious"]
    assert mode(victim) == 0o755


@pytest.mark.root
def test_one_who_is_not_root_removes_folders_that_may_not_be_written(tmp_path: Path) -> None:
    parent = Path(f"/tmp/dx-{os.getpid()}-releases")
    parent.mkdir()
    try:
        doomed = release(parent / "1-1.0.0")
        for path in (parent, *parent.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        assert as_nobody(files.remove_tree, doomed) == "ok"
        assert names(parent) == []
    finally:
        subprocess.run(["rm", "-rf", str(parent)], check=True)


def test_a_folder_that_is_half_removed_has_lost_its_name(tmp_path: Path) -> None:
    doomed = tmp_path / "1-1.0.0"
    for number in range(5):
        (doomed / f"{number}/in").mkdir(parents=True)
    program = f"""
import os, shutil
from deployex_cli.layout import files
shutil.rmtree = lambda path: (os.rmdir(path + "/0/in"), os._exit(9))  # killed in the middle
files.remove_tree({str(doomed)!r})
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 9
    left = names(tmp_path)
    assert left == [".trash-1-1.0.0"]
    assert len(list((tmp_path / left[0]).rglob("in"))) == 4


def test_what_is_left_of_a_removal_is_in_nobodys_way_and_goes_too(tmp_path: Path) -> None:
    (tmp_path / ".trash-1-1.0.0/old").mkdir(parents=True)
    files.remove_tree(str(release(tmp_path / "1-1.0.0")))
    assert names(tmp_path) == []


def test_what_has_no_proper_name_is_removed_where_it_is(tmp_path: Path) -> None:
    files.remove_tree(str(release(tmp_path / ".staging-1-1.0.0")))
    assert names(tmp_path) == []


# --- folders that are ours ------------------------------------------------------------------


def test_a_private_folder_is_made_with_all_above_it_for_us_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        files.private_folder(str(tmp_path / "a/b/c"))
    finally:
        os.umask(before)
    for path in ("a", "a/b", "a/b/c"):
        assert mode(tmp_path / path) == 0o700


def test_a_private_folder_that_was_open_to_read_is_closed_and_keeps_its_content(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "ours"
    folder.mkdir(mode=0o755)
    (folder / "file").touch()
    files.private_folder(str(folder))
    assert mode(folder) == 0o700
    assert names(folder) == ["file"]


def test_a_trusted_folder_may_be_open_to_read_and_stays_so(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    folder.chmod(0o755)
    files.trusted_folder(str(folder))
    assert mode(folder) == 0o755


@pytest.mark.parametrize("open_mode", [0o775, 0o757, 0o777])
@pytest.mark.parametrize("inside", ["", "/below/it"])
@pytest.mark.parametrize("check", [files.private_folder, files.trusted_folder])
def test_a_folder_that_others_may_write_is_refused_and_so_is_all_below_it(
    tmp_path: Path, check: Callable[[str], None], inside: str, open_mode: int
) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(open_mode)
    with pytest.raises(UnsafeFolder) as caught:
        check(f"{folder}{inside}")
    assert f"mode {open_mode:04o}" in caught.value.message
    assert f"`chmod go-w {folder}`" in caught.value.message
    assert mode(folder) == open_mode, "it is said and not mended"


def test_below_a_sticky_folder_as_tmp_is_one_there_may_be_ours(tmp_path: Path) -> None:
    sticky = tmp_path / "tmp"
    sticky.mkdir()
    sticky.chmod(0o1777)
    files.private_folder(str(sticky / "ours"))
    assert mode(sticky / "ours") == 0o700


@pytest.mark.root
@pytest.mark.parametrize("check", [files.private_folder, files.trusted_folder])
@pytest.mark.parametrize("inside", ["", "/below"])
def test_a_folder_of_somebody_else_is_refused_and_so_is_all_below_it(
    tmp_path: Path, check: Callable[[str], None], inside: str
) -> None:
    folder = tmp_path / "theirs"
    (folder / "below").mkdir(parents=True)
    os.chown(folder, NOBODY, NOBODY)
    with pytest.raises(UnsafeFolder, match=f"{folder} belongs to user {NOBODY}"):
        check(f"{folder}{inside}")


@pytest.mark.root
def test_a_link_that_somebody_else_has_put_there_is_refused_wherever_it_leads(
    tmp_path: Path,
) -> None:
    (tmp_path / "ours").mkdir(mode=0o700)
    link = tmp_path / "link"
    link.symlink_to("ours")
    files.check_trusted(f"{link}")
    os.lchown(link, NOBODY, NOBODY)
    with pytest.raises(UnsafeFolder, match="belongs to user"):
        files.check_trusted(f"{link}")


def test_a_link_of_ours_is_as_good_as_what_it_names(tmp_path: Path) -> None:
    for name, permissions in (("good", 0o755), ("bad", 0o777)):
        (tmp_path / name / "below").mkdir(parents=True)
        (tmp_path / name).chmod(permissions)
        (tmp_path / f"to_{name}").symlink_to(name)
    files.check_trusted(str(tmp_path / "to_good/below"))
    with pytest.raises(UnsafeFolder, match="may be written by others"):
        files.check_trusted(str(tmp_path / "to_bad/below"))


def test_a_file_in_the_place_of_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnsafeFolder, match="is no folder"):
        files.private_folder(str(tmp_path / "file"))


@pytest.mark.root
def test_a_private_folder_of_root_is_not_private_to_somebody_else(tmp_path: Path) -> None:
    folder = Path(f"/tmp/dx-{os.getpid()}-roots")
    folder.mkdir(mode=0o755)
    try:
        assert as_nobody(files.trusted_folder, folder) == "ok"
        said = as_nobody(files.private_folder, folder)
        assert said.startswith(f"UnsafeFolder: the folder {folder} belongs to user 0, and must")
    finally:
        folder.rmdir()
