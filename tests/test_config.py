"""The configuration: what counts over what, what is refused and how, and that secrets stay so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deployex_cli.commands.config import show_config
from deployex_cli.config import AppConfig, Config, load_config, parse_duration
from deployex_cli.errors import ConfigError, ExitCode
from tests.world import World

APP = {"DEPLOYEX_MONITORED_APP_NAME": "counter"}
SECRET = "hunter2"


@pytest.fixture(autouse=True)
def no_file_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The machine that runs the tests may have a configuration of its own."""
    monkeypatch.setattr("deployex_cli.config.DEFAULT_FILE", str(tmp_path / "default.toml"))


def load(folder: Path, text: str | bytes, environ: dict[str, str] | None = None) -> Config:
    """What is in force by a file of this text."""
    file = folder / "deployex.toml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_config(str(file), environ or {})


def refused(folder: Path, text: str | bytes, environ: dict[str, str] | None = None) -> str:
    """What is said of it, in one line that names the file."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text, environ)
    assert caught.value.exit_code is ExitCode.USAGE
    assert "\n" not in caught.value.message
    return caught.value.message


def only(config: Config) -> AppConfig:
    (app,) = config.apps
    return app


# --- the environment alone ------------------------------------------------------------------


def test_the_environment_alone_suffices() -> None:
    environ = {
        **APP,
        "DEPLOYEX_STORAGE_ADAPTER": "local",
        "DEPLOYEX_CLOUD_ENVIRONMENT": "local",
        "DEPLOYEX_ERLANG_COOKIE": "monster",
        "DEPLOYEX_SECRET_KEY_BASE": "ignored here",
        "AWS_REGION": "eu",
    }
    config = load_config(None, environ)
    app = only(config)
    assert (config.environment, config.adapter, config.file) == ("local", "local", None)
    assert (app.name, app.node, app.cookie, app.language) == (
        *("counter", "counter", "monster", "elixir"),
    )
    assert config.sources["apps.counter.cookie"] == "$DEPLOYEX_ERLANG_COOKIE"
    assert config.sources["storage.adapter"] == "$DEPLOYEX_STORAGE_ADAPTER"
    assert config.sources["paths.root"] == "default"


def test_the_local_test_has_the_paths_that_everybody_knows() -> None:
    paths = only(load_config(None, APP)).paths
    assert paths.service == "/tmp/deployex/varlib/service/counter"
    assert paths.state == "/tmp/deployex/varlib/state/counter.json"
    assert paths.record == "/tmp/deployex/varlib/state/counter.supervise.json"
    assert paths.socket == "/tmp/deployex/run/counter.sock"
    assert paths.lock == "/tmp/deployex/run/counter.lock"
    assert paths.stdout == "/tmp/counter/counter-stdout.log"
    assert paths.stderr == "/tmp/counter/counter-stderr.log"
    assert paths.store == "/tmp/counter"
    assert paths.link("current") == "/tmp/deployex/varlib/service/counter/current"


def test_production_has_the_paths_that_everybody_knows(tmp_path: Path) -> None:
    text = 'environment = "prod"\n[storage]\nadapter = "local"\npath = "/srv/store"\n[apps.counter]'
    paths = only(load(tmp_path, text)).paths
    assert paths.service == "/var/lib/deployex/service/counter"
    assert paths.state == "/var/lib/deployex/state/counter.json"
    assert paths.socket == "/run/deployex/counter.sock"
    assert paths.stdout == "/var/log/counter-stdout.log"
    assert paths.store == "/srv/store"


def test_without_any_app_it_says_both_ways_to_name_one() -> None:
    with pytest.raises(ConfigError, match=r"DEPLOYEX_MONITORED_APP_NAME.*\[apps\.NAME\]"):
        load_config(None, {})


@pytest.mark.parametrize("variable", ["DEPLOYEX_CLOUD_ENVIRONMENT", "DEPLOYEX_ERLANG_COOKIE"])
def test_an_empty_variable_is_none(variable: str) -> None:
    config = load_config(None, {**APP, variable: "", "DEPLOYEX_CONFIG": ""})
    assert config.environment == "local"
    assert only(config).cookie is None


# --- what counts over what ------------------------------------------------------------------


def test_environment_counts_over_file_and_file_over_default(tmp_path: Path) -> None:
    text = '[apps.counter]\ncookie = "of_the_file"\nstop_timeout = "1m"'
    file = load(tmp_path, text)
    both = load(tmp_path, text, {"DEPLOYEX_ERLANG_COOKIE": "of_the_environment"})
    assert only(file).cookie == "of_the_file"
    assert only(both).cookie == "of_the_environment"
    assert only(both).stop_timeout == 60.0
    assert only(both).min_healthy_time == 30.0
    key = "apps.counter.cookie"
    assert file.sources[key] == file.file == str(tmp_path / "deployex.toml")
    assert both.sources[key] == "$DEPLOYEX_ERLANG_COOKIE"
    assert both.sources["apps.counter.min_healthy_time"] == "default"
    assert both.sources.keys() == both.values.keys()


def test_the_option_counts_over_the_variable_that_names_the_file(tmp_path: Path) -> None:
    for name in ("option", "variable"):
        (tmp_path / f"{name}.toml").write_text(f"[apps.by_{name}]")
    environ = {"DEPLOYEX_CONFIG": str(tmp_path / "variable.toml")}
    assert only(load_config(None, environ)).name == "by_variable"
    assert only(load_config(str(tmp_path / "option.toml"), environ)).name == "by_option"


def test_the_variable_chooses_one_app_of_the_file_with_its_table_or_a_new_one(
    tmp_path: Path,
) -> None:
    text = '[apps.one]\nnode = "n1"\n[apps.two]\nnode = "n2"'
    assert [app.name for app in load(tmp_path, text).apps] == ["one", "two"]
    assert only(load(tmp_path, text, {"DEPLOYEX_MONITORED_APP_NAME": "two"})).node == "n2"
    assert only(load(tmp_path, text, {"DEPLOYEX_MONITORED_APP_NAME": "three"})).node == "three"


def test_an_environments_cookie_is_every_apps(tmp_path: Path) -> None:
    config = load(tmp_path, "[apps.one]\n[apps.two]", {"DEPLOYEX_ERLANG_COOKIE": "monster"})
    assert [app.cookie for app in config.apps] == ["monster", "monster"]


def test_without_an_option_and_a_variable_the_machines_own_file_counts(tmp_path: Path) -> None:
    (tmp_path / "default.toml").write_text("[apps.of_the_machine]")
    assert only(load_config(None, {})).name == "of_the_machine"
    assert only(load_config(None, {"DEPLOYEX_CONFIG": ""})).name == "of_the_machine"


def test_an_app_that_is_not_configured_is_named_with_the_nearest(tmp_path: Path) -> None:
    config = load(tmp_path, "[apps.counter]\n[apps.other]")
    assert config.app("other").name == "other"
    with pytest.raises(ConfigError, match=r"no app 'countr' is configured; did you mean 'counter'"):
        config.app("countr")


def test_every_key_can_be_set(tmp_path: Path) -> None:
    text = """
environment = "qa-1"
[paths]
root = "/r/./x/../y"
logs = "/l/"
run = "/u"
[storage]
adapter = "local"
path = "/s"
[apps.counter]
language = "gleam"
node = "c@10.0.0.5"
cookie = "monster"
env = { B = "2", A = "" }
env_inherit = ["AWS_REGION"]
min_healthy_time = "500ms"
stop_timeout = "1.5s"
pre_command_timeout = "2h"
max_entries = 1
max_unpacked = "1MiB"
distribution = "none"
dist_port = 9100
connect_host = "10.0.0.6"
epmd_port = 65535
cookie_file = "/etc/deployex/cookie"
tls_ca = "/t/ca.crt"
tls_cert = "/t/deployex.crt"
tls_key = "/t/x/../deployex.key"
on_upgrade_failure = "ghost"
"""
    app = only(load(tmp_path, text))
    assert app._replace(paths=app.paths) == AppConfig(
        name="counter",
        language="gleam",
        node="c@10.0.0.5",
        cookie="monster",
        env=(("A", ""), ("B", "2")),
        env_inherit=("AWS_REGION",),
        min_healthy_time=0.5,
        stop_timeout=1.5,
        pre_command_timeout=7200.0,
        max_entries=1,
        max_unpacked=2**20,
        distribution="none",
        dist_port=9100,
        connect_host="10.0.0.6",
        epmd_port=65535,
        cookie_file="/etc/deployex/cookie",
        tls_ca="/t/ca.crt",
        tls_cert="/t/deployex.crt",
        tls_key="/t/deployex.key",
        on_upgrade_failure="ghost",
        environment="qa-1",
        paths=app.paths,
    )
    assert (app.paths.releases, app.paths.stdout) == (
        "/r/y/service/counter/releases",
        "/l/counter-stdout.log",
    )
    assert (app.paths.socket, app.paths.store) == ("/u/counter.sock", "/s")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30.0), ("500ms", 0.5), ("10m", 600.0), ("2h", 7200.0), ("1d", 86400.0), ("0s", 0.0)],
)
def test_a_duration_has_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *[("7B", 7), ("7KB", 7_000), ("7MB", 7_000_000), ("7GB", 7_000_000_000)],
        *[("7KiB", 7_168), ("7MiB", 7_340_032), ("7GiB", 7_516_192_768)],
    ],
)
def test_a_size_has_a_unit(tmp_path: Path, text: str, size: int) -> None:
    assert only(load(tmp_path, f'[apps.counter]\nmax_unpacked = "{text}"')).max_unpacked == size


def test_what_nobody_set_has_its_default() -> None:
    app = only(load_config(None, APP))
    assert (app.min_healthy_time, app.stop_timeout, app.pre_command_timeout) == (30, 15, 600)
    assert (app.max_entries, app.max_unpacked) == (100_000, 4_294_967_296)
    assert (app.env, app.env_inherit, app.cookie) == ((), None, None)
    assert (app.distribution, app.on_upgrade_failure) == ("auto", "full")
    assert (app.dist_port, app.connect_host, app.epmd_port, app.cookie_file) == (None,) * 4
    assert (app.tls_ca, app.tls_cert, app.tls_key) == (None, None, None)


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('enviroment = "local"', "unknown key enviroment; did you mean 'environment'?"),
        ("[path]", "unknown key path; did you mean 'paths'?"),
        ("[app.counter]", "unknown key app; did you mean 'apps'?"),
        ('[paths]\nroots = "/x"', "unknown key paths.roots; did you mean 'root'?"),
        ('[storage]\nadaptor = "local"', "unknown key storage.adaptor; did you mean 'adapter'?"),
        (
            '[apps.counter]\nmin_healty_time = "1s"',
            "unknown key apps.counter.min_healty_time; did you mean 'min_healthy_time'?",
        ),
        ("[storage]\nzzz = 1", "unknown key storage.zzz; known are adapter, path"),
        ("[unused]\n[apps.counter]", "unknown key unused"),
    ],
)
def test_an_unknown_key_is_refused_at_every_level_and_the_nearest_is_named(
    tmp_path: Path, text: str, said: str
) -> None:
    assert f"{tmp_path}/deployex.toml: {said}" in refused(tmp_path, text)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("environment", "7", "must be text in quotes"),
        ("environment", '"Prod"', "'Prod' must hold at most 32"),
        ("environment", '""', "must hold at most 32"),
        ("paths", "7", "paths must be a table, [paths]"),
        ("storage", '"local"', "storage must be a table"),
        ("apps", "[]", "apps must be a table"),
        ("apps.counter", "true", "apps.counter must be a table, [apps.counter]"),
        ("paths.root", "7", "must be text"),
        ("paths.root", '"relative"', "'relative' must be an absolute path"),
        ("paths.root", '""', "must be an absolute path"),
        ("paths.root", '"/a\\u0000"', "NUL"),
        ("storage.adapter", '"gcs"', '"local"'),
        ("storage.adapter", "[]", '"local"'),
        ("apps.counter.language", '"python"', "must be one of elixir, erlang, gleam"),
        ("apps.counter.language", "[]", "must be one of elixir, erlang, gleam"),
        ("apps.counter.node", '"a b"', "'a b' must be a short name"),
        ("apps.counter.node", "7", "must be text"),
        ("apps.counter.cookie", '""', "1 to 255 printable"),
        ("apps.counter.cookie", '"-x"', "not beginning with -"),
        ("apps.counter.cookie", "7", "must be text"),
        ("apps.counter.env", "[]", "must be a table"),
        ("apps.counter.env", "{ PORT = 4000 }", 'PORT must be text in quotes, such as PORT = "4'),
        ("apps.counter.env", '{ "A B" = "x" }', "'A B' is no name"),
        ("apps.counter.env", '{ A = "x\\u0000" }', "A must be text"),
        ("apps.counter.env_inherit", '"PATH"', "must be a list of names"),
        ("apps.counter.env_inherit", "[1]", "must be a list of names"),
        ("apps.counter.min_healthy_time", "30", "must be a duration with a unit"),
        ("apps.counter.min_healthy_time", '"30"', "'30' must be a duration"),
        ("apps.counter.min_healthy_time", '"-1s"', "must be a duration"),
        ("apps.counter.min_healthy_time", '"1s "', "must be a duration"),
        ("apps.counter.min_healthy_time", '"\u0663s"', "must be a duration"),
        ("apps.counter.stop_timeout", '"1 s"', "must be a duration"),
        ("apps.counter.pre_command_timeout", "true", "must be a duration"),
        ("apps.counter.max_entries", "0", "must be a whole number above 0"),
        ("apps.counter.max_entries", "true", "must be a whole number"),
        ("apps.counter.max_entries", '"7"', "must be a whole number"),
        ("apps.counter.max_unpacked", "7", "must be a size with a unit"),
        ("apps.counter.max_unpacked", '"7 GB"', "must be a size"),
        ("apps.counter.distribution", '"on"', 'must be "auto" or "none"'),
        ("apps.counter.distribution", "false", 'must be "auto" or "none"'),
        ("apps.counter.dist_port", '"9100"', "must be a port, 1 to 65535"),
        ("apps.counter.dist_port", "0", "must be a port"),
        ("apps.counter.dist_port", "65536", "must be a port"),
        ("apps.counter.epmd_port", "true", "must be a port"),
        ("apps.counter.connect_host", '"a b"', "must be a host name or an address"),
        ("apps.counter.connect_host", '""', "must be a host name or an address"),
        ("apps.counter.cookie_file", '"cookie"', "must be an absolute path"),
        ("apps.counter.tls_ca", '"ca.crt"', "must be an absolute path"),
        ("apps.counter.tls_cert", "7", "must be text"),
        ("apps.counter.tls_key", '""', "must be an absolute path"),
        ("apps.counter.on_upgrade_failure", '"restart"', 'must be "full" or "ghost"'),
    ],
)
def test_a_value_of_a_wrong_kind_is_refused_with_file_and_key(
    tmp_path: Path, key: str, value: str, said: str
) -> None:
    text = f"{key} = {value}\n" + ("" if key.startswith("apps") else "[apps.counter]\n")
    message = refused(tmp_path, text)
    assert message.startswith(f"{tmp_path}/deployex.toml: {key}")
    assert said in message


@pytest.mark.parametrize("name", ["my-app", "MyApp", "1st", "", "a/b", "..", "a b", "a" * 41])
def test_a_bad_app_name_is_refused_in_the_file_and_in_the_environment(
    tmp_path: Path, name: str
) -> None:
    in_file = refused(tmp_path, f'[apps."{name}"]')
    assert in_file.startswith(f"{tmp_path}/deployex.toml: apps.{name}: an app's name must begin")
    if name:
        with pytest.raises(
            ConfigError, match=r"^\$DEPLOYEX_MONITORED_APP_NAME: '.*' ?an app's|: an"
        ):
            load_config(None, {"DEPLOYEX_MONITORED_APP_NAME": name})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[apps.counter]\nnode =\n", "line 2"),
        ("[apps.counter]\n\nnode = x\n", "line 3"),
        ("a = 1\na = 2\n", "line 2"),
        ("[apps.counter", "is not TOML"),
        ("x = " + "[" * 100_000, "is not TOML"),
        ("[apps.counter]\nmax_entries = " + "1" * 5000, "is not TOML"),
        (b"[apps.counter]\nnode = '\xe9'", "is not UTF-8 text (byte 23)"),
        (b"\xff\xfe[\x00", "is not UTF-8 text (byte 0)"),
        (bytes(64), "is not TOML"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_what_is_no_toml_is_refused_with_the_line(
    tmp_path: Path, text: str | bytes, said: str
) -> None:
    message = refused(tmp_path, text)
    assert message.startswith(f"{tmp_path}/deployex.toml is not")
    assert said in message


def test_a_file_that_was_asked_for_must_be_there_and_be_one(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.toml")
    for option, environ in ((missing, APP), (None, {**APP, "DEPLOYEX_CONFIG": missing})):
        with pytest.raises(ConfigError, match=f"{missing} is not there"):
            load_config(option, environ)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(str(tmp_path), APP)


@pytest.mark.parametrize("spare", [0, 1])
def test_a_path_that_is_too_long_for_a_socket_is_refused_before_anything_is_made(
    tmp_path: Path, spare: int
) -> None:
    run = "/" + "r" * (107 - len("//counter.sock") + 1 - spare)
    text = f'[paths]\nrun = "{run}"\n[apps.counter]'
    if spare:
        assert len(only(load(tmp_path, text)).paths.socket) == 107
    else:
        assert "paths.run" in (message := refused(tmp_path, text))
        assert "107 bytes" in message


@pytest.mark.parametrize(
    ("text", "environ", "said"),
    [
        ('[storage]\nadapter = "s3"', APP, "is not supported by this version"),
        ("", {**APP, "DEPLOYEX_STORAGE_ADAPTER": "s3"}, "$DEPLOYEX_STORAGE_ADAPTER: 's3' "),
        ('environment = "prod"', APP, "the default of environment 'prod' is s3"),
        ("", {**APP, "DEPLOYEX_CLOUD_ENVIRONMENT": "prod"}, "the default of environment 'prod'"),
        ('environment = "prod"\n[storage]\nadapter = "local"', APP, "storage.path is not set"),
    ],
)
def test_the_store_that_this_version_has_not_yet_is_named_with_what_to_do(
    tmp_path: Path, text: str, environ: dict[str, str], said: str
) -> None:
    assert said in refused(tmp_path, text, environ)


# --- secrets --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        f'cookie = "{SECRET} and a blank"',
        f'cookie = ["{SECRET}"]',
        f'cookie = "{SECRET}',
        f"cookie = {SECRET}",
        f'cookie = "{SECRET}"\ncookie = "{SECRET}"',
        f'cokie = "{SECRET}"',
        f'env = "{SECRET}"',
        f'env = ["{SECRET}"]',
        f'env = {{ TOKEN = ["{SECRET}"] }}',
        f'env = {{ TOKEN = "{SECRET}\\u0000" }}',
        f'env = {{ TOKEN = "{SECRET}", PORT = 4000 }}',
        f'env = {{ TOKEN = "{SECRET}", "NO NAME" = "x" }}',
        f'env = {{ TOKEN = "{SECRET}" ',
        f'environ = {{ TOKEN = "{SECRET}" }}',
    ],
)
def test_no_error_holds_a_secret(tmp_path: Path, text: str) -> None:
    assert SECRET not in refused(tmp_path, f"[apps.counter]\n{text}\n")


def test_no_error_holds_the_environments_cookie(tmp_path: Path) -> None:
    message = refused(tmp_path, "", {**APP, "DEPLOYEX_ERLANG_COOKIE": f"{SECRET} x"})
    assert message.startswith("$DEPLOYEX_ERLANG_COOKIE: must be")
    assert SECRET not in message


SECRETS = {
    "SECRET_KEY_BASE": SECRET,
    "DB_PASSWORD": SECRET,
    "GITHUB_TOKEN": SECRET,
    "API_KEY": SECRET,
    "aws_secret_access": SECRET,
    "SENTRY_DSN": SECRET,
    "BASIC_AUTH": SECRET,
    "DATABASE_URL": f"ecto://user:{SECRET}@db/app",
}


def with_secrets() -> str:
    inline = ", ".join(f"{key} = {json.dumps(value)}" for key, value in SECRETS.items())
    return f'cookie = "{SECRET}"\nenv = {{ PORT = "4000", {inline} }}'


def test_what_is_in_force_is_shown_with_its_sources_and_every_secret_masked(
    tmp_path: Path,
) -> None:
    config = load(tmp_path, f"[apps.counter]\n{with_secrets()}")
    result = show_config(config)
    assert SECRET not in json.dumps(result.data)
    assert SECRET not in repr(result.tables)
    shown: dict[str, Any] = {entry["key"]: entry for entry in result.data["keys"]}
    assert shown.keys() == config.values.keys()
    assert shown["apps.counter.cookie"]["value"] == "********"
    assert shown["apps.counter.env"]["value"] == {"PORT": "4000", **dict.fromkeys(SECRETS, "*" * 8)}
    assert shown["apps.counter.env"]["source"] == config.file
    assert shown["apps.counter.stop_timeout"] == {
        "key": "apps.counter.stop_timeout",
        "value": 15.0,
        "source": "default",
    }


def test_without_a_cookie_there_is_nothing_to_mask(tmp_path: Path) -> None:
    data = show_config(load(tmp_path, "[apps.counter]")).data
    (cookie,) = [entry for entry in data["keys"] if entry["key"] == "apps.counter.cookie"]
    assert cookie["value"] is None


# --- the command itself ---------------------------------------------------------------------


def test_the_command_shows_everything_but_secrets_to_people_and_to_scripts(bare: World) -> None:
    bare.config.write_text(f"[apps.counter]\nstop_timeout = '20s'\n{with_secrets()}")
    text, as_json = bare.run("config"), bare.run("config", "--json")
    assert (text.code, text.err, as_json.code, as_json.err) == (0, "", 0, "")
    assert SECRET not in text.out + as_json.out
    keys = {entry["key"]: entry for entry in as_json.json["keys"]}
    assert keys["apps.counter.stop_timeout"]["value"] == 20.0
    assert keys["apps.counter.stop_timeout"]["source"] == str(bare.config)
    assert as_json.json["apps"][0]["paths"]["lock"] == "/tmp/deployex/run/counter.lock"
    for word in ("apps.counter.cookie", "********", "PORT=4000", "/tmp/deployex/run/counter.lock"):
        assert word in text.out


def test_the_command_fails_with_code_2_in_one_line_or_as_json(bare: World) -> None:
    bare.config.write_text(f'[apps.counter]\ncokie = "{SECRET}"')
    text, as_json = bare.run("config"), bare.run("config", "--json")
    assert (text.code, text.out, as_json.code, as_json.err) == (2, "", 2, "")
    said = f"{bare.config}: unknown key apps.counter.cokie; did you mean 'cookie'?"
    assert text.err == f"error: {said}\n"
    assert as_json.json["failures"] == [{"code": "config", "message": said, "exit_code": 2}]
