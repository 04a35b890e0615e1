"""The guard in front of tar: what it lets through is the tree, and what it must not is refused."""

from __future__ import annotations

import io
import os
import random
import stat
import subprocess
import tarfile
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployex_cli.errors import PackageError
from deployex_cli.layout.tar_guard import Limits, Required, Summary, TarGuard

END = bytes(1024)
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def member(
    name: str,
    data: bytes = b"",
    *,
    type: bytes = tarfile.REGTYPE,
    target: str = "",
    mode: int = 0o644,
    format: int = tarfile.GNU_FORMAT,
    pax: dict[str, str] | None = None,
) -> bytes:
    """A member as Python's tarfile writes it."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.mtime = type, target, mode, 1_700_000_000
    info.size, info.pax_headers = len(data), pax or {}
    return info.tobuf(format) + data + bytes(-len(data) % 512)


def directory(name: str) -> bytes:
    return member(name, type=tarfile.DIRTYPE, mode=0o755)


def symlink(name: str, target: str) -> bytes:
    return member(name, type=tarfile.SYMTYPE, target=target)


def hard_link(name: str, target: str) -> bytes:
    return member(name, type=tarfile.LNKTYPE, target=target)


def patched(blocks: bytes, at: int, new: bytes) -> bytes:
    """The same with other bytes in the first header, and its checksum put right."""
    header = bytearray(blocks[:512])
    header[at : at + len(new)] = new
    return signed(bytes(header)) + blocks[512:]


def signed(header: bytes) -> bytes:
    total = sum(header[:148]) + 8 * 32 + sum(header[156:])
    return header[:148] + b"%06o\0 " % total + header[156:]


def pax_header(records: bytes, type: bytes = b"x") -> bytes:
    return member("PaxHeader", records, type=type)


def record(keyword: str, value: str) -> bytes:
    body = f" {keyword}={value}\n".encode()
    size = len(body) + 1
    while len(str(size)) + len(body) != size:
        size += 1
    return str(size).encode() + body


def through(
    data: bytes, sizes: list[int] | None = None, **options: object
) -> tuple[bytes, Summary]:
    """What comes out of a guard that gets `data` in pieces of these sizes, again and again."""
    guard = TarGuard(**options)  # type: ignore[arg-type]
    out = []
    position, turn = 0, 0
    while position < len(data):
        size = sizes[turn % len(sizes)] if sizes else len(data)
        out += [bytes(buffer) for buffer in guard.feed(data[position : position + size])]
        position, turn = position + size, turn + 1
    return b"".join(out), guard.finish()


def refusal(data: bytes, **options: object) -> str:
    with pytest.raises(PackageError) as caught:
        through(data, **options)
    assert "\n" not in caught.value.message
    return caught.value.message


def tree(folder: Path) -> dict[str, tuple[object, ...]]:
    """All that is in a folder: kind, content or target, and for files mode, time and links."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        info = path.lstat()
        name = str(path.relative_to(folder))
        if stat.S_ISLNK(info.st_mode):
            found[name] = ("link", os.readlink(path))
        elif stat.S_ISDIR(info.st_mode):
            found[name] = ("directory",)
        else:
            mode = stat.S_IMODE(info.st_mode)
            # of the times of a file's several names, tar and tarfile choose another one
            time = int(info.st_mtime) if info.st_nlink == 1 else None
            found[name] = (mode, path.read_bytes(), time, info.st_nlink)
    return found


def untar(data: bytes, into: Path, program: tuple[str, ...] = ("tar",)) -> None:
    command = [*program, "-x", "-o", "-f", "-", "-C", str(into)]
    done = subprocess.run(command, input=data, capture_output=True, check=False, umask=0o022)
    assert (done.returncode, done.stderr) == (0, b"")


# Random trees

_COMPONENT = st.one_of(
    st.text(alphabet="abcé.-_ ", min_size=1, max_size=6),
    st.text(alphabet="xy", min_size=90, max_size=120),
).filter(lambda text: text not in (".", ".."))
_FILE = st.tuples(st.binary(max_size=1500), st.sampled_from([0o644, 0o755, 0o600, 0o444, 0o777]))
_TREE = st.recursive(
    st.dictionaries(_COMPONENT, _FILE, min_size=1, max_size=4),
    lambda deeper: st.dictionaries(_COMPONENT, st.one_of(_FILE, deeper), min_size=1, max_size=4),
    max_leaves=12,
)


class Archive(bytes):
    """Kilobytes that a failing test does not print."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes of tar>"


@st.composite
def archives(draw: st.DrawFn) -> Archive:
    """An uncompressed archive of files, folders named or not, hard links and symlinks."""
    format = draw(st.sampled_from(FORMATS))
    prefix = draw(st.sampled_from(["", "./"]))
    infos: list[tuple[tarfile.TarInfo, bytes]] = []
    files: dict[str, int] = {}  # and their modes

    def add(path: str, node: object) -> None:
        info = tarfile.TarInfo(prefix + path)
        info.mtime = draw(st.sampled_from([0, 1_700_000_000, 1_700_000_000.5]))
        if isinstance(node, dict):
            if draw(st.booleans()):
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                infos.append((info, b""))
            for name, below in node.items():
                add(f"{path}/{name}", below)
            return
        data, info.mode = node  # type: ignore[misc]
        info.size = len(data)
        infos.append((info, data))
        files[path] = info.mode

    for name, node in draw(_TREE).items():
        add(name, node)
    if files and draw(st.booleans()):
        link = tarfile.TarInfo(prefix + "hard link")
        target = draw(st.sampled_from(list(files)))
        link.type, link.linkname, link.mode = tarfile.LNKTYPE, prefix + target, files[target]
        infos.append((link, b""))
    if files and draw(st.booleans()):
        link = tarfile.TarInfo("symlinks/link")
        link.type, link.linkname = tarfile.SYMTYPE, "../" + draw(st.sampled_from(list(files)))
        infos.append((link, b""))
    out = io.BytesIO()
    for attempt in (format, tarfile.PAX_FORMAT):  # not every name fits into ustar
        out = io.BytesIO()
        try:
            with tarfile.open(fileobj=out, mode="w", format=attempt) as archive:
                for info, data in infos:
                    archive.addfile(info, io.BytesIO(data))
            break
        except ValueError:
            continue
    return Archive(out.getvalue())


_SETTINGS = settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


@pytest.mark.skipif(
    not hasattr(tarfile, "data_filter"), reason="this Python's tarfile has no data filter"
)
@_SETTINGS
@given(archives())
def test_what_tar_unpacks_behind_the_guard_is_what_tarfile_unpacks(data: bytes) -> None:
    out, summary = through(data)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder, "ours"), Path(folder, "theirs")
        ours.mkdir()
        theirs.mkdir()
        untar(out, ours)
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            archive.extractall(theirs, filter="data")
            assert summary.entries == len(archive.getmembers())
        assert tree(ours) == tree(theirs)
        assert summary.inodes >= len(tree(ours))


@_SETTINGS
@given(archives(), st.lists(st.integers(1, 2000), min_size=1, max_size=5))
def test_the_guard_says_the_same_whole_byte_by_byte_and_in_any_pieces(
    data: bytes, sizes: list[int]
) -> None:
    whole = through(data)
    assert through(data, sizes) == whole
    assert through(data, [1]) == whole


@_SETTINGS
@given(archives(), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=4), st.data())
def test_mutated_archives_are_refused_or_stay_within_the_tree(
    data: bytes, changes: list[tuple[int, int]], more: st.DataObject
) -> None:
    mutated = bytearray(data)
    for at, byte in changes:
        at %= len(mutated)
        mutated[at] = byte
        block = at - at % 512
        if more.draw(st.booleans()):  # else most would end at the checksum
            mutated[block : block + 512] = signed(bytes(mutated[block : block + 512]))
    cut = more.draw(st.one_of(st.none(), st.integers(0, len(mutated))))
    try:
        out, summary = through(bytes(mutated[:cut]))
    except PackageError:
        return
    with tarfile.open(fileobj=io.BytesIO(out), encoding="latin-1") as archive:
        members = archive.getmembers()
    assert len(members) <= summary.entries
    for info in members:
        assert not info.name.startswith("/")
        assert ".." not in info.name.split("/")
        assert info.isreg() or info.isdir() or info.issym() or info.islnk()
        assert not info.mode & 0o7022 or info.issym()


@_SETTINGS
@given(st.binary(max_size=3000), st.booleans())
def test_random_bytes_are_refused_and_nothing_else_is_raised(data: bytes, sign: bool) -> None:
    if sign and len(data) >= 512:
        data = signed(data[:512]) + data[512:]
    with pytest.raises(PackageError):
        through(data)


# Formats


@pytest.mark.parametrize("program", [("tar",), ("busybox", "tar")], ids=["gnu", "busybox"])
@pytest.mark.parametrize("format", FORMATS, ids=["ustar", "gnu", "pax"])
def test_names_of_every_length_reach_every_tar(
    tmp_path: Path, format: int, program: tuple[str, ...]
) -> None:
    if not any(os.access(f"{path}/{program[0]}", os.X_OK) for path in os.get_exec_path()):
        pytest.skip(f"{program[0]} is not installed")
    names = [f"d{'e' * 80}/{'f' * length}" for length in (15, 16, 17, 18, 19, 60)]
    if format != tarfile.USTAR_FORMAT:
        names.append("/".join(["g" * 200] * 4))
    data = b"".join(member(name, name.encode(), format=format) for name in names) + END
    untar(through(data)[0], tmp_path, program)
    assert {name: (tmp_path / name).read_text() for name in names} == {name: name for name in names}


def test_a_v7_archive_is_read_with_its_directories() -> None:
    folder = patched(member("lib/"), 156, b"\0" + bytes(100) + bytes(255))
    file = patched(member("lib/a", b"x"), 156, b"\0" + bytes(100) + bytes(255))
    out, summary = through(folder + file + END)
    with tarfile.open(fileobj=io.BytesIO(out)) as archive:
        assert [(m.name, m.isdir()) for m in archive] == [("lib", True), ("lib/a", False)]
    assert summary.entries == 2


def test_the_prefix_of_a_gnu_header_is_no_name() -> None:
    out, _ = through(patched(member("a"), 345, b"evil") + END)
    with tarfile.open(fileobj=io.BytesIO(out)) as archive:
        assert archive.getnames() == ["a"]


def test_a_size_in_base_256_is_read() -> None:
    data = patched(member("a", b"12345"), 124, b"\x80" + (5).to_bytes(11, "big"))
    assert through(data + END)[1].unpacked_bytes == 5


def test_a_size_beyond_octal_is_given_to_tar_in_base_256() -> None:
    size = 9 * 1024**3
    guard = TarGuard(Limits(max_unpacked_bytes=2 * size))
    header = guard.feed(patched(member("a"), 124, b"\x80" + size.to_bytes(11, "big")))[0]
    assert tarfile.TarInfo.frombuf(bytes(header), "utf-8", "strict").size == size


def test_a_pax_size_and_time_count_and_extended_attributes_are_dropped() -> None:
    records = record("size", "3") + record("mtime", "5.75") + record("SCHILY.xattr.user.a", "\x01")
    data = pax_header(records) + patched(member("a", b"abc"), 124, b"00000000000\0") + END
    out, summary = through(data)
    with tarfile.open(fileobj=io.BytesIO(out)) as archive:
        info = archive.getmember("a")
        assert (info.size, info.mtime, info.pax_headers) == (3, 5, {})
    assert b"xattr" not in out
    assert summary.unpacked_bytes == 3


def test_a_time_before_1970_becomes_1970() -> None:
    out, _ = through(pax_header(record("mtime", "-5.5")) + member("a") + END)
    with tarfile.open(fileobj=io.BytesIO(out)) as archive:
        assert archive.getmember("a").mtime == 0


def test_a_comment_for_all_members_as_git_archive_writes_it_is_harmless() -> None:
    data = pax_header(record("comment", "8f3c"), b"g") + member("a") + END
    assert through(data)[1].entries == 1


def test_a_checksum_of_signed_bytes_is_accepted() -> None:
    header = member("é")
    total = sum(b - 256 * (b > 127) for b in header[:148] + header[156:512]) + 8 * 32
    assert through(header[:148] + b"%06o\0 " % total + header[156:] + END)[1].entries == 1


def test_owners_and_group_write_do_not_reach_tar() -> None:
    info = tarfile.TarInfo("bin/app")
    info.uid = info.gid = 1234
    info.uname = info.gname = "mallory"
    info.mode = 0o775
    out, _ = through(info.tobuf(tarfile.GNU_FORMAT) + END)
    got = tarfile.TarInfo.frombuf(out[:512], "utf-8", "strict")
    assert (got.uid, got.gid, got.uname, got.gname, got.mode) == (0, 0, "", "", 0o755)


def test_the_root_itself_is_not_given_to_tar_which_would_change_the_staging_folder() -> None:
    out, summary = through(directory("./") + member("./a") + END)
    with tarfile.open(fileobj=io.BytesIO(out)) as archive:
        assert archive.getnames() == ["a"]
    assert summary.entries == 2


def test_directories_may_repeat() -> None:
    assert through(directory("a") + member("a/b") + directory("a/") + END)[1].entries == 3


def test_padding_that_is_not_zero_is_not_forwarded() -> None:
    data = member("a", b"abc")[:-8] + b"SMUGGLED" + END
    assert b"SMUGGLED" not in through(data)[0]


# Links that stay


def test_links_within_the_tree_are_let_through() -> None:
    data = (
        member("lib/a-1/priv/x", b"x")
        + symlink("lib/a", "a-1")
        + symlink("lib/a-1/up", "../../lib/a/priv/./x")
        + symlink("dangling", "not/there")
        + symlink("root", ".")
        + hard_link("y", "./lib/a-1/priv/x")
    )
    assert through(data + END)[1].entries == 6


def test_forty_links_in_a_row_are_let_through_and_forty_one_are_refused() -> None:
    links = [symlink(f"l{n}", f"l{n + 1}") for n in range(40)]
    assert through(b"".join(links) + END)[1].entries == 40
    assert "40 links" in refusal(b"".join([*links, symlink("l40", "l41")]) + END)


# Hostile archives: what is refused, a part of the message, and the bytes

_UNSIGNED = member("a")[:10] + b"!" + member("a")[11:]
HOSTILE = {
    "an absolute path": ("absolute", member("/etc/passwd")),
    "an absolute path in a PAX header": (
        "absolute",
        pax_header(record("path", "/etc/passwd")) + member("a"),
    ),
    "an absolute path in a ustar prefix": (
        "absolute",
        patched(member("a", format=tarfile.USTAR_FORMAT), 345, b"/etc"),
    ),
    "an absolute path in a GNU long name": ("absolute", member("/" + "a" * 150)),
    "a path that leaves by dots": ("'..'", member("a/../../b")),
    "a path of dots that comes back": ("'..'", member("a/../b")),
    "a directory of dots": ("'..'", directory("..")),
    "an empty name": ("empty", patched(member("a"), 0, bytes(100))),
    "an empty PAX name": ("empty", pax_header(record("path", "")) + member("a")),
    "a name with a newline": ("control character", member("a\nb")),
    "a name with a NUL": ("control character", pax_header(record("path", "a\0b")) + member("a")),
    "a name with an escape": ("control character", member("a\x1b[2Jb")),
    "a name with DEL": ("control character", member("a\x7fb")),
    "a component longer than the file system takes": ("longer than 255", member("a" * 256)),
    "a path longer than the limit": ("the limit is 1025", member("/".join(["a" * 200] * 6))),
    "a file that is named like a directory": ("that of a directory", member("a/")),
    "a file in the place of the root": ("that of a directory", member("./")),
    "a link in the place of the root": ("root folder", symlink(".", "a")),
    "a symlink to an absolute path": ("absolute", symlink("a", "/etc")),
    "a symlink that leaves": ("out of the release", symlink("a", "..")),
    "a symlink that leaves and comes back": ("out of the release", symlink("a", "../app/b")),
    "a symlink that leaves through another one": (
        "out of the release",
        directory("a/b/c") + symlink("a/b/c/up", "../..") + symlink("d", "a/b/c/up/../.."),
    ),
    "a symlink that leaves through a later one": (
        "out of the release",
        symlink("z", "deep/link/../x") + symlink("deep/link", "../short") + symlink("short", "."),
    ),
    "a symlink to itself": ("loop", symlink("a", "a")),
    "symlinks in a loop": ("loop", symlink("a", "b") + symlink("b", "a/c")),
    "a symlink with no target": ("empty", symlink("a", "")),
    "a symlink with a newline in its target": ("control character", symlink("a", "b\nc")),
    "a file written through a link": ("through the link", symlink("a", "b") + member("a/c")),
    "a file far below a link": ("through the link", symlink("a", "b") + member("a/c/d/e")),
    "a link that takes the place of a folder": ("at once", member("a/c") + symlink("a", "b")),
    "a file below a file": ("which is a file", member("a") + member("a/b")),
    "a file in the place of a folder": ("at once", member("a/b") + member("a")),
    "a file in the place of a named folder": ("at once", directory("a") + member("a")),
    "a folder in the place of a link": ("at once", symlink("a", "b") + directory("a")),
    "a file in the place of a link": ("twice", symlink("a", "b") + member("a")),
    "a file given twice": ("twice", member("a") + member("a")),
    "a file given twice under two spellings": ("twice", member("a/b") + member("./a//b")),
    "a hard link to a file outside": ("absolute", hard_link("a", "/etc/shadow")),
    "a hard link that leaves by dots": ("'..'", hard_link("a", "../b")),
    "a hard link to a later file": ("no earlier file", hard_link("a", "b") + member("b")),
    "a hard link to a symlink": ("no earlier", symlink("b", "c") + hard_link("a", "b")),
    "a hard link to a directory": ("no earlier", directory("b") + hard_link("a", "b")),
    "a hard link through a symlink": (
        "no earlier",
        member("d/f") + symlink("l", "d") + hard_link("a", "l/f"),
    ),
    "a hard link with data": (
        "cannot be",
        member("b") + patched(hard_link("a", "b"), 124, b"00000000001\0"),
    ),
    "a symlink with data": ("cannot be", patched(symlink("a", "b"), 124, b"00000000001\0")),
    "a directory with data": ("cannot be", patched(directory("a"), 124, b"00000000001\0")),
    "a character device": ("a character device", member("a", type=tarfile.CHRTYPE)),
    "a block device": ("a block device", member("a", type=tarfile.BLKTYPE)),
    "a fifo": ("a fifo", member("a", type=tarfile.FIFOTYPE)),
    "a member of an unknown type": ("unknown type", member("a", type=b"Z")),
    "a setuid file": ("setuid", member("a", mode=0o4755)),
    "a setgid file": ("setuid, setgid or sticky", member("a", mode=0o2755)),
    "a sticky file": ("sticky", member("a", mode=0o1755)),
    "a GNU sparse file": ("a sparse file", member("a", type=b"S")),
    "a PAX sparse file": ("sparse", pax_header(record("GNU.sparse.major", "1")) + member("a")),
    "a star sparse file": ("sparse", pax_header(record("SCHILY.realsize", "9")) + member("a")),
    "a part of a multi-volume archive": ("earlier volume", member("a", type=b"M")),
    "a volume label": ("a volume label", member("a", type=b"V")),
    "a dump directory": ("dump directory", member("a", type=b"D")),
    "a wrong checksum": ("checksum", _UNSIGNED),
    "a header of an unknown format": ("no tar format", patched(member("a"), 257, b"evil!!!!")),
    "a size that is not octal": ("not octal", patched(member("a"), 124, b"0o1\0")),
    "a size with an underscore": ("not octal", patched(member("a"), 124, b"00000001_00\0")),
    "a negative size": ("size of -1", patched(member("a"), 124, b"\xff" * 12)),
    "an enormous size": ("larger, unpacked", patched(member("a"), 124, b"\xbf" + b"\xff" * 11)),
    "a PAX size that is no number": ("no number", pax_header(record("size", "-1")) + member("a")),
    "an endless PAX size": ("no number", pax_header(record("size", "9" * 5000)) + member("a")),
    "a PAX time that is no number": ("no number", pax_header(record("mtime", "x")) + member("a")),
    "a PAX record of a wrong length": ("not as long", pax_header(b"99 path=a\n") + member("a")),
    "a PAX record with no length": ("begin with its length", pax_header(b"path=a\n")),
    "a PAX record of length zero": ("as long as it says", pax_header(b"0 path=a\n")),
    "a PAX record with no keyword": ("no keyword", pax_header(b"5 =a\n")),
    "one name for all members": ("all members", pax_header(record("path", "a"), b"g")),
    "two PAX headers for one member": (
        "two PAX headers",
        pax_header(record("path", "a")) * 2 + member("b"),
    ),
    "two long names for one member": (
        "two long names",
        member("n", b"a\0", type=b"L") * 2 + member("b"),
    ),
    "a GNU and a PAX name for one member": (
        "GNU long name and a PAX one",
        member("n", b"a\0", type=b"L") + pax_header(record("path", "c")) + member("b"),
    ),
    "a PAX header of many megabytes": (
        "the limit is 1048576",
        patched(pax_header(b""), 124, b"00100000000\0"),
    ),
    "an empty long name": ("0 bytes long", member("n", type=b"L")),
    "a long name of nothing": ("of nothing", member("n", b"a\0", type=b"L")),
    "our own marker": ("reserved", member(".deployex.json")),
    "a folder of our marker's name": ("reserved", member("./.deployex.json/a")),
    "our marker's temporary name": ("reserved", member("..deployex.json.tmp")),
    "nothing at all": ("holds nothing", b""),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_the_archive_is_refused_that_holds(case: str) -> None:
    words, data = HOSTILE[case]
    message = refusal(data + END)
    assert words in message
    assert refusal(data + END, sizes=[7]) == message


def test_the_refused_member_is_named_and_never_reaches_tar() -> None:
    guard = TarGuard(what="app-1.2.3.tar.gz")
    assert guard.feed(member("good"))
    with pytest.raises(PackageError, match=r"^app-1.2.3.tar.gz: the member '/etc/evil' is refused"):
        guard.feed(member("/etc/evil", b"x"))
    with pytest.raises(PackageError, match="/etc/evil"):
        guard.feed(member("good too"))
    with pytest.raises(PackageError, match="/etc/evil"):
        guard.finish()


def test_a_hostile_name_cannot_spoil_the_message() -> None:
    message = refusal(member("/" + "\x1b[31m\n" * 200) + END)
    assert message.isprintable()
    assert len(message) < 500


def test_data_after_the_end_is_refused() -> None:
    assert "after the end mark after 'a'" in refusal(member("a") + END + member("b") + END)


def test_a_lone_block_of_zeros_between_members_is_refused() -> None:
    assert "after the end mark" in refusal(member("a") + bytes(512) + member("b") + END)


def test_a_record_filled_up_with_zeros_is_whole_and_megabytes_of_them_are_not() -> None:
    assert through(member("a") + bytes(10240))[1].entries == 1
    assert "zeros" in refusal(member("a") + bytes(5 * 1024**2))


@pytest.mark.parametrize("kept", [0, 1, 511, 512, 600, 1023, 1024, 1025, 1536, 2047])
def test_an_archive_cut_anywhere_is_refused(kept: int) -> None:
    assert "cut short" in refusal((member("a", b"x" * 10) + END)[:kept])


# Limits


def test_more_members_than_the_limit_are_refused() -> None:
    data = b"".join(member(f"f{n}") for n in range(4)) + END
    assert through(data, limits=Limits(max_entries=4))[1].entries == 4
    assert "more than 3 members" in refusal(data, limits=Limits(max_entries=3))


def test_folders_that_only_paths_name_count_as_members() -> None:
    assert "more than 3" in refusal(member("a/b/c/d") + END, limits=Limits(max_entries=3))


def test_more_bytes_than_the_limit_are_refused_before_they_come() -> None:
    guard = TarGuard(Limits(max_unpacked_bytes=10))
    guard.feed(member("a", b"x" * 10))
    with pytest.raises(PackageError, match="larger, unpacked, than 10 bytes after 'b'"):
        guard.feed(member("b", b"x"))


def test_memory_is_bounded_whatever_comes() -> None:
    rng = random.Random(1)
    names = [f"{n}/" + "d/" * 400 + "x" for n in range(900)]
    streams = {
        "file data": [member("a", bytes(16 * 1024**2))],
        "names": [member(name) for name in names],
        "links": [symlink(str(n), "x/" * 500) for n in range(1500)],
        "extended attributes": [
            pax_header(record("SCHILY.xattr.a", "x" * 100_000)) + member(f"m{n}") for n in range(99)
        ],
        "global headers": [pax_header(record("comment", "x" * 9000), b"g") for _ in range(999)],
        "noise": [rng.randbytes(10_000)],
    }
    for name, pieces in streams.items():
        guard = TarGuard(Limits(max_names_bytes=500_000))
        tracemalloc.start()
        try:
            for piece in pieces:
                view = memoryview(piece)
                for start in range(0, len(view), 65536):
                    guard.feed(view[start : start + 65536])
        except PackageError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 3_000_000, name


# What makes a release, and what is kept of it


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (member("bin/other"), "no release of this app: it has no file 'bin/app'"),
        (member("bin/app"), "'bin/app' is not executable"),
        (directory("bin/app"), "no file 'bin/app'"),
        (symlink("bin/app", "x"), "no file 'bin/app'"),
    ],
)
def test_a_release_without_its_executable_is_refused(data: bytes, words: str) -> None:
    assert words in refusal(data + END, required=[Required("bin/app", "executable")])


def test_a_release_with_its_executable_is_let_through() -> None:
    data = member("./bin/app", mode=0o755) + END
    assert through(data, required=[Required("bin/app", "executable")])[1].entries == 1


def test_a_gleam_release_is_known_by_its_folder() -> None:
    shipment = [Required("erlang-shipment/", "directory")]
    assert through(member("erlang-shipment/entrypoint.sh") + END, required=shipment)
    assert "no folder 'erlang-shipment'" in refusal(member("bin/app") + END, required=shipment)


def test_small_members_are_kept_by_name() -> None:
    data = member("./releases/start_erl.data", b"13.1 1.2.3") + member("other", b"x") + END
    summary = through(data, [3], capture=["releases/start_erl.data", "not/there"])[1]
    assert summary.captured == {"releases/start_erl.data": b"13.1 1.2.3"}


def test_a_member_that_is_too_large_to_keep_is_refused() -> None:
    assert "the limit is 65536" in refusal(member("a", bytes(65537)) + END, capture=["a"])


def test_the_summary_counts_bytes_and_blocks() -> None:
    data = directory("d") + member("d/a", b"x" * 4097) + member("e/b") + END
    summary = through(data, block_size=4096)[1]
    assert summary == Summary(3, 4097, 8192 + 2 * 4096, 4, {})
