"""Which NTP packets the stack dropped after the guard had passed them, and why; live, with bcc."""

from ntpguard.trace.drops import run

__all__ = ["run"]
