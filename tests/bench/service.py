"""Service: who is answered while an attack runs. A real daemon, the flood and the guard share one core.

Known clients have asked for a while when the attack begins, newcomers ask once, during it. Both keep
to the policy. The attack's frames are made on the same core: it is the load that a network card's
interrupts are, and more.
"""

import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ntpguard.kernel import libbpf
from tests.bench.load import Stream, Wire, pinned_to, request
from tests.bench.report import Progress, Rounds, save, table
from tests.bench.subjects import Subject, hashlimit, nft, nothing, ntpguard, xdp
from tests.bpf.packets import ntp
from tests.lab.lab import PEERS, SERVER, Daemon, set_buffer

MILLION = 1_000_000
RATES = (0.4 * MILLION, 0.8 * MILLION, 1.5 * MILLION, 0)  # packets a second; 0: flat out
SECONDS = 0.5
ONSET = 0.3  # seconds, which are counted apart: bursts pass, and fill the daemon's socket
SYS_SCHED_SETATTR, SLICE_NS = 314, 100_000  # x86-64; the shortest there is
BUFFER = 4 << 20  # what doctor asks for
KNOWN = Stream(
    request(), sources=2_000, first=198 << 24 | 18 << 16, per_second=1_000, in_order=True
)
NEWCOMERS = Stream(
    request(), sources=65_536, first=198 << 24 | 19 << 16, per_second=500, in_order=True
)
ESTABLISHING = replace(KNOWN, per_second=1_700)  # each of them every 1.2 seconds
ESTABLISHED_AFTER = 6.0
ENFORCE = 'mode = "enforce"\n[newcomers]\nestablished_after = "3s"\n'
CEILING = '[ceiling]\nrate = "20000/second"\n'
NOPS = bytes([1, 1, 1, 0])

ATTACKS = {
    "one source": Stream(request()),
    "1,000 sources": Stream(request(), sources=1_000),
    "1 M spoofed": Stream(request(), sources=MILLION),
    "16 M spoofed": Stream(request(), sources=16 * MILLION),
    "mode 4": Stream(request(payload=ntp(mode=4, stratum=2)), sources=MILLION),
    "options": Stream(request(options=NOPS), sources=1_000),
    "fragments": Stream(request(fragment=0x2000), sources=1_000),
    "hopping in a /48": Stream(request(ipv6=True), sources=65_536, first=0x004A0000),
    "bursts of 20 k": Stream(request(), sources=1_000, burst=20_000),
}
EVERY_RATE = ("one source", "1 M spoofed")
SOME = ("one source", "1,000 sources", "1 M spoofed")


@dataclass(frozen=True)
class Answered:
    """Shares of requests that were answered; the attack's packets a second."""

    onset: float  # of known clients
    known: float
    newcomers: float
    per_second: float


def chronyd(more: str = "", buffer: int = 0) -> Callable[[Wire], Daemon]:
    """The usual daemon; with a larger receive buffer, as net.core.rmem_default would give it."""

    def started(wire: Wire) -> Daemon:
        daemon = wire.chronyd(SERVER, "server", f"allow\nlocal stratum 8\n{more}")
        if buffer:
            set_buffer(daemon.process.pid, buffer)
        return daemon

    return started


def ntpd(wire: Wire) -> Daemon:
    """NTPsec with its own limiter, as its documentation has it."""
    directory = wire.directory / "ntpd"
    directory.mkdir(exist_ok=True)
    file = directory / "ntp.conf"
    file.write_text("disable ntp\nrestrict default limited kod\n")
    command = [str(PEERS / "usr/sbin/ntpd"), "-n", "-c", str(file)]
    return wire.start(SERVER, "ntpd", command, {})


@dataclass(frozen=True)
class Server:
    """A daemon and what stands before it; what it has to bear."""

    daemon: Callable[[Wire], Daemon]
    before: Subject = nothing
    attacks: tuple[str, ...] = SOME
    every_rate: tuple[str, ...] = ()


SERVERS = {
    "no limiter": Server(chronyd(), nothing, tuple(ATTACKS), EVERY_RATE),
    "perfect knowledge": Server(chronyd(), xdp("oracle", sweep=False)),
    "ntpguard": Server(chronyd(), ntpguard(ENFORCE, sweep=False), tuple(ATTACKS), EVERY_RATE),
    "ntpguard, ceiling": Server(
        chronyd(), ntpguard(ENFORCE + CEILING, sweep=False), tuple(ATTACKS), EVERY_RATE
    ),
    "no limiter, 4 MiB": Server(chronyd(buffer=BUFFER), nothing),
    "ntpguard, 4 MiB": Server(
        chronyd(buffer=BUFFER), ntpguard(ENFORCE, sweep=False), tuple(ATTACKS), EVERY_RATE
    ),
    "ntpguard, ceiling, 4 MiB": Server(
        chronyd(buffer=BUFFER), ntpguard(ENFORCE + CEILING, sweep=False), tuple(ATTACKS), EVERY_RATE
    ),
    # the same limit, as near as each can say it
    "chrony ratelimit": Server(
        chronyd("ratelimit interval 0 burst 32 leak 2\nclientloglimit 134217728")
    ),
    "ntpsec limited kod": Server(ntpd),
    "nft prerouting": Server(chronyd(), nft("prerouting", "1/second", 32)),
    "hashlimit": Server(chronyd(), hashlimit("1/second", 32)),
}


def served_promptly(daemon: Daemon) -> None:
    """A daemon that has something to do need not wait until the load has had its slice of the CPU, as
    it need not for a network card's interrupts (sched_setattr(2); a slice of one's own: Linux 6.12).
    """
    attributes = struct.pack("=IIQiIQQQ", 48, 0, 0, 0, 0, SLICE_NS, 0, 0)
    if libbpf.ctypes.CDLL(None).syscall(SYS_SCHED_SETATTR, daemon.process.pid, attributes, 0):
        raise OSError("sched_setattr")


@contextmanager
def serving(wire: Wire, server: Server) -> Iterator[None]:
    """The daemon and its guard, and clients that are known."""
    daemon = server.daemon(wire)
    served_promptly(daemon)
    try:
        with server.before(wire):
            deadline = time.monotonic() + 30
            while answered(wire, [replace(KNOWN, per_second=100)], 0.3).known < 0.5:
                if time.monotonic() > deadline:
                    raise AssertionError(daemon.log.read_text())
            answered(wire, [ESTABLISHING], ESTABLISHED_AFTER)
            yield
    finally:
        daemon.stop()
        wire.daemons.remove(daemon)


def answered(wire: Wire, streams: list[Stream], seconds: float, onset: float = 0) -> Answered:
    """Who is answered while the last stream runs, during `onset` and in the `seconds` after it."""
    before = wire.replies()
    begin, end = wire.mix(streams, seconds, onset)

    def share(index: int, kind: str, since: dict[str, tuple[int, int]], sent: int) -> float:
        return (end.replies[kind][0] - since[kind][0]) / max(1, end.sent.frames[index] - sent)

    last = min(1, len(streams) - 1)
    return Answered(
        onset=(begin.replies["known"][0] - before["known"][0]) / max(1, begin.sent.frames[0]),
        known=share(0, "known", begin.replies, begin.sent.frames[0]),
        newcomers=share(last, "newcomers", begin.replies, begin.sent.frames[last]),
        per_second=(end.sent.frames[-1] - begin.sent.frames[-1])
        / max(1, end.sent.ns - begin.sent.ns)
        * 1e9,
    )


def run(rounds: int, attacks: tuple[str, ...], seconds: float, cpu: int, keep: bool) -> None:
    """Measures, prints, saves."""
    pinned_to(cpu)
    figures, say = Rounds(), Progress()
    for number in range(rounds):
        for name, server in SERVERS.items():
            say(f"service, round {number + 1} of {rounds}: {name}")
            with (
                TemporaryDirectory() as directory,
                Wire(Path(directory)) as wire,
                serving(wire, server),
            ):
                for attack in server.attacks:
                    if attack in attacks:
                        suffer(wire, name, server, attack, seconds, figures)
    rows = [
        (
            server,
            attack,
            f"{figures.median(f'{key} rate') / MILLION:.2f}",
            f"{100 * figures.median(f'{key} onset'):.1f}",
            f"{100 * figures.median(f'{key} known'):.1f}",
            f"{100 * figures.median(f'{key} newcomers'):.1f}",
        )
        for server, attack, key in keys(figures)
    ]
    print(table(("server", "attack", "Mpps", "onset %", "known %", "newcomers %"), rows))
    result = [
        {
            "server": server,
            "attack": attack,
            "asked_per_second": None if key.endswith(" 0") else float(key.rpartition(" ")[2]),
            "packets_per_second": round(figures.median(f"{key} rate")),
            "known_answered_at_onset": round(figures.median(f"{key} onset"), 4),
            "known_answered": round(figures.median(f"{key} known"), 4),
            "newcomers_answered": round(figures.median(f"{key} newcomers"), 4),
        }
        for server, attack, key in keys(figures)
    ]
    save("service", {"seconds": seconds, "results": result}, rounds, keep)


def suffer(
    wire: Wire, name: str, server: Server, attack: str, seconds: float, figures: Rounds
) -> None:
    """One attack, at each of its rates."""
    rates = RATES if attack in server.every_rate else (RATES[1], RATES[-1])
    for rate in rates:
        newcomers = replace(NEWCOMERS, first=NEWCOMERS.first + wire.runs * 631 % 60_000)
        streams = [KNOWN, newcomers, replace(ATTACKS[attack], per_second=rate)]
        got = answered(wire, streams, seconds, ONSET)
        key = f"{name}|{attack}|{rate:.0f}".replace("|", " | ")
        figures.add(f"{key} onset", got.onset)
        figures.add(f"{key} known", got.known)
        figures.add(f"{key} newcomers", got.newcomers)
        figures.add(f"{key} rate", got.per_second)


def keys(figures: Rounds) -> Iterator[tuple[str, str, str]]:
    """Server, attack and key of everything measured."""
    for figure in figures.figures:
        if figure.endswith(" known"):
            key = figure.removesuffix(" known")
            server, attack, _ = key.split(" | ")
            yield server, attack, key
