"""Runs a command, and leaves nothing of it: when it ends, what it started and left is ended too.

INT, TERM and HUP become a SIGINT to the command's process group, so that it can clean up; what is
still there after the grace period, or after a second signal, is killed. (A terminal's Ctrl-C comes
twice, once from the shell that waits for us: within a second it is the same one.) Only the standard
library, for any Python from 3.11 on.

    python3 .ci/contain.py COMMAND [ARGUMENT ...]
"""

import ctypes
import os
import signal
import sys
import time

GRACE = 30.0  # seconds for the command to clean up
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_CHILD_SUBREAPER = 36


def descendants() -> dict[int, str]:
    """pid -> name of all that descends from us, zombies aside."""
    parents, names = {}, {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                before, _, after = file.read().rpartition(")")
        except OSError:
            continue
        state, parent = after.split()[:2]
        parents[int(entry)] = int(parent)
        if state != "Z":
            names[int(entry)] = before.partition("(")[2]
    ours, found = {os.getpid()}, True
    while found:
        found = {pid for pid, parent in parents.items() if parent in ours} - ours
        ours |= found
    return {pid: name for pid, name in names.items() if pid in ours and pid != os.getpid()}


def reap() -> dict[int, int]:
    """pid -> exit code of every child that has ended."""
    ended = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = os.waitstatus_to_exitcode(status)


def end_all() -> dict[int, str]:
    """Kills every descendant; what was there."""
    seen: dict[int, str] = {}
    deadline = time.monotonic() + 10
    while left := descendants():
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        seen |= left
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
        reap()
    return seen


def run(command: list[str]) -> int:
    """Runs the command to its end; its exit code, or 128 and a signal's number."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, {*SIGNALS, signal.SIGCHLD})
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        # a shell's `&` ignores SIGINT and SIGQUIT, Python itself SIGPIPE and SIGXFSZ
        for number in (*SIGNALS, signal.SIGQUIT, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*SIGNALS, signal.SIGCHLD})
        try:
            os.execvp(command[0], command)
        except OSError as error:
            print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
            os._exit(127)
    code, interrupted, deadline = None, 0, None
    while code is None:
        wait = 3600.0 if deadline is None else max(deadline - time.monotonic(), 0)
        came = signal.sigtimedwait({*SIGNALS, signal.SIGCHLD}, wait)
        code = reap().get(child)
        if came is not None and came.si_signo in SIGNALS and code is None:
            now = time.monotonic()
            if deadline is None:
                interrupted, deadline = came.si_signo, now + GRACE
                os.killpg(child, signal.SIGINT)
            elif now > deadline - GRACE + 1:
                break
        elif deadline is not None and time.monotonic() >= deadline:
            break
    left = end_all()
    if left and not interrupted:
        names = ", ".join(f"{name} ({pid})" for pid, name in sorted(left.items()))
        print(f"contain: {command[0]} left running, ended now: {names}", file=sys.stderr)
    if interrupted:
        return 128 + interrupted
    assert code is not None
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
