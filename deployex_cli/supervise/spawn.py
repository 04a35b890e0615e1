"""fork and exec of one program: its own session, its own files, nothing of ours left in it."""

from __future__ import annotations

import errno
import os
import signal
import stat
from collections.abc import Callable
from typing import NoReturn

from deployex_cli.supervise.command import Command

_ALL_SIGNALS = signal.valid_signals()
_NOT_OURS = "it is no file of ours; move it away"
_NO_NEW_FILE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
_FIXED = {signal.SIGKILL, signal.SIGSTOP}


def spawn(
    command: Command,
    *,
    folder: str,
    output: tuple[str, str],
    umask: int,
    before_exec: Callable[[], None] | None = None,
    keep: int | None = None,
) -> int:
    """The pid of a process that has begun to execute `command`.

    It has a session and a process group of its own, `folder` as working directory, the two files
    of `output` as stdout and stderr (appended to, 0600), and of our descriptors only `keep`.
    `before_exec` runs in the new process, which has its final pid by then. Raises OSError; its
    filename is the program's only if that cannot be executed.
    """
    files = [open_log(path) for path in output]
    outcome, report = os.pipe()
    try:
        # no signal between fork and exec: a handler of ours in the child would wake the parent
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ALL_SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                _become(command, folder, files, umask, before_exec, keep, report)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(report)
        report = -1
        failure = os.read(outcome, 8192)  # ends when exec has closed the other end
    finally:
        for descriptor in (*files, outcome, report):
            if descriptor >= 0:
                os.close(descriptor)
    if failure:
        os.waitpid(pid, 0)
        number, place, text = failure.decode("utf-8", "replace").split("\0", 2)
        if int(number) == errno.ENOENT and os.path.exists(place):
            text = "the interpreter that its first line names is not there"
        raise OSError(int(number), text, place)
    return pid


def send(number: int, pid: int, how: Callable[[int, int], None] = os.kill) -> None:
    """Sends a signal; nothing happens when the process is gone, or another user's."""
    try:
        how(pid, number)
    except OSError:
        return


def begin_anew(keep: set[int]) -> None:
    """In a child that executes nothing: no handler, no session and no descriptor of its parent.

    All signals are blocked when it is called, and are not any more when it returns.
    """
    _leave_parent()
    _close_inherited({*keep})
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def open_log(path: str) -> int:
    """A log file, made if it is missing, never truncated, for us alone; its descriptor.

    On a disk that takes no new file the app runs without a log. Raises OSError, and for what is no
    file of ours: a FIFO would wait for its reader, another's file would show him what we say.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a FIFO that nobody reads
            raise OSError(errno.EPERM, _NOT_OURS, path) from None
        if error.errno not in _NO_NEW_FILE:
            raise
        return os.open(os.devnull, os.O_WRONLY)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()):
        os.close(descriptor)
        raise OSError(errno.EPERM, _NOT_OURS, path)
    return descriptor


def _become(
    command: Command,
    folder: str,
    files: list[int],
    umask: int,
    before_exec: Callable[[], None] | None,
    keep: int | None,
    report: int,
) -> NoReturn:
    """In the child: never returns, never raises."""
    place = folder
    try:
        _leave_parent()
        os.chdir(folder)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for descriptor, number in ((nothing, 0), (files[0], 1), (files[1], 2)):
            os.dup2(descriptor, number)
        _close_inherited({0, 1, 2, report, keep})
        if keep is not None:
            os.set_inheritable(keep, True)
        if before_exec is not None:
            before_exec()
        os.umask(umask)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        place = command.words[0]
        os.execve(place, command.words, command.env)
    except OSError as error:
        os.write(report, f"{error.errno}\0{place}\0{error.strerror}".encode())
    except BaseException as error:
        os.write(report, f"0\0{place}\0{type(error).__name__}: {error}".encode()[:400])
    finally:
        os._exit(127)


def _leave_parent() -> None:
    signal.set_wakeup_fd(-1)
    for handled in _ALL_SIGNALS - _FIXED:
        # Python ignores SIGPIPE, a shell's background job SIGINT: exec would keep that
        if signal.getsignal(handled) is not signal.SIG_DFL:
            signal.signal(handled, signal.SIG_DFL)
    os.setsid()


def _close_inherited(but: set[int | None]) -> None:
    """Closes what whoever started us left open, too: nothing may hold the app's or their files."""
    for entry in os.listdir("/proc/self/fd"):
        descriptor = int(entry)
        if descriptor not in but:
            try:
                os.close(descriptor)
            except OSError:
                continue  # the one that listed the folder
