"""What systemd is told (sd_notify(3)); without systemd nothing is sent."""

import contextlib
import os
import socket
import time

WAIT_SECONDS = 1.0  # for a manager that does not read now


def notify(*assignments: str) -> bool:
    """Sends assignments like "READY=1" to NOTIFY_SOCKET. False: they did not arrive, and are to be
    sent again. A manager that does not listen is no reason to stop.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return True
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.settimeout(WAIT_SECONDS)
        one.sendto("\n".join(assignments).encode("utf-8", "backslashreplace"), address)
        return True
    return False


def reloading() -> None:
    """Tells that a reload begins: systemd 253 compares the time with when it asked for it."""
    microseconds = time.monotonic_ns() // 1000
    notify("RELOADING=1", f"MONOTONIC_USEC={microseconds}")


def watchdog_seconds() -> float | None:
    """How often systemd wants to hear from this process, halved; None: it does not."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 2e6 if microseconds.isdecimal() and int(microseconds) else None
