"""`deployex supervise`: keeps one app's OS process alive, in the foreground.

It recovers what was interrupted when no check does so, with no network, and then starts what is
current. It goes around the command line's own imports: it lives as long as the app.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from deployex_cli.commands.context import prepare_folders
from deployex_cli.config import AppConfig
from deployex_cli.core.plan import Facts
from deployex_cli.core.recovery import Recovery, recover
from deployex_cli.errors import SupervisorError
from deployex_cli.layout.lock import AppLock, holder_lives, holder_pid
from deployex_cli.layout.releases import read_disk
from deployex_cli.layout.state_file import load_state
from deployex_cli.supervise.record import process_facts, read_record
from deployex_cli.supervise.supervisor import Supervisor

# "lock,listener": the descriptors that a program before us in this process hands over
HANDOVER = "DEPLOYEX_HANDOVER"


def supervise(app: AppConfig, config_file: str | None, reload: Callable[[], AppConfig]) -> None:
    """Returns when it was told to end, and the app is gone. Raises SupervisorError."""
    umask = os.umask(0o077)
    prepare_folders(app)
    alone = AppLock(app.paths.supervise_lock, app.name, "deployex supervise")
    handed = os.environ.pop(HANDOVER, None)
    listener = None
    if handed is not None:
        lock_descriptor, listener = (int(number) for number in handed.split(","))
        alone.take_over(lock_descriptor)
    elif not alone.acquire():
        pid = holder_pid(app.paths.supervise_lock)
        who = f" (pid {pid})" if pid is not None else ""
        raise SupervisorError(f"{app.name}: another supervisor{who} keeps it alive already")

    def again(listening: int) -> None:
        os.set_inheritable(alone.fileno(), True)
        os.environ[HANDOVER] = f"{alone.fileno()},{listening}"
        os.umask(umask)
        try:
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
        except OSError:
            os.umask(0o077)
            del os.environ[HANDOVER]
            os.set_inheritable(alone.fileno(), False)
            raise

    lock = AppLock(app.paths.lock, app.name, "deployex supervise")
    recovery = None
    if handed is not None:
        start = False
    elif lock.acquire():
        start, recovery = _begin_recovery(app, config_file, lock)
    else:
        # a live check will say what to do; a pre_command whose check was killed never will
        start = not holder_lives(app.paths.lock)
    supervisor = Supervisor(app, reload, umask, again, listener)
    supervisor.prepare(
        start=start,
        restart=start or handed is not None,
        helper=recovery.pid if recovery else None,
    )
    lock.release()  # the recovery holds it, too
    if recovery is not None:
        recovery.go()
    supervisor.run()
    alone.release()


class _Recovering(NamedTuple):
    """A process that finishes or undoes what was interrupted, once the supervisor listens."""

    pid: int
    signal: int  # the end of a pipe; when it closes unwritten, there is no supervisor any more

    def go(self) -> None:
        try:
            os.write(self.signal, b".")
        except BrokenPipeError:
            pass  # somebody killed it: the supervisor sees its end
        os.close(self.signal)


def _begin_recovery(
    app: AppConfig, config_file: str | None, lock: AppLock
) -> tuple[bool, _Recovering | None]:
    """Whether the app is to run, and who recovers, if anything was interrupted.

    In a process of its own, which asks the supervisor for stops and starts as a check would, so
    that a version that cannot be started is gone back from; what only this needs is not in memory
    for months.
    """
    disk = read_disk(app.paths)
    state = load_state(app, disk, time.time()).state
    facts = Facts(disk, process_facts(read_record(app.paths.record)))
    recovery = recover(state, facts)
    wanted = state.wanted == "running"
    if not recovery.steps:
        return wanted, None
    heard, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(told)
        if os.read(heard, 1):
            _recover(app, config_file, lock, recovery)
        os._exit(0)
    os.close(heard)
    return wanted, _Recovering(pid, told)


def _recover(app: AppConfig, config_file: str | None, lock: AppLock, recovery: Recovery) -> None:
    """Takes the steps. Raises nothing: what is current runs in any case."""
    from deployex_cli.engine import Engine
    from deployex_cli.supervise.handle import AppProcess

    try:
        engine = Engine(app, lock, AppProcess(app, config_file), _say, "supervisor")
        engine.recover(recovery)
    except Exception as error:
        _say(f"{app.name}: recovery: {error}")
    finally:
        sys.stderr.flush()


def _say(line: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", file=sys.stderr, flush=True)
