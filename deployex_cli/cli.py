"""The command line: parses, calls one command, renders its Result, exits with its code."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from deployex_cli import __version__
from deployex_cli.__main__ import say, say_nothing
from deployex_cli.commands.context import all_apps, one_app
from deployex_cli.config import AppConfig, Config, load_config
from deployex_cli.errors import ConfigError, DeployexError
from deployex_cli.result import Result, failure_of, on_terminal, render

app = typer.Typer(
    name="deployex",
    help="Deploys BEAM releases (Elixir, Erlang, Gleam) and keeps them alive.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

AppOption = Annotated[
    str | None,
    typer.Option("--app", metavar="NAME", help="Which app; needed when there are several."),
]
ConfigOption = Annotated[
    str | None,
    typer.Option("--config", metavar="FILE", help="Instead of /etc/deployex/deployex.toml."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")]
VersionArgument = Annotated[str, typer.Argument(metavar="VERSION", show_default=False)]


def _version(value: bool) -> None:
    if value:
        print(f"deployex {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def run() -> None:
    """Parses the command line and runs what it asks for."""
    app()


def _finish(
    command: str,
    config_file: str | None,
    as_json: bool,
    debug: bool,
    work: Callable[[Config], Result],
) -> NoReturn:
    """Runs `work` with the configuration, renders what comes of it, and exits."""
    _conclude(command, as_json, debug, lambda: work(load_config(config_file, os.environ)))


def _conclude(command: str, as_json: bool, debug: bool, work: Callable[[], Result]) -> NoReturn:
    try:
        result = work()
    except BrokenPipeError:
        raise  # main's: whoever read our output has gone
    except (DeployexError, OSError) as error:
        if debug:
            raise
        result = Result(command, {}, failures=(failure_of(error),))
    render(result, as_json=as_json)
    sys.stdout.flush()
    sys.exit(int(result.exit_code))


def _say(as_json: bool) -> Callable[[str], None]:
    return say_nothing if as_json else say


@app.command()
def check(
    app_name: AppOption = None,
    config: ConfigOption = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print whether hot or in full, why, and the steps; change nothing."
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Deploy also a ghosted version, or other content.")
    ] = False,
    watch: Annotated[
        float | None,
        typer.Option("--watch", metavar="SECONDS", min=0.1, help="Repeat, in the foreground."),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Say also that nothing is due.")
    ] = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Compare with what is published, and do what is due: what a timer runs.

    Hot, in the running VM, where the package says how and nothing speaks against it; else in full.
    """
    from deployex_cli.commands.check import Options, told_to_end
    from deployex_cli.commands.check import check as run_check

    options = Options(app_name, dry_run, force, verbose or on_terminal())
    while watch is not None:
        try:
            result = run_check(load_config(config, os.environ), options, _say(json))
        except DeployexError as error:
            result = Result("check", {}, failures=(failure_of(error),))
        if json or result.failures:
            render(result, as_json=json)
        if told_to_end():
            sys.exit(int(result.exit_code))
        time.sleep(watch)
    _finish("check", config, json, debug, lambda c: run_check(c, options, _say(json)))


@app.command()
def unpack(
    version: VersionArgument,
    app_name: AppOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Fetch, verify and unpack a version; `new` points to it."""
    from deployex_cli.commands import steps

    _finish(
        "unpack",
        config,
        json,
        debug,
        lambda c: steps.unpack(c, one_app(c, app_name), version, _say(json)),
    )


def _step(verb: str, help_text: str) -> None:
    """One of the steps that take no argument of their own."""

    def command(
        app_name: AppOption = None,
        config: ConfigOption = None,
        json: JsonOption = False,
        debug: DebugOption = False,
    ) -> None:
        from deployex_cli.commands import steps

        step = getattr(steps, verb)
        _finish(verb, config, json, debug, lambda c: step(c, one_app(c, app_name), _say(json)))

    app.command(name=verb, help=help_text)(command)


_step("move", "Make what is unpacked current: `current` becomes `new`, `previous` what it was.")
_step("start", "Start the app out of `current`, with a supervisor if none runs.")
_step("stop", "Stop the app, and all that it left behind; it stays stopped.")
_step("restart", "Stop the app and start it again.")


@app.command()
def supervise(app_name: AppOption = None, config: ConfigOption = None) -> None:
    """Keep one app's OS process alive, in the foreground."""
    from deployex_cli.commands.supervise import supervise as run_supervise

    def reload() -> AppConfig:
        return one_app(load_config(config, os.environ), app_name)

    def work(loaded: Config) -> Result:
        run_supervise(one_app(loaded, app_name), loaded.file, reload)
        return Result("supervise", {})

    _finish("supervise", config, False, False, work)


@app.command()
def status(
    app_name: AppOption = None,
    config: ConfigOption = None,
    watch: Annotated[
        float | None,
        typer.Option("--watch", metavar="SECONDS", min=0.1, help="Repeat, in the foreground."),
    ] = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show what is deployed, what runs, and what is due."""
    from deployex_cli.commands.status import status as show

    while watch is not None:
        try:
            result = show(load_config(config, os.environ), app_name)
        except (DeployexError, OSError) as error:
            result = Result("status", {}, failures=(failure_of(error),))
        if on_terminal() and not json:
            print("\x1b[H\x1b[2J", end="")
        render(result, as_json=json)
        time.sleep(watch)
    _finish("status", config, json, debug, lambda c: show(c, app_name))


@app.command()
def history(
    app_name: AppOption = None,
    config: ConfigOption = None,
    count: Annotated[
        int | None, typer.Option("-n", metavar="N", min=0, help="Only the last N entries.")
    ] = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show what happened to an app, newest last."""
    from deployex_cli.commands.history import history as show

    _finish("history", config, json, debug, lambda c: show(one_app(c, app_name), count))


@app.command()
def logs(
    app_name: AppOption = None,
    config: ConfigOption = None,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on with what comes, until Ctrl-C.")
    ] = False,
    count: Annotated[
        int, typer.Option("-n", metavar="N", min=0, help="How many of the last lines.")
    ] = 20,
    stream: Annotated[
        str, typer.Option("--stream", metavar="STREAM", help="stdout, stderr or both.")
    ] = "both",
    json: Annotated[bool, typer.Option("--json", help="A JSON object for each line.")] = False,
    debug: DebugOption = False,
) -> None:
    """Show the app's output."""
    from deployex_cli.commands.logs import STREAMS
    from deployex_cli.commands.logs import logs as show

    def work(c: Config) -> Result:
        if stream not in STREAMS:
            raise ConfigError(f"--stream: {stream!r} must be one of {', '.join(STREAMS)}")
        show(all_apps(c, app_name), stream, count, follow=follow, as_json=json)
        sys.stdout.flush()
        raise SystemExit(0)

    _finish("logs", config, json, debug, work)


@app.command()
def rollback(
    version: Annotated[str | None, typer.Argument(metavar="[VERSION]", show_default=False)] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="By a full deployment, with a restart, also where it can be hot."
        ),
    ] = False,
    app_name: AppOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Go back to the version before, or to VERSION; the one that is left is ghosted.

    A hot upgrade is gone back from hot, in the same VM, and else by a restart.
    """
    from deployex_cli.commands.rollback import rollback as run_rollback

    _finish(
        "rollback",
        config,
        json,
        debug,
        lambda c: run_rollback(c, one_app(c, app_name), version, _say(json), full=full),
    )


@app.command()
def upgrade(
    version: VersionArgument,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say whether, why, and the instructions; change nothing."),
    ] = False,
    app_name: AppOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Upgrade the running VM to VERSION without a restart, or say why that cannot be.

    Nothing is ever deployed in full by this: `deployex check` does that.
    """
    from deployex_cli.commands.upgrade import upgrade as run_upgrade

    def work(c: Config) -> Result:
        app = one_app(c, app_name)
        return run_upgrade(c, app, version, _say(json), only_say=dry_run)

    _finish("upgrade", config, json, debug, work)


@app.command()
def publish(
    tarball: Annotated[str, typer.Argument(metavar="TARBALL", show_default=False)],
    version: Annotated[
        str | None,
        typer.Option("--version", metavar="V", help="Default: the one the package itself names."),
    ] = None,
    git_hash: Annotated[
        str, typer.Option("--hash", metavar="H", help="The git hash, shown to people.")
    ] = "",
    pre_command: Annotated[
        list[str] | None,
        typer.Option(
            "--pre-command",
            metavar="C",
            help="Words for the release's script, run once before it takes over; may be repeated.",
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Allow other content under a published version.")
    ] = False,
    app_name: AppOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Put a tarball, and then the manifest that names it, into the release store."""
    from deployex_cli.commands.publish import publish as run_publish

    _finish(
        "publish",
        config,
        json,
        debug,
        lambda c: run_publish(
            one_app(c, app_name),
            tarball,
            version=version,
            git_hash=git_hash,
            pre_commands=tuple(pre_command or ()),
            replace=replace,
            say=_say(json),
        ),
    )


tls = typer.Typer(help="Certificates for Erlang's distribution over TLS.", no_args_is_help=True)
app.add_typer(tls, name="tls")
# 27 months: nothing here can be revoked, so a stolen key must end by itself; renewing is rare
TLS_DAYS = 825


@tls.command("init")
def tls_init(
    folder: Annotated[str, typer.Argument(metavar="DIR", show_default=False)],
    days: Annotated[
        int, typer.Option("--days", metavar="N", min=1, max=36500, help="How long they are valid.")
    ] = TLS_DAYS,
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host",
            metavar="NAME",
            help="What stands behind the @ of nodes elsewhere, or of long names; may be repeated.",
        ),
    ] = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Make a CA, a certificate and inet_tls.conf in DIR, and say where they go."""
    from deployex_cli.commands.tls import init

    _conclude("tls init", json, debug, lambda: init(folder, days, time.time(), host or ()))


@app.command()
def remote(
    app_name: AppOption = None, config: ConfigOption = None, debug: DebugOption = False
) -> None:
    """Open the running release's own remote shell."""
    from deployex_cli.commands.remote import remote as open_shell

    _finish("remote", config, False, debug, lambda c: open_shell(one_app(c, app_name)))


@app.command(name="config")
def show_config(
    config: ConfigOption = None, json: JsonOption = False, debug: DebugOption = False
) -> None:
    """Show what is in force, and where each value came from."""
    from deployex_cli.commands.config import show_config as show

    _finish("config", config, json, debug, show)
