"""choose(package, running, language) -> Choice: a hot upgrade or a full deployment, and why.

Hot only when every rule below holds. They stand in the order in which they are asked: what the
package says by itself comes before what the node says, so that a version that has to be deployed in
full never waits for a node. The last word is make_relup's, which only the node can say.

A node that does not answer is neither success nor failure: the choice is then no strategy at all,
and the next check tries again.

PURE: facts in, a choice out. Appups are Erlang text: the node reads them (file:consult/1).
"""

import re
from collections.abc import Callable
from typing import Literal, NamedTuple

from deployex_cli.core.state import Strategy

Language = Literal["elixir", "erlang", "gleam"]
Reason = Literal[
    "ok",
    "nothing_runs",
    "distribution_none",
    "error_reading_file",
    "not_found",
    "other_upgrade_on_trial",
    "no_match_versions",
    "different_erts",
    "no_release_handler",
    "runtime_changed",
    "same_version_other_content",
    "protocols_changed",
    "relup_not_possible",
    "node_not_reachable",
]
_NAMED = 3  # of a longer list, so many are named


class Jellyfish(NamedTuple):
    """A jellyfish.json of the package, which the library of that name leaves beside an appup."""

    library: str  # the folder under lib/: "counter-0.1.2"
    kind: Literal["project", "dependency"]
    origin: str  # its "from"
    target: str  # its "to"
    appups: int = 1  # *.appup files beside it
    runs: str | None = None  # the version of this library in the release that runs


class Appup(NamedTuple):
    """{To, [{From, _}], [{From, _}]} of appup(4), as the node read it; a From of bytes is a regex.

    `problem`: why it could not be read.
    """

    path: str
    target: str = ""
    ups: tuple[str | bytes, ...] = ()
    downs: tuple[str | bytes, ...] = ()
    problem: str = ""


class PackageFacts(NamedTuple):
    """What the new release's folder holds, beside what `current` holds; paths within a release."""

    origin: str  # the version that runs
    target: str  # the version that is to run
    holds: str | None = None  # the version that the package boots
    problem: str = ""  # a file that cannot be used, and why
    jellyfish: tuple[Jellyfish, ...] = ()
    appups: tuple[str, ...] = ()  # the app's own
    app_runs: str | None = None  # the version of the app's own library in the release that runs
    erts: tuple[str, ...] = ()  # "erts-15.2"
    running_erts: tuple[str, ...] = ()
    has_sasl: bool = True  # the release that runs has it: release_handler lives there
    runtime: tuple[str, ...] = ()  # "kernel 9.2 to 10.1", of kernel, stdlib and sasl
    differing: tuple[str, ...] = ()  # the first such file of each library that both have
    protocols: tuple[str, ...] = ()  # consolidated, and changed, new or gone
    without_rel: tuple[str, ...] = ()  # versions without a .rel file
    overlays: tuple[str, ...] = ()  # outside lib/, releases/ and erts-*; a hot upgrade leaves them


class RunningFacts(NamedTuple):
    """What runs. What nobody has asked the node yet stays at its default, which objects to nothing.

    `appup` is the app's own in the package, where there is no jellyfish.json.
    """

    runs: bool
    asked: bool = True  # False: `distribution = "none"`, the node may not be asked
    unreachable: str = ""  # why the node does not answer
    on_trial: str | None = None  # a version that is installed hot, and not permanent
    has_release_handler: bool = True
    version: str | None = None  # the release that the node runs
    appup: Appup | None = None


class Choice(NamedTuple):
    """`strategy` None: neither, try again. `words` are for people, with the strategy in front."""

    strategy: Strategy | None
    reason: Reason
    words: str


def choose(package: PackageFacts | None, running: RunningFacts, language: Language) -> Choice:
    """The strategy for this package; None for it: there is no release to hold it against."""
    if package is None:
        package = PackageFacts("", "")
        running = running._replace(runs=running.runs and not running.asked)
    case = _Case(package, running, language)
    for reason, objection in RULES:
        words = objection(case)
        if words and reason == "node_not_reachable":
            return Choice(None, reason, f"neither hot nor in full for now: {words}")
        if words:
            return Choice("full_deployment", reason, f"full deployment: {words}")
    return Choice("hot_upgrade", "ok", f"hot upgrade: from {package.origin} to {package.target}")


class _Case(NamedTuple):
    package: PackageFacts
    running: RunningFacts
    language: Language

    @property
    def jellyfish(self) -> tuple[Jellyfish, ...]:
        """Those of libraries that change: in one that runs already, they tell of the past."""
        if self.language != "elixir":
            return ()
        return tuple(j for j in self.package.jellyfish if j.library != f"{_name(j)}-{j.runs}")

    @property
    def appup(self) -> Appup | None:
        """The app's own, where it is what counts."""
        return None if self.jellyfish else self.running.appup


def _nothing_runs(case: _Case) -> str:
    return "" if case.running.runs else "nothing runs that could be upgraded"


def _distribution_none(case: _Case) -> str:
    return "" if case.running.asked else 'distribution = "none", so its node is never asked'


def _file_is_broken(case: _Case) -> str:
    return case.package.problem


def _no_instructions(case: _Case) -> str:
    package = case.package
    if case.language == "gleam":
        return "a Gleam package is no OTP release and holds no upgrade instructions"
    if not case.jellyfish and not package.appups:
        files = "no jellyfish.json and no appup" if case.language == "elixir" else "no appup"
        return f"the package holds no upgrade instructions ({files})"
    for found in case.jellyfish:
        if found.appups != 1:
            return f"{found.appups} appups stand beside lib/{found.library}/ebin/jellyfish.json"
    return ""


def _on_trial(case: _Case) -> str:
    trial = case.running.on_trial
    return f"the hot upgrade to {trial} is still on trial" if trial else ""


def _versions(case: _Case) -> str:
    package = case.package
    if package.holds != package.target:
        return f"the package boots {package.holds}, not {package.target}"
    if package.origin == package.target:
        return f"{package.target} runs already"
    for found in case.jellyfish:
        origin, target = package.origin, package.target
        where = ""
        if found.kind == "dependency":
            where = f" of {_name(found)}"
            origin, target = str(found.runs), found.library.partition("-")[2]
        if found.origin != origin or found.target != target:
            return (
                f"it leads from {found.origin} to {found.target}{where},"
                f" and needed is {origin} to {target}"
            )
    return ""


def _erts(case: _Case) -> str:
    new, runs = case.package.erts, case.package.running_erts
    return "" if new == runs else f"its runtime is {named(new)}, {named(runs)} runs"


def _no_sasl(case: _Case) -> str:
    return "" if case.package.has_sasl else "the release that runs holds no sasl"


def _runtime(case: _Case) -> str:
    changed = named(case.package.runtime)
    return f"the runtime changes ({changed})" if case.package.runtime else ""


def _other_content(case: _Case) -> str:
    files = case.package.differing
    return f"{named(files)} differs and its version does not" if files else ""


def _protocols(case: _Case) -> str:
    names = case.package.protocols
    return f"consolidated protocols change ({named(names)})" if names else ""


def _no_rel(case: _Case) -> str:
    missing = case.package.without_rel
    return f"there is no .rel file of {named(missing)}" if missing else ""


def _unreachable(case: _Case) -> str:
    why = case.running.unreachable
    return f"its node does not answer ({why}); the next check tries again" if why else ""


def _no_release_handler(case: _Case) -> str:
    return "" if case.running.has_release_handler else "the node runs no release_handler (sasl)"


def _other_runs(case: _Case) -> str:
    runs, origin = case.running.version, case.package.origin
    return f"the node runs {runs}, not {origin}" if runs not in (None, origin) else ""


def _appup_is_broken(case: _Case) -> str:
    appup = case.appup
    return f"{appup.path}: {appup.problem}" if appup and appup.problem else ""


def _appup_versions(case: _Case) -> str:
    appup, package = case.appup, case.package
    if appup is None:
        return ""
    if appup.target != _own_version(appup.path):
        return f"{appup.path} leads to {appup.target}"
    origin = package.app_runs or package.origin
    if not any(matches(up, origin) for up in appup.ups):
        return f"{appup.path} knows no way from {origin}"
    return ""


# in this order; the first that objects is the reason
RULES: tuple[tuple[Reason, Callable[[_Case], str]], ...] = (
    ("nothing_runs", _nothing_runs),
    ("distribution_none", _distribution_none),
    ("error_reading_file", _file_is_broken),
    ("not_found", _no_instructions),
    ("other_upgrade_on_trial", _on_trial),
    ("different_erts", _erts),
    ("no_match_versions", _versions),
    ("no_release_handler", _no_sasl),
    ("runtime_changed", _runtime),
    ("same_version_other_content", _other_content),
    ("protocols_changed", _protocols),
    ("relup_not_possible", _no_rel),
    # from here on the node has been asked
    ("node_not_reachable", _unreachable),
    ("no_release_handler", _no_release_handler),
    ("no_match_versions", _other_runs),
    ("error_reading_file", _appup_is_broken),
    ("no_match_versions", _appup_versions),
)


def matches(known: str | bytes, version: str) -> bool:
    """Whether an appup's From means this version.

    A binary is a regular expression, and what it matches first must be all of the version (OTP:
    appup(4); systools_relup:appup_search_for_version/2).
    """
    if isinstance(known, str):
        return known == version
    if b"[:" in known:
        return True  # [[:digit:]], which only OTP's engine knows: make_relup says
    try:
        found = re.search(known.decode(), version)
    except (re.error, UnicodeDecodeError):
        return True  # the same
    return found is not None and found.group() == version


def _name(found: Jellyfish) -> str:
    return found.library.partition("-")[0]


def _own_version(path: str) -> str:
    """ "0.1.2" of "lib/app-0.1.2/ebin/app.appup"."""
    return path.split("/")[1].partition("-")[2]


def named(names: tuple[str, ...]) -> str:
    """The first few names, and how many more there are, for people."""
    more = len(names) - _NAMED
    words = ", ".join(names[:_NAMED]) or "none"
    return f"{words} and {more} more" if more > 0 else words
