"""`releases/start_erl.data` and `releases/RELEASES`: what the VM boots and knows of itself.

A Mix release comes without RELEASES, so that release_handler knows the first release with no
libraries and cannot go back to it. We write it into a freshly unpacked folder, before the release
ever starts (OTP: release_handler(3), "RELEASES file"; System Principles, "start_erl").

The VM rewrites both with no fsync, one after the other, so that a power cut may leave them torn, or
telling of two versions: an empty start_erl.data ends every boot, half a RELEASES boots without
libraries. A copy of our own puts them right.

After a hot upgrade the folder holds several releases. RELEASES is Erlang text, which is not ours to
read; so `.deployex.hot.json` says which libraries each of them has, and RELEASES can be written
anew from that: always one that fits start_erl.data.
"""

import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from deployex_cli.errors import NotFound, StateError
from deployex_cli.layout import files

START_ERL = "releases/start_erl.data"
RELEASES = "releases/RELEASES"
_LINE_BYTES = 4096
KEPT = ".deployex.otp.json"  # both files as they were when what boots was last made to
HELD = ".deployex.hot.json"
HELD_SCHEMA = 1


class StartErl(NamedTuple):
    """The one line of start_erl.data."""

    erts: str
    version: str


class Held(NamedTuple):
    """One of the releases that a folder holds; `libraries` are names under lib/."""

    version: str
    erts: str
    libraries: tuple[str, ...]


class Holdings(NamedTuple):
    """All of them: the one that was unpacked there first, then those that were put in."""

    name: str
    releases: tuple[Held, ...]

    def find(self, version: str) -> Held | None:
        """The release of that version, or None."""
        return next((held for held in self.releases if held.version == version), None)

    def without(self, version: str) -> "Holdings":
        """The others."""
        return Holdings(self.name, tuple(h for h in self.releases if h.version != version))

    def libraries(self) -> set[str]:
        """Every library that one of them needs."""
        return {library for held in self.releases for library in held.libraries}


def parse_start_erl(raw: bytes) -> StartErl | None:
    """The runtime's and the release's version, or None when the line is not of that form."""
    words = raw.decode("utf-8", "replace").split()
    return StartErl(words[0], words[1]) if len(words) == 2 else None


def read_start_erl(folder: str) -> StartErl | None:
    """What the folder boots, or None when its start_erl.data is missing or torn. Raises OSError."""
    raw = files.read_file(f"{folder}/{START_ERL}", _LINE_BYTES)
    return parse_start_erl(raw) if raw is not None else None


def boots(folder: str) -> str | None:
    """The version that the folder boots, or None when start_erl.data does not say."""
    found = read_start_erl(folder)
    return found.version if found else None


def releases_term(name: str, held: Sequence[Held], permanent: str) -> str:
    """The RELEASES term of these releases: the one that boots is permanent, the others are old.

    A library's folder splits at its first `-`: `app-1.0.0-rc.1` is app, "1.0.0-rc.1".
    """
    entries = []
    for release in held:
        libraries = [
            f"{{{_atom(library)},{_string(version)},{_string(f'lib/{library}-{version}')}}}"
            for library, dash, version in (x.partition("-") for x in sorted(release.libraries))
            if dash
        ]
        head = f"{_string(name)},{_string(release.version)},{_string(release.erts)}"
        status = "permanent" if release.version == permanent else "old"
        entries.append(
            f"{{release,{head},\n  [{(',' + chr(10) + '   ').join(libraries)}],{status}}}"
        )
    return f"[{(',' + chr(10) + ' ').join(entries)}].\n"


def write_releases(folder: str, name: str) -> bool:
    """Writes RELEASES into a freshly unpacked release; False: there is one, or nothing to say."""
    if os.path.lexists(f"{folder}/{RELEASES}"):
        return False
    found = read_start_erl(folder)
    if found is None or not os.path.isdir(f"{folder}/lib"):
        return False
    held = Held(found.version, found.erts, libraries(folder))
    term = releases_term(name, [held], found.version)
    files.write_file(f"{folder}/{RELEASES}", os.fsencode(term), mode=0o644)
    return True


def libraries(folder: str) -> tuple[str, ...]:
    """What stands under lib/, sorted; nothing of ours that is half-made."""
    try:
        return tuple(sorted(name for name in os.listdir(f"{folder}/lib") if name[0] != "."))
    except (FileNotFoundError, NotADirectoryError):
        return ()


def read_holdings(folder: str) -> Holdings | None:
    """The releases that the folder holds; None: the one that was unpacked there, and no other.

    Raises OSError, and StateError when the file is there and cannot be used.
    """
    raw = files.read_file(f"{folder}/{HELD}")
    if raw is None:
        return None
    try:
        document: dict[str, Any] = json.loads(raw)
        if document["schema_version"] != HELD_SCHEMA:
            raise ValueError("another deployex wrote it")
        found = tuple(
            Held(str(item["version"]), str(item["erts"]), tuple(map(str, item["libraries"])))
            for item in document["releases"]
        )
        return Holdings(str(document["name"]), found)
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(
            f"{folder}/{HELD} cannot be used ({error}): the next deployment of this app has to be"
            " in full"
        ) from None


def write_holdings(folder: str, holdings: Holdings) -> None:
    """Says which releases the folder holds."""
    document = {
        "schema_version": HELD_SCHEMA,
        "name": holdings.name,
        "releases": [held._asdict() for held in holdings.releases],
    }
    files.write_file(f"{folder}/{HELD}", json.dumps(document).encode() + b"\n")


def make_boot(folder: str, version: str) -> None:
    """Makes `version`, one of those that the folder holds, boot the next time; no VM may run.

    Raises NotFound when the folder does not hold it, StateError, OSError.
    """
    holdings = read_holdings(folder)
    held = holdings.find(version) if holdings else None
    if holdings is None or held is None or not _is_there(folder, version):
        if boots(folder) == version:
            return
        raise NotFound(f"{folder} holds no release {version} that could boot")
    _write_term(folder, holdings, version)
    line = f"{held.erts} {version}\n".encode()
    if files.read_file(f"{folder}/{START_ERL}") != line:  # the last: this is what makes it boot
        files.write_file(f"{folder}/{START_ERL}", line, mode=0o644)
    keep_copies(folder)


def keep_copies(folder: str) -> None:
    """Keeps what both files are: before the release ever starts, and when another is to boot.

    Raises OSError.
    """
    found = {name: files.read_file(f"{folder}/{name}") for name in (START_ERL, RELEASES)}
    text = {name: raw.decode("latin-1") for name, raw in found.items() if raw is not None}
    document = json.dumps(text).encode() + b"\n"
    if text and files.read_file(f"{folder}/{KEPT}") != document:
        files.write_file(f"{folder}/{KEPT}", document)


def renew_copies(folder: str) -> None:
    """After make_permanent: what the VM wrote with no fsync is put on disk, and kept.

    What is torn is not kept. Raises OSError.
    """
    files.sync_filesystem(folder)
    if _is_whole(folder, START_ERL) and _is_whole(folder, RELEASES):
        keep_copies(folder)


def mend(folder: str) -> list[str]:
    """Puts right what is missing or torn before a start; the names of what was. Raises OSError.

    Where the folder holds several releases RELEASES is made to fit start_erl.data, too.
    """
    broken = [name for name in (START_ERL, RELEASES) if not _is_whole(folder, name)]
    if broken:
        _put_back(folder, broken)
    version = boots(folder)
    try:
        holdings = read_holdings(folder)
    except StateError:
        holdings = None
    if holdings is not None and version is not None and holdings.find(version) is not None:
        _write_term(folder, holdings, version)
    return [name for name in broken if _is_whole(folder, name)]


def _put_back(folder: str, broken: list[str]) -> None:
    """Puts the copies in place of what is broken."""
    kept = files.read_file(f"{folder}/{KEPT}")
    if kept is None:  # a release without a runtime of its own has neither
        return
    copies: dict[str, str] = json.loads(kept)
    for name in broken:
        copy = copies[name].encode("latin-1") if name in copies else None
        if copy is not None and files.read_file(f"{folder}/{name}") != copy:
            files.write_file(f"{folder}/{name}", copy, mode=0o644)


def _write_term(folder: str, holdings: Holdings, permanent: str) -> None:
    """RELEASES, of those that are there as a whole, unless that is what stands there."""
    held = [h for h in holdings.releases if _is_there(folder, h.version)]
    term = os.fsencode(releases_term(holdings.name, held, permanent))
    if files.read_file(f"{folder}/{RELEASES}") != term:
        files.write_file(f"{folder}/{RELEASES}", term, mode=0o644)


def _is_there(folder: str, version: str) -> bool:
    """Whether the release is there as a whole: its folder comes last, and goes first."""
    return os.path.isdir(f"{folder}/releases/{version}")


def _is_whole(folder: str, name: str) -> bool:
    """Whether the file is there and nothing of it is missing.

    A power cut leaves a prefix, or zeros where data should be: no prefix of a term is balanced.
    """
    raw = files.read_file(f"{folder}/{name}")
    if raw is None or b"\0" in raw:
        return False
    if name == START_ERL:
        found = parse_start_erl(raw)
        return found is not None and _is_there(folder, found.version)
    lines = raw.strip().splitlines()
    whole = b"\n".join(line for line in lines if not line.startswith(b"%"))  # OTP's own begins so
    balanced = all(whole.count(a) == whole.count(b) for a, b in ((b"[", b"]"), (b"{", b"}")))
    return whole.startswith(b"[") and whole.endswith(b"].") and balanced


def _atom(name: str) -> str:
    return "'" + _escaped(name, "'") + "'"  # quoted always: `maybe` and `end` are reserved words


def _string(text: str) -> str:
    return '"' + _escaped(text, '"') + '"'


def _escaped(text: str, quote: str) -> str:
    return text.replace("\\", "\\\\").replace(quote, "\\" + quote)
