"""The command line: parse, call, render. No logic lives here."""

import signal

_before = signal.getsignal(signal.SIGINT)
if _before is signal.default_int_handler:
    # nothing to undo while the rest is imported: Ctrl-C ends the process, without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from ntpguard.cli.group import main  # noqa: E402

if _before is signal.default_int_handler:
    signal.signal(signal.SIGINT, _before)

__all__ = ["main"]
