"""How a running node is: one question, whose answer is small, and nothing is left there.

What could wait on the node (its release handler during an install, its application controller) is
asked with a time-out of its own, so that the rest is told all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Thread
from time import monotonic
from typing import NamedTuple

from deployex_cli.errors import BadTerm, CallTimeout, NodeError, NodeTimeout
from deployex_cli.otp.identity import Target
from deployex_cli.otp.node import Node, connect
from deployex_cli.otp.release_handler import Releases
from deployex_cli.otp.terms import Term, text


class Count(NamedTuple):
    """How many there are, and how many there can be."""

    used: int
    limit: int

    @property
    def percent(self) -> float:
        """How much of the limit is used."""
        return 100 * self.used / self.limit


class Application(NamedTuple):
    """One that is loaded."""

    name: str
    version: str
    started: bool


class NodeStatus(NamedTuple):
    """What a node said of itself."""

    name: str
    otp_release: str  # "25"
    tls: bool  # whether its distribution speaks TLS
    release_handler: str  # "ready", "busy" (an install is under way), "none" (sasl does not run)
    running: str | None  # the release whose code runs: current, or permanent when none is current
    permanent: str | None  # the release that the VM would boot
    uptime_ms: int
    memory: int | None  # bytes, all that the VM has allocated; None: it does not count
    processes: Count
    atoms: Count
    ports: Count
    run_queue: int  # processes and ports that wait for a scheduler
    applications: tuple[Application, ...]  # sorted by name


def inspect(node: Node, timeout: float) -> NodeStatus:
    """What the node says of itself, within `timeout` seconds. Raises NodeError's family."""
    return _status(node.name, node.evaluate(_INSPECT, {}, timeout))


def ask_all(
    targets: Sequence[Callable[[], Target]], timeout: float
) -> Callable[[], list[NodeStatus | NodeError]]:
    """Asks all nodes at once; what it returns waits for their answers, or why there are none.

    `timeout` seconds from now on are for all of them together. Each is asked by a thread that
    nobody waits for beyond that: looking up a host's name has no time-out. A target that cannot be
    made (a cookie file that cannot be read) is a reason too.
    """
    deadline = monotonic() + timeout
    answers: list[NodeStatus | NodeError | None] = [None] * len(targets)

    def ask(index: int) -> None:
        try:
            with connect(targets[index](), deadline - monotonic()) as node:
                answers[index] = inspect(node, deadline - monotonic())
        except (NodeTimeout, CallTimeout):
            answers[index] = _late(timeout)
        except NodeError as error:
            answers[index] = error

    threads = [Thread(target=ask, args=(index,), daemon=True) for index in range(len(targets))]
    for thread in threads:
        thread.start()

    def wait() -> list[NodeStatus | NodeError]:
        for thread in threads:
            thread.join(max(0.0, deadline - monotonic()))
        return [answer or _late(timeout) for answer in answers]

    return wait


def _late(timeout: float) -> NodeTimeout:
    return NodeTimeout(f"the node did not answer within {timeout:g} s")


def _status(name: str, answer: Term) -> NodeStatus:
    """Raises BadTerm for an answer of another shape."""
    try:
        return _read(name, answer)
    except (ValueError, TypeError, AttributeError, ZeroDivisionError):
        raise BadTerm(f"{name}: the answer cannot be read") from None


def _read(name: str, answer: Term) -> NodeStatus:
    (otp, tls, handler, releases, uptime, memory, counts, run_queue, applications) = answer
    known = Releases("", {text(version): text(status) for version, status in releases})
    processes, atoms, ports = (Count(*pair) for pair in counts)
    return NodeStatus(
        name=name,
        otp_release=text(otp),
        tls=tls == "true",
        release_handler=text(handler),
        running=known.running,
        permanent=known.permanent,
        uptime_ms=uptime,
        memory=memory if isinstance(memory, int) else None,
        processes=processes,
        atoms=atoms,
        ports=ports,
        run_queue=run_queue,
        applications=tuple(
            sorted(
                Application(text(app), text(version), started == "true")
                for app, version, started in applications
            )
        ),
    )


# erlang(3), application(3), release_handler(3)
_INSPECT = """
Tls = case init:get_argument(proto_dist) of
    {ok, [[Protocol | _] | _]} -> lists:suffix("_tls", Protocol);
    _ -> false
end,
{Handler, Releases} = case whereis(release_handler) of
    undefined -> {none, []};
    _ ->
        try erpc:call(node(), release_handler, which_releases, [], 300) of
            Known -> {ready, [{Version, Status} || {_, Version, _, Status} <- Known]}
        catch _:_ -> {busy, []}
        end
end,
Started = try application:which_applications(300) catch _:_ -> [] end,
Applications = [
    {Name, Version, lists:keymember(Name, 1, Started)}
    || {Name, _, Version} <- application:loaded_applications()
],
{
    erlang:system_info(otp_release), Tls, Handler, Releases,
    element(1, erlang:statistics(wall_clock)),
    try erlang:memory(total) catch _:_ -> undefined end,
    [{erlang:system_info(Count), erlang:system_info(Limit)} || {Count, Limit} <- [
        {process_count, process_limit}, {atom_count, atom_limit}, {port_count, port_limit}
    ]],
    erlang:statistics(total_run_queue_lengths),
    Applications
}.
"""
