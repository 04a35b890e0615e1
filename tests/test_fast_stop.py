"""A stop through the app's node: nothing of the app's own end is skipped, but OTP's second is.

The app is a real node: `witness` notes in the file `order` what of its end it has come to.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from deployex_cli.otp.identity import target_of
from deployex_cli.otp.stop import stop_node
from tests.beam import Certificates
from tests.configured import app_in
from tests.tiny import TinyWorld, answer_on, descriptors, is_alive, shell
from tests.world import eventually

pytestmark = pytest.mark.beam

LINES = 1500
_WITNESS = """
-module(witness).
-behaviour(application).
-behaviour(gen_server).
-behaviour(gen_event).
-export([start/2, prep_stop/1, stop/1, start_link/0, init/1, handle_call/3, handle_call/2]).
-export([handle_cast/2, handle_event/2, terminate/2, note/1, alien/1, reboot/0]).

note(What) -> ok = file:write_file("order", [What, "\\n"], [append]).

start(_, _) ->
    {ok, Pid} = supervisor:start_link(?MODULE, supervisor),
    note("start"),
    {ok, Pid}.

prep_stop(State) -> note("prep_stop"), State.

%% asks for the output as some loggers do, without waiting for it
stop(_) ->
    note("stop"),
    {ok, Words} = application:get_env(witness, words),
    [user ! {io_request, self(), make_ref(), {put_chars, unicode, Text}}
        || Text <- lists:duplicate(Words, "words\\n") ++ ["the last words\\n"]].

start_link() -> gen_server:start_link(?MODULE, server, []).

init(supervisor) ->
    {ok, {#{}, [#{id => server, start => {?MODULE, start_link, []}, shutdown => infinity}]}};
init(server) ->
    process_flag(trap_exit, true),
    {ok, table} = dets:open_file(table, [{file, "table.dets"}]),
    {ok, server};
init({handler, _}) ->
    {ok, handler}.

handle_call(_, _, State) -> {reply, ok, State}.
handle_cast(_, State) -> {noreply, State}.

terminate(_, server) ->
    {ok, Milliseconds} = application:get_env(witness, takes),
    timer:sleep(Milliseconds),
    {ok, Lines} = application:get_env(witness, lines),
    [logger:notice("line ~b", [N]) || N <- lists:seq(1, Lines)],
    {ok, Rows} = application:get_env(witness, rows),
    ok = dets:insert(table, [{N, N} || N <- lists:seq(1, Rows)]),
    ok = dets:insert(table, {key, os:getpid()}),
    note("terminate");
terminate(_, _) ->
    ok.

%% a SIGTERM that the app hears itself
handle_event(sigterm, State) -> note("sigterm"), init:stop(), {ok, State};
handle_event(_, State) -> {ok, State}.
handle_call(_, State) -> {ok, ok, State}.
alien(Cookie) -> erlang:set_cookie(Cookie).

%% the VM begins anew in the same process, once
reboot() ->
    case filelib:is_file("rebooting") of
        true -> ok;
        false ->
            timer:sleep(300),
            ok = file:write_file("rebooting", "\\n"),
            init:restart()
    end.
"""
_APP = """{application, witness, [{vsn, "1"}, {modules, [witness]}, {registered, []},
    {applications, [kernel, stdlib]}, {mod, {witness, []}}]}."""
# all is logged, however much comes at once, so that a line that is missing was lost in the stop
_NO_LIMIT = (
    "sync_mode_qlen=>90000,drop_mode_qlen=>90000,flush_qlen=>90000,burst_limit_enable=>false"
)
_LOGGER = (
    f"[{{handler,default,logger_std_h,#{{config=>#{{{_NO_LIMIT}}}}}}},"
    f'{{handler,file,logger_std_h,#{{config=>#{{file=>"file.log",{_NO_LIMIT}}}}}}}]'
)
_BY_SIGNAL = "SIGTERM received - shutting down"  # what OTP's own handler logs


@pytest.fixture(scope="session")
def ebin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled application."""
    folder = tmp_path_factory.mktemp("ebin")
    (folder / "witness.erl").write_text(_WITNESS)
    (folder / "witness.app").write_text(_APP)
    subprocess.run(["erlc", "-o", folder, folder / "witness.erl"], check=True)
    return folder


class Witnessed:
    """A tiny world whose app is the node."""

    def __init__(self, tiny: TinyWorld, ebin: Path) -> None:
        self.tiny = tiny
        self._ebin = ebin

    def place(
        self,
        *,
        takes: int = 0,
        lines: int = 3,
        words: int = 100,
        rows: int = 100,
        eval: str = "ok",
        flags: str = "",
        named: str = "-sname $RELEASE_NODE",
        logger: str = _LOGGER,
        sh: str = "",
    ) -> None:
        """Makes it current. `takes`: milliseconds of its end; `eval`: Erlang, once it has begun."""
        begin = f"{{ok, _}} = application:ensure_all_started(witness, permanent), {eval}."
        self.tiny.place(
            shell(
                f"{sh}\nexec erl -noinput {named} -setcookie $RELEASE_COOKIE {flags}"
                " -kernel inet_dist_use_interface '{127,0,0,1}'"
                f" -pa {self._ebin} -kernel logger '{logger}'"
                f" -witness takes {takes} lines {lines} words {words} rows {rows} -eval '{begin}'"
            )
        )

    def begin(self, **more: Any) -> subprocess.Popen[bytes]:
        """Begins a supervisor, and waits for the app's start."""
        self.place(**more)
        process = self.tiny.supervise()
        eventually(lambda: self.order[:1] == ["start"])
        return process

    @property
    def order(self) -> list[str]:
        path = self.tiny.work / "order"
        return path.read_text().split() if path.exists() else []

    def has_come_to(self, *what: str) -> None:
        eventually(lambda: self.order == [*what])

    @property
    def printed(self) -> str:
        """What it has written to its stdout."""
        return self.tiny.log().read_text()

    @property
    def was_signalled(self) -> bool:
        return _BY_SIGNAL in self.printed


@pytest.fixture
def witness(tiny: TinyWorld, ebin: Path) -> Witnessed:
    del tiny.defaults["distribution"]  # this one is a node
    tiny.configure()
    return Witnessed(tiny, ebin)


WHOLE = ["start", "prep_stop", "terminate", "stop"]


def asker(supervisor: int, app: int) -> list[int]:
    """The supervisor's children that are not the app."""
    path = Path(f"/proc/{supervisor}/task/{supervisor}/children")
    return [int(pid) for pid in path.read_text().split() if int(pid) != app]


# --- what an app does in its end ----------------------------------------------------------------


def test_20_of_20_have_done_all_and_logged_all_and_left_no_second(witness: Witnessed) -> None:
    tiny = witness.tiny
    witness.begin(lines=LINES)
    seconds = []
    for _ in range(20):
        begun = time.monotonic()
        answer = tiny.ask("stop")
        seconds.append(time.monotonic() - begun)
        assert (answer["state"], answer["last_exit"]) == ("STOPPED", "exited with 0")
        assert answer["crashes"] == 0
        assert witness.order == WHOLE
        assert f"line {LINES}\n" in witness.printed
        assert f"line {LINES}\n" in (tiny.work / "file.log").read_text()
        assert "the last words\n" in witness.printed
        assert not witness.was_signalled
        for path in (tiny.work / "order", tiny.log(), tiny.work / "file.log"):
            path.unlink()
        tiny.ask("start")
        witness.has_come_to("start")
    assert sorted(seconds)[10] < 0.9, "an ordinary stop takes OTP's second and more"


def test_what_was_printed_is_out_though_nobody_waited_for_it_and_nothing_is_logged(
    witness: Witnessed,
) -> None:
    witness.tiny.configure('stop_timeout = "60s"')  # from OTP 26 on printing is far slower
    witness.begin(logger="[{handler,default,undefined}]", words=100_000)
    assert witness.tiny.ask("stop")["last_exit"] == "exited with 0"
    assert witness.printed.endswith("the last words\n")


def test_a_table_that_nobody_closed_is_closed(witness: Witnessed) -> None:
    witness.begin(rows=20_000)
    pid = witness.tiny.pid()
    witness.tiny.ask("stop")
    read = (
        '{ok, t} = dets:open_file(t, [{file, "table.dets"}, {repair, false}]),'
        'io:format("~p", [dets:lookup(t, key)]), halt().'
    )
    words = ["erl", "-noinput", "-eval", read]
    out = subprocess.run(words, capture_output=True, text=True, cwd=witness.tiny.work).stdout
    assert out == f'[{{key,"{pid}"}}]'


def test_an_end_that_takes_one_and_a_half_seconds_is_waited_for(witness: Witnessed) -> None:
    witness.begin(takes=1500)
    begun = time.monotonic()
    assert witness.tiny.ask("stop")["last_exit"] == "exited with 0"
    assert time.monotonic() - begun >= 1.5
    assert witness.order == WHOLE
    assert not witness.was_signalled


def test_an_end_longer_than_stop_timeout_gets_sigterm_and_then_sigkill(
    witness: Witnessed,
) -> None:
    tiny = witness.tiny
    tiny.configure('stop_timeout = "2s"')
    witness.begin(takes=60_000)
    begun = time.monotonic()
    assert tiny.ask("stop")["last_exit"] == "was ended by SIGKILL"
    assert time.monotonic() - begun >= 4
    assert witness.was_signalled
    assert "tiny did not end in 2 s: SIGTERM\n" in tiny.said
    assert "tiny did not end in 2 s: SIGKILL\n" in tiny.said
    assert witness.order == ["start", "prep_stop"]


# --- who asks -----------------------------------------------------------------------------------


def test_a_second_stop_joins_the_one_under_way(witness: Witnessed) -> None:
    tiny = witness.tiny
    witness.begin(takes=700)
    first = tiny.asking("stop")
    tiny.until("STOPPING")
    second = tiny.asking("stop")
    witness.has_come_to("start", "prep_stop")
    third = tiny.asking("stop")
    for connection in (first, second, third):
        assert answer_on(connection)["last_exit"] == "exited with 0"
    assert witness.order == WHOLE
    assert not witness.was_signalled


def test_told_to_end_the_supervisor_ends_the_app_so(witness: Witnessed) -> None:
    process = witness.begin(takes=200)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    assert witness.tiny.ended(process) == 0
    assert witness.order == WHOLE
    assert not witness.was_signalled
    assert witness.tiny.processes() == []


def test_a_restart_ends_it_so_and_is_no_crash(witness: Witnessed) -> None:
    witness.begin()
    first = witness.tiny.pid()
    answer = witness.tiny.ask("restart")
    assert (answer["state"], answer["crashes"]) == ("RUNNING", 0)
    assert answer["app"][0] != first
    witness.has_come_to(*WHOLE, "start")
    assert not witness.was_signalled


def test_an_app_that_was_adopted_is_ended_so(witness: Witnessed) -> None:
    tiny = witness.tiny
    process = witness.begin()
    process.kill()
    process.wait()
    tiny.supervise()
    assert tiny.ask("stop")["state"] == "STOPPED"
    assert witness.order == WHOLE
    assert not witness.was_signalled
    assert tiny.vms() == []


def test_after_a_supervisor_was_killed_in_the_stop_the_next_one_joins_it(
    witness: Witnessed,
) -> None:
    tiny = witness.tiny
    process = witness.begin(takes=1500)
    connection = tiny.asking("stop")
    witness.has_come_to("start", "prep_stop")
    process.kill()
    process.wait()
    connection.close()
    tiny.supervise()
    assert tiny.ask("stop")["state"] == "STOPPED"
    assert witness.order == WHOLE, "and nothing twice"
    assert "Error in process" not in witness.printed
    assert not witness.was_signalled
    assert tiny.record()["starts"] == 1
    assert tiny.vms() == []


def test_stopped_at_any_time_of_its_start_it_is_gone_and_that_is_no_crash(
    witness: Witnessed,
) -> None:
    tiny = witness.tiny
    witness.place()
    tiny.supervise("RUNNING")
    for milliseconds in range(0, 400, 50):
        time.sleep(milliseconds / 1000)  # any point will do
        answer = tiny.ask("stop")
        assert (answer["state"], answer["crashes"], tiny.vms()) == ("STOPPED", 0, [])
        order = witness.order
        assert order in ([], ["start"], WHOLE), f"{order} after {milliseconds} ms"
        (tiny.work / "order").unlink(missing_ok=True)
        tiny.ask("start")


@pytest.mark.parametrize("milliseconds", [0, 100, 300, 600])
def test_amid_a_reboot_of_the_vm_it_is_ended_in_the_end(
    witness: Witnessed, milliseconds: int
) -> None:
    tiny = witness.tiny
    witness.place(eval="witness:reboot()")
    tiny.supervise()
    tiny.read("rebooting")
    time.sleep(milliseconds / 1000)
    begun = time.monotonic()
    answer = tiny.ask("stop")
    assert time.monotonic() - begun < 10, "long before the time-out"
    assert (answer["state"], answer["crashes"]) == ("STOPPED", 0)
    assert "SIGKILL" not in answer["last_exit"]
    assert tiny.vms() == []


def test_a_node_that_speaks_tls_is_ended_so(witness: Witnessed, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path / "certificates")
    witness.tiny.env["DEPLOYEX_OTP_TLS_CERT_PATH"] = str(certificates.folder)
    witness.begin(flags=" ".join(certificates.flags()))
    assert witness.tiny.ask("stop")["last_exit"] == "exited with 0"
    assert witness.order == WHOLE
    assert not witness.was_signalled


# --- where a node is not asked, or does not answer ----------------------------------------------


def test_a_node_with_a_heart_is_ended_by_sigterm_and_not_started_again(
    witness: Witnessed,
) -> None:
    tiny = witness.tiny
    witness.begin(flags="-heart", sh="export HEART_COMMAND='touch again'")
    eventually(lambda: tiny.processes("heart"))
    assert tiny.ask("stop")["last_exit"] == "exited with 0"
    assert witness.order == WHOLE
    assert witness.was_signalled
    assert tiny.processes("heart", "beam.smp") == []
    assert not (tiny.work / "again").exists()


def test_an_app_that_hears_sigterm_itself_hears_it(witness: Witnessed) -> None:
    swap = "gen_event:swap_handler(erl_signal_server, {erl_signal_handler, []}, {witness, handler})"
    witness.begin(eval=f'ok = {swap}, witness:note("ready")')
    witness.has_come_to("start", "ready")
    assert witness.tiny.ask("stop")["last_exit"] == "exited with 0"
    assert witness.order[:4] == ["start", "ready", "sigterm", "prep_stop"]
    assert witness.order.count("terminate") == 1


def test_with_another_cookie_it_is_ended_by_sigterm(witness: Witnessed) -> None:
    witness.begin(eval='witness:alien(another), witness:note("ready")')
    witness.has_come_to("start", "ready")
    assert witness.tiny.ask("stop")["last_exit"] == "exited with 0"
    assert witness.order == ["start", "ready", "prep_stop", "terminate", "stop"]
    assert witness.was_signalled
    assert "cannot be asked to end, SIGTERM then: " in witness.tiny.said
    assert "cookie" in witness.tiny.said
    assert "monster" not in witness.tiny.said


def test_with_distribution_none_it_is_ended_by_sigterm(witness: Witnessed) -> None:
    witness.tiny.configure('distribution = "none"')
    witness.begin()
    assert witness.tiny.ask("stop")["last_exit"] == "exited with 0"
    assert witness.order == WHOLE
    assert witness.was_signalled
    assert "cannot be asked" not in witness.tiny.said


def test_a_node_that_is_not_distributed_is_ended_by_sigterm(witness: Witnessed) -> None:
    tiny = witness.tiny
    witness.begin(named="")
    assert tiny.ask("stop")["last_exit"] == "exited with 0"
    assert witness.order == WHOLE
    assert witness.was_signalled
    assert "cannot be asked to end, SIGTERM then: " in tiny.said


def test_a_vm_that_hangs_is_killed(witness: Witnessed) -> None:
    tiny = witness.tiny
    tiny.configure('stop_timeout = "500ms"')
    witness.begin()
    app = tiny.pid()
    os.kill(app, signal.SIGSTOP)
    answer = tiny.ask("stop")
    assert answer["last_exit"] == "was ended by SIGKILL"
    assert answer["state"] == "STOPPED"
    assert not is_alive(app)


# --- the child that asks ------------------------------------------------------------------------


def test_the_child_that_asks_has_no_file_of_ours_and_ends_with_the_app(
    witness: Witnessed,
) -> None:
    tiny = witness.tiny
    process = witness.begin()
    app = tiny.pid()
    os.kill(app, signal.SIGSTOP)
    stop = tiny.asking("stop")
    child = eventually(lambda: asker(process.pid, app))[0]
    said = str(tiny.root / "supervise.said")
    # for a moment it has one to epmd, too; then its own, to the node, whose answer it waits for

    def holds() -> bool:
        found = list(descriptors(child).values())
        return found[:3] == ["/dev/null", said, said] and ["socket" in f for f in found[3:]] == [
            True
        ]

    assert eventually(holds)
    assert os.getsid(child) == child
    os.kill(child, signal.SIGSTOP)  # so that it cannot end by itself
    os.kill(app, signal.SIGKILL)
    assert answer_on(stop)["state"] == "STOPPED"
    eventually(lambda: not is_alive(child))
    assert eventually(lambda: not asker(process.pid, app)), "no zombie either"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_behind_a_child_that_asks_and_does_not_answer_is_sigterm(
    witness: Witnessed, number: signal.Signals
) -> None:
    tiny = witness.tiny
    process = witness.begin()
    app = tiny.pid()
    os.kill(app, signal.SIGSTOP)
    stop = tiny.asking("stop")
    os.kill(eventually(lambda: asker(process.pid, app))[0], number)
    os.kill(app, signal.SIGCONT)
    assert answer_on(stop)["last_exit"] == "exited with 0"
    assert witness.order == WHOLE
    assert witness.was_signalled


def test_the_supervisor_that_is_killed_leaves_no_child_that_asks(witness: Witnessed) -> None:
    tiny = witness.tiny
    process = witness.begin()
    app = tiny.pid()
    os.kill(app, signal.SIGSTOP)
    tiny.asking("stop").close()
    child = eventually(lambda: asker(process.pid, app))[0]
    process.kill()
    process.wait()
    eventually(lambda: not is_alive(child), 5)
    os.kill(app, signal.SIGKILL)


def test_what_is_no_vm_is_not_asked(tiny: TinyWorld) -> None:
    tiny.place()
    tiny.supervise()
    assert tiny.ask("stop")["last_exit"] == "was ended by SIGTERM"
    assert "cannot be asked" not in tiny.said


def test_the_supervisor_itself_imports_no_client_of_nodes() -> None:
    look = (
        "import sys, deployex_cli.commands.supervise;"
        "print([m for m in sys.modules if m.startswith(('deployex_cli.otp', 'erlang', 'ssl'))])"
    )
    out = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True).stdout
    assert out == "[]\n"


def test_a_node_that_is_another_process_is_not_ended(witness: Witnessed) -> None:
    tiny = witness.tiny
    witness.begin()
    app, node = app_in(tiny.scratch, f'node = "{tiny.node}"', "tiny"), tiny.pid()
    target = target_of(app, node, tiny.env)
    assert not stop_node(target, node + 1, 5.0)
    assert witness.order == ["start"]
    assert stop_node(target, node, 5.0)
    witness.has_come_to(*WHOLE, "start")  # a crash, for nobody has asked the supervisor
    assert tiny.record()["last_exit"] == "exited with 0"
