"""A connection to a running BEAM node, and calls on it. The only module with a socket.

We are a hidden node that the peer names itself: nothing of us is left there. Whether a call was
sent is never in doubt: what fails before is NodeUnreachable, what fails after is LostAfter, and a
call that was sent is never sent again.
"""

from __future__ import annotations

import os

# the socket module takes 10 ms to import, a fifth of what a whole check may take
from _socket import (
    AF_INET6,
    IPPROTO_TCP,
    SOCK_STREAM,
    TCP_NODELAY,
    gaierror,
    getaddrinfo,
)
from _socket import socket as Socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn

from deployex_cli.errors import (
    BadRpc,
    BadTerm,
    CallTimeout,
    ConnectionRefused,
    EpmdDown,
    LostAfter,
    LostBefore,
    NodeError,
    NodeNotRegistered,
    NodeProtocolError,
    NodeTimeout,
    NodeUnreachable,
    OtherNode,
    TlsRefused,
    WrongCookie,
)
from deployex_cli.otp import epmd, framing, handshake, terms
from deployex_cli.otp.terms import Atom, Term

if TYPE_CHECKING:
    from deployex_cli.otp.identity import Target, TlsFiles

TICK_SECONDS = 5.0  # a node with the default net_ticktime gives us up after 45 to 75 s of silence
IDLE_SECONDS = 10.0  # after so long a connection is made anew: nobody has answered ticks
_CHUNK = 65536

# control messages (ERTS, Distribution Protocol)
_SEND, _REG_SEND, _MONITOR_P, _DEMONITOR_P, _MONITOR_P_EXIT = 2, 6, 19, 20, 21
_REX, _USER, _CALL, _GEN_CALL = Atom("rex"), Atom("user"), Atom("call"), Atom("$gen_call")
_UNUSED, _NONE = Atom(""), Atom("none")

_Address = tuple[int, Any]  # family, and the address without its port


def connect(target: Target, timeout: float = 5.0) -> Node:
    """The node, connected within `timeout` seconds. Raises NodeUnreachable's family."""
    return Node(target, timeout)


class Node:
    """A running node. After a loss the next call connects anew."""

    def __init__(self, target: Target, timeout: float = 5.0) -> None:
        self._target = target
        self._link: _Link | None = None
        self._numbers = 0  # of references
        self._open(monotonic() + timeout)

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; closed is closed."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def call(self, module: str, function: str, args: Sequence[Term], timeout: float = 5.0) -> Term:
        """What module:function(args) returns on the node, within `timeout` seconds.

        Raises BadRpc when it fails there; LostAfter (CallTimeout too) when it was sent and nobody
        knows what became of it; NodeUnreachable's family (LostBefore) when it was not sent; BadTerm
        when it cannot be sent. A throw there comes back as its value. Through `rex`, rpc(3).
        """
        what = (_CALL, Atom(module), Atom(function), list(args), _USER)
        return self._call(f"{module}:{function}/{len(args)}", what, timeout)

    def evaluate(
        self, source: str, bindings: Mapping[str, Term] | None = None, timeout: float = 5.0
    ) -> Term:
        """The value of the last of these Erlang expressions, computed on the node in one call.

        `bindings` are variables and their values. Raises as `call` does.
        """
        text = source.rstrip().removesuffix(".") + "."
        given = [(Atom(name), value) for name, value in sorted((bindings or {}).items())]
        variables = [(Atom("Bindings"), given), (Atom("Source"), text)]
        args = [_evaluator(), variables, _NONE, _NONE, Atom("value")]
        what = (_CALL, Atom("erl_eval"), Atom("expr"), args, _USER)
        return self._call("an evaluation", what, timeout)

    def _call(self, name: str, what: Term, timeout: float) -> Term:
        deadline = monotonic() + timeout
        link = self._ready(deadline)
        self._numbers += 2
        monitor, request = (
            terms.reference(self._own, number, self._creation)
            for number in (self._numbers, self._numbers + 1)
        )
        message = framing.pack((_MONITOR_P, self._self, _REX, monitor)) + framing.pack(
            (_REG_SEND, self._self, _UNUSED, _REX), (_GEN_CALL, (self._self, request), what)
        )
        try:
            link.send(message, deadline)
        except OSError:  # not all of it went out, so that the node has seen no whole message
            self.close()
            raise LostBefore(
                f"{self.name}: the connection broke before the call was sent"
            ) from None
        except BaseException:
            self.close()
            raise
        try:
            result = self._answer(link, monitor, request, deadline)
        except (OSError, _Gone) as error:
            self.close()
            if isinstance(error, TimeoutError):
                raise CallTimeout(
                    f"{self.name}: {name} gave no answer within {timeout:g} s, and goes on there"
                ) from None
            raise LostAfter(
                f"{self.name}: the connection broke while {name} ran; nobody knows whether it"
                " was done"
            ) from None
        except (NodeProtocolError, BadTerm) as error:
            self.close()
            raise LostAfter(f"{self.name}: the answer of {name} cannot be read: {error}") from None
        try:
            link.send(framing.pack((_DEMONITOR_P, self._self, _REX, monitor)), monotonic() + 1.0)
        except OSError:
            self.close()
        if isinstance(result, tuple) and len(result) == 2 and result[0] == "badrpc":
            self._failed(name, result[1])
        return result

    # --- connecting -----------------------------------------------------------------------------

    def _open(self, deadline: float) -> None:
        target = self._target
        cookie = target.cookie
        if cookie is None:
            raise WrongCookie(
                f"{target.name}: no cookie is known for it: set DEPLOYEX_ERLANG_COOKIE or the app's"
                " cookie_file"
            )
        try:
            encrypt = _encryption(target.tls) if target.tls else None  # before anybody is asked
            raw: Any = _dial(target, deadline)
            link = _Link(encrypt(raw, deadline) if encrypt else raw, 4 if encrypt else 2)
            try:
                self._shake_hands(link, cookie.value, deadline)
            except BaseException:
                link.close()
                raise
        except TimeoutError:
            raise NodeTimeout(f"{target.name}: the node did not answer in time") from None
        except OSError as error:
            raise ConnectionRefused(f"{target.name}: {_said(error)}") from None
        except NodeError as error:
            raise type(error)(f"{target.name}: {error.message}") from None
        self._link = link

    def _shake_hands(self, link: _Link, cookie: bytes, deadline: float) -> None:
        target = self._target
        alive, _, host = target.name.partition("@")
        challenged = False
        try:
            link.send_frame(handshake.send_name(host), deadline)
            own = handshake.read_status(link.receive(deadline))
            theirs = handshake.read_challenge(link.receive(deadline))
            if theirs.name != target.name and (
                target.exact or theirs.name.partition("@")[0] != alive
            ):
                raise OtherNode(f"the node that answers there is {theirs.name}")
            ours = int.from_bytes(os.urandom(4), "big")
            link.send_frame(handshake.challenge_reply(cookie, theirs.challenge, ours), deadline)
            challenged = True
            proven = handshake.proves(link.receive(deadline), cookie, ours)
        except TimeoutError:
            raise
        except (_Gone, OSError) as error:
            if target.tls and _is_tls(error):
                raise TlsRefused(_tls_words(error)) from None
            if challenged:
                raise WrongCookie(
                    "the node does not accept our cookie; the app's own, the one that"
                    " DEPLOYEX_ERLANG_COOKIE, cookie or cookie_file gives us, must be the same"
                ) from None
            if target.tls:
                raise TlsRefused(
                    "the node closed the encrypted connection; it may not trust our certificate:"
                    " its log says why"
                ) from None
            raise ConnectionRefused("the node closed the connection in the handshake") from None
        if not proven:
            raise WrongCookie("what answers there does not know the cookie that we have")
        link.frames.width, link.frames.limit = 4, framing.MAX_FRAME
        self.name = theirs.name
        self.creation = theirs.creation  # another one after each start of the VM
        self._own, self._creation = own
        self._self = terms.pid(self._own, 1, self._creation)

    def _ready(self, deadline: float) -> _Link:
        """A connection on which nothing is under way. Raises LostBefore, NodeUnreachable."""
        link = self._link
        if link is not None and monotonic() - link.heard <= IDLE_SECONDS:
            try:
                link.catch_up(deadline)
                return link
            except (_Gone, OSError, NodeProtocolError):
                self.close()
                raise LostBefore(
                    f"{self.name}: the connection was lost before the call was sent"
                ) from None
        before = self.creation
        known = link is not None
        self.close()
        self._open(deadline)
        if known and self.creation != before:
            raise LostBefore(f"{self.name}: the VM has been started anew; the call was not sent")
        assert self._link is not None
        return self._link

    # --- calling --------------------------------------------------------------------------------

    def _answer(
        self, link: _Link, monitor: terms.Opaque, request: terms.Opaque, deadline: float
    ) -> Term:
        tick = monotonic() + TICK_SECONDS
        while True:
            now = monotonic()
            if now >= deadline:
                raise TimeoutError
            if now >= tick:
                link.send(framing.TICK, deadline)
                tick = now + TICK_SECONDS
            try:
                frame = link.receive(min(deadline, tick))
            except TimeoutError:
                continue
            if not frame:
                link.send(framing.TICK, deadline)
                continue
            control, payload = framing.unpack(frame)
            if control[0] == _SEND and control[2:3] == (self._self,):
                answer = terms.decode(payload)
                if isinstance(answer, tuple) and len(answer) == 2 and answer[0] == request:
                    return answer[1]
            elif control[0] == _MONITOR_P_EXIT and control[3:4] == (monitor,):
                if control[4:5] == ("noproc",):
                    self.close()
                    raise LostBefore(
                        f"{self.name}: the node takes no calls (rex does not run): it is starting"
                        " or stopping"
                    )
                raise _Gone

    def _failed(self, what: str, reason: Term) -> NoReturn:
        """Raises BadRpc. Its message holds no values: they may be secrets."""
        if isinstance(reason, tuple) and len(reason) == 2 and reason[0] == "EXIT":
            reason = reason[1]
            # {Reason, Stack} of an error; an exit has its reason alone
            if isinstance(reason, tuple) and len(reason) == 2 and _is_stack(reason[1]):
                reason = reason[0]
        kind = reason[0] if isinstance(reason, tuple) and reason else reason
        name = f": {kind}" if isinstance(kind, Atom) else ""
        raise BadRpc(f"{self.name}: {what} failed on the node{name}", reason)


class _Gone(Exception):
    """The peer has closed the connection."""


class _Link:
    """A socket, and the frames that arrive on it."""

    def __init__(self, socket: Any, width: int) -> None:
        self._socket = socket  # also ssl.SSLSocket
        self.frames = framing.Frames(width, handshake.MAX_MESSAGE)
        self.heard = monotonic()

    def close(self) -> None:
        self._socket.close()

    def send_frame(self, message: bytes, deadline: float) -> None:
        """A message of the handshake."""
        self.send(framing.frame(message, self.frames.width), deadline)

    def send(self, data: bytes, deadline: float) -> None:
        """Sends all, or raises OSError."""
        self._socket.settimeout(_left(deadline))
        self._socket.sendall(data)

    def receive(self, deadline: float) -> bytes:
        """The next frame. Raises OSError (TimeoutError at the deadline), _Gone."""
        while True:
            frame = self.frames.next()
            if frame is not None:
                return frame
            self._socket.settimeout(_left(deadline))
            self._take()

    def catch_up(self, deadline: float) -> None:
        """Takes what has arrived meanwhile; answers ticks. Raises as `receive` does."""
        self._socket.settimeout(0)
        try:
            while monotonic() < deadline:
                self._take()
        except OSError as error:
            if not isinstance(error, BlockingIOError) and not _is_tls(error, "SSLWantReadError"):
                raise
        ticked = False
        while (frame := self.frames.next()) is not None:
            ticked = ticked or not frame
        if ticked:
            self.send(framing.TICK, deadline)

    def _take(self) -> None:
        data = self._socket.recv(_CHUNK)
        if not data:
            raise _Gone
        self.heard = monotonic()
        self.frames.feed(data)


def _left(deadline: float) -> float:
    """Seconds until the deadline. Raises TimeoutError when it has passed."""
    left = deadline - monotonic()
    if left <= 0:
        raise TimeoutError
    return left


# --- finding the node ---------------------------------------------------------------------------


def _dial(target: Target, deadline: float) -> Socket:
    """A connection to the node's distribution port, on the first address that has it."""
    addresses = list(_addresses(target.hosts[:1]))
    rest = target.hosts[1:]
    port, problem = target.dist_port, None
    if port is None:
        port, found = _find_port(target, deadline)
        addresses, rest = [found], target.hosts
    for address in _all(addresses, rest):
        try:
            return _connected(address, port, deadline)
        except TimeoutError:
            raise
        except OSError as error:
            problem = problem or error
    where = f"at port {port}"
    if problem is None:
        raise ConnectionRefused(f"its host {target.hosts[0]} has no address")
    if isinstance(problem, ConnectionRefusedError):
        raise ConnectionRefused(f"nothing listens {where}: the node has ended, or is ending")
    raise ConnectionRefused(f"{_said(problem)} {where}")


def _all(first: list[_Address], hosts: Sequence[str]) -> Iterator[_Address]:
    yield from first
    for address in _addresses(hosts):
        if address not in first:
            yield address


def _find_port(target: Target, deadline: float) -> tuple[int, _Address]:
    """The node's port, and the address of the epmd that knows it."""
    alive = target.name.partition("@")[0]
    problem: NodeUnreachable | None = None
    for address in _addresses(target.hosts):
        try:
            answer = _ask_epmd(address, target.epmd_port, alive, deadline)
        except TimeoutError:
            raise
        except OSError:
            continue
        except NodeProtocolError as error:
            problem = problem or error
            continue
        if answer is False:
            problem = NodeNotRegistered(
                f"epmd (port {target.epmd_port}) knows no node {alive}: the node does not run, is"
                " not distributed, or has not come so far"
            )
            continue
        assert isinstance(answer, epmd.Registered)
        if answer.highest < 6:
            raise NodeProtocolError("the node is older than OTP 23, which we cannot talk to")
        return answer.port, address
    raise problem or EpmdDown(
        f"epmd does not run (port {target.epmd_port}); for a node without one set the app's"
        " dist_port"
    )


def _ask_epmd(address: _Address, port: int, name: str, deadline: float) -> epmd.Registered | bool:
    connection = _connected(address, port, deadline)
    try:
        connection.settimeout(_left(deadline))
        connection.sendall(epmd.port_request(name))
        data, ended = b"", False
        while True:
            answer = epmd.port_answer(data, ended=ended)
            if answer is not None:
                return answer
            connection.settimeout(_left(deadline))
            more = connection.recv(epmd.MAX_ANSWER)
            data, ended = data + more, not more
    finally:
        connection.close()


def _addresses(hosts: Sequence[str]) -> Iterator[_Address]:
    """The addresses of the hosts, in order; a name is looked up only when its turn comes."""
    for host in hosts:
        try:
            # bytes: for text Python would load its IDNA codec, at 1.5 ms
            found = getaddrinfo(host.encode("ascii"), None, 0, SOCK_STREAM)
        except (gaierror, UnicodeError):
            continue
        for family, _, _, _, address in found:
            yield family, address


def _connected(address: _Address, port: int, deadline: float) -> Socket:
    family, where = address
    connection = Socket(family, SOCK_STREAM)
    try:
        connection.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        connection.settimeout(_left(deadline))
        connection.connect((where[0], port, *where[2:]) if family == AF_INET6 else (where[0], port))
    except BaseException:
        connection.close()
        raise
    return connection


# --- TLS ----------------------------------------------------------------------------------------


def _encryption(files: TlsFiles) -> Callable[[Socket, float], Any]:
    """What makes a socket that speaks TLS of a plain one. Raises TlsRefused, and then, too."""
    import socket

    from deployex_cli.otp import tls

    context = tls.client_context(files)

    def encrypt(raw: Socket, deadline: float) -> Any:
        plain = socket.socket(fileno=raw.detach())
        try:
            plain.settimeout(_left(deadline))
            return context.wrap_socket(plain)
        except TimeoutError:
            raise
        except OSError as error:
            raise TlsRefused(tls.in_words(error)) from None
        finally:
            plain.close()  # what was wrapped has its own descriptor

    return encrypt


def _is_tls(error: BaseException, name: str = "SSL") -> bool:
    return isinstance(error, OSError) and type(error).__name__.startswith(name)


def _tls_words(error: BaseException) -> str:
    from deployex_cli.otp import tls

    return tls.in_words(error)


def _said(error: OSError) -> str:
    return error.strerror or type(error).__name__


# --- evaluating ---------------------------------------------------------------------------------


def _is_stack(term: Term) -> bool:
    return isinstance(term, list) and all(isinstance(item, tuple) for item in term)


def _evaluator() -> Term:
    """The abstract form (ERTS, Abstract Format) of

    begin {ok, Tokens, _} = erl_scan:string(Source),
          {ok, Expressions} = erl_parse:parse_exprs(Tokens),
          {value, Value, _} = erl_eval:exprs(Expressions, Bindings),
          Value
    end
    """

    global _encoded_evaluator
    if _encoded_evaluator is not None:
        return _encoded_evaluator

    def atom(name: str) -> Term:
        return (Atom("atom"), 1, Atom(name))

    def variable(name: str) -> Term:
        return (Atom("var"), 1, Atom(name))

    def matched(pattern: list[Term], module: str, function: str, *arguments: str) -> Term:
        called = (Atom("remote"), 1, atom(module), atom(function))
        result = (Atom("call"), 1, called, [variable(name) for name in arguments])
        return (Atom("match"), 1, (Atom("tuple"), 1, pattern), result)

    scanned = [atom("ok"), variable("Tokens"), variable("_")]
    parsed = [atom("ok"), variable("Expressions")]
    computed = [atom("value"), variable("Value"), variable("_")]
    body = [
        matched(scanned, "erl_scan", "string", "Source"),
        matched(parsed, "erl_parse", "parse_exprs", "Tokens"),
        matched(computed, "erl_eval", "exprs", "Expressions", "Bindings"),
        variable("Value"),
    ]
    _encoded_evaluator = terms.encoded((Atom("block"), 1, body))
    return _encoded_evaluator


_encoded_evaluator: terms.Opaque | None = None
