"""What became of NTP requests after the guard had passed them; live, with bcc."""

from ntpguard.trace.drops import (
    HIDDEN,
    Drop,
    addresses_hidden,
    observed_sockets,
    run,
    watch,
)
from ntpguard.trace.outcome import Cause, Outcome

__all__ = [
    "HIDDEN",
    "Cause",
    "Drop",
    "Outcome",
    "addresses_hidden",
    "observed_sockets",
    "run",
    "watch",
]
