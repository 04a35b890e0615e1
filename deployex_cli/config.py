"""deployex.toml + environment -> frozen Config, with the source of each value.

Option > environment > file > default. Every key is in SCHEMA, so an unknown one is an error that
names the nearest known one. The paths of an app come from here and from nowhere else.
"""

import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from deployex_cli.core.names import (
    app_name_problem,
    environment_problem,
    host_problem,
    node_problem,
)
from deployex_cli.errors import ConfigError

DEFAULT_FILE = "/etc/deployex/deployex.toml"
MASK = "********"
LANGUAGES = ("elixir", "erlang", "gleam")
# compiled when a value is there to be read
_DURATION = r"(\d+(?:\.\d+)?)(ms|s|m|h|d)"
_SIZE = r"(\d+)(B|KB|MB|GB|KiB|MiB|GiB)"
_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_UNIT_BYTES = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
_SOCKET_PATH_BYTES = 107  # sockaddr_un.sun_path less its NUL, unix(7)


class AppPaths(NamedTuple):
    """Where everything of one app lives; all absolute."""

    service: str  # new, current, previous, releases/, work/
    releases: str
    work: str  # the app's working directory: crash dumps land here
    stdout: str
    stderr: str
    supervise_log: str
    state: str  # written by whoever holds the lock
    history: str
    record: str  # written by supervise alone
    socket: str
    lock: str
    supervise_lock: str
    store: str  # the local release store's folder

    def link(self, name: str) -> str:
        """The path of `new`, `current` or `previous`."""
        return f"{self.service}/{name}"

    def release(self, folder: str) -> str:
        """The path of a release's folder."""
        return f"{self.releases}/{folder}"


class AppConfig(NamedTuple):
    """One monitored app."""

    name: str
    language: str
    node: str  # short name, or name@host
    cookie: str | None  # secret
    env: tuple[tuple[str, str], ...]
    env_inherit: tuple[str, ...] | None  # None: all that is not scrubbed
    min_healthy_time: float  # seconds
    stop_timeout: float  # seconds
    pre_command_timeout: float  # seconds
    max_entries: int
    max_unpacked: int  # bytes
    distribution: str  # "auto", or "none": nobody asks the node
    dist_port: int | None  # of a node without epmd
    connect_host: str | None  # where the node is, when not under its own host name
    epmd_port: int | None
    cookie_file: str | None
    tls_ca: str | None
    tls_cert: str | None
    tls_key: str | None
    on_upgrade_failure: str  # "full" or "ghost"
    environment: str
    paths: AppPaths


class Config(NamedTuple):
    """All that is in force. `sources` says for each dotted key where its value came from."""

    environment: str
    adapter: str
    apps: tuple[AppConfig, ...]
    sources: dict[str, str]
    values: dict[str, Any]
    file: str | None

    def app(self, name: str) -> AppConfig:
        """The app of that name. Raises ConfigError, naming the nearest."""
        for app in self.apps:
            if app.name == name:
                return app
        names = [app.name for app in self.apps]
        raise ConfigError(f"no app {name!r} is configured{_nearest(name, names)}")


# --- values ---------------------------------------------------------------------------------


def parse_duration(value: Any) -> float:
    """Seconds of "30s", "10m", "500ms", "2h" or "1d". Raises ValueError."""
    match = re.fullmatch(_DURATION, value, re.ASCII) if isinstance(value, str) else None
    if match is None:
        raise ValueError('must be a duration with a unit, such as "30s", "10m" or "500ms"')
    return float(match[1]) * _UNIT_SECONDS[match[2]]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be text in quotes")
    if "\0" in value:
        raise ValueError("must not hold a NUL character")
    return value


def _path(value: Any) -> str:
    path = _text(value)
    if not path.startswith("/"):
        raise ValueError('must be an absolute path, such as "/var/lib/deployex"')
    return os.path.normpath(path)


def _size(value: Any) -> int:
    match = re.fullmatch(_SIZE, value, re.ASCII) if isinstance(value, str) else None
    if match is None:
        raise ValueError('must be a size with a unit, such as "500MB" or "4GiB"')
    return int(match[1]) * _UNIT_BYTES[match[2]]


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("must be a whole number above 0")
    return value


def _ruled(problem: Callable[[str], str | None]) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        text = _text(value)
        wrong = problem(text)
        if wrong:
            raise ValueError(wrong)
        return text

    return check


def _language(value: Any) -> str:
    if value not in LANGUAGES:
        raise ValueError(f"must be one of {', '.join(LANGUAGES)}")
    return str(value)


def _adapter(value: Any) -> str:
    if value == "s3":
        raise ValueError('"s3" is not supported by this version of deployex yet; "local" is')
    if value != "local":
        raise ValueError('must be "local"')
    return "local"


def _cookie(value: Any) -> str:
    cookie = _text(value)
    if not re.fullmatch(r"[!-~]{1,255}", cookie) or cookie.startswith("-"):
        raise ValueError(
            "must be 1 to 255 printable characters without spaces, not beginning with -"
        )
    return cookie


def _port(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 65536:
        raise ValueError("must be a port, 1 to 65535")
    return value


def _one_of(*words: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in words:
            raise ValueError("must be " + " or ".join(f'"{word}"' for word in words))
        return str(value)

    return check


def _variables(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise ValueError('must be a table, such as { PORT = "4000" }')
    for key, item in value.items():
        if not re.fullmatch(_VARIABLE, key):
            raise ValueError(f"{key!r} is no name of an environment variable")
        if not isinstance(item, str) or "\0" in item:
            raise ValueError(f'{key} must be text in quotes, such as {key} = "4000"')
    return tuple(sorted(value.items()))


def _variable_names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError('must be a list of names, such as ["AWS_REGION"]')
    return tuple(value)


# --- the keys -------------------------------------------------------------------------------

_ROOT: dict[str, Callable[[Any], Any]] = {"environment": _ruled(environment_problem)}
_SECTIONS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "paths": {"root": _path, "logs": _path, "run": _path},
    "storage": {"adapter": _adapter, "path": _path},
}
_APP: dict[str, Callable[[Any], Any]] = {
    "language": _language,
    "node": _ruled(node_problem),
    "cookie": _cookie,
    "env": _variables,
    "env_inherit": _variable_names,
    "min_healthy_time": parse_duration,
    "stop_timeout": parse_duration,
    "pre_command_timeout": parse_duration,
    "max_entries": _count,
    "max_unpacked": _size,
    "distribution": _one_of("auto", "none"),
    "dist_port": _port,
    "connect_host": _ruled(host_problem),
    "epmd_port": _port,
    "cookie_file": _path,
    "tls_ca": _path,
    "tls_cert": _path,
    "tls_key": _path,
    "on_upgrade_failure": _one_of("full", "ghost"),
}
_APP_DEFAULTS: dict[str, Any] = {
    "language": "elixir",
    "cookie": None,
    "env": (),
    "env_inherit": None,
    "min_healthy_time": 30.0,
    "stop_timeout": 15.0,
    "pre_command_timeout": 600.0,
    "max_entries": 100_000,
    "max_unpacked": 4 * 2**30,
    "distribution": "auto",
    "dist_port": None,
    "connect_host": None,
    "epmd_port": None,
    "cookie_file": None,
    "tls_ca": None,
    "tls_cert": None,
    "tls_key": None,
    "on_upgrade_failure": "full",
}
SECRETS = frozenset({"cookie"})

# environment variable -> the key it overrides; the app's own keys apply to every app
_ENVIRONMENT = {
    "DEPLOYEX_CLOUD_ENVIRONMENT": "environment",
    "DEPLOYEX_STORAGE_ADAPTER": "storage.adapter",
    "DEPLOYEX_ERLANG_COOKIE": "apps.*.cookie",
}
APP_VARIABLE = "DEPLOYEX_MONITORED_APP_NAME"


def load_config(file: str | None, environ: Mapping[str, str]) -> Config:
    """What is in force. `file` is --config's; else $DEPLOYEX_CONFIG's, else the default if there.

    Raises ConfigError: a file that cannot be read or is no TOML, an unknown key (naming the nearest
    known one), a value of a wrong type, a bad name, no app at all.
    """
    chosen = file or environ.get("DEPLOYEX_CONFIG") or None
    path = chosen or DEFAULT_FILE
    document = _read(path, required=chosen is not None)
    where = path if document is not None else None
    reader = _Reader(where, document or {}, environ)
    reader.check_keys()
    names = reader.app_names()
    environment = reader.value("environment", _ROOT["environment"], "local")
    local = environment == "local"
    root = reader.value(
        "paths.root", _path, "/tmp/deployex/varlib" if local else "/var/lib/deployex"
    )
    run = reader.value("paths.run", _path, "/tmp/deployex/run" if local else "/run/deployex")
    logs = reader.value("paths.logs", _path, None if local else "/var/log")
    adapter = reader.value("storage.adapter", _adapter, "local" if local else "s3")
    if adapter == "s3":
        raise ConfigError(
            f"storage.adapter: the default of environment {environment!r} is s3, which this version"
            ' of deployex does not support yet; set adapter = "local" and path under [storage]'
        )
    store = reader.value("storage.path", _path, None)
    if store is None and not local:
        raise ConfigError(
            f'storage.path is not set: environment {environment!r} with adapter = "local" needs the'
            " release store's folder"
        )
    apps = []
    for name in names:
        app_logs, app_store = logs or f"/tmp/{name}", store or f"/tmp/{name}"
        paths = _app_paths(name, root, app_logs, run, app_store)
        apps.append(_app(reader, name, environment, paths))
    return Config(environment, adapter, tuple(apps), reader.sources, reader.values, where)


def _app(reader: "_Reader", name: str, environment: str, paths: AppPaths) -> AppConfig:
    values = {
        key: reader.value(f"apps.{name}.{key}", kind, _APP_DEFAULTS.get(key, name))
        for key, kind in _APP.items()
    }
    return AppConfig(name=name, environment=environment, paths=paths, **values)


def _app_paths(name: str, root: str, logs: str, run: str, store: str) -> AppPaths:
    service, state = f"{root}/service/{name}", f"{root}/state/{name}"
    socket = f"{run}/{name}.sock"
    if len(os.fsencode(socket)) > _SOCKET_PATH_BYTES:
        raise ConfigError(
            f"paths.run: {socket} has more than {_SOCKET_PATH_BYTES} bytes, the longest path that a"
            " socket can have; choose a shorter folder"
        )
    return AppPaths(
        service=service,
        releases=f"{service}/releases",
        work=f"{service}/work",
        stdout=f"{logs}/{name}-stdout.log",
        stderr=f"{logs}/{name}-stderr.log",
        supervise_log=f"{logs}/{name}-supervise.log",
        state=f"{state}.json",
        history=f"{state}.history.jsonl",
        record=f"{state}.supervise.json",
        socket=socket,
        lock=f"{run}/{name}.lock",
        supervise_lock=f"{run}/{name}.supervise.lock",
        store=store,
    )


class _Reader:
    """Looks each key up in the environment, the file and the defaults, and notes where it was."""

    def __init__(
        self, file: str | None, document: dict[str, Any], environ: Mapping[str, str]
    ) -> None:
        self.file = file
        self.document = document
        self.sources: dict[str, str] = {}
        self.values: dict[str, Any] = {}
        self._environ = environ
        self._variables = {key: variable for variable, key in _ENVIRONMENT.items()}

    def check_keys(self) -> None:
        """Every key of the file must be a known one."""
        self._known("", self.document, [*_ROOT, *_SECTIONS, "apps"])
        for section, keys in _SECTIONS.items():
            self._known(f"{section}.", self._table(section, self.document.get(section, {})), keys)
        for name, table in self._table("apps", self.document.get("apps", {})).items():
            self._name(name, f"{self.file}: apps.{name if name.isprintable() else repr(name)}")
            self._known(f"apps.{name}.", self._table(f"apps.{name}", table), _APP)

    def app_names(self) -> list[str]:
        """The apps of the file; the environment's variable chooses one, with or without a table."""
        chosen = self._environ.get(APP_VARIABLE)
        if chosen:
            self._name(chosen, f"${APP_VARIABLE}: {chosen!r}")
            return [chosen]
        names = list(self.document.get("apps", {}))
        if not names:
            raise ConfigError(
                f"no app is configured: set {APP_VARIABLE}, or write an [apps.NAME] table into"
                f" {self.file or DEFAULT_FILE}"
            )
        return names

    def value(self, key: str, kind: Callable[[Any], Any], default: Any) -> Any:
        """The value of a dotted key, checked by `kind`."""
        generic = f"apps.*.{key.rpartition('.')[2]}" if key.startswith("apps.") else key
        variable = self._variables.get(generic)
        found, source = default, "default"
        if variable and self._environ.get(variable):
            found, source = self._environ[variable], f"${variable}"
        else:
            in_file = self._lookup(key)
            if in_file is not None:
                found, source = in_file, str(self.file)
        if source != "default":
            place = source if source.startswith("$") else f"{source}: {key}"
            try:
                found = kind(found)
            except ValueError as error:
                shown = "" if key.rpartition(".")[2] in {*SECRETS, "env"} else f" {found!r}"
                raise ConfigError(f"{place}:{shown} {error}") from None
        self.sources[key], self.values[key] = source, found
        return found

    def _lookup(self, key: str) -> Any:
        table: Any = self.document
        for part in key.split("."):
            if part not in table:
                return None
            table = table[part]
        return table

    def _name(self, name: str, place: str) -> None:
        problem = app_name_problem(name)
        if problem:
            raise ConfigError(f"{place}: an app's name {problem}")

    def _table(self, key: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ConfigError(f"{self.file}: {key} must be a table, [{key}]")
        return value

    def _known(self, prefix: str, table: dict[str, Any], known: Any) -> None:
        for key in table:
            if key not in known:
                shown = key if key.isprintable() else repr(key)
                raise ConfigError(f"{self.file}: unknown key {prefix}{shown}{_nearest(key, known)}")


def _read(path: str, *, required: bool) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as file:
            raw = file.read()
    except FileNotFoundError:
        if required:
            raise ConfigError(f"the configuration {path} is not there") from None
        return None
    except OSError as error:
        raise ConfigError(f"the configuration {path} cannot be read: {error.strerror}") from None
    import tomli  # without a file nobody pays for it

    try:
        return tomli.loads(raw.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def _nearest(word: str, known: Any) -> str:
    import difflib

    near = difflib.get_close_matches(word, list(known), 1, 0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known are {', '.join(sorted(known))}"
