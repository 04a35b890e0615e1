"""`releases/start_erl.data` and `releases/RELEASES`: what the VM boots and knows of itself.

A Mix release comes without RELEASES, so that release_handler knows the first release with no
libraries and cannot go back to it. We write it into a freshly unpacked folder, before the release
ever starts (OTP: release_handler(3), "RELEASES file"; System Principles, "start_erl").

The VM rewrites both with no fsync, so that a power cut may leave them torn: an empty start_erl.data
ends every boot, half a RELEASES boots without libraries. A copy of our own puts them right.
"""

import json
import os
from typing import NamedTuple

from deployex_cli.layout import files

START_ERL = "releases/start_erl.data"
RELEASES = "releases/RELEASES"
_LINE_BYTES = 4096
KEPT = ".deployex.otp.json"  # the copy: never changed once the release has its name


class StartErl(NamedTuple):
    """The one line of start_erl.data."""

    erts: str
    version: str


def parse_start_erl(raw: bytes) -> StartErl | None:
    """The runtime's and the release's version, or None when the line is not of that form."""
    words = raw.decode("utf-8", "replace").split()
    return StartErl(words[0], words[1]) if len(words) == 2 else None


def releases_term(name: str, boots: StartErl, libraries: list[str]) -> str:
    """The RELEASES term of a release that is the only one; `libraries` are names under lib/.

    A library's folder splits at its first `-`: `app-1.0.0-rc.1` is app, "1.0.0-rc.1".
    """
    entries = []
    for folder in sorted(libraries):
        library, dash, version = folder.partition("-")
        if dash:
            entries.append(f"{{{_atom(library)},{_string(version)},{_string(f'lib/{folder}')}}}")
    head = f"{_string(name)},{_string(boots.version)},{_string(boots.erts)}"
    return f"[{{release,{head},\n  [{(',' + chr(10) + '   ').join(entries)}],permanent}}].\n"


def write_releases(folder: str, name: str) -> bool:
    """Writes RELEASES into a freshly unpacked release; False: there is one, or nothing to say."""
    if os.path.lexists(f"{folder}/{RELEASES}"):
        return False
    raw = files.read_file(f"{folder}/{START_ERL}", _LINE_BYTES)
    boots = parse_start_erl(raw) if raw is not None else None
    if boots is None or not os.path.isdir(f"{folder}/lib"):
        return False
    term = releases_term(name, boots, os.listdir(f"{folder}/lib"))
    files.write_file(f"{folder}/{RELEASES}", os.fsencode(term), mode=0o644)
    return True


def keep_copies(folder: str) -> None:
    """Keeps what both files are before the release ever starts. Raises OSError."""
    found = {name: files.read_file(f"{folder}/{name}") for name in (START_ERL, RELEASES)}
    text = {name: raw.decode("latin-1") for name, raw in found.items() if raw is not None}
    if text:
        files.write_file(f"{folder}/{KEPT}", json.dumps(text).encode() + b"\n")


def mend(folder: str) -> list[str]:
    """Puts right what is missing or torn before a start; the names of what was. Raises OSError."""
    broken = [name for name in (START_ERL, RELEASES) if not _is_whole(folder, name)]
    kept = files.read_file(f"{folder}/{KEPT}") if broken else None
    if kept is None:  # a release without a runtime of its own has neither
        return []
    copies: dict[str, str] = json.loads(kept)
    mended = []
    for name in broken:
        copy = copies[name].encode("latin-1") if name in copies else None
        if copy is not None and files.read_file(f"{folder}/{name}") != copy:
            files.write_file(f"{folder}/{name}", copy, mode=0o644)
            mended.append(name)
    return mended


def _is_whole(folder: str, name: str) -> bool:
    """Whether the file is there and nothing of it is missing.

    A power cut leaves a prefix, or zeros where data should be: no prefix of a term is balanced.
    """
    raw = files.read_file(f"{folder}/{name}")
    if raw is None or b"\0" in raw:
        return False
    if name == START_ERL:
        boots = parse_start_erl(raw)
        return boots is not None and os.path.isdir(f"{folder}/releases/{boots.version}")
    whole = raw.strip()
    balanced = all(raw.count(a) == raw.count(b) for a, b in ((b"[", b"]"), (b"{", b"}")))
    return whole.startswith(b"[") and whole.endswith(b"].") and balanced


def _atom(name: str) -> str:
    return "'" + _escaped(name, "'") + "'"  # quoted always: `maybe` and `end` are reserved words


def _string(text: str) -> str:
    return '"' + _escaped(text, '"') + '"'


def _escaped(text: str, quote: str) -> str:
    return text.replace("\\", "\\\\").replace(quote, "\\" + quote)
