"""OTP's release_handler on a running node, each call one rpc (release_handler(3), relup(4)).

What is Erlang text (relup, appup, sys.config) is read and written by the node itself: only answers
in few words travel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from deployex_cli.errors import InstallFailed, NotUpgradable
from deployex_cli.otp.node import Node
from deployex_cli.otp.terms import Atom, text

_INSTALL_SECONDS = 120.0  # a process that does not let itself be suspended costs 5 s, sys(3)
_RELUP_SECONDS = 60.0
MARK = Atom("deployex_upgrade")  # persistent_term: what became of the install in this VM


Versions = tuple[str | bytes, ...]


class Releases(NamedTuple):
    """What release_handler knows: version -> permanent, current, old or unpacked."""

    root: str  # code:root_dir/0, the folder that the VM booted from
    status: dict[str, str]  # empty: the node has no release_handler

    @property
    def running(self) -> str | None:
        """The version whose code runs: current, or permanent when there is no current."""
        return self._first("current") or self.permanent

    @property
    def permanent(self) -> str | None:
        """The version that the VM would boot."""
        return self._first("permanent")

    def _first(self, wanted: str) -> str | None:
        return next((v for v, status in self.status.items() if status == wanted), None)


def which_releases(node: Node) -> Releases:
    """The node's root and its releases. Waits for an install that is under way."""
    root, found = node.evaluate(_WHICH, {}, _INSTALL_SECONDS)
    return Releases(text(root), {text(version): str(status) for version, status in found})


def mark(node: Node) -> tuple[str, str, str] | None:
    """(version, "staged" | "begun" | "ended", reason) of the last install in this VM, or None."""
    found = node.evaluate(_READ_MARK, {"Key": MARK})
    if not isinstance(found, tuple):
        return None
    version, what, reason = found
    return text(version), str(what), text(reason)


def set_mark(node: Node, version: str) -> None:
    """Notes that `version` is staged in this VM, so that a restarted one is known by its lack."""
    node.call("persistent_term", "put", [MARK, (version, Atom("staged"), "")])


def forget(node: Node) -> None:
    """Erases what staging left in the VM."""
    node.call("persistent_term", "erase", [MARK])


def set_unpacked(node: Node, rel_file: str, version: str) -> None:
    """Tells the release handler of a release whose files are in place, and that it does not know.

    Raises NotUpgradable.
    """
    answer = node.evaluate(_SET_UNPACKED, {"File": rel_file, "Version": version})
    if answer != "ok":
        raise NotUpgradable("relup_not_possible", f"set_unpacked: {text(answer)}")


def set_removed(node: Node, version: str) -> None:
    """Makes the release handler forget a release that does not run.

    Never by remove_release/1, which empties lib/ when the running one is known without libraries.
    """
    node.evaluate(_SET_REMOVED, {"Version": version})


def make_relup(node: Node, to: str, origin: str, libraries: list[str], out: str) -> list[str]:
    """Writes `out`/relup with the ways from `origin` up to `to` and down; the warnings.

    `to` and `origin` are paths of .rel files without their ending, `libraries` folders of
    applications. Raises NotUpgradable, with the words of the module that refused (systools(3)).
    """
    paths = [f"{folder}/*/ebin" for folder in libraries]
    bindings = {"To": to, "From": origin, "Paths": paths, "Out": out}
    answer = node.evaluate(_MAKE_RELUP, bindings, _RELUP_SECONDS)
    if answer[0] != "ok":
        raise NotUpgradable("relup_not_possible", _one_line(text(answer[1])))
    return [_one_line(text(warning)) for warning in answer[1]]


def instructions(node: Node, relup: str) -> list[str]:
    """The relup's way up, an instruction a line (relup(4))."""
    return [_one_line(text(line)) for line in node.evaluate(_INSTRUCTIONS, {"File": relup})]


def appup(node: Node, path: str) -> tuple[str, Versions, Versions]:
    """(To, the versions that lead up to it, those down from it) of an appup(4) file.

    A version of bytes is a regular expression. Raises NotUpgradable.
    """
    answer = node.evaluate(_APPUP, {"File": path})
    if answer[0] != "ok":
        raise NotUpgradable("error_reading_file", text(answer[1]))
    _, to, ups, downs = answer
    return text(to), _versions(ups), _versions(downs)


def _versions(found: Any) -> Versions:
    return tuple(v if isinstance(v, bytes) else text(v) for v in found)


def check_install(node: Node, version: str) -> None:
    """release_handler:check_install_release/1. Raises NotUpgradable.

    It evaluates what stands before point_of_no_return: so it comes before any hook is put there.
    """
    answer = node.evaluate(_CHECK, {"Version": version}, _RELUP_SECONDS)
    if answer != "ok":
        raise NotUpgradable("relup_not_possible", f"check_install_release: {text(answer)}")


def install(node: Node, version: str) -> None:
    """release_handler:install_release/2: the point of no return. Never to be repeated blindly.

    Raises InstallFailed, and LostAfter when the outcome is not known.
    """
    bindings = {"Version": version, "Key": MARK}
    answer = node.evaluate(_INSTALL, bindings, _INSTALL_SECONDS)
    if answer != "ok":
        raise InstallFailed(f"install_release: {text(answer)}")


def lingering(node: Node) -> list[str]:
    """Processes still in old code: make_permanent purges it and ends them."""
    return [_one_line(text(line)) for line in node.evaluate(_LINGERING, {}, _RELUP_SECONDS)]


def make_permanent(node: Node, version: str) -> str | None:
    """release_handler:make_permanent/1; None, or in words why not.

    It is not atomic: after an error start_erl.data may name the new version already.
    """
    answer = node.evaluate(_MAKE_PERMANENT, {"Version": version}, _INSTALL_SECONDS)
    return None if answer == "ok" else _one_line(text(answer))


def _one_line(words: str) -> str:
    return " ".join(words.split())


# --- Erlang, evaluated on the node --------------------------------------------------------------

# in a line, and not with all that a stack or a module's binary holds
_WORDS = """
Words = fun(Term) -> lists:sublist(lists:flatten(io_lib:format("~0tP", [Term, 24])), 600) end,
"""

_WHICH = """
Known = case whereis(release_handler) of
    undefined -> [];
    _ -> [{Version, Status} || {_, Version, _, Status} <- release_handler:which_releases()]
end,
{code:root_dir(), Known}.
"""

_READ_MARK = "persistent_term:get(Key, none)."

_SET_UNPACKED = (
    _WORDS
    + """
case release_handler:set_unpacked(File, []) of
    {ok, Version} -> ok;
    Other -> Words(Other)
end.
"""
)

_SET_REMOVED = """
[release_handler:set_removed(V) || {_, V, _, Status} <- release_handler:which_releases(),
    V =:= Version, Status =:= unpacked orelse Status =:= old],
ok.
"""

_MAKE_RELUP = """
Options = [silent, {path, Paths}, {outdir, Out}],
case systools:make_relup(To, [From], [From], Options) of
    {ok, _Relup, _Module, []} -> {ok, []};
    {ok, _Relup, Module, Warnings} -> {ok, [lists:flatten(Module:format_warning(Warnings))]};
    {error, Module, Reason} -> {error, lists:flatten(Module:format_error(Reason))};
    Other -> {error, lists:flatten(io_lib:format("~0tp", [Other]))}
end.
"""

_INSTRUCTIONS = """
{ok, [{_, [{_, _, Script} | _], _}]} = file:consult(File),
[lists:flatten(io_lib:format("~0tp", [Instruction])) || Instruction <- Script].
"""

_APPUP = """
Froms = fun(Ways) -> [element(1, Way) || Way <- Ways] end,
case file:consult(File) of
    {ok, [{To, Ups, Downs} | _]} when is_list(Ups), is_list(Downs) ->
        {ok, To, Froms(Ups), Froms(Downs)};
    {ok, _} -> {error, "it is no appup"};
    {error, Reason} -> {error, lists:flatten(file:format_error(Reason))}
end.
"""

_CHECK = (
    _WORDS
    + """
case release_handler:check_install_release(Version) of
    {ok, _, _} -> ok;
    {error, Reason} -> Words(Reason)
end.
"""
)

_INSTALL = """
persistent_term:put(Key, {Version, begun, ""}),
Options = [{update_paths, true}, {error_action, reboot}],
case release_handler:install_release(Version, Options) of
    {ok, _, _} -> ok;
    Other ->
        Reason = lists:flatten(io_lib:format("~0tP", [Other, 15])),
        persistent_term:put(Key, {Version, ended, Reason}),
        Reason
end.
"""

_LINGERING = """
Old = [Module || {Module, _} <- code:all_loaded(), erlang:check_old_code(Module)],
lists:sublist([lists:flatten(io_lib:format("~tp (~tp)", [Pid, Module])) ||
    Module <- Old, Pid <- erlang:processes(), erlang:check_process_code(Pid, Module)], 20).
"""

_MAKE_PERMANENT = (
    _WORDS
    + """
case release_handler:make_permanent(Version) of
    ok -> ok;
    {error, Reason} -> Words(Reason)
end.
"""
)
