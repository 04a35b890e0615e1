"""strace(1) as the layer between a program and the world: what it changes, and a fault at any call.

Only the first thread of the first process is followed: that is the one that decides. What its
children write is theirs to be killed in (pre_commands.py) or covered by the power cuts.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.world import eventually

# calls that change nothing but the caller's own memory, descriptors and knowledge
HARMLESS = frozenset(
    """
    access arch_prctl brk chdir clock_gettime clock_nanosleep close dup dup2 dup3 epoll_create1
    epoll_ctl
    epoll_pwait epoll_wait eventfd2 exit exit_group faccessat2 fadvise64 fcntl fgetxattr flistxattr
    fstat fstatfs futex getcwd getdents64 getegid geteuid getgid getpgid getpgrp getpid getppid
    getpriority getrandom getresgid getresuid getrlimit getrusage getsid getsockname getsockopt
    gettid gettimeofday getuid ioctl lgetxattr lseek lstat madvise membarrier memfd_create mmap
    mprotect mremap munmap nanosleep newfstatat pause pidfd_open pipe pipe2 poll ppoll pread64
    preadv prlimit64 pselect6 read readlink readlinkat readv restart_syscall rseq rt_sigaction
    rt_sigpending rt_sigprocmask rt_sigreturn rt_sigsuspend rt_sigtimedwait sched_getaffinity
    sched_yield select set_robust_list set_tid_address setsockopt sigaltstack socket socketpair
    stat statfs statx sysinfo time times umask uname waitid
    """.split()  # noqa: SIM905
)
# calls that do, by what they change; `write` and its like count by what they write to
KINDS = {
    name: kind
    for kind, names in {
        "disk": """
            chmod chown copy_file_range fallocate fchmod fchmodat fchown fchownat fdatasync
            ftruncate fsync lchown link linkat mkdir mkdirat mknod mknodat rename renameat renameat2
            rmdir symlink symlinkat sync sync_file_range syncfs truncate unlink unlinkat utime
            utimensat
            """,
        "process": """
            clone clone3 execve fork kill pidfd_send_signal prctl rt_sigqueueinfo setpgid setsid
            tgkill tkill vfork wait4
            """,
        "socket": """
            accept accept4 bind connect listen recvfrom recvmsg sendmmsg sendmsg sendto shutdown
            """,
        "lock": "flock",
    }.items()
    for name in names.split()
}
_WRITES = frozenset({"write", "writev", "pwrite64", "pwritev", "pwritev2", "sendfile", "splice"})
_OPENS = frozenset({"open", "openat", "openat2", "creat"})
_CALL = re.compile(r"(\w+)\((.*)\)\s+= (-?\d+|\?)(?:<.*>)?(.*)")
_KILLED_IN = re.compile(r"(\w+)\((.*?)(?:\)\s+= \?.*)?")


class Call(NamedTuple):
    """One system call: `nth` of its name, counted from 1."""

    name: str
    nth: int
    arguments: str
    result: str

    @property
    def when(self) -> int:
        """Its number for an injection, which does not count the execve that begins a program."""
        return self.nth - 1 if self.name == "execve" else self.nth

    def __str__(self) -> str:
        return f"{self.name}({self.arguments[:100]}) [{self.nth}]"


class Unknown(AssertionError):
    """A call that is neither known to be harmless nor known to change something."""


def is_here() -> bool:
    """Whether this machine has a strace that may trace."""
    if shutil.which("strace") is None:
        return False
    done = subprocess.run(
        ["strace", "-o", "/dev/null", "-e", "trace=none", "true"], capture_output=True, check=False
    )
    return done.returncode == 0


def watching(log: Path, fault: str | None = None, everything: str | None = None) -> list[str]:
    """The words that go before a command: all its calls into `log`, or one of them with a fault.

    `fault` is strace's own: "rename:signal=KILL:when=3", "fsync:error=EIO:when=2". `everything`:
    these calls of all its processes, with all their data.
    """
    if everything is not None:
        return [
            "strace",
            "-f",
            "-o",
            str(log),
            "-y",
            "-s",
            "9999999",
            "-e",
            f"trace={everything}",
            "--",
        ]
    words = ["strace", "-o", str(log), "-y", "-s", "160", "-qq"]
    if fault is not None:
        name = fault.partition(":")[0]
        words += ["-e", f"trace={name}", "-e", "signal=none", "-e", f"inject={fault}"]
    return [*words, "--"]


@contextmanager
def attached(pid: int, log: Path, *words: str) -> Iterator[None]:
    """A strace, with these words of its own, on a process that runs already; lets go at the end."""
    shown = ("-o", str(log), "-y", "-s", "160", "-q")
    tracer = subprocess.Popen(["strace", *shown, *words, "-p", str(pid)], stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: f"TracerPid:\t{tracer.pid}\n" in Path(f"/proc/{pid}/status").read_text())
        yield
    finally:
        tracer.terminate()
        tracer.wait(20)


def calls(log: Path) -> list[Call]:
    """The calls of a log, in order."""
    return calls_in(log.read_text(errors="replace").splitlines())


def calls_in(lines: Iterable[str]) -> list[Call]:
    """The calls of these lines of a log, counted from the first."""
    counts: dict[str, int] = {}
    found = []
    for line in lines:
        match = _CALL.match(line) or _KILLED_IN.fullmatch(line)
        if match is None or line.startswith(("---", "+++")):
            continue
        name = match[1]
        counts[name] = counts.get(name, 0) + 1
        result = match[3] if match.re is _CALL else "?"
        found.append(Call(name, counts[name], match[2], result))
    return found


def kind(call: Call) -> str | None:
    """What the call changes: disk, process, socket, lock; None: nothing. Raises Unknown."""
    if call.name in KINDS:
        return KINDS[call.name]
    if call.name in HARMLESS:
        return None
    if call.name in _OPENS:
        return "disk" if re.search(r"O_(CREAT|TRUNC|TMPFILE)", call.arguments) else None
    if call.name in _WRITES:
        target = re.match(r"\d+<([^>]*)>", call.arguments)
        return _kind_of_target(target[1] if target else "")
    raise Unknown(f"{call}: what does it change? Classify it in tests/faults/strace.py")


def _kind_of_target(target: str) -> str | None:
    """By what `-y` shows of a descriptor."""
    if target.startswith(("socket:", "UNIX", "TCP")):
        return "socket"
    if target.startswith(("pipe:", "anon_inode:", "/dev/", "/memfd:")):
        return None  # read by who waits for it, or by nobody
    return "disk"


def effects(log: Path) -> list[Call]:
    """The calls of a log that change something, but for the execve that began it."""
    found = [call for call in calls(log) if kind(call) is not None]
    return [call for call in found if (call.name, call.nth) != ("execve", 1)]
