"""One line in the system's log for each live change: who, what, old -> new."""

import contextlib
import logging
import os
import pwd
from logging.handlers import SysLogHandler

DEV_LOG = "/dev/log"
WAIT_SECONDS = 1.0  # for a logger that does not read: a change is not held up by it


def who() -> str:
    """The person who runs this: the one behind sudo, else the one logged in, else the user."""
    sudo = os.environ.get("SUDO_USER")
    if sudo:
        return sudo
    with contextlib.suppress(OSError):
        return os.getlogin()
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


def record(text: str) -> None:
    """Logs what `who` did; without /dev/log, or if that is not read, nothing happens."""
    uid = os.environ.get("SUDO_UID") or os.getuid()
    with contextlib.suppress(OSError):
        handler = SysLogHandler(DEV_LOG, SysLogHandler.LOG_DAEMON)
        try:
            handler.ident = f"ntpguard[{os.getpid()}]: "
            handler.handleError = lambda record: None  # type: ignore[method-assign]
            handler.socket.settimeout(WAIT_SECONDS)  # type: ignore[attr-defined]
            line = f"{who()} (uid {uid}): {text}"
            handler.emit(logging.LogRecord("", logging.INFO, "", 0, line, None, None))
        finally:
            handler.close()
