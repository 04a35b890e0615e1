"""current.json -> Manifest, or an error that names the file and the place in it.

The manifest is what the release store says should run. Others write this file too, so unknown
keys are accepted; what we know must have the right type. PURE: bytes in, a value out.
"""

import json
from typing import Any, NamedTuple

from deployex_cli.core.names import version_problem
from deployex_cli.errors import ManifestError

MAX_BYTES = 1024 * 1024
_HEXADECIMAL = frozenset("0123456789abcdef")


class Manifest(NamedTuple):
    """What the release store says should run."""

    version: str
    hash: str  # the git hash, shown to people; integrity is `sha256`
    pre_commands: tuple[str, ...] = ()
    sha256: str | None = None  # of the tarball, 64 lower-case hexadecimal digits


def parse_manifest(raw: bytes, where: str) -> Manifest:
    """The manifest in `raw`; `where` is its address, for the error.

    Raises ManifestError: empty, not UTF-8, not JSON, not an object, a key missing or of a wrong
    type, text that is not Unicode, a version that could not be a folder's name, a pre_command with
    an open quote.
    """
    if not raw.strip():
        raise _error(where, "is empty")
    if len(raw) > MAX_BYTES:
        raise _error(where, f"has more than {MAX_BYTES} bytes")
    try:
        document = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _error(where, f"is not UTF-8 text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise _error(where, f"is not JSON: {error.msg} at {place}") from None
    except ValueError:
        raise _error(where, "holds a number with too many digits") from None
    except RecursionError:
        raise _error(where, "is nested too deeply") from None
    if not isinstance(document, dict):
        raise _error(where, f"must hold an object, not {_kind(document)}")
    version = _string(document, "version", where)
    problem = version_problem(version)
    if problem:
        raise _error(where, f"'version' {version[:200]!r} {problem}")
    sha256 = document.get("sha256")
    if sha256 is not None and not _is_sha256(sha256):
        raise _error(where, "'sha256' must be 64 lower-case hexadecimal digits")
    git_hash = _string(document, "hash", where)
    _check_controls(git_hash, "hash", where)
    return Manifest(version, git_hash, _commands(document, where), sha256)


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as the bytes of current.json; keys that say nothing are left out."""
    document: dict[str, Any] = {"version": manifest.version, "hash": manifest.hash}
    if manifest.pre_commands:
        document["pre_commands"] = list(manifest.pre_commands)
    if manifest.sha256 is not None:
        document["sha256"] = manifest.sha256
    return json.dumps(document, indent=2).encode() + b"\n"


def split_command(command: str) -> list[str]:
    """A pre_command's words, split as a shell would and without one. Raises ValueError."""
    import shlex  # only a deployment that has pre_commands pays for it

    words = shlex.split(command)
    if not words:
        raise ValueError("no words in it")
    if any("\0" in word for word in words):
        raise ValueError("a NUL character in it")
    return words


def _commands(document: dict[str, Any], where: str) -> tuple[str, ...]:
    commands = document.get("pre_commands")
    if commands is None:
        return ()
    if not isinstance(commands, list):
        raise _error(where, f"'pre_commands' must be a list of strings, not {_kind(commands)}")
    for number, command in enumerate(commands):
        if not isinstance(command, str):
            raise _error(where, f"'pre_commands[{number}]' must be a string, not {_kind(command)}")
        _check_unicode(command, f"pre_commands[{number}]", where)
        try:
            split_command(command)
        except ValueError as error:
            message = f"'pre_commands[{number}]' cannot be split: {str(error).lower()}"
            raise _error(where, message) from None
        _check_controls(command, f"pre_commands[{number}]", where)
    return tuple(commands)


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and _HEXADECIMAL.issuperset(value)


def _string(document: dict[str, Any], key: str, where: str) -> str:
    if key not in document:
        raise _error(where, f"has no '{key}'")
    value = document[key]
    if not isinstance(value, str):
        raise _error(where, f"'{key}' must be a string, not {_kind(value)}")
    _check_unicode(value, key, where)
    return value


def _check_unicode(text: str, key: str, where: str) -> None:
    """JSON can escape half a character, which no terminal and no program's argument can take."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise _error(where, f"'{key}' is not Unicode text: {half} stands alone") from None


def _check_controls(text: str, key: str, where: str) -> None:
    """What goes to somebody's terminal must not be able to command it."""
    if any((ord(char) < 32 and char not in "\t\n") or 127 <= ord(char) < 160 for char in text):
        raise _error(where, f"'{key}' holds a control character")


def _kind(value: object) -> str:
    """A JSON value's type in JSON's own words."""
    names = {bool: "true or false", type(None): "null", dict: "an object", list: "a list"}
    return names.get(type(value), "a string" if isinstance(value, str) else "a number")


def _error(where: str, problem: str) -> ManifestError:
    return ManifestError(
        f"the manifest {where} {problem}; nothing was changed, publish a valid one"
    )
