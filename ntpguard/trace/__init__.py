"""Which NTP packets the stack dropped after the guard had passed them, and why; live, with bcc."""

from ntpguard.trace.drops import HIDDEN, Cause, Drop, addresses_hidden, run, watch

__all__ = ["HIDDEN", "Cause", "Drop", "addresses_hidden", "run", "watch"]
