"""`deployex supervise`: keeps one app's OS process alive, in the foreground.

It recovers what was interrupted when no check does so, with no network, and then starts what is
current. It goes around the command line's own imports: it lives as long as the app.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from deployex_cli.commands.context import prepare_folders
from deployex_cli.config import AppConfig
from deployex_cli.core.plan import Facts
from deployex_cli.core.recovery import Recovery, recover
from deployex_cli.core.state import State, StepName
from deployex_cli.errors import SupervisorError
from deployex_cli.layout.lock import AppLock, holder_lives
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
        record = read_record(app.paths.record)
        who = f" (pid {record.supervisor[0]})" if record else ""
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
    # recovered before the socket is there: nobody would answer what a step asked of us
    if handed is not None:
        start = False
    elif lock.acquire():
        start = _recover(app, config_file, lock)
    else:
        # a live check will say what to do; a pre_command whose check was killed never will
        start = not holder_lives(app.paths.lock)
    supervisor = Supervisor(app, reload, umask, again, listener)
    supervisor.prepare(start=start)
    lock.release()
    supervisor.run()
    alone.release()


def _recover(app: AppConfig, config_file: str | None, lock: AppLock) -> bool:
    """Finishes or undoes what was interrupted, but for the start; whether the app is to run.

    In a process of its own, so that what only this needs is not in memory for months.
    """
    disk = read_disk(app.paths)
    state = load_state(app, disk, time.time()).state
    facts = Facts(disk, process_facts(read_record(app.paths.record)))
    recovery = recover(state, facts)
    stops = any(step.name is StepName.STOP for step in recovery.steps)
    if stops and facts.process.running:
        _say(f"{app.name}: {recovery.reason} with the next check: the version before still runs")
    elif any(step.name is not StepName.START for step in recovery.steps):
        pid = os.fork()
        if pid == 0:
            _recover_and_exit(app, config_file, lock, state, recovery)
        os.waitpid(pid, 0)
    return state.wanted == "running"


def _recover_and_exit(
    app: AppConfig, config_file: str | None, lock: AppLock, state: State, recovery: Recovery
) -> None:
    from deployex_cli.engine import Engine
    from deployex_cli.supervise.handle import AppProcess

    try:
        engine = Engine(app, lock, AppProcess(app, config_file), _say, "supervisor")
        steps = tuple(step for step in recovery.steps if step.name is not StepName.START)
        engine.recover(recovery._replace(steps=steps))
    except Exception as error:
        _say(f"{app.name}: could not recover: {error}; starts what is current")
    finally:
        sys.stderr.flush()
        os._exit(0)


def _say(line: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", file=sys.stderr, flush=True)
