"""Arrows point one way, and core/ knows nothing of the world: by what each module imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "deployex_cli"
MODULES = sorted(PACKAGE.rglob("*.py"))

# What decisions are made of. Not: os, socket, subprocess, time, datetime, pathlib, shutil, random,
# logging and all else that reads or changes the world.
OF_CORE = {
    "__future__",
    *("collections", "dataclasses", "enum", "functools", "itertools", "json", "math", "operator"),
    *("re", "shlex", "typing"),
}


def name_of(file: Path) -> str:
    """`deployex_cli.core.plan` of its file."""
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports_of(source: str, module: str) -> Iterator[str]:
    """Every module that is imported anywhere in it: at its top, in functions, for types."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute here"
            yield str(node.module)
            # `from deployex_cli.core import plan` imports a module too
            if str(node.module).startswith("deployex_cli"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("__import__", "exec", "eval"), f"{module}: {node.func.id}"


def imported(file: Path) -> set[str]:
    return set(imports_of(file.read_text(), name_of(file)))


def within(module: str, *packages: str) -> bool:
    return any(module == p or module.startswith(f"{p}.") for p in packages)


def part(name: str) -> list[Path]:
    found = [m for m in MODULES if within(name_of(m), f"deployex_cli.{name}")]
    assert found, f"there is no deployex_cli.{name} any more"
    return found


@pytest.mark.parametrize("file", part("core"), ids=name_of)
def test_core_imports_only_what_cannot_touch_the_world(file: Path) -> None:
    for module in imported(file):
        if not within(module, "deployex_cli.core", "deployex_cli.errors"):
            assert module.partition(".")[0] in OF_CORE, f"{name_of(file)} imports {module}"


@pytest.mark.parametrize("file", part("core"), ids=name_of)
def test_core_opens_no_file_and_prints_nothing(file: Path) -> None:
    used = {node.id for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Name)}
    assert used.isdisjoint({"open", "print", "input", "__builtins__", "breakpoint"})


def test_errors_import_nothing_of_ours() -> None:
    assert not [m for m in imported(PACKAGE / "errors.py") if within(m, "deployex_cli")]


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_nothing_imports_cli_but_the_entry(file: Path) -> None:
    if name_of(file) != "deployex_cli.__main__":
        assert not [m for m in imported(file) if within(m, "deployex_cli.cli")]


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_only_the_command_line_and_commands_import_commands(file: Path) -> None:
    mine = name_of(file)
    if not within(mine, "deployex_cli.cli", "deployex_cli.__main__", "deployex_cli.commands"):
        assert not [m for m in imported(file) if within(m, "deployex_cli.commands")]


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_only_commands_import_the_engine(file: Path) -> None:
    mine = name_of(file)
    if not within(mine, "deployex_cli.engine", "deployex_cli.commands"):
        assert not [m for m in imported(file) if within(m, "deployex_cli.engine")]


@pytest.mark.parametrize(
    "file", [*part("storage"), *part("layout"), *part("supervise")], ids=name_of
)
def test_what_touches_the_world_decides_nothing_and_knows_no_command(file: Path) -> None:
    above = ("engine", "commands", "cli", "__main__", "result")
    known = [m for m in imported(file) if within(m, *(f"deployex_cli.{name}" for name in above))]
    assert known == []


def test_layout_knows_neither_the_store_nor_the_supervisor_and_the_store_not_the_supervisor() -> (
    None
):
    for file in part("layout"):
        assert not [m for m in imported(file) if within(m, "deployex_cli.storage")]
    for file in [*part("layout"), *part("storage")]:
        assert not [m for m in imported(file) if within(m, "deployex_cli.supervise")]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import os.path", {"os.path"}),
        ("def f():\n    import socket", {"socket"}),
        ("from time import time", {"time"}),
        (
            "if TYPE_CHECKING:\n    from deployex_cli import engine",
            {"deployex_cli", "deployex_cli.engine"},
        ),
    ],
)
def test_an_import_is_seen_wherever_it_stands(source: str, found: set[str]) -> None:
    assert set(imports_of(source, "")) == found


@pytest.mark.parametrize("source", ["from . import plan", "__import__('os')", "eval('1')"])
def test_an_import_that_could_not_be_seen_is_refused(source: str) -> None:
    with pytest.raises(AssertionError):
        set(imports_of(source, "deployex_cli.core.x"))
