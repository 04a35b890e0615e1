"""Every way in which a command can fail: a family of errors, each with a stable code.

Scripts key on `code` and on the exit code, people read the message. A message is one line that
says what happened, to which app and version, and what to do next. Nothing here imports the rest
of the package.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command's exit code tells the script that called it."""

    OK = 0
    FAILED = 1  # nothing that serves was changed
    USAGE = 2
    REFUSED = 3
    ROLLED_BACK = 4
    ROLLBACK_FAILED = 5
    FAILED_MIDWAY = 6
    STORE_UNREACHABLE = 7
    LOCKED = 75


# Of several apps the worst counts, in this order (the first one found is the command's exit code).
WORST_FIRST = (
    ExitCode.ROLLBACK_FAILED,
    ExitCode.FAILED_MIDWAY,
    ExitCode.ROLLED_BACK,
    ExitCode.USAGE,
    ExitCode.FAILED,
    ExitCode.REFUSED,
    ExitCode.STORE_UNREACHABLE,
    ExitCode.LOCKED,
    ExitCode.OK,
)


class DeployexError(Exception):
    """The root of the family; `code` is stable, the message is for people."""

    code = "failed"
    exit_code = ExitCode.FAILED

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ConfigError(DeployexError):
    """The command line, the environment or deployex.toml cannot be used as it stands."""

    code = "config"
    exit_code = ExitCode.USAGE


class ManifestError(DeployexError):
    """current.json is there and cannot be used."""

    code = "manifest_invalid"


class PackageError(DeployexError):
    """A tarball that is damaged, unsafe or no release of this app."""

    code = "package_invalid"


class DigestMismatch(PackageError):
    """The bytes are not those that the manifest promises."""

    code = "digest_mismatch"
    exit_code = ExitCode.REFUSED


class DiskFull(DeployexError):
    """No room for a release; the message says how much is missing."""

    code = "disk_full"


class NotFound(DeployexError):
    """A version, a release or a file that was asked for is not there."""

    code = "not_found"


class Refused(DeployexError):
    """It could be done and must not be: ghosted, other content, not verifiable."""

    code = "refused"
    exit_code = ExitCode.REFUSED


class UnsafeFolder(DeployexError):
    """A folder or file that others own, may write, or have put a link in place of."""

    code = "unsafe_folder"


class StateError(DeployexError):
    """A file of ours that cannot be read back, or was written by a newer deployex."""

    code = "state"


class SupervisorError(DeployexError):
    """The supervisor answered that it could not."""

    code = "supervisor"


class SupervisorUnavailable(SupervisorError):
    """No supervisor runs, or it does not answer: nobody knows more of the app."""

    code = "supervisor_unavailable"


class SupervisorLost(SupervisorUnavailable):
    """It was asked, and ended before it answered: what was asked may have happened."""

    code = "supervisor_lost"


class MachineTrouble(SupervisorUnavailable):
    """It could not start the app, for reasons that are none of the version's: try again."""

    code = "machine_trouble"


class Interrupted(DeployexError):
    """SIGTERM or Ctrl-C, left of the point of no return."""

    code = "interrupted"


class PreCommandFailed(DeployexError):
    """A pre_command exited other than 0, or ran out of time."""

    code = "pre_command_failed"


class NotUpgradable(DeployexError):
    """The package cannot take over in the running VM; nothing that serves was changed.

    `reason` is one of strategy.py's codes.
    """

    code = "not_upgradable"

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ProviderFailed(DeployexError):
    """The new version's runtime configuration cannot be resolved; nothing was installed."""

    code = "provider_failed"


class InstallFailed(DeployexError):
    """install_release failed: the old code may run with the new version's configuration."""

    code = "install_failed"


class NodeError(DeployexError):
    """The running node could not be asked, or answered that it could not."""

    code = "node"


class NodeUnreachable(NodeError):
    """Nothing was asked, and nothing is known of the node: neither success nor failure."""

    code = "node_unreachable"


class EpmdDown(NodeUnreachable):
    """Nobody answers at the port mapper's port."""

    code = "epmd_down"


class NodeNotRegistered(NodeUnreachable):
    """The port mapper knows no node of that name."""

    code = "node_not_registered"


class ConnectionRefused(NodeUnreachable):
    """Nobody listens at the node's distribution port, or the node turned us away."""

    code = "node_connection_refused"


class NodeTimeout(NodeUnreachable):
    """No connection in time; nothing was asked."""

    code = "node_timeout"


class NodeProtocolError(NodeUnreachable):
    """The peer does not speak the distribution protocol as we know it, or is another node."""

    code = "node_protocol"


class OtherNode(NodeUnreachable):
    """Another node than the one that was meant answers there."""

    code = "node_other"


class LostBefore(NodeUnreachable):
    """The connection was gone before the call was sent: it does not run on the node."""

    code = "node_lost_before"


class WrongCookie(NodeUnreachable):
    """The node and we do not have the same cookie, or we have none."""

    code = "wrong_cookie"


class TlsRefused(NodeUnreachable):
    """A certificate or key is missing, expired, or not of the authority that the other trusts."""

    code = "tls_refused"


class LostAfter(NodeError):
    """The call was sent and no answer came: nobody knows whether it ran, or still runs."""

    code = "node_lost_after"


class CallTimeout(LostAfter):
    """The answer did not come in time; the call goes on on the node."""

    code = "node_call_timeout"


class BadTerm(NodeError):
    """What should be sent is no Erlang term, or what came is none that we read."""

    code = "bad_term"


class BadRpc(NodeError):
    """The call ran and failed; `reason` is the term that the node gives for it."""

    code = "badrpc"

    def __init__(self, message: str, reason: object) -> None:
        super().__init__(message)
        self.reason = reason


class StoreUnreachable(DeployexError):
    """The release store did not answer; nothing was changed, the next check tries again."""

    code = "store_unreachable"
    exit_code = ExitCode.STORE_UNREACHABLE


class Locked(DeployexError):
    """Another run holds the app's lock."""

    code = "locked"
    exit_code = ExitCode.LOCKED


class RolledBack(DeployexError):
    """The new version could not take over; the version before serves again."""

    code = "rolled_back"
    exit_code = ExitCode.ROLLED_BACK


class RollbackFailed(DeployexError):
    """Neither the new version nor the one before could be started."""

    code = "rollback_failed"
    exit_code = ExitCode.ROLLBACK_FAILED


class FailedMidway(DeployexError):
    """Stopped right of the point of no return; the next check finishes the deployment."""

    code = "failed_midway"
    exit_code = ExitCode.FAILED_MIDWAY


def in_words(error: OSError) -> str:
    """The system's own error: what it was about, and what it was."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
