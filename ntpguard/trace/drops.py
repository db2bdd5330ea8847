"""Drops, watched: a line for each, as far as a terminal can follow, then an exact sum."""

import ctypes
import os
import re
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from ntpguard.errors import NtpguardError, PermissionNeeded
from ntpguard.kernel import bpffs
from ntpguard.trace import btf, program

NTP_PORT: Final = 123
LINES_PER_SECOND: Final = 50
POLL_MILLISECONDS: Final = 100
# linux/capability.h; CAP_SYS_ADMIN includes the others
CAPABILITIES: Final = {"CAP_BPF": 39, "CAP_PERFMON": 38}
CAP_SYS_ADMIN: Final = 21
IPV4_PROTOCOL: Final = socket.htons(0x0800)
REASON_PREFIX: Final = "SKB_DROP_REASON_"
LINE: Final = "{:12}  {:39}  {:>5}  {:15}  {:20}  {}"
SUM: Final = "{:>10}  {:15}  {:20}  {}"


class _Cause(ctypes.Structure):
    _fields_ = [
        ("location", ctypes.c_uint64),
        ("reason", ctypes.c_uint32),
        ("interface", ctypes.c_uint32),
    ]


class _Drop(ctypes.Structure):
    _fields_ = [
        ("cause", _Cause),
        ("family", ctypes.c_uint16),
        ("port", ctypes.c_uint16),
        ("source", ctypes.c_uint8 * 16),
        ("unused", ctypes.c_uint32),
    ]


def _interface(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"if{index}"


def _source(drop: _Drop) -> str:
    raw = bytes(drop.source)
    if drop.family == IPV4_PROTOCOL:
        return socket.inet_ntop(socket.AF_INET, raw[:4])
    return socket.inet_ntop(socket.AF_INET6, raw)


@contextmanager
def _headers() -> Iterator[None]:
    """bcc told to take our headers for the kernel's."""
    name = "BCC_KERNEL_SOURCE"
    before = os.environ.get(name)
    with tempfile.TemporaryDirectory(prefix="ntpguard-") as directory:
        for header, text in program.HEADERS.items():
            path = Path(directory, "include", header)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        os.environ[name] = directory
        try:
            yield
        finally:
            del os.environ[name]
            if before is not None:
                os.environ[name] = before


@contextmanager
def _stop() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM: KeyboardInterrupt would be lost in bcc's callback."""
    signals: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {one: signal.signal(one, lambda number, _: signals.append(number)) for one in numbers}
    try:
        yield signals
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _require_capabilities() -> None:
    """Raises PermissionNeeded; bcc's own error would speak of compiling."""
    (line,) = re.findall(r"^CapEff:\s*(\w+)$", Path("/proc/self/status").read_text(), re.M)
    held = int(line, 16)
    missing = [name for name, bit in CAPABILITIES.items() if not held >> bit & 1]
    if missing and not held >> CAP_SYS_ADMIN & 1:
        raise PermissionNeeded(
            f"trace: not permitted: needs {' and '.join(missing)}: run it as root"
        )


def _load(flags: list[str]) -> Any:
    """The program, compiled by bcc and attached."""
    try:
        from bcc import BPF
    except ImportError:
        raise NtpguardError("trace needs bcc: try apt install python3-bpfcc") from None
    _require_capabilities()
    try:
        with _headers():
            return BPF(text=program.SOURCE.read_text(encoding="utf-8"), cflags=flags)
    except Exception as error:  # bcc raises nothing more specific
        raise NtpguardError(f"trace: bcc cannot load its program here: {error}") from None


class _Watch:
    """A loaded program, and what has come out of it."""

    def __init__(self, port: int) -> None:
        types = btf.read_types()
        flags = program.definitions(types, port, bpffs.cookie())
        self.reasons = types.enumerators("skb_drop_reason")
        self.bpf = _load(flags)
        self.pending: list[_Drop] = []
        self.bpf["drops"].open_ring_buffer(self._received)

    def _received(self, _: object, data: int, __: int) -> None:
        copy = _Drop()
        ctypes.memmove(ctypes.byref(copy), data, ctypes.sizeof(copy))
        self.pending.append(copy)

    def reason(self, cause: _Cause) -> str:
        """Linux's name for the reason; "-" where the kernel gives none."""
        name = self.reasons.get(cause.reason)
        if name is None:
            return f"{cause.reason:#x}" if cause.reason else "-"
        return name.removeprefix(REASON_PREFIX)

    def where(self, cause: _Cause) -> str:
        """The kernel function that dropped."""
        return str(self.bpf.ksym(cause.location).decode())

    def by_the_guard(self, cause: _Cause) -> bool:
        """In skb mode it is the stack that drops for XDP: that packet was never passed."""
        return self.reason(cause) == "XDP" or "_xdp" in self.where(cause)

    def refill(self) -> None:
        """Allows another second's worth of lines."""
        self.bpf["budget"][ctypes.c_int(0)] = ctypes.c_longlong(LINES_PER_SECOND)

    def take(self) -> list[_Drop]:
        """The drops since the last call, waited for a moment."""
        self.bpf.ring_buffer_poll(POLL_MILLISECONDS)
        taken, self.pending = self.pending, []
        kept = []
        for drop in taken:
            if self.by_the_guard(drop.cause):
                ignored = ctypes.c_ulonglong(drop.cause.location)
                self.bpf["ignored"][ignored] = ctypes.c_ubyte(1)
            else:
                kept.append(drop)
        return kept

    def line(self, drop: _Drop) -> str:
        """One drop, as a line of the table."""
        return LINE.format(
            datetime.now().strftime("%H:%M:%S.%f")[:12],
            _source(drop),
            socket.ntohs(drop.port),
            _interface(drop.cause.interface),
            self.reason(drop.cause),
            self.where(drop.cause),
        )

    def sums(self) -> Counter[tuple[str, str, str]]:
        """(interface, reason, function) -> drops, exact."""
        sums: Counter[tuple[str, str, str]] = Counter()
        for key, count in self.bpf["causes"].items():
            cause = _Cause(key.location, key.reason, key.interface)
            if not self.by_the_guard(cause):
                key = (_interface(cause.interface), self.reason(cause), self.where(cause))
                sums[key] += count.value
        return sums


def run(seconds: float | None, echo: Callable[[str], None], *, port: int = NTP_PORT) -> None:
    """Echoes NTP requests that the stack dropped after the guard passed them, and why, until
    `seconds` have passed, SIGINT or SIGTERM; then their sum by interface, reason and function.

    Only packets received in this network namespace. At most 50 lines a second; the sum is exact.
    Raises NtpguardError where bcc or the kernel's BTF is missing, PermissionNeeded without root.
    """
    watch = _Watch(port)
    end = None if seconds is None else time.monotonic() + seconds
    shown, refill, last = 0, 0.0, False
    try:
        with _stop() as signals:
            watch.refill()  # before the header: who reads it may send at once
            echo(LINE.format("TIME", "SOURCE", "PORT", "INTERFACE", "REASON", "WHERE"))
            while not last:
                # once more after the end, for what is still on its way
                last = bool(signals) or (end is not None and time.monotonic() >= end)
                if time.monotonic() >= refill:
                    watch.refill()
                    refill = time.monotonic() + 1
                for drop in watch.take():
                    shown += 1
                    echo(watch.line(drop))
        sums = watch.sums()
    finally:
        watch.bpf.cleanup()
    echo("")
    echo(SUM.format("DROPPED", "INTERFACE", "REASON", "WHERE"))
    for (interface, reason, where), count in sums.most_common():
        echo(SUM.format(count, interface, reason, where))
    echo(f"{sums.total():>10}  in total, {shown} of them shown above")
