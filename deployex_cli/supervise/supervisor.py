"""Keeps the OS process of one app alive: STOPPED STARTING RUNNING BACKOFF STOPPING.

One thread, one epoll, no polling: nothing wakes it while the app runs and nobody asks. The app is
a child whose exit the kernel reports; what the app leaves behind becomes a child too (child
subreaper, prctl(2)) and is ended before a successor starts. An exit that nobody asked for is a
crash, exit 0 too.

It decides nothing about versions: it runs what `current` names.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from deployex_cli.config import AppConfig
from deployex_cli.core.backoff import crashes_in_a_row, restart_delay
from deployex_cli.errors import DeployexError
from deployex_cli.layout import files, libc, otp_files
from deployex_cli.layout.releases import read_marker
from deployex_cli.supervise import procfs
from deployex_cli.supervise.command import start_command, write_cookie_file
from deployex_cli.supervise.control import notify
from deployex_cli.supervise.jobs import Job, problem_of
from deployex_cli.supervise.node_stop import ANSWER_SECONDS, TAKEN, begin_node_stop
from deployex_cli.supervise.record import Record, lives, read_record, write_record
from deployex_cli.supervise.server import Client, ControlServer
from deployex_cli.supervise.spawn import send, spawn

# a VM in mid-reboot loses a SIGTERM: it is sent again, but after the second that any VM may take
RESEND_SECONDS = 1.5
GRACE_SECONDS = 5.0  # from the SIGTERM behind a stop by the node, at most, to SIGKILL
LEFTOVER_SECONDS = 0.5  # what the app left behind gets SIGTERM, and this long
ORPHAN_SECONDS = 0.02  # how often to look whether what an adopted app left has ended
RECORD_SECONDS = 1.0  # until a record that could not be written is tried again
UNKILLABLE_SECONDS = 5.0  # after SIGKILL: then it is said, and not waited for any longer
_SHORTAGES = {errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO}
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


class Supervisor:
    """One app's supervisor; `run` returns when it was told to end and the app is gone."""

    def __init__(
        self,
        app: AppConfig,
        reload: Callable[[], AppConfig],
        umask: int,
        again: Callable[[int], None],
        listener: int | None = None,
    ) -> None:
        """`again` puts a new program in our place, and hands the listening socket over."""
        self._app = app
        self._reload = reload
        self._umask = umask
        self._poller = select.epoll()
        self._again = again
        self._server = ControlServer(
            app.paths.socket, self._poller, self._handle, time.monotonic, listener
        )
        self._timers: dict[str, tuple[float, Callable[[], None]]] = {}
        me = os.getpid()
        self._record = Record(procfs.boot_id(), (me, procfs.start_time(me) or 0))
        self._wakeup = -1  # the pipe on which signals arrive
        self._pidfd: int | None = None  # of an app that is not our child
        self._start_waiters: list[Client] = []
        self._stop_waiters: list[Client] = []
        self._start_wanted = False  # once what runs is gone
        self._ending = False
        self._again_wanted = False
        self._sweeping = False
        self._orphans: list[tuple[int, int]] = []  # of an app that was not our child
        self._killed: set[int] = set()  # of what the app left behind
        self._jobs: list[Job] = []
        self._helper: int | None = None  # a child that recovers what was interrupted
        self._start_after_helper = False
        self._node_stop: int | None = None  # a child that asks the app's node to end

    # --- life -------------------------------------------------------------------------------

    def prepare(self, *, start: bool, restart: bool, helper: int | None = None) -> None:
        """Adopts the app that runs, or else starts it.

        `restart`: what ended while nobody watched is started again, as after any other crash.
        `helper` is a child that recovers what was interrupted: the app is started after it, unless
        it has done so.
        """
        self._helper, self._start_after_helper = helper, start
        libc.set_child_subreaper()
        self._wakeup = self._receive_signals()
        self._adopt(restart=restart)
        if self._record.app is None and self._record.state == "STOPPED":
            self._write()
            if start and helper is None:
                self._start_current()
        notify("READY=1")
        self._say(f"supervises {self._app.name} ({self._record.state})")

    def run(self) -> None:
        """Serves until SIGTERM or SIGINT."""
        while not (self._ending and self._record.app is None and not self._busy()):
            for descriptor, events in self._poller.poll(self._patience()):
                if descriptor == self._wakeup:
                    self._read_signals()
                elif descriptor == self._pidfd:
                    self._app_ended(None)
                elif self._server.owns(descriptor):
                    self._server.ready(descriptor, events)
            self._due()
            if self._again_wanted and self._is_idle():
                self._begin_again()
        self._update(state="STOPPED")
        self._server.close()
        self._say("ended")

    def _busy(self) -> bool:
        children = (self._helper, self._node_stop)
        return self._sweeping or bool(self._jobs) or children != (None, None)

    def _is_idle(self) -> bool:
        """Whether nothing is under way that only our memory knows of."""
        waiters = self._start_waiters or self._stop_waiters
        settled = self._record.state in ("RUNNING", "STOPPED", "BACKOFF")
        quiet = not self._busy() and not waiters and not self._server.has_clients()
        return settled and quiet and not self._ending

    def _begin_again(self) -> None:
        """SIGHUP: the program that is installed now takes our place; the app stays its child."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # no handler is there for a while
        self._read_signals()  # those that came before that would be lost with the pipe
        if not self._is_idle():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            return
        self._again_wanted = False
        self._say("SIGHUP: begins again")
        notify("RELOADING=1")
        self._write()
        try:
            self._again(self._server.hand_over())
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            self._server.take_back()
            notify("READY=1")
            self._say(f"goes on as it is: {error.filename}: {error.strerror}")

    def _receive_signals(self) -> int:
        """Turns signals into bytes on a pipe, so that they wait in the one place where we wait.

        Those that came while a new program took the old one's place have waited, blocked.
        """
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        self._poller.register(reader, select.EPOLLIN)
        return reader

    def _read_signals(self) -> None:
        try:
            numbers = os.read(self._wakeup, 4096)
        except BlockingIOError:
            return
        for number in numbers:
            self._signalled(number)

    def _signalled(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self._reap()
        elif number == signal.SIGHUP:
            self._again_wanted = True
        elif number in (signal.SIGTERM, signal.SIGINT) and not self._ending:
            self._ending = True
            notify("STOPPING=1")
            self._say(f"{signal.Signals(number).name}: stops {self._app.name}")
            for job in self._jobs:
                job.stop()
            self._stop()

    def _patience(self) -> float | None:
        """Seconds until something is due; None: nothing is."""
        due = [when for when, _ in self._timers.values()]
        silent = self._server.next_deadline()
        if silent is not None:
            due.append(silent)
        return max(min(due) - time.monotonic(), 0.0) if due else None

    def _due(self) -> None:
        now = time.monotonic()
        for name, (when, action) in list(self._timers.items()):
            if when <= now and self._timers.pop(name, None) is not None:
                action()
        self._server.drop_silent()

    def _after(self, name: str, seconds: float, action: Callable[[], None]) -> None:
        self._timers[name] = (time.monotonic() + seconds, action)

    # --- starting ---------------------------------------------------------------------------

    def _adopt(self, *, restart: bool) -> None:
        """Takes over what a supervisor before us left running, and starts no second one."""
        record = read_record(self._app.paths.record)
        if record is None:
            return
        ours = self._record
        self._record = record._replace(boot_id=ours.boot_id, supervisor=ours.supervisor)
        if record.boot_id != ours.boot_id or record.app is None:
            self._record = self._record._replace(app=None, restart_at=None)
            if record.state == "BACKOFF" and record.supervisor == ours.supervisor:
                left = (record.restart_at or 0.0) - time.time()
                longest = restart_delay(record.crashes_in_a_row)  # should the clock have been set
                left = min(max(left, 0.0), longest)
                self._record = self._record._replace(restart_at=time.time() + left)
                self._after("restart", left, self._restart_due)
            else:
                self._record = self._record._replace(state="STOPPED")
        elif record.app[0] in procfs.children(os.getpid()):
            self._update(state="RUNNING")
            self._reap()  # it may have ended while a new program took the old one's place
        elif lives(record.app, record):
            self._adopt_stranger(record.app)
        else:
            if not restart:
                self._record = self._record._replace(state="STOPPING")  # a person has stopped it
            self._app_ended(None)

    def _adopt_stranger(self, app: tuple[int, int]) -> None:
        """Watches an app that is not our child: its exit is seen, its exit status is not."""
        self._pidfd = os.pidfd_open(app[0])
        self._poller.register(self._pidfd, select.EPOLLIN)
        self._orphans = procfs.descendants(app[0])
        self._update(state="RUNNING")
        self._say(
            f"adopts {self._app.name} (pid {app[0]}, {self._record.version}), which still runs"
        )

    def _start_current(self) -> None:
        """Starts what is current, if anything is and nobody has told us to end."""
        if not self._ending and files.read_link(self._app.paths.link("current")):
            self._try_start()

    def _try_start(self) -> None:
        """Starts what is current; what cannot be executed is told to who waits, or is a crash."""
        self._timers.pop("restart", None)
        self._start_wanted = False
        if self._start_waiters:  # a crash changes nothing but the process
            self._take_configuration()
        try:
            self._spawn()
        except OSError as error:
            # of a log or a folder it is this machine's trouble, and not the version's
            logs = (self._app.paths.stdout, self._app.paths.stderr, self._app.paths.work)
            ours = error.filename in (None, *logs) or error.errno in _SHORTAGES
            verb = "opened" if error.filename in logs else "executed"
            reason = f"{error.filename or 'current'} cannot be {verb}: {error.strerror}"
            self._say(reason)
            if self._start_waiters:
                self._update(state="STOPPED", app=None, last_exit=reason, last_exit_at=time.time())
                self._tell(self._start_waiters, {"ok": False, "error": reason, "ours": ours})
            else:
                self._crashed(reason, 0.0)
            return
        record = self._record
        self._say(f"started {self._app.name} {record.version} (pid {record.app and record.app[0]})")
        self._tell(self._start_waiters, self._status())

    def _spawn(self) -> None:
        paths = self._app.paths
        target = files.read_link(paths.link("current"))
        if target is None:
            raise FileNotFoundError(2, "no release is deployed", paths.link("current"))
        folder = os.path.basename(target)
        release = paths.release(folder)
        marker = read_marker(release, folder)
        self._mend(release)
        write_cookie_file(self._app)
        command = start_command(self._app, release, os.environ)
        record = self._record._replace(
            state="STARTING",
            folder=folder,
            version=marker.version if marker else None,
            started_at=time.time(),
            starts=self._record.starts + 1,
            restart_at=None,
        )

        def write_own_record() -> None:
            me = os.getpid()
            try:
                write_record(paths.record, record._replace(app=(me, procfs.start_time(me) or 0)))
            except OSError:
                return  # the supervisor tries, too, and says so

        pid = spawn(
            command,
            folder=paths.work,
            output=(paths.stdout, paths.stderr),
            umask=self._umask,
            before_exec=write_own_record,
        )
        self._record = record
        # it may have ended by now, and must not be taken for one that lived since boot
        self._update(state="RUNNING", app=(pid, procfs.start_time(pid, zombies=True) or 0))

    def _mend(self, release: str) -> None:
        """Puts right what a power cut may have done to the files that the VM boots by."""
        try:
            for name in otp_files.mend(release):
                self._say(f"{release}/{name} was torn or missing: put right")
        except (OSError, ValueError) as error:
            self._say(f"{release}: {otp_files.START_ERL} cannot be put right: {error}")

    def _take_configuration(self) -> None:
        """Reads the configuration again; a broken one is said, and the last good one goes on."""
        try:
            self._app = self._reload()
        except DeployexError as error:
            self._say(f"goes on with the configuration it has: {error.message}")

    # --- ending -----------------------------------------------------------------------------

    def _stop(self) -> None:
        """Begins to stop the app; `_gone` is called when it and all it left behind are gone."""
        self._timers.pop("restart", None)
        app = self._record.app
        if app is None:
            if not self._sweeping:
                self._gone()
        elif self._record.state != "STOPPING":
            if self._pidfd is not None:
                self._orphans = procfs.descendants(app[0])
            self._update(state="STOPPING")
            self._node_stop = begin_node_stop(self._app, app[0])
            if self._node_stop is None:
                self._terminate(self._app.stop_timeout)
            else:
                longest = min(ANSWER_SECONDS, self._app.stop_timeout)
                self._after("answer", longest, self._end_node_stop)

    def _end_node_stop(self) -> None:
        if self._node_stop is not None:
            send(signal.SIGKILL, self._node_stop)  # SIGCHLD says when it is gone

    def _node_answered(self, taken: bool) -> None:
        """The node was asked to end, and does so (`taken`), or wants to be told by a signal."""
        self._node_stop = None
        self._timers.pop("answer", None)
        if self._record.app is None or self._record.state != "STOPPING":
            return  # it has ended meanwhile
        if taken:
            self._after("insist", self._app.stop_timeout, self._insist)
        else:
            self._terminate(self._app.stop_timeout)

    def _insist(self) -> None:
        self._say(f"{self._app.name} did not end in {self._app.stop_timeout:g} s: SIGTERM")
        self._terminate(min(self._app.stop_timeout, GRACE_SECONDS))

    def _terminate(self, seconds: float) -> None:
        """SIGTERM, again and again, and after `seconds` SIGKILL."""
        self._resend()
        self._after("kill", seconds, lambda: self._kill_app(seconds))

    def _resend(self) -> None:
        self._send(signal.SIGTERM)
        self._after("resend", RESEND_SECONDS, self._resend)

    def _kill_app(self, seconds: float) -> None:
        self._say(f"{self._app.name} did not end in {seconds:g} s: SIGKILL")
        self._send(signal.SIGKILL)
        if self._record.app is not None and self._pidfd is None:
            send(signal.SIGKILL, self._record.app[0], os.killpg)

    def _send(self, number: int) -> None:
        app = self._record.app
        if app is not None and procfs.start_time(app[0]) == app[1]:
            try:
                os.kill(app[0], number)
            except OSError as error:  # it runs as another user by now: it is tried again
                self._say(f"{self._app.name} (pid {app[0]}) cannot be told: {error.strerror}")

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if self._record.app is not None and pid == self._record.app[0]:
                self._app_ended(status)
            if pid == self._helper:
                self._helper = None
                if self._start_after_helper and self._record.state in ("STOPPED", "BACKOFF"):
                    self._start_current()
            if pid == self._node_stop:
                self._node_answered(os.waitstatus_to_exitcode(status) == TAKEN)
            for job in self._jobs:
                if job.pid == pid:
                    self._job_ended(job, status)
                    break
        if self._sweeping:
            self._sweep()

    def _app_ended(self, status: int | None) -> None:
        """The app's process is gone; `status` as waitpid gives it, None: nobody can know it."""
        app, asked = self._record.app, self._record.state == "STOPPING"
        # no start time: it had ended before we could ask for it
        lived = procfs.uptime(app[1]) if app and app[1] else 0.0
        for timer in ("answer", "insist", "resend", "kill"):
            self._timers.pop(timer, None)
        self._end_node_stop()
        if self._pidfd is not None:
            self._poller.unregister(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        reason = _in_words(status)
        self._record = self._record._replace(app=None, last_exit=reason, last_exit_at=time.time())
        self._sweeping = True
        if asked:
            self._record = self._record._replace(asked=app)
            self._say(f"{self._app.name} {reason}")
        else:
            self._crashed(reason, lived)
        self._sweep()

    def _crashed(self, reason: str, lived: float) -> None:
        in_a_row = crashes_in_a_row(
            self._record.crashes_in_a_row, lived, self._app.min_healthy_time
        )
        delay = restart_delay(in_a_row)
        self._record = self._record._replace(
            app=None,
            state="BACKOFF",
            crashes=self._record.crashes + 1,
            crashes_in_a_row=in_a_row,
            last_exit=reason,
            last_exit_at=time.time(),
            restart_at=time.time() + delay,
        )
        self._after("restart", delay, self._restart_due)
        if delay:
            self._write()
        self._say(f"{self._app.name} {reason} after {lived:.1f} s; starts again in {delay:g} s")

    def _restart_due(self) -> None:
        if self._helper is not None:
            return  # it may have other plans; what is current is started when it has ended
        if not self._sweeping:
            self._try_start()
        else:
            self._start_wanted = True

    def _sweep(self) -> None:
        """Ends what the app left behind: its port programs have sessions of their own."""
        left = self._leftovers()
        if self._orphans:  # nobody tells us of their end
            self._after("orphans", ORPHAN_SECONDS, self._sweep)
        if not left:
            self._sweeping = False
            self._orphans = []
            self._killed.clear()
            for timer in ("leftovers", "unkillable", "orphans"):
                self._timers.pop(timer, None)
            self._gone()
        elif "unkillable" in self._timers:
            self._kill(left)  # children of what was killed have become ours
        elif "leftovers" not in self._timers:
            for pid in left:
                send(signal.SIGTERM, pid)
            self._after("leftovers", LEFTOVER_SECONDS, self._kill_leftovers)

    def _kill_leftovers(self) -> None:
        self._after("unkillable", UNKILLABLE_SECONDS, self._give_up_leftovers)
        self._kill(self._leftovers())

    def _kill(self, left: list[int]) -> None:
        for pid in left:
            if pid not in self._killed:
                self._killed.add(pid)
                self._say(f"{self._app.name} left {procfs.name(pid)} (pid {pid}) behind: SIGKILL")
                self._after("unkillable", UNKILLABLE_SECONDS, self._give_up_leftovers)
                send(signal.SIGKILL, pid)

    def _give_up_leftovers(self) -> None:
        self._say(f"{self._leftovers()} cannot be killed; goes on without waiting for them")
        self._sweeping = False
        self._orphans = []
        self._killed.clear()
        self._timers.pop("orphans", None)
        self._gone()

    def _leftovers(self) -> list[int]:
        """Our children that are neither the app nor a job, nor epmd, which outlives every app."""
        known = {job.pid for job in self._jobs} | {self._helper, self._node_stop}
        if self._record.app is not None:
            known.add(self._record.app[0])
        found = []
        orphans = [pid for pid, start in self._orphans if procfs.start_time(pid) == start]
        for pid in (*procfs.children(os.getpid()), *orphans):
            alive = pid not in known and procfs.start_time(pid) is not None
            if alive and not procfs.is_epmd(pid):
                found.append(pid)
        return found

    def _gone(self) -> None:
        """Nothing of the app is left."""
        if self._record.state == "BACKOFF" and not self._ending and not self._stop_waiters:
            due = self._timers.get("restart", (1e18,))[0] <= time.monotonic()
            if self._start_wanted or (due and self._helper is None):
                self._try_start()
            return
        self._update(state="STOPPED", restart_at=None)
        self._tell(self._stop_waiters, self._status())
        if self._start_wanted and not self._ending:
            self._try_start()

    # --- requests ---------------------------------------------------------------------------

    def _handle(self, client: Client, request: dict[str, Any]) -> None:
        command = request.get("command")
        if command == "status":
            self._server.answer(client, self._status())
        elif self._ending:
            answer = {"ok": False, "error": "the supervisor is ending", "ours": True}
            self._server.answer(client, answer)
        elif command == "stop":
            self._stop_waiters.append(client)
            self._start_wanted = False
            meanwhile = {"ok": False, "error": "a stop was asked for meanwhile", "ours": True}
            self._tell(self._start_waiters, meanwhile)
            self._stop()
        elif command == "start":
            self._start(client, again=False)
        elif command == "restart":
            self._start(client, again=True)
        elif command == "run":
            self._run_job(client, request)
        else:
            self._server.answer(client, {"ok": False, "error": f"no such command: {command!r}"})

    def _start(self, client: Client, *, again: bool) -> None:
        """Makes the app run out of `current`: what runs from there stays, unless `again`."""
        target = files.read_link(self._app.paths.link("current"))
        record = self._record
        if target is None:
            self._server.answer(client, {"ok": False, "error": "no release is deployed"})
            return
        as_meant = record.state == "RUNNING" and record.folder == os.path.basename(target)
        if as_meant and not again:
            self._server.answer(client, self._status())
            return
        self._start_waiters.append(client)
        self._record = record._replace(crashes_in_a_row=0)
        self._start_wanted = True
        if record.app is None and not self._sweeping:
            self._try_start()
        else:
            self._stop()

    def _run_job(self, client: Client, request: dict[str, Any]) -> None:
        """Runs pre_commands, one after the other; the client's descriptor is the app's lock."""
        lock = client.descriptors.pop() if client.descriptors else None
        problem = problem_of(self._app, request, lock)
        if problem is not None:
            if lock is not None:
                os.close(lock)
            self._server.answer(client, {"ok": False, "error": problem})
            return
        self._take_configuration()
        job = Job(self._app, request, lock, client, self._umask, self._family)
        self._jobs.append(job)
        self._next_of(job)

    def _family(self) -> set[int]:
        """The app and all that it has begotten: no job may end these."""
        app = self._record.app
        return {app[0], *(pid for pid, _ in procfs.descendants(app[0]))} if app else set()

    def _next_of(self, job: Job) -> None:
        answer = job.next()
        if answer is None:
            self._after(f"job {id(job)}", self._app.pre_command_timeout, job.run_out_of_time)
            return
        self._timers.pop(f"job {id(job)}", None)
        self._jobs.remove(job)
        job.close()
        self._server.answer(job.client, answer)

    def _job_ended(self, job: Job, status: int) -> None:
        job.ended(_in_words(status) if status else None)
        self._next_of(job)

    def _tell(self, waiters: list[Client], answer: dict[str, Any]) -> None:
        while waiters:
            self._server.answer(waiters.pop(), answer)

    def _status(self) -> dict[str, Any]:
        return {"ok": True, **self._record._asdict()}

    # --- notes ------------------------------------------------------------------------------

    def _update(self, **changes: Any) -> None:
        self._record = self._record._replace(**changes)
        self._write()

    def _write(self) -> None:
        try:
            write_record(self._app.paths.record, self._record)
            self._timers.pop("record", None)
        except OSError as error:  # no reason to leave the app alone
            self._say(f"{self._app.paths.record} cannot be written: {error.strerror}")
            self._after("record", RECORD_SECONDS, self._write)

    def _say(self, line: str) -> None:
        try:
            print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", file=sys.stderr, flush=True)
        except OSError:
            pass  # nobody reads it, or the disk is full


def _in_words(status: int | None) -> str:
    """A status of waitpid(2) as the end of a sentence."""
    if status is None:
        return "ended (its exit status is unknown, for another supervisor had started it)"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        known = number in set(signal.Signals)  # most real-time signals have no name
        return f"was ended by {signal.Signals(number).name if known else f'signal {number}'}"
    return f"exited with {os.WEXITSTATUS(status)}"
