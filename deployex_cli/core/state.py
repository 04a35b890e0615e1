"""The state file: what was intended and what became of it; its types and its codec.

Disk and node are the fact, this file is the intention. Only a command that holds the app's lock
writes it. It carries a schema version: an older one is migrated, a newer one is refused. PURE:
bytes in, values out.
"""

import json
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Literal, NamedTuple

SCHEMA_VERSION = 2
_END_OF_TIME = 253402300800  # the year 10000: what can be shown as a date

Strategy = Literal["full_deployment", "hot_upgrade"]
Kind = Literal["deployment", "rollback"]
Wanted = Literal["running", "stopped"]


class Phase(StrEnum):
    """Where a deployment stands; see lifecycle.py."""

    IDLE = "idle"
    UNPACKED = "unpacked"
    PREPARED = "prepared"
    STOPPED = "stopped"
    SWITCHED = "switched"
    STARTED = "started"
    STAGED = "staged"
    INSTALLED = "installed"
    PERMANENT = "permanent"
    CONFIRMED = "confirmed"
    ABANDONED = "abandoned"
    ROLLED_BACK = "rolled_back"
    SUPERSEDED = "superseded"


class StepName(StrEnum):
    """What a plan is made of. The first nine have an intent and an outcome (lifecycle.OUTCOME)."""

    UNPACK = "unpack"
    PREPARE = "prepare"
    STOP = "stop"
    SWITCH = "switch"
    START = "start"
    STAGE = "stage"  # make a hot upgrade ready on the node: relup, check, configuration
    INSTALL = "install"  # release_handler:install_release
    MAKE_PERMANENT = "make_permanent"  # release_handler:make_permanent
    CONFIRM = "confirm"
    ABANDON = "abandon"  # end a deployment left of the point of no return
    SWEEP = "sweep"  # remove what a killed run left half-made
    PRUNE = "prune"  # remove releases that nothing needs any more
    RESUME = "resume"  # start the app that should run and does not
    END = "end"  # stop the app that a person stopped and that runs all the same
    GO_BACK = "go_back"  # end the trial of a hot upgrade that has failed it


class Release(NamedTuple):
    """One version's content: the version, the digest of its tarball, its git hash, its folder."""

    version: str
    digest: str | None = None  # sha256 of the tarball
    hash: str = ""
    folder: str | None = None  # its name under releases/, once it is unpacked


class Ghost(NamedTuple):
    """A version, with this content, that no machine deploys again."""

    version: str
    digest: str | None
    reason: str
    at: float  # seconds since the epoch


class Deployment(NamedTuple):
    """One move of an instance to a version: the last one begun, or the one that is under way."""

    id: int
    kind: Kind
    strategy: Strategy
    target: Release
    origin: Release | None  # what `current` was when it began
    pre_commands: tuple[str, ...]
    phase: Phase
    intent: StepName | None  # begun, and its outcome is not on disk
    began_at: float  # seconds since the epoch
    phase_at: float
    by: str  # "timer", or a user's name
    reason: str
    vm: str | None = None  # the VM that a hot upgrade was installed in (Process.vm)


class State(NamedTuple):
    """All that a run has to know of the runs before it."""

    wanted: Wanted = "running"
    deployment: Deployment | None = None
    ghosts: tuple[Ghost, ...] = ()
    trial: Deployment | None = None  # of a hot upgrade, while another deployment may yet fail
    # entries that may not be in the history yet: written with what they tell of, in one rename
    unlogged: tuple[dict[str, Any], ...] = ()


class StateUnreadable(Exception):
    """The bytes are no state of ours; it can be rebuilt from the markers and links on disk."""


class StateTooNew(Exception):
    """A newer deployex wrote it; this one must not touch it. `args[0]` is its schema version."""


def _to_2(document: dict[str, Any]) -> dict[str, Any]:
    """Hot upgrades came with the VM that they were installed in."""
    if document["deployment"] is not None:
        document["deployment"]["vm"] = None
    return {**document, "trial": None, "schema_version": 2}


# version n -> a function that makes a document of version n + 1 of it
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _to_2}


def encode_state(state: State) -> bytes:
    """The state as the bytes of its file."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "wanted": state.wanted,
        "deployment": _deployment_document(state.deployment),
        "trial": _deployment_document(state.trial),
        "ghosts": [ghost._asdict() for ghost in state.ghosts],
        "unlogged": list(state.unlogged),
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def decode_state(raw: bytes) -> State:
    """The state in `raw`. Raises StateUnreadable and StateTooNew."""
    try:
        document = json.loads(raw)
        version = document["schema_version"]
        if version > SCHEMA_VERSION:
            raise StateTooNew(version)
        while version < SCHEMA_VERSION:
            document = MIGRATIONS[version](document)
            version += 1
        return State(
            wanted=_one_of(document["wanted"], "running", "stopped"),
            deployment=_deployment(document["deployment"]),
            trial=_deployment(document["trial"]),
            ghosts=tuple(_ghost(item) for item in document["ghosts"]),
            unlogged=tuple(_typed(item, dict) for item in document["unlogged"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StateUnreadable(f"{type(error).__name__}: {error}") from None


def _deployment_document(deployment: Deployment | None) -> dict[str, Any] | None:
    if deployment is None:
        return None
    document = deployment._asdict()
    document["target"] = deployment.target._asdict()
    document["origin"] = deployment.origin._asdict() if deployment.origin else None
    return document


def _deployment(document: Any) -> Deployment | None:
    if document is None:
        return None
    intent = document["intent"]
    return Deployment(
        id=_typed(document["id"], int),
        kind=_one_of(document["kind"], "deployment", "rollback"),
        strategy=_one_of(document["strategy"], "full_deployment", "hot_upgrade"),
        target=_release(document["target"]),
        origin=_release(document["origin"]) if document["origin"] is not None else None,
        pre_commands=tuple(_typed(item, str) for item in _typed(document["pre_commands"], list)),
        phase=Phase(document["phase"]),
        intent=StepName(intent) if intent is not None else None,
        began_at=_seconds(document["began_at"]),
        phase_at=_seconds(document["phase_at"]),
        by=_typed(document["by"], str),
        reason=_typed(document["reason"], str),
        vm=_optional(document["vm"]),
    )


def _release(document: Any) -> Release:
    return Release(
        version=_typed(document["version"], str),
        digest=_optional(document["digest"]),
        hash=_typed(document["hash"], str),
        folder=_optional(document["folder"]),
    )


def _ghost(document: Any) -> Ghost:
    return Ghost(
        version=_typed(document["version"], str),
        digest=_optional(document["digest"]),
        reason=_typed(document["reason"], str),
        at=_seconds(document["at"]),
    )


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{value!r} is not {kind.__name__}")
    return value


def _optional(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{value!r} is neither text nor null")
    return value


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is not a number of seconds")
    if not 0 <= value < _END_OF_TIME:
        raise ValueError(f"{value!r} is no time of this age")
    return float(value)


def _one_of(value: Any, *allowed: str) -> Any:
    if value not in allowed:
        raise ValueError(f"{value!r} is none of {', '.join(allowed)}")
    return value
