"""The last good policy, kept in the state directory: what runs at boot when the file is bad."""

from pathlib import Path

from ntpguard import state
from ntpguard.errors import NtpguardError
from ntpguard.policy.check import parse_policy
from ntpguard.policy.model import Policy
from ntpguard.policy.render import to_toml

NAME = "last-good.toml"


def path() -> Path:
    """Where the copy lies: in systemd's STATE_DIRECTORY, else in /var/lib/ntpguard."""
    return state.directory() / NAME


def read() -> Policy | None:
    """The last good policy; None if there is none. Raises PolicyError for one that is damaged."""
    try:
        text = state.bytes_of(path()).decode("utf-8", "replace")
    except OSError:
        return None
    return parse_policy(text, str(path()))


def save(policy: Policy, file: Path) -> None:
    """Keeps a policy as the last good one: whole, prefixes of other files included, or not at all.

    Raises NtpguardError if it cannot be written; then the copy is as it was.
    """
    target = path()
    text = f"# ntpguard's own copy of the last good policy of {str(file)!a}\n{to_toml(policy)}"
    try:
        state.replace(target, [text])
    except OSError as error:
        raise NtpguardError(
            f"{target}: cannot keep the last good policy: {error.strerror}: if the file is bad at "
            "the next boot, nothing is guarded"
        ) from None
