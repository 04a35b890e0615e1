"""Unpacking with the real tar: what is on disk afterwards, and what is left of a failure."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from deployex_cli.errors import DeployexError, DigestMismatch, DiskFull, PackageError
from deployex_cli.layout import libc
from deployex_cli.layout.tar_guard import Limits, Required
from deployex_cli.layout.unpack import inspect, unpack
from deployex_cli.supervise.procfs import children

IMPORTABLE = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
APP = [Required("bin/app", "executable")]
WHAT = "app-1.2.3.tar.gz"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")


def tarball(files: dict[str, bytes], *, links: dict[str, str] | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(data), 0o755 if "bin/" in name else 0o644, 1e9
            archive.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return out.getvalue()


NOISE = random.Random(7).randbytes(3_000_000)
FILES = {
    "bin/app": b"#!/bin/sh\n",
    "releases/start_erl.data": b"13.1 1.2.3",
    "lib/app-1.2.3/ebin/" + "long" * 40 + ".beam": b"beam",
    "lib/app-1.2.3/priv/noise": NOISE,
    "lib/empty": b"",
}
GOOD = tarball(FILES, links={"lib/app": "app-1.2.3"})
SHA256 = hashlib.sha256(GOOD).hexdigest()


class Dribble:
    """A source whose reads are as short as a network's."""

    def __init__(self, data: bytes, size: int) -> None:
        self.data, self.size, self.at = data, size, 0

    def read(self, size: int, /) -> bytes:
        piece = self.data[self.at : self.at + min(self.size, size)]
        self.at += len(piece)
        return piece


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "staging"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    others = set(children(os.getpid()))
    yield
    assert [t.name for t in threading.enumerate() if t.name.startswith("tar")] == []
    assert set(children(os.getpid())) == others, "no child of ours, running or zombie"
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 1 MB with room for 20 inodes, as a place that is soon full."""
    folder = tmp_path / "small"
    folder.mkdir()
    options = "size=1000k,nr_inodes=20,mode=0700"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no mounting here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def on_disk(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def failure(
    data: bytes, into: Path, kind: type[DeployexError] = PackageError, **options: object
) -> str:
    """The message that the unpacking fails with; it is one line."""
    options = {"expected_sha256": None, "what": WHAT, **options}
    with pytest.raises(kind) as caught:
        unpack(io.BytesIO(data), str(into), **options)  # type: ignore[arg-type]
    assert type(caught.value) in (kind, *kind.__subclasses__())
    assert "\n" not in caught.value.message
    return caught.value.message


# What is on disk


def test_a_release_is_unpacked_and_said_to_be_what_it_is(into: Path) -> None:
    seen: list[int] = []
    unpacked = unpack(
        io.BytesIO(GOOD),
        str(into),
        expected_sha256=SHA256,
        expected_size=len(GOOD),
        required=APP,
        capture=["releases/start_erl.data"],
        on_progress=seen.append,
    )
    assert unpacked.sha256 == SHA256
    assert unpacked.compressed_bytes == len(GOOD) == seen[-1]
    assert seen == sorted(seen)
    assert len(seen) > 5
    assert unpacked.entries == 6
    assert unpacked.unpacked_bytes == sum(map(len, FILES.values()))
    assert unpacked.captured == {"releases/start_erl.data": b"13.1 1.2.3"}
    assert on_disk(into) == FILES
    assert (into / "lib/app").readlink() == Path("app-1.2.3")


def test_modes_and_times_are_the_archives_and_the_staging_folder_keeps_its_own(into: Path) -> None:
    old = os.umask(0o077)
    try:
        unpack(io.BytesIO(GOOD), str(into), expected_sha256=None)
    finally:
        os.umask(old)
    assert (into / "bin/app").stat().st_mode & 0o7777 == 0o755
    assert (into / "releases/start_erl.data").stat().st_mode & 0o7777 == 0o644
    assert (into / "lib/empty").stat().st_mtime == 1e9
    assert (into / "lib/empty").stat().st_uid == os.geteuid()
    assert into.stat().st_mode & 0o7777 == 0o700


def test_our_environment_cannot_change_what_tar_does(
    into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAR_OPTIONS", "--exclude=bin --to-stdout")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    unpack(io.BytesIO(GOOD), str(into), expected_sha256=SHA256)
    assert on_disk(into) == FILES


@pytest.mark.parametrize("size", [1, 700])
def test_a_source_that_comes_in_small_pieces_is_the_same(into: Path, size: int) -> None:
    files = {"bin/app": b"x" * 9000, "a": NOISE[:20_000]}
    data = tarball(files)
    unpacked = unpack(Dribble(data, size), str(into), expected_sha256=None)
    assert unpacked.sha256 == hashlib.sha256(data).hexdigest()
    assert on_disk(into) == files


@pytest.mark.parametrize("size", [1, 10_000_000])
def test_all_members_of_a_gzip_file_are_inflated(into: Path, size: int) -> None:
    plain = gzip.decompress(tarball({"bin/app": NOISE[:30_000]}))
    cuts = [0, 1, 700, 700, 20_000, len(plain)]
    parts = [plain[a:b] for a, b in pairwise(cuts)]
    data = b"".join(gzip.compress(part, mtime=0) for part in parts)
    unpack(Dribble(data, size), str(into), expected_sha256=None)
    assert on_disk(into) == {"bin/app": NOISE[:30_000]}


def test_inspecting_says_the_same_and_needs_no_folder(into: Path) -> None:
    options = {"expected_sha256": SHA256, "capture": ["releases/start_erl.data"]}
    inspected = inspect(io.BytesIO(GOOD), **options)
    assert inspected == unpack(io.BytesIO(GOOD), str(into), **options)
    with pytest.raises(PackageError, match="no release of this app"):
        inspect(io.BytesIO(GOOD), required=[Required("bin/other", "executable")])


def test_busybox_unpacks_it_too(
    into: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [p for p in os.get_exec_path() if os.access(f"{p}/busybox", os.X_OK)]
    if not found:
        pytest.skip("busybox is not installed")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/tar").symlink_to(f"{found[0]}/busybox")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    unpack(io.BytesIO(GOOD), str(into), expected_sha256=SHA256)
    assert on_disk(into) == FILES
    assert (into / "bin/app").stat().st_mode & 0o7777 == 0o755


# What is no good tarball


def test_other_bytes_than_promised_are_refused_with_both_digests(into: Path) -> None:
    message = failure(GOOD, into, DigestMismatch, expected_sha256="ab" * 32)
    assert message == (f"{WHAT}: its sha256 is {SHA256[:12]}..., the manifest says abababababab...")


def test_a_digest_in_capitals_is_the_same_digest(into: Path) -> None:
    unpack(io.BytesIO(GOOD), str(into), expected_sha256=SHA256.upper())


def test_a_flipped_byte_is_found_by_the_digest_wherever_it_is(into: Path, tmp_path: Path) -> None:
    for at in range(3, len(GOOD), len(GOOD) // 40):
        flipped = GOOD[:at] + bytes([GOOD[at] ^ 0x40]) + GOOD[at + 1 :]
        folder = tmp_path / str(at)
        folder.mkdir()
        failure(flipped, folder, DigestMismatch, expected_sha256=SHA256, expected_size=len(GOOD))


def test_a_flipped_byte_is_found_without_a_digest_too(into: Path) -> None:
    at = len(GOOD) // 2
    flipped = GOOD[:at] + bytes([GOOD[at] ^ 0x40]) + GOOD[at + 1 :]
    assert failure(flipped, into).startswith(f"{WHAT}: it is damaged (")


def test_what_is_refused_inside_is_told_with_a_wrong_digest(into: Path) -> None:
    message = failure(tarball({"/etc/x": b""}), into, DigestMismatch, expected_sha256=SHA256)
    assert message.endswith("...; the member '/etc/x' is refused: its path is absolute")


def test_a_hostile_member_is_refused_and_not_written(into: Path) -> None:
    data = tarball({"bin/app": b"", "lib/../../evil": b"x"})
    sha256 = hashlib.sha256(data).hexdigest()
    message = failure(data, into, expected_sha256=sha256)
    assert message.startswith(f"{WHAT}: the member 'lib/../../evil' is refused")
    assert not (into.parent / "evil").exists()


def test_a_tarball_cut_anywhere_is_said_to_be_cut_short() -> None:
    data = tarball({"bin/app": NOISE[:10_000]})
    for length in [
        *range(1, 40),
        *range(40, len(data) - 20, 997),
        *range(len(data) - 20, len(data)),
    ]:
        with pytest.raises(PackageError, match=f"cut short after {length} of {len(data)} bytes"):
            inspect(io.BytesIO(data[:length]), expected_sha256=SHA256, expected_size=len(data))


def test_a_tarball_cut_between_two_gzip_members_is_refused(into: Path) -> None:
    plain = gzip.decompress(GOOD)
    assert "without its end mark" in failure(gzip.compress(plain[:-10240], mtime=0), into)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it is empty"),
        (
            b"<!DOCTYPE html>\n<html><title>404 Not Found</title>",
            "it is a web page or XML, not a gzip file; it begins with '<!DOCTYPE html> <html>",
        ),
        (b'{"message": "Access Denied"}', "it is text, not a gzip file"),
        (b"\x28\xb5\x2f\xfd" + b"x" * 9000, "it is compressed with zstd, not with gzip"),
        (b"PK\x03\x04" + b"x" * 9000, "it is a zip file, not with gzip"),
        (gzip.decompress(GOOD), "it is a tar archive that is not compressed"),
        (b"\x00\x01\x02" * 9, "it is not a gzip file; it begins with the bytes 00 01 02"),
        (b"\x1f\x8b\x09" + b"x" * 9000, "it is damaged"),
        (GOOD + b"trailing", "something behind its end that is not gzip"),
        (GOOD + bytes(512), "something behind its end that is not gzip"),
        (
            gzip.compress(b"no tar at all" * 100, mtime=0),
            "the member that comes first is unreadable",
        ),
        (gzip.compress(b"", mtime=0), "cut short"),
    ],
)
def test_what_is_no_tarball_is_told_apart(into: Path, data: bytes, words: str) -> None:
    assert words in failure(data, into)


def test_a_web_page_is_told_as_that_although_its_digest_is_wrong_too(into: Path) -> None:
    assert "web page" in failure(b"<html>" * 9000, into, expected_sha256=SHA256)


def test_more_bytes_than_promised_are_not_read(into: Path) -> None:
    source = io.BytesIO(GOOD + bytes(50_000_000))
    with pytest.raises(DigestMismatch, match=f"longer than the {len(GOOD)} bytes"):
        unpack(source, str(into), expected_sha256=SHA256, expected_size=len(GOOD))
    assert source.tell() < len(GOOD) + 1_000_000


def test_a_bomb_is_refused_at_the_limit(into: Path) -> None:
    data = tarball({"bin/app": bytes(50_000_000)})
    message = failure(data, into, limits=Limits(max_unpacked_bytes=10_000_000))
    assert "larger, unpacked, than 10000000 bytes" in message


def test_endless_empty_gzip_members_come_to_an_end(into: Path) -> None:
    data = gzip.compress(b"", mtime=0) * 10_000
    assert "longer than 100000 bytes" in failure(
        data, into, limits=Limits(max_unpacked_bytes=100_000)
    )


# What goes wrong around it


@needs_root
@pytest.mark.root
def test_a_full_disk_is_told_with_what_is_missing(mounted: Path) -> None:
    message = failure(GOOD, mounted, DiskFull)
    assert message == (
        f"{WHAT} does not fit into {mounted}: it needs 4 MB, 1 MB are free, 3 MB are missing;"
        " make room there and run it again"
    )


@needs_root
@pytest.mark.root
def test_a_disk_without_inodes_is_told_as_that(mounted: Path) -> None:
    message = failure(tarball({f"d/{n}": b"" for n in range(300)}), mounted, DiskFull)
    assert message.endswith("needs 301 inodes, 19 are free, 282 are missing; remove files there")


@needs_root
@pytest.mark.root
def test_a_damaged_tarball_on_a_full_disk_is_told_as_damaged(mounted: Path) -> None:
    failure(GOOD, mounted, DigestMismatch, expected_sha256="ab" * 32)
    failure(GOOD[:-100], mounted, PackageError)


@needs_root
@pytest.mark.root
def test_what_tar_says_of_a_read_only_disk_is_handed_on(mounted: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    message = failure(GOOD, mounted, DeployexError)
    assert message.startswith(f"{WHAT} cannot be unpacked into {mounted}: tar: ")
    assert message.endswith("Read-only file system")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_what_tar_says_of_a_folder_that_may_not_be_written_is_handed_on(into: Path) -> None:
    into.chmod(0o500)
    assert failure(GOOD, into, DeployexError).endswith("Permission denied")


def test_a_missing_tar_is_told(into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(into))
    assert "tar is not installed" in failure(GOOD, into, DeployexError)


def test_a_missing_folder_is_an_os_error_and_no_thread_stays(into: Path) -> None:
    with pytest.raises(FileNotFoundError):
        unpack(io.BytesIO(GOOD), f"{into}/not/there", expected_sha256=None)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 3", "tar ended with 3"),
        ("kill -9 $$", "tar was killed by signal 9"),
        (
            "cat >/dev/null; echo 'tar: x: Cannot close: Input/output error' >&2; exit 2",
            "Input/out",
        ),
        ("echo 'tar: x: Cannot open: Permission denied' >&2; exec sleep 600", "Permission denied"),
        ("exec 0<&-; echo 'not one word' >&2; exec sleep 600", "not one word"),
    ],
)
def test_a_tar_that_fails_in_any_way_is_ended(
    into: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    program(tmp_path, monkeypatch, script)
    assert words in failure(GOOD, into, DeployexError)


def test_a_tar_that_warns_and_ends_well_has_done_well(
    into: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, monkeypatch, "echo 'some warning' >&2; exec /bin/tar \"$@\"")
    unpack(io.BytesIO(GOOD), str(into), expected_sha256=SHA256)
    assert on_disk(into) == FILES


def test_a_tar_that_hangs_is_ended_when_the_tarball_is_refused(
    into: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, monkeypatch, "exec sleep 600")
    data = tarball({"bin/app": NOISE[:400_000], "../evil": b""})
    assert "../evil" in failure(data, into)


class _Fails:
    def __init__(self, error: BaseException) -> None:
        self.error, self.left = error, [GOOD[:1_000_000]]

    def read(self, size: int, /) -> bytes:
        if self.left:
            return self.left.pop()
        raise self.error


@pytest.mark.parametrize("error", [ConnectionResetError("reset"), KeyboardInterrupt()])
def test_an_error_of_the_source_passes_through(into: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        unpack(_Fails(error), str(into), expected_sha256=SHA256)


# The calls that Python lacks


def test_a_file_system_is_synced_by_any_open_file_of_it(into: Path) -> None:
    folder = os.open(into, os.O_RDONLY | os.O_DIRECTORY)
    libc.syncfs(folder)
    os.close(folder)
    with pytest.raises(OSError, match="Bad file descriptor"):
        libc.syncfs(folder)


def test_a_subreaper_is_the_parent_of_its_orphans() -> None:
    script = """
import os, subprocess
from deployex_cli.layout import libc
libc.set_child_subreaper()
orphan = int(subprocess.check_output(["sh", "-c", "sleep 600 >/dev/null & echo $!"]))
print([line for line in open(f"/proc/{orphan}/status") if line.startswith("PPid")][0].split()[1])
print(os.getpid())
os.kill(orphan, 9)
print(os.waitpid(-1, 0)[0] == orphan)
"""
    said = subprocess.check_output([sys.executable, "-c", script], text=True, env=IMPORTABLE)
    parent, ours, reaped = said.split()
    assert (parent, reaped) == (ours, "True")


def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put another tar into PATH."""
    (tmp_path / "bin").mkdir()
    tar = tmp_path / "bin/tar"
    tar.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
    tar.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
