"""What can go wrong, as an operator is told it: the thing, the value, the remedy.

Each error carries the exit code that the command line ends with (design.md, "The command line").
"""


class NtpguardError(Exception):
    """An operation failed; the message names the thing, the value and the remedy."""

    exit_code = 1


class UsageError(NtpguardError):
    """The call itself is wrong: an interface that does not exist, an argument out of range."""

    exit_code = 2


class PolicyError(NtpguardError):
    """A policy file that cannot be applied; `errors` holds every complaint, one line each."""

    exit_code = 3

    def __init__(self, errors: list[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors


NOTHING = (
    "not running: nothing is attached: try ntpguard up INTERFACE, or set interfaces in the policy "
    "file and reload the service (systemctl status ntpguard tells if it waits for one)"
)


class NotRunning(NtpguardError):
    """Nothing is attached in this network namespace."""

    exit_code = 4

    def __init__(self, message: str = NOTHING) -> None:
        super().__init__(message)


class Busy(NtpguardError):
    """Another writer is at work, and the caller did not want to wait for it."""


class PermissionNeeded(NtpguardError):
    """A capability is missing; the message names it."""

    exit_code = 5
