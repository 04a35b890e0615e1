"""What a command returns, and its two renderings: text for people, versioned JSON for scripts."""

import json
import os
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

from deployex_cli.errors import WORST_FIRST, DeployexError, ExitCode, in_words

SCHEMA_VERSION = 1


class Failure(NamedTuple):
    """Why a command, or one app's part of it, did not do what was asked."""

    code: str
    message: str
    exit_code: ExitCode


class Table(NamedTuple):
    """Rows for people; cells may hold rich's markup only where a command put it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Result(NamedTuple):
    """A command's outcome. `data` is what --json prints, and holds nothing that JSON cannot."""

    command: str
    data: dict[str, Any]
    lines: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    failures: tuple[Failure, ...] = ()

    @property
    def exit_code(self) -> ExitCode:
        """The worst of the failures' codes."""
        return worst(failure.exit_code for failure in self.failures)


def failure_of(error: Exception) -> Failure:
    """The error as a value; of the system's own errors, what it was about and what it was."""
    if isinstance(error, DeployexError):
        return Failure(error.code, error.message, error.exit_code)
    if isinstance(error, OSError):
        return Failure(DeployexError.code, in_words(error), ExitCode.FAILED)
    message = f"{type(error).__name__}: {error} (a bug of deployex; please report it)"
    return Failure("bug", message, ExitCode.FAILED)


def worst(codes: Iterable[ExitCode]) -> ExitCode:
    """The exit code that counts of several."""
    return min(codes, key=WORST_FIRST.index, default=ExitCode.OK)


def render(result: Result, *, as_json: bool) -> None:
    """Prints the result; failures go to stderr when people read it."""
    try:
        _print(result, as_json=as_json)
    except BrokenPipeError:
        raise
    except OSError as error:  # what was done is done, though it cannot be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        print(f"the result cannot be written: {error.strerror}", file=sys.stderr)


def _print(result: Result, *, as_json: bool) -> None:
    if as_json:
        failures = [
            {"code": f.code, "message": f.message, "exit_code": int(f.exit_code)}
            for f in result.failures
        ]
        document = {
            "schema_version": SCHEMA_VERSION,
            "command": result.command,
            "exit_code": int(result.exit_code),
            "failures": failures,
            **result.data,
        }
        print(json.dumps(document, indent=2), flush=True)
        return
    for line in result.lines:
        print(line)
    if result.tables:
        _render_tables(result.tables)
    sys.stdout.flush()
    for failure in result.failures:
        print(f"error: {failure.message}", file=sys.stderr)


def on_terminal() -> bool:
    """Whether a person watches."""
    return os.isatty(1)


def _render_tables(tables: tuple[Table, ...]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(highlight=False, markup=False, width=None if on_terminal() else 200)
    for table in tables:
        shown = RichTable(title=table.title or None, box=box.SIMPLE_HEAD, title_justify="left")
        for column in table.columns:
            shown.add_column(column, overflow="fold")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
