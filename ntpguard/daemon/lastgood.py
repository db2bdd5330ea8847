"""The last good policy, kept in the state directory: what runs at boot when the file is bad."""

import contextlib
import os
from pathlib import Path

from ntpguard.errors import NtpguardError
from ntpguard.policy.check import parse_policy
from ntpguard.policy.model import Policy
from ntpguard.policy.render import to_toml

STATE = "/var/lib/ntpguard"
NAME = "last-good.toml"


def path() -> Path:
    """Where the copy lies: in systemd's STATE_DIRECTORY, else in /var/lib/ntpguard."""
    return Path(os.environ.get("STATE_DIRECTORY", STATE).split(":")[0]) / NAME


def read() -> Policy | None:
    """The last good policy; None if there is none. Raises PolicyError for one that is damaged."""
    try:
        text = path().read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return parse_policy(text, str(path()))


def save(policy: Policy, file: Path) -> None:
    """Keeps a policy as the last good one: whole, prefixes of other files included, or not at all.

    Raises NtpguardError if it cannot be written; then the copy is as it was.
    """
    target = path()
    new = target.with_suffix(".new")
    text = f"# ntpguard's own copy of the last good policy of {file}\n{to_toml(policy)}"
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with new.open("w", encoding="utf-8") as one:
            one.write(text)
            one.flush()
            os.fsync(one.fileno())
        new.rename(target)
        directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink()
        raise NtpguardError(
            f"{target}: cannot keep the last good policy: {error.strerror}: if the file is bad at "
            "the next boot, nothing is guarded"
        ) from None
