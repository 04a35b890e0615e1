"""The service folder: markers, the three links, and what a killed run left in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deployex_cli.config import AppPaths
from deployex_cli.core.plan import Disk, OnDisk
from deployex_cli.layout import releases
from tests.configured import app_in

ONE = OnDisk("1-1.0.0", "1.0.0", "a" * 64, "hash1", 100.5)
TWO = OnDisk("2-2.0.0-rc.1", "2.0.0-rc.1", None, "", None)


@pytest.fixture
def paths(tmp_path: Path) -> AppPaths:
    """With ONE and TWO on disk."""
    paths = app_in(tmp_path).paths
    for release in (ONE, TWO):
        Path(paths.release(release.folder)).mkdir(parents=True)
        releases.write_marker(paths.release(release.folder), release)
    return paths


def marker(paths: AppPaths) -> Path:
    return Path(paths.release(ONE.folder)) / releases.MARKER


def test_a_machine_on_which_nothing_was_ever_deployed_has_nothing(tmp_path: Path) -> None:
    assert releases.read_disk(app_in(tmp_path).paths) == Disk()
    assert list(tmp_path.iterdir()) == [tmp_path / "deployex.toml"], "looking makes no folder"


def test_what_a_marker_says_reads_back_the_same(paths: AppPaths) -> None:
    assert releases.read_disk(paths) == Disk((ONE, TWO))
    assert marker(paths).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"7",
        b"{}",
        bytes(512),
        b"\xff",
        b'{"version": "1.0.0"}',
        b'{"version": "1", "sha256": null, "hash": "", "confirmed_at": "yesterday"}',
        b'{"version": "1", "sha256": null, "hash": "", "confirmed_at": []}',
    ],
)
def test_a_folder_with_a_damaged_marker_is_no_release_and_no_link_to_it_counts(
    paths: AppPaths, content: bytes
) -> None:
    releases.point(paths, "current", ONE.folder)
    marker(paths).write_bytes(content)
    assert releases.read_disk(paths) == Disk((TWO,))


def test_a_folder_without_a_marker_is_no_release(paths: AppPaths) -> None:
    releases.point(paths, "current", ONE.folder)
    marker(paths).unlink()
    assert releases.read_disk(paths) == Disk((TWO,))


def test_a_marker_that_is_a_link_is_not_believed(paths: AppPaths, tmp_path: Path) -> None:
    marker(paths).rename(tmp_path / "marker")
    marker(paths).symlink_to(tmp_path / "marker")
    assert releases.read_disk(paths).releases == (TWO,)


def test_keys_of_a_later_deployex_are_no_harm_in_a_marker(paths: AppPaths) -> None:
    document = json.loads(marker(paths).read_text())
    marker(paths).write_text(json.dumps({**document, "strategy": "hot_upgrade"}))
    assert releases.read_disk(paths).releases == (ONE, TWO)


@pytest.mark.parametrize("link", releases.LINKS)
def test_a_link_names_a_folder_another_one_and_none(paths: AppPaths, link: str) -> None:
    path = Path(paths.link(link))
    for folder in (ONE.folder, TWO.folder, TWO.folder, None, None, ONE.folder):
        releases.point(paths, link, folder)
        disk = releases.read_disk(paths)
        assert {name: getattr(disk, name) for name in releases.LINKS} == {
            **dict.fromkeys(releases.LINKS),
            link: folder,
        }
        assert disk.leftovers == ()
        assert path.is_symlink() == (folder is not None)
    assert path.readlink() == Path("releases") / ONE.folder, "it is relative: the root may move"
    assert (path / releases.MARKER).exists()


def test_a_link_to_what_is_gone_counts_as_none(paths: AppPaths) -> None:
    releases.point(paths, "previous", "9-9.9.9")
    assert releases.read_disk(paths).previous is None


def test_what_a_killed_run_left_is_found_with_its_path_and_is_no_release(paths: AppPaths) -> None:
    state = Path(paths.state).parent
    state.mkdir(parents=True)
    left = [
        Path(paths.releases, ".staging-3-3.0.0"),
        Path(paths.releases, ".trash-1-1.0.0"),
        Path(paths.service, ".new.tmp"),
        Path(paths.service, ".current.tmp"),
        Path(paths.service, ".previous.tmp"),
        state / ".counter.json.tmp",
        state / ".counter.history.jsonl.tmp",
    ]
    for path in left[:2]:
        path.mkdir()
    for path in left[2:5]:
        path.symlink_to("releases/gone")
    for path in left[5:]:
        path.touch()
    (state / ".other.json.tmp").touch()  # another app's
    disk = releases.read_disk(paths)
    assert sorted(disk.leftovers) == sorted(map(str, left))
    assert disk.releases == (ONE, TWO)


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ([], "1-3.0.0"),
        (["1-1.0.0"], "2-3.0.0"),
        (["2-2.0.0", "9-1.0.0", "10-1.0.0"], "11-3.0.0"),
        ([".staging-4-4.0.0", "1-1.0.0"], "2-3.0.0"),
        (["no_number", "x-7"], "1-3.0.0"),
    ],
)
def test_the_next_folder_has_a_number_above_all_that_are_there(
    tmp_path: Path, there: list[str], expected: str
) -> None:
    paths = app_in(tmp_path).paths
    for name in there:
        Path(paths.release(name)).mkdir(parents=True)
    found = releases.next_folder(releases.read_disk(paths), paths, "3.0.0")
    assert found == expected


def test_a_file_among_the_release_folders_is_no_release(
    paths: AppPaths,
) -> None:
    Path(paths.release("7-7.0.0")).write_text("a file")
    assert releases.read_disk(paths).releases == (ONE, TWO)
