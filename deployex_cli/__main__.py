"""The entry of `deployex`: a timer's `check` and the supervisor must not pay for what people need.

The two verbs that machines run are taken here when their words are the plain ones below; all else,
help and errors included, goes through cli.py. Both ways call the same commands.
"""

from __future__ import annotations

import gc
import os
import sys

_CHECK_FLAGS = {"-v", "--verbose", "--json", "--dry-run", "--force"}
_VALUED = {"--app", "--config"}


def main() -> None:
    """Runs one command and exits with its code."""
    for descriptor, stream in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, stream) is None:  # closed by who started us
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
            setattr(sys, stream, os.fdopen(descriptor, "w", closefd=False))
    words = sys.argv[1:]
    plain = _plain(words)
    try:
        if plain is None:
            from deployex_cli.cli import run

            run()
        elif words[0] == "check":
            _check(plain)
        else:
            _supervise(plain)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # whoever read our output has gone; Python would complain at its end again
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)


def _plain(words: list[str]) -> dict[str, str] | None:
    """The options of a plain `check` or `supervise`, or None for everything else."""
    if not words or words[0] not in ("check", "supervise"):
        return None
    flags = _CHECK_FLAGS if words[0] == "check" else set()
    options: dict[str, str] = {}
    rest = iter(words[1:])
    for word in rest:
        value = next(rest, None) if word in _VALUED else ""
        if word not in _VALUED | flags or value is None or value.startswith("-") or word in options:
            return None
        options[word] = value
    return options


def _check(options: dict[str, str]) -> None:
    gc.disable()  # a run of 30 ms that makes no garbage need not look for any

    from deployex_cli.commands.check import Options, check
    from deployex_cli.config import load_config
    from deployex_cli.errors import DeployexError
    from deployex_cli.result import Result, failure_of, on_terminal, render

    as_json = "--json" in options
    chatty = "-v" in options or "--verbose" in options or on_terminal()
    wanted = Options(options.get("--app"), "--dry-run" in options, "--force" in options, chatty)
    try:
        config = load_config(options.get("--config"), os.environ)
        result = check(config, wanted, say_nothing if as_json else say)
    except BrokenPipeError:
        raise  # main's
    except (DeployexError, OSError) as error:
        result = Result("check", {}, failures=(failure_of(error),))
    render(result, as_json=as_json)
    leave(result.exit_code)


def _supervise(options: dict[str, str]) -> None:
    from deployex_cli.commands.context import one_app
    from deployex_cli.commands.supervise import supervise
    from deployex_cli.config import AppConfig, load_config
    from deployex_cli.errors import DeployexError
    from deployex_cli.result import failure_of

    def reload() -> AppConfig:
        return one_app(load_config(options.get("--config"), os.environ), options.get("--app"))

    try:
        app = reload()
        supervise(app, load_config(options.get("--config"), os.environ).file, reload)
    except (DeployexError, OSError) as error:
        failure = failure_of(error)
        print(f"error: {failure.message}", file=sys.stderr)
        sys.exit(int(failure.exit_code))
    leave(0)  # at its own end Python forgets our handlers: a second signal would end it otherwise


def say(line: str) -> None:
    """Tells a person, or a journal, as it happens; what is done does not depend on who listens."""
    try:
        print(line, flush=True)
    except OSError:  # nobody reads, or the disk is full
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def say_nothing(line: str) -> None:
    """With --json only the result speaks."""


def leave(code: int) -> None:
    """Ends the process. Nothing is left to clean up, so Python's own end is not waited for."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            raise
        except OSError:
            continue  # the disk is full: what was done is done
    os._exit(int(code))


if __name__ == "__main__":
    main()
