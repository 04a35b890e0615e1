"""The one `tar -x` that writes a release's files, fed through a pipe, ended whatever happens.

tar(1) of GNU, or busybox's with the flags that it knows. It gets bytes that the guard let through,
and nothing of our environment: TAR_OPTIONS, a locale or LD_PRELOAD could change what it does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Sequence
from typing import NoReturn

from deployex_cli.errors import DeployexError
from deployex_cli.layout.stage import Stage

Buffers = Sequence[bytes | memoryview]

_PIPE_BYTES = 1024 * 1024  # /proc/sys/fs/pipe-max-size, what anyone may ask for
_WAITING = 6  # lists of buffers, 256 KiB each
_IOV_MAX = 1024  # buffers in one writev(2)
_REPORT_BYTES = 4096
# strerror of ENOSPC and EDQUOT, and what GNU tar says of the write that just did not fit.
_NO_ROOM = ("No space left on device", "Disk quota exceeded", "Wrote only ")

# As the user who runs it, with the guard's modes: umask 022 takes nothing from those.
_FLAGS = ("-x", "-f", "-", "-o", "--no-same-permissions")
# Records of 256 KiB instead of 10: that many fewer reads and writes. Folders get their times when
# all is in them. A file time in the future is no news.
_GNU_FLAGS = ("--blocking-factor=512", "--delay-directory-restore", "--warning=no-timestamp")


class TarProcess:
    """A running tar; `write` what it shall unpack, then `finish`, and `stop` in any case."""

    def __init__(self, into: str, what: str, keep: int | None = None) -> None:
        """Start tar in the folder `into`. Raise DeployexError if there is none to start.

        `keep` is a descriptor that it inherits, and holds for as long as it writes.
        """
        self._into = into
        self._what = what
        self.no_room = False  # tar has said so; what is written is thrown away from then on
        executable = find_tar()
        gnu = os.path.basename(os.path.realpath(executable)) in ("tar", "gtar")
        # A file in memory takes tar's messages: no second pipe to empty, no thread for it.
        self._report = os.memfd_create("tar-stderr")
        try:
            self._process = subprocess.Popen(
                ["tar", *_FLAGS, *(_GNU_FLAGS if gnu else ()), "-C", into],  # noqa: S607
                executable=executable,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._report,
                bufsize=0,
                env={"LC_ALL": "C"},
                umask=0o022,
                pass_fds=() if keep is None else (keep,),
                process_group=0,  # a Ctrl-C is ours to handle
            )
        except OSError as error:
            os.close(self._report)
            raise DeployexError(
                f"{what} cannot be unpacked: {executable} does not start: {error.strerror}"
            ) from None
        assert self._process.stdin is not None
        self._pipe = self._process.stdin.fileno()
        with contextlib.suppress(OSError):  # refused to a user with many large pipes: slower
            fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._writer: Stage[Buffers] = Stage("tar-writer", self._write, _WAITING)

    def write(self, buffers: Buffers) -> None:
        """Give tar the next bytes. Raise DeployexError with tar's own words if it has failed.

        No room is not raised: `no_room` is true from then on.
        """
        if self.no_room:
            return
        self._writer.put(buffers)
        if self._writer.failed or os.fstat(self._report).st_size:
            self._judge(patient=True)

    def finish(self) -> None:
        """Wait until tar has written all. Raise as `write` does."""
        if self.no_room:
            return
        broken = self._writer.close()
        assert self._process.stdin is not None
        self._process.stdin.close()
        if self._process.wait() or broken:
            self._judge(patient=False)

    def kill(self) -> None:
        """Ends tar, so that nobody waits for it any longer; whoever did is told by an error."""
        self._process.kill()

    def stop(self) -> None:
        """End tar if it runs, and leave no process, thread or descriptor of it."""
        self._process.kill()  # unblocks the writer: nobody reads the pipe
        self._writer.close()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        if self._report >= 0:
            os.close(self._report)
            self._report = -1

    def _judge(self, *, patient: bool) -> None:
        """Decide what tar's messages mean; `patient`: it may still be running and well."""
        report = os.pread(self._report, _REPORT_BYTES, 0).decode("utf-8", "replace")
        if any(reason in report for reason in _NO_ROOM):
            self.no_room = True
            self._process.kill()
            return
        if patient and not self._writer.failed and "Cannot" not in report:
            return  # a warning; if it was more, tar's exit code will say so
        self._fail(report)

    def _fail(self, report: str) -> NoReturn:
        self._process.kill()
        code = self._process.wait()
        words = report.strip().partition("\n")[0] or (
            f"tar was killed by signal {-code}" if code < 0 else f"tar ended with {code}"
        )
        raise DeployexError(f"{self._what} cannot be unpacked into {self._into}: {words}")

    def _write(self, buffers: Buffers) -> None:
        for start in range(0, len(buffers), _IOV_MAX):
            batch = buffers[start : start + _IOV_MAX]
            written = os.writev(self._pipe, batch)
            for buffer in batch:  # a signal can cut a write short
                view = memoryview(buffer)[min(written, len(buffer)) :]
                written -= len(buffer) - len(view)
                while view:
                    view = view[os.write(self._pipe, view) :]


def find_tar() -> str:
    """Return the path of tar. Raise DeployexError if there is none in PATH."""
    for folder in os.get_exec_path():
        path = os.path.join(folder, "tar")
        if folder.startswith("/") and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise DeployexError(
        f"tar is not installed (not found in PATH, {os.environ.get('PATH', os.defpath)});"
        " install the package 'tar'"
    )
