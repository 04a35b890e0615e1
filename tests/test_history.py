"""The history and the state on disk: told once, bounded, and readable after a power cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deployex_cli.commands.history import history
from deployex_cli.config import AppConfig
from deployex_cli.core.plan import Disk, OnDisk
from deployex_cli.core.state import Ghost, State
from deployex_cli.errors import StateError
from deployex_cli.layout.state_file import (
    HISTORY_LIMIT,
    append_history,
    load_state,
    read_history,
    save_state,
)
from tests.configured import app_in

DEPLOYED = {"at": 1700000000.123456, "event": "deployed", "version": "1.0.0", "deployment": 1}
CONFIRMED = {**DEPLOYED, "event": "confirmed"}
ONE = OnDisk("1-1.0.0", "1.0.0", "a" * 64, "hash1", 100.0)
DISK = Disk((ONE,), None, ONE.folder)


@pytest.fixture
def app(tmp_path: Path) -> AppConfig:
    app = app_in(tmp_path)
    Path(app.paths.state).parent.mkdir(parents=True)
    return app


def entries(app: AppConfig) -> list[dict[str, Any]]:
    return list(read_history(app))


def file(app: AppConfig) -> Path:
    return Path(app.paths.history)


# --- the history ----------------------------------------------------------------------------


def test_without_a_file_nothing_happened_yet(app: AppConfig) -> None:
    assert entries(app) == []
    assert history(app, None).lines == ("counter: nothing happened yet",)
    assert not file(app).exists()


def test_entries_are_kept_in_their_order_a_line_each(app: AppConfig) -> None:
    append_history(app, DEPLOYED)
    before = file(app).stat().st_ino
    append_history(app, CONFIRMED)
    assert file(app).stat().st_ino == before, "it is added to, not written anew"
    assert entries(app) == [DEPLOYED, CONFIRMED]
    assert [json.loads(line) for line in file(app).read_text().splitlines()] == entries(app)
    assert file(app).stat().st_mode & 0o777 == 0o600


def test_an_entry_that_a_killed_run_had_written_is_not_told_twice(app: AppConfig) -> None:
    for entry in (DEPLOYED, CONFIRMED, DEPLOYED, CONFIRMED):
        append_history(app, entry)
    assert entries(app) == [DEPLOYED, CONFIRMED]


@pytest.mark.parametrize("key", ["at", "event", "version", "deployment"])
def test_an_entry_that_differs_in_anything_is_another_one(app: AppConfig, key: str) -> None:
    append_history(app, DEPLOYED)
    append_history(app, {**DEPLOYED, key: 2})
    assert len(entries(app)) == 2


@pytest.mark.parametrize("text", ["two\nlines", "ünï 日本", "\u2028", "\x1b[31m", '"}', "\udc80"])
def test_whatever_a_reason_holds_it_is_one_line(app: AppConfig, text: str) -> None:
    append_history(app, {**DEPLOYED, "reason": text})
    append_history(app, CONFIRMED)
    assert entries(app) == [{**DEPLOYED, "reason": text}, CONFIRMED]


@pytest.mark.parametrize(
    "torn", [b'{"at": 1', b"\x00\x00\x00", b'{"event": "\xc3', b"7", b"null", b"[]", b"\n\n"]
)
@pytest.mark.parametrize("closed", [b"", b"\n"])
def test_a_line_that_a_power_cut_tore_is_passed_over_and_costs_no_other(
    app: AppConfig, torn: bytes, closed: bytes
) -> None:
    append_history(app, DEPLOYED)
    with file(app).open("ab") as out:
        out.write(torn + closed)
    assert entries(app) == [DEPLOYED]
    append_history(app, CONFIRMED)
    assert entries(app) == [DEPLOYED, CONFIRMED]


def test_an_entry_that_was_torn_is_told_again(app: AppConfig) -> None:
    append_history(app, DEPLOYED)
    file(app).write_bytes(file(app).read_bytes()[:-5])
    append_history(app, DEPLOYED)
    assert entries(app) == [DEPLOYED]


def test_it_is_bounded_and_keeps_the_newest(app: AppConfig) -> None:
    known = [{**DEPLOYED, "deployment": number} for number in range(1, HISTORY_LIMIT * 2)]
    lines = [json.dumps(entry) + "\n" for entry in known]
    file(app).write_text("".join(lines))
    newest = {**DEPLOYED, "deployment": HISTORY_LIMIT * 2}
    append_history(app, newest)
    assert entries(app) == [*known, newest][-HISTORY_LIMIT:]
    assert [path.name for path in file(app).parent.iterdir()] == [file(app).name]


def test_one_entry_after_the_other_never_makes_it_grow_without_end(app: AppConfig) -> None:
    known = [json.dumps({**DEPLOYED, "deployment": n}) + "\n" for n in range(HISTORY_LIMIT + 190)]
    file(app).write_text("".join(known))
    sizes = set()
    for number in range(30):
        append_history(app, {**DEPLOYED, "deployment": 10_000 + number})
        sizes.add(len(entries(app)))
    assert max(sizes) <= HISTORY_LIMIT + 200
    assert min(sizes) >= HISTORY_LIMIT


@pytest.mark.parametrize(("limit", "shown"), [(None, 2), (0, 0), (1, 1), (2, 2), (99, 2)])
def test_the_last_ones_are_shown_newest_last(app: AppConfig, limit: int | None, shown: int) -> None:
    append_history(app, DEPLOYED)
    append_history(app, CONFIRMED)
    told = [DEPLOYED, CONFIRMED][2 - shown :]
    result = history(app, limit)
    assert [entry["event"] for entry in result.data["entries"]] == [e["event"] for e in told]
    assert all(entry["at"] == "2023-11-14T22:13:20Z" for entry in result.data["entries"])


# --- the state ------------------------------------------------------------------------------


def test_the_state_reads_back_and_is_for_us_alone(app: AppConfig) -> None:
    state = State("stopped", ghosts=(Ghost("1.0.0", None, "it failed", 1.0),))
    save_state(app, state)
    assert load_state(app, DISK, 9.0) == (state, None)
    assert Path(app.paths.state).stat().st_mode & 0o777 == 0o600


def test_a_machine_on_which_nothing_was_deployed_has_no_state_and_needs_none(
    app: AppConfig,
) -> None:
    assert load_state(app, Disk(), 9.0) == (State(), None)


@pytest.mark.parametrize(
    ("content", "word"), [(None, "is lost"), (b"", "is damaged"), (bytes(512), "is damaged")]
)
def test_a_state_that_is_lost_or_damaged_is_rebuilt_from_disk_with_a_warning_and_not_written(
    app: AppConfig, content: bytes | None, word: str
) -> None:
    path = Path(app.paths.state)
    if content is not None:
        path.write_bytes(content)
    loaded = load_state(app, DISK, 9.0)
    assert loaded.state.deployment is not None
    assert loaded.state.deployment.target.folder == ONE.folder
    assert loaded.warning is not None
    assert f"counter: {path} {word}" in loaded.warning
    assert "rebuilt" in loaded.warning
    assert (path.read_bytes() if path.exists() else None) == content


def test_a_state_of_a_newer_deployex_is_refused_and_left_as_it_is(app: AppConfig) -> None:
    path = Path(app.paths.state)
    path.write_text('{"schema_version": 3}')
    with pytest.raises(StateError, match=r"newer deployex \(schema 3\)"):
        load_state(app, DISK, 9.0)
    assert path.read_text() == '{"schema_version": 3}'


def test_a_link_in_the_place_of_the_state_is_not_followed(app: AppConfig, tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("{}")
    Path(app.paths.state).symlink_to(tmp_path / "theirs")
    with pytest.raises(StateError, match="cannot be read"):
        load_state(app, DISK, 9.0)
