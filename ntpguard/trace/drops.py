"""Drops, watched: a line for each, as far as a terminal can follow, then an exact sum."""

import ctypes
import os
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final

from ntpguard.errors import NtpguardError, PermissionNeeded
from ntpguard.kernel import bpffs, capabilities
from ntpguard.kernel.sockets import udp_sockets
from ntpguard.policy.kinds import Network
from ntpguard.trace import btf, program
from ntpguard.trace.outcome import Cause, Outcome, Sockets, lines

NTP_PORT: Final = 123
LINES_PER_SECOND: Final = 50
POLL_MILLISECONDS: Final = 100
CAPABILITIES: Final = ("CAP_BPF", "CAP_PERFMON")
IPV4_PROTOCOL: Final = socket.htons(0x0800)
REASON_PREFIX: Final = "SKB_DROP_REASON_"
LINE: Final = "{:12}  {:39}  {:>5}  {:15}  {:20}  {}"
KALLSYMS: Final = Path("/proc/kallsyms")
HIDDEN: Final = (
    "kernel addresses are hidden (kernel.kptr_restrict is 2): functions have no names, and what "
    "the guard drops in skb mode shows as the stack's: try sysctl -w kernel.kptr_restrict=1"
)


@dataclass(frozen=True)
class Drop:
    """One request that the stack dropped."""

    time: datetime
    source: str
    port: int
    cause: Cause


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
    missing = capabilities.missing(CAPABILITIES)
    if missing:
        raise PermissionNeeded(
            f"trace: not permitted: needs {' and '.join(missing)}: run it as root"
        )


def _require_bcc() -> None:
    try:
        import bcc
    except ImportError:
        raise NtpguardError("trace needs bcc: try apt-get install python3-bpfcc") from None
    if not hasattr(bcc, "BPF"):
        raise NtpguardError(
            f"{bcc.__file__}: not the BPF Compiler Collection: PyPI's bcc is another package: try "
            "pip uninstall bcc, and apt-get install python3-bpfcc"
        )


def _load(flags: list[str]) -> Any:
    """The program, compiled by bcc and attached."""
    from bcc import BPF

    _require_capabilities()
    try:
        with _headers():
            return BPF(text=program.SOURCE.read_text(encoding="utf-8"), cflags=flags)
    except Exception as error:  # bcc raises nothing more specific
        raise NtpguardError(f"trace: bcc cannot load its program here: {error}") from None


class _Watch:
    """A loaded program, and what has come out of it."""

    def __init__(self, port: int, only: Network | None) -> None:
        _require_bcc()
        types = btf.read_types()
        flags = program.definitions(types, port, bpffs.cookie(), only)
        self._sees_reads = only is None and program.can_see_reads(types)
        self._knows_reasons = program.knows_reasons(types)
        self.reasons = types.enumerators("skb_drop_reason")
        self.bpf = _load(flags)
        self.pending: list[_Drop] = []
        self.bpf["drops"].open_ring_buffer(self._received)

    def _received(self, _: object, data: int, __: int) -> None:
        copy = _Drop()
        ctypes.memmove(ctypes.byref(copy), data, ctypes.sizeof(copy))
        self.pending.append(copy)

    def cause(self, raw: _Cause) -> Cause:
        """A cause in the kernel's words."""
        name = self.reasons.get(raw.reason)
        if name is not None:
            name = name.removeprefix(REASON_PREFIX)
        elif raw.reason:
            name = f"{raw.reason:#x}"
        return Cause(_interface(raw.interface), name, self.bpf.ksym(raw.location).decode())

    def refill(self) -> None:
        """Allows another second's worth of lines."""
        self.bpf["budget"][ctypes.c_int(0)] = ctypes.c_longlong(LINES_PER_SECOND)

    def take(self) -> list[Drop]:
        """The drops since the last call, waited for a moment."""
        self.bpf.ring_buffer_poll(POLL_MILLISECONDS)
        taken, self.pending = self.pending, []
        kept = []
        for drop in taken:
            cause = self.cause(drop.cause)
            if _by_the_guard(cause):
                ignored = ctypes.c_ulonglong(drop.cause.location)
                self.bpf["ignored"][ignored] = ctypes.c_ubyte(1)
            else:
                now = datetime.now(UTC)
                kept.append(Drop(now, _source(drop), socket.ntohs(drop.port), cause))
        return kept

    def outcome(self) -> Outcome:
        """All that was counted."""
        counted, answered = (int(one.value) for one in self.bpf["fates"].values())
        read = counted if self._sees_reads else None
        delays = tuple(int(one.value) for one in self.bpf["delays"].values())
        return Outcome(self._sums(), read, answered, delays, self._knows_reasons)

    def _sums(self) -> Counter[Cause]:
        """Cause -> drops, exact."""
        sums: Counter[Cause] = Counter()
        for key, count in self.bpf["causes"].items():
            cause = self.cause(_Cause(key.location, key.reason, key.interface))
            if not _by_the_guard(cause):
                sums[cause] += count.value
        return sums


def _by_the_guard(cause: Cause) -> bool:
    """In skb mode it is the stack that drops for XDP: that packet was never passed."""
    return cause.reason == "XDP" or "_xdp" in cause.function


def addresses_hidden(symbols: Path = KALLSYMS) -> bool:
    """Whether the kernel shows 0 for every address (kernel.kptr_restrict = 2)."""
    try:
        with symbols.open(encoding="ascii", errors="replace") as lines:
            # the first symbols of a kernel can truly be at 0
            return not any(int(line.split()[0], 16) for line in islice(lines, 1000))
    except OSError:
        return True


def watch(
    seconds: float | None,
    show: Callable[[Drop], None],
    *,
    port: int = NTP_PORT,
    only: Network | None = None,
    ready: Callable[[], None] = lambda: None,
) -> Outcome:
    """Shows NTP requests that the stack dropped after the guard passed them, until `seconds` have
    passed, SIGINT or SIGTERM. Returns what became of all requests, or of those from a prefix.

    Only packets received in this network namespace. At most 50 are shown in a second; the sum is
    exact. `ready` is called once drops are seen. Raises NtpguardError where bcc or the kernel's BTF
    is missing, PermissionNeeded without root.
    """
    watched = _Watch(port, only)
    end = None if seconds is None else time.monotonic() + seconds
    refill, last = 0.0, False
    try:
        with _stop() as signals:
            watched.refill()  # before ready: who hears it may send at once
            ready()
            while not last:
                # once more after the end, for what is still on its way
                last = bool(signals) or (end is not None and time.monotonic() >= end)
                if time.monotonic() >= refill:
                    watched.refill()
                    refill = time.monotonic() + 1
                for drop in watched.take():
                    show(drop)
        return watched.outcome()
    finally:
        watched.bpf.cleanup()


def run(
    seconds: float | None,
    echo: Callable[[str], None],
    *,
    port: int = NTP_PORT,
    only: Network | None = None,
) -> None:
    """As watch(), for people: a line for each drop shown, then the sum."""
    shown = 0

    def show(drop: Drop) -> None:
        nonlocal shown
        shown += 1
        when = drop.time.astimezone().strftime("%H:%M:%S.%f")[:12]
        cause = drop.cause
        reason = cause.reason or "-"
        echo(LINE.format(when, drop.source, drop.port, cause.interface, reason, cause.function))

    def header() -> None:
        echo(LINE.format("TIME", "SOURCE", "PORT", "INTERFACE", "REASON", "WHERE"))

    with observed_sockets(port) as own:
        found = watch(seconds, show, port=port, only=only, ready=header)
    echo("")
    for line in lines(found, own(), shown, only is None):
        echo(line)


@contextmanager
def observed_sockets(port: int = NTP_PORT) -> Iterator[Callable[[], Sockets | None]]:
    """What the daemon's sockets say after the block, compared with before it; None: the kernel does
    not tell.
    """
    found: list[Sockets] = []
    try:
        before = udp_sockets((port,))
    except OSError:
        yield lambda: None
        return
    yield lambda: found[0] if found else None
    found.append(Sockets.between(before, udp_sockets((port,))))
