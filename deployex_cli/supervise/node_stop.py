"""Asks the app's node to end, in a child: the supervisor has no client of nodes in its memory.

Whatever becomes of the child, the supervisor has its signals: nothing but its exit code counts.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import NoReturn

from deployex_cli.config import AppConfig
from deployex_cli.supervise import procfs
from deployex_cli.supervise.spawn import begin_anew

ANSWER_SECONDS = 2.0  # what the node may take to answer, all in all
TAKEN, NOT_TAKEN = 0, 1  # exit codes


def begin_node_stop(app: AppConfig, pid: int) -> int | None:
    """The pid of a child that asks the app's node, or None: there is no node to ask.

    The child exits with TAKEN when the node ends by itself now, and lives ANSWER_SECONDS at most.
    """
    if app.distribution == "none" or not procfs.is_vm(pid):
        return None
    # no signal between fork and its own handlers: ours in the child would wake the supervisor
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        child = os.fork()
        if child == 0:
            _ask(app, pid)
        return child
    except OSError:  # no process left: there is the signal
        return None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ask(app: AppConfig, pid: int) -> NoReturn:
    """In the child: never returns, never raises."""
    code = NOT_TAKEN
    try:
        signal.setitimer(signal.ITIMER_REAL, ANSWER_SECONDS)  # SIGALRM ends it, should nobody else
        begin_anew(keep={0, 1, 2})
        from deployex_cli.errors import DeployexError
        from deployex_cli.otp.identity import target_of
        from deployex_cli.otp.stop import stop_node

        try:
            if stop_node(target_of(app, pid, os.environ), pid, ANSWER_SECONDS):
                code = TAKEN
        except DeployexError as error:
            _say(f"{app.name}: its node cannot be asked to end, SIGTERM then: {error.message}")
    except BaseException as error:
        _say(f"{app.name}: its node cannot be asked to end: {type(error).__name__}: {error}")
    finally:
        os._exit(code)


def _say(line: str) -> None:
    try:
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", file=sys.stderr, flush=True)
    except OSError:
        return  # nobody reads it, or the disk is full
