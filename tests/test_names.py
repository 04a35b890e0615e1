"""The names that come from outside: which become a folder, a node or a bucket, and which do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployex_cli.core.names import (
    app_name_problem,
    environment_problem,
    node_problem,
    version_problem,
)

ODD = ("", " ", "a b", "a\n", "\na", "a/b", "..", "a\0", "é", "a\u0301", "\u0430", "a'", "a$b", "~")


@pytest.mark.parametrize("name", ["a", "counter", "my_app_2", "a" * 40, "a_"])
def test_an_app_is_named_like_an_erlang_application(name: str) -> None:
    assert app_name_problem(name) is None


@pytest.mark.parametrize(
    "name", [*ODD, "my-app", "MyApp", "2app", "_app", "a.b", "a" * 41, "a@b", "\u0661a", "a\u0661"]
)
def test_an_app_name_that_would_break_a_node_or_a_folder_is_refused(name: str) -> None:
    assert str(app_name_problem(name)).startswith("must begin with a lower-case letter")


@pytest.mark.parametrize("name", ["local", "prod", "eu-west-1", "1", "a" * 32])
def test_an_environment_may_be_part_of_a_bucket_name(name: str) -> None:
    assert environment_problem(name) is None


@pytest.mark.parametrize("name", [*ODD, "Prod", "-prod", "a.b", "a_b", "a" * 33])
def test_an_environment_that_no_bucket_can_be_named_after_is_refused(name: str) -> None:
    assert str(environment_problem(name)).startswith("must hold at most 32")


@pytest.mark.parametrize("version", ["1.2.3", "1.2.3-rc.1+5_x", "v1", "7", "1~2", "1" * 128])
def test_a_version_may_be_all_that_builds_call_their_versions(version: str) -> None:
    assert version_problem(version) is None


@pytest.mark.parametrize("version", [*ODD, "1..2", ".1", "-1", "_1", "1" * 129, "1:2", "\u0661"])
def test_a_version_that_could_leave_its_folder_or_look_like_an_option_is_refused(
    version: str,
) -> None:
    assert str(version_problem(version)).startswith("must ")


@pytest.mark.parametrize(
    "node",
    [
        "counter",
        "my-app_2",
        "counter@10.0.0.5",
        "c@host.example",
        "c@::1",
        "N" * 64,
        "c@h",
        "c@" + "h" * 255,
    ],
)
def test_a_node_has_a_short_name_or_a_long_one(node: str) -> None:
    assert node_problem(node) is None


@pytest.mark.parametrize(
    "node", [*ODD, "@host", "a@", "a@b@c", "a@b c", "a.b", "N" * 65, "a@h/x", "c@" + "h" * 256]
)
def test_what_is_no_node_name_is_refused(node: str) -> None:
    assert str(node_problem(node)).startswith("must be a short name")


PROBLEMS = (app_name_problem, environment_problem, version_problem, node_problem)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.__name__)
@given(name=st.text(max_size=6) | st.text("ab1./-_@~", max_size=6))
def test_no_name_that_passes_can_leave_a_folder_or_be_taken_for_an_option(
    problem: Callable[[str], str | None], name: str
) -> None:
    if problem(name) is None:
        assert name.isascii()
        assert name.isprintable()
        assert not set(name) & set(" /\\'\"$`*?")
        assert name not in ("", ".", "..")


@pytest.mark.parametrize("problem", [app_name_problem, environment_problem, version_problem])
@given(name=st.text("aZ1./-_@~", max_size=4))
def test_no_name_of_a_folder_is_hidden_or_begins_with_a_dash(
    problem: Callable[[str], str | None], name: str
) -> None:
    if problem(name) is None:
        assert name[0].isalnum()
