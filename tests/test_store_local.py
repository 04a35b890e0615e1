"""A folder as release store: what is there, and what is refused because others could change it."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from deployex_cli.errors import DeployexError, Locked, NotFound, StoreUnreachable, UnsafeFolder
from deployex_cli.storage import open_store
from deployex_cli.storage.store import ReleaseStore
from tests.configured import app_in

NOBODY = 65534


@pytest.fixture
def store(tmp_path: Path) -> ReleaseStore:
    """With a manifest, and 1.0.0."""
    store = open_store(app_in(tmp_path))
    store.write_manifest(b"{}")
    store.write_package("1.0.0", io.BytesIO(b"package"))
    return store


def manifest(store: ReleaseStore) -> Path:
    return Path(store.manifest_address())


def package(store: ReleaseStore) -> Path:
    return Path(store.package_address("1.0.0"))


def read_both(store: ReleaseStore) -> None:
    store.read_manifest()
    store.open_package("1.0.0").close()


def test_what_is_written_is_where_everybody_expects_it_and_reads_back(
    store: ReleaseStore, tmp_path: Path
) -> None:
    assert manifest(store) == tmp_path / "store/versions/counter/local/current.json"
    assert package(store) == tmp_path / "store/dist/counter/counter-1.0.0.tar.gz"
    assert store.read_manifest() == b"{}"
    with store.open_package("1.0.0") as file:
        assert file.read() == b"package"
    for path in (manifest(store), package(store)):
        assert path.stat().st_mode & 0o777 == 0o644
        assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_what_is_not_there_is_none_or_not_found_and_named(tmp_path: Path) -> None:
    store = open_store(app_in(tmp_path))
    assert store.read_manifest() is None
    assert not store.has_package("1.0.0")
    with pytest.raises(NotFound) as caught:
        store.open_package("1.0.0")
    assert "counter: version 1.0.0" in caught.value.message
    assert store.package_address("1.0.0") in caught.value.message
    assert not (tmp_path / "store").exists(), "looking makes no folder"


def test_a_package_that_breaks_off_never_has_its_name_and_the_one_before_stays(
    store: ReleaseStore,
) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell():
                raise OSError(5, "Input/output error")
            return super().read(3)

    with pytest.raises(StoreUnreachable, match="Input/output error"):
        store.write_package("1.0.0", Broken(b"new package"))
    with pytest.raises(StoreUnreachable, match="Input/output error"):
        store.write_package("2.0.0", Broken(b"new package"))
    assert [path.name for path in package(store).parent.iterdir()] == [package(store).name]
    assert package(store).read_bytes() == b"package"


@pytest.mark.parametrize("bits", [0o020, 0o002])
@pytest.mark.parametrize("up", [0, 1, 2, 3])
def test_a_folder_that_others_may_write_is_refused_however_far_above(
    store: ReleaseStore, up: int, bits: int
) -> None:
    for file, read in ((manifest(store), store.read_manifest), (package(store), None)):
        folder = file.parents[up]
        before = folder.stat().st_mode
        folder.chmod(before | bits)
        with pytest.raises(UnsafeFolder) as caught:
            read() if read else store.open_package("1.0.0")
        assert f"{folder} may be written by others" in caught.value.message
        assert "chmod go-w" in caught.value.message
        folder.chmod(before)
    read_both(store)


@pytest.mark.parametrize("bits", [0o020, 0o002])
def test_a_file_that_others_may_write_is_refused(store: ReleaseStore, bits: int) -> None:
    for file, read in ((manifest(store), store.read_manifest), (package(store), None)):
        file.chmod(0o644 | bits)
        with pytest.raises(UnsafeFolder, match=f"{file} belongs to or may be written by others"):
            read() if read else store.open_package("1.0.0")


@pytest.mark.root
@pytest.mark.parametrize("up", [None, 0, 1])
def test_a_folder_or_a_file_that_another_owns_is_refused(
    store: ReleaseStore, up: int | None
) -> None:
    for file, read in ((manifest(store), store.read_manifest), (package(store), None)):
        theirs = file if up is None else file.parents[up]
        os.chown(theirs, NOBODY, NOBODY)
        with pytest.raises(UnsafeFolder, match=str(theirs)):
            read() if read else store.open_package("1.0.0")


@pytest.mark.parametrize("what", ["a folder", "a FIFO"])
def test_what_is_no_file_is_said_by_its_name_and_nobody_waits_for_it(
    store: ReleaseStore, what: str
) -> None:
    for file, read in ((manifest(store), store.read_manifest), (package(store), None)):
        file.unlink()
        file.mkdir() if what == "a folder" else os.mkfifo(file)
        with pytest.raises(UnsafeFolder, match=f"{file} must be a file"):
            read() if read else store.open_package("1.0.0")


def test_no_descriptor_is_left_open_by_what_is_refused(store: ReleaseStore) -> None:
    manifest(store).unlink()
    manifest(store).mkdir()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(DeployexError):
            store.read_manifest()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_in_the_place_of_a_folder_is_a_store_that_cannot_be_used(
    store: ReleaseStore, tmp_path: Path
) -> None:
    (tmp_path / "store").rename(tmp_path / "away")
    (tmp_path / "store").touch()
    with pytest.raises(StoreUnreachable) as caught:
        store.read_manifest()
    assert store.manifest_address() in caught.value.message
    assert "Not a directory" in caught.value.message
    with pytest.raises(StoreUnreachable):
        store.open_package("1.0.0")
    with pytest.raises(StoreUnreachable, match="Not a directory"):
        store.write_manifest(b"{}")


def test_a_link_that_leads_to_itself_is_a_store_that_cannot_be_used(store: ReleaseStore) -> None:
    manifest(store).unlink()
    manifest(store).symlink_to(manifest(store).name)
    with pytest.raises(StoreUnreachable, match="symbolic links"):
        store.read_manifest()


@pytest.mark.root
def test_what_may_not_be_read_is_a_store_that_cannot_be_used(store: ReleaseStore) -> None:
    manifest(store).parent.chmod(0o700)
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.setresuid(NOBODY, NOBODY, NOBODY)
            store.read_manifest()
            said = "it was read"
        except StoreUnreachable as error:
            said = error.message
        except BaseException as error:
            said = repr(error)
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    assert f"{manifest(store)} cannot be used: Permission denied" in said
    assert "\n" not in said


def test_a_manifest_is_replaced_as_a_whole_and_not_through_a_link(
    store: ReleaseStore, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    manifest(store).unlink()
    manifest(store).symlink_to(victim)
    store.write_manifest(b"new")
    assert (store.read_manifest(), victim.read_bytes()) == (b"new", b"precious")


def test_one_publishes_at_a_time_and_the_second_is_told(
    store: ReleaseStore, tmp_path: Path
) -> None:
    other = open_store(app_in(tmp_path))
    second = pytest.raises(Locked, match="another `deployex publish`")
    with store.publishing(), second, other.publishing():
        pass
    with other.publishing():
        pass


def test_what_a_killed_publish_left_half_made_is_swept_by_the_next(store: ReleaseStore) -> None:
    left = [
        package(store).with_name(".counter-0.9.0.tar.gz.tmp"),
        manifest(store).with_name(".current.json.tmp"),
    ]
    for path in left:
        path.write_bytes(b"half")
    with store.publishing():
        assert not any(path.exists() for path in left)
    read_both(store)
