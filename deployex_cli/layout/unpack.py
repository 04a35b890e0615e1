"""A release's tarball into a staging folder, in one pass: digest, gzip, every member, tar.

    source -> sha256 (a thread) and inflate -> guard -> a thread -> pipe -> tar -x

Nothing is written elsewhere and about 4 MB are held at a time. After any failure the process and
the threads are gone, and the folder holds half a release: the caller removes it, and gives it its
name, marker and syncfs when all went well. The digest is of the compressed bytes.
"""

import hashlib
import os
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple, Protocol

from deployex_cli.errors import DigestMismatch, DiskFull, PackageError
from deployex_cli.interrupts import aborting, check
from deployex_cli.layout.gunzip import CutShort, GunzipError, Inflater, NotGzip
from deployex_cli.layout.stage import Stage
from deployex_cli.layout.tar_guard import Limits, Required, Summary, TarGuard
from deployex_cli.layout.tar_process import Buffers, TarProcess

_READ = 256 * 1024
_WAITING_FOR_HASH = 4  # pieces of _READ bytes
_MEGABYTE = 1_000_000

Progress = Callable[[int], None]


class Source(Protocol):
    """Where the tarball comes from: a file opened in binary mode, or a stream from the store."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, none at the end."""


class Unpacked(NamedTuple):
    """What a tarball was that passed every check."""

    sha256: str  # of the compressed bytes, hexadecimal
    compressed_bytes: int
    entries: int
    unpacked_bytes: int
    captured: dict[str, bytes]  # the content of the members asked for, as far as they are there


def unpack(
    source: Source,
    into: str,
    *,
    expected_sha256: str | None,
    expected_size: int | None = None,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    required: Collection[Required] = (),
    capture: Collection[str] = (),
    what: str = "the tarball",
    on_progress: Progress | None = None,
    keep: int | None = None,
) -> Unpacked:
    """Unpack a tarball into the empty folder `into`, and return what it was.

    `what` names it in messages (file, app, version); `on_progress` gets the compressed bytes read
    so far. `expected_sha256` is hexadecimal, `expected_size` in bytes.

    Raise DigestMismatch; PackageError for what is damaged, unsafe or no release; DiskFull;
    DeployexError when tar fails otherwise. Errors of the source pass through, and an OSError for a
    folder that is not there.
    """
    disk = os.statvfs(into)
    guard = TarGuard(
        limits, required=required, capture=capture, block_size=disk.f_frsize, what=what
    )
    intake = _Intake(source, limits, expected_size, what, on_progress)
    tar: TarProcess | None = None
    try:
        tar = TarProcess(into, what, keep)
        with aborting(tar.kill):
            unpacked = _check(intake, guard, tar, expected_sha256)
            tar.finish()
        if tar.no_room:
            tar.stop()
            raise _disk_full(into, guard.so_far(), what)
        return unpacked
    finally:
        if tar is not None:
            tar.stop()
        intake.close()


def inspect(
    source: Source,
    *,
    expected_sha256: str | None = None,
    expected_size: int | None = None,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    required: Collection[Required] = (),
    capture: Collection[str] = (),
    what: str = "the tarball",
    on_progress: Progress | None = None,
) -> Unpacked:
    """Do every check of `unpack` and write nothing; raise the same, less what tar and disk do."""
    guard = TarGuard(limits, required=required, capture=capture, what=what)
    intake = _Intake(source, limits, expected_size, what, on_progress)
    try:
        return _check(intake, guard, None, expected_sha256)
    finally:
        intake.close()


class _Intake:
    """The compressed bytes as they come: counted, bounded, hashed in a thread."""

    def __init__(
        self,
        source: Source,
        limits: Limits,
        expected_size: int | None,
        what: str,
        on_progress: Progress | None,
    ) -> None:
        self._source = source
        # Empty gzip members inflate to nothing, so that the guard's limit alone would not do.
        self._most = limits.max_unpacked_bytes if expected_size is None else expected_size
        self.expected_size = expected_size
        self._what = what
        self._on_progress = on_progress
        self._sha256 = hashlib.sha256()
        self._hasher = Stage("tarball-sha256", self._sha256.update, _WAITING_FOR_HASH)
        self.bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        """Yield the pieces to the end; raise PackageError if there are more than may be."""
        while data := self._source.read(_READ):
            check()
            self.bytes += len(data)
            if self.bytes > self._most:
                if self.expected_size is None:
                    raise _NotWhole(f"{self._what}: it is longer than {self._most} bytes")
                raise DigestMismatch(
                    f"{self._what}: it is longer than the {self._most} bytes that the manifest says"
                )
            self._hasher.put(data)
            yield data
            if self._on_progress is not None:
                self._on_progress(self.bytes)

    def sha256(self) -> str:
        """Return the digest of all that was read."""
        self.close()
        return self._sha256.hexdigest()

    def close(self) -> None:
        """Leave no thread."""
        error = self._hasher.close()
        assert error is None


def _check(
    intake: _Intake, guard: TarGuard, tar: TarProcess | None, expected_sha256: str | None
) -> Unpacked:
    """Read it all; raise the failure that says most about what to do.

    A tarball that has other bytes than promised is that first of all, however it looks inside; and
    one that is no gzip file, or ends early, was not fetched whole, whatever its digest is.
    """
    what = guard.what
    try:
        summary = _read_through(intake, guard, tar, what)
    except _NotWhole as error:
        raise PackageError(str(error)) from None
    except PackageError as error:
        if tar is not None:
            tar.stop()
        if expected_sha256 is None or isinstance(error, DigestMismatch):
            raise
        for _ in intake:
            pass
        _compare(intake, what, expected_sha256, f"; {error.message.removeprefix(f'{what}: ')}")
        raise
    sha256 = _compare(intake, what, expected_sha256)
    return Unpacked(sha256, intake.bytes, summary.entries, summary.unpacked_bytes, summary.captured)


class _NotWhole(PackageError):
    """Not all of the tarball was there, or was read: its digest says nothing."""


def _read_through(intake: _Intake, guard: TarGuard, tar: TarProcess | None, what: str) -> Summary:
    def forward(pieces: Iterator[bytes]) -> None:
        for piece in pieces:
            buffers: Buffers = guard.feed(piece)
            if tar is not None:
                tar.write(buffers)

    inflater = Inflater()
    promised = intake.expected_size
    try:
        for data in intake:
            forward(inflater.feed(data))
        forward(inflater.finish())
    except NotGzip as error:
        raise _NotWhole(f"{what}: it {error}") from None
    except CutShort as error:
        if promised is None or intake.bytes < promised:
            of = f" of {promised}" if promised is not None else ""
            raise _NotWhole(f"{what}: it {error} after {intake.bytes}{of} bytes") from None
        raise PackageError(f"{what}: it {error}") from None  # as long as it should be: damaged
    except GunzipError as error:
        raise PackageError(f"{what}: it {error}") from None
    summary = guard.finish()
    if promised is not None and intake.bytes != promised:
        raise PackageError(f"{what}: it is {intake.bytes} bytes long, the manifest says {promised}")
    return summary


def _compare(intake: _Intake, what: str, expected_sha256: str | None, why: str = "") -> str:
    sha256 = intake.sha256()
    if expected_sha256 is not None and sha256 != expected_sha256.lower():
        raise DigestMismatch(
            f"{what}: its sha256 is {sha256[:12]}..., the manifest says"
            f" {expected_sha256.lower()[:12]}...{why}"
        )
    return sha256


def _disk_full(into: str, summary: Summary, what: str) -> DiskFull:
    """Return the error for a folder that `summary` did not fit into; tar has left what did."""
    disk = os.statvfs(into)
    taken, inodes = _usage(into)
    blocks_free = disk.f_bfree if os.geteuid() == 0 else disk.f_bavail
    free = blocks_free * disk.f_frsize + taken
    begin = f"{what} does not fit into {into}: it needs"
    if disk.f_files and disk.f_favail + inodes < summary.inodes:
        return DiskFull(
            f"{begin} {summary.inodes} inodes, {disk.f_favail + inodes} are free,"
            f" {summary.inodes - disk.f_favail - inodes} are missing; remove files there"
        )
    needed_mb = -(-summary.disk_bytes // _MEGABYTE)
    free_mb = free // _MEGABYTE
    if summary.disk_bytes < free:
        return DiskFull(
            f"{begin} {needed_mb} MB, and the system refused them although {free_mb} MB are free:"
            " a quota, or another program that writes there"
        )
    return DiskFull(
        f"{begin} {needed_mb} MB, {free_mb} MB are free, {max(needed_mb - free_mb, 1)} MB are"
        " missing; make room there and run it again"
    )


def _usage(folder: str) -> tuple[int, int]:
    """Return how many bytes and inodes the content of a folder takes on its disk."""
    taken = 0
    seen = set()  # a hard link takes no more
    folders = [folder]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                if found.st_ino not in seen:
                    seen.add(found.st_ino)
                    taken += found.st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
    return taken, len(seen)
