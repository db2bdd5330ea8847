"""A whole capture under one policy, or under two side by side: what each would have done."""

import heapq
import ipaddress
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import BinaryIO

from ntpguard.errors import UsageError
from ntpguard.keys import source_of_key
from ntpguard.policy.kinds import Address
from ntpguard.policy.model import Policy
from ntpguard.replay.capture import ETHERNET, CaptureError, Damaged, packets
from ntpguard.replay.frame import Datagram, datagram, to_ethernet
from ntpguard.replay.judge import Judge, Source, judging
from ntpguard.replay.outcome import Met, Outcome, Result, SourceChange, Traffic
from ntpguard.words import Reason, Verdict

START_NS = 1000 * 10**9  # the program's clock at the first packet; at 0, nothing was ever before
LONGEST_NS = 1 << 57  # half of what the program's clock tells apart: four years
CLIENT_MODE = 3
FEW = 16  # senders: who has more is no server's upstream
MOST_SERVERS = 512
MOST_DESTINATIONS = 1 << 16
REPORT_EVERY = 4096  # packets between two reports of progress

Progress = Callable[[int], None]  # is told how many bytes were read since


def passes(servers: Sequence[Address]) -> int:
    """How many times the capture is read."""
    return 1 if servers else 2


def replay(
    path: Path,
    policies: Sequence[Policy],
    *,
    servers: Sequence[Address] = (),
    seed: int = 0,
    top: int = 10,
    progress: Progress = lambda done: None,
) -> Result:
    """Judges the capture at `path` under one or two policies, each as if in mode enforce.

    `servers`: the addresses of the captured host; found in the capture if there are none. The same
    seed gives the same result. `top`: so many sources are told.

    Raises UsageError if the file cannot be read, CaptureError if there is nothing in it to judge,
    PermissionNeeded, NtpguardError.
    """
    ports = frozenset(port for one in policies for port in one.ports)
    if not servers:
        if not path.is_file() and path.exists():
            raise UsageError(f"{path}: no regular file, to be read twice: give --server ADDRESS")
        with _opened(path) as file:
            servers = _find_servers(file, path.name, ports, progress)
    traffic = Traffic(tuple(servers))
    with ExitStack() as held:
        judges = [held.enter_context(judging(one, servers, seed)) for one in policies]
        file = held.enter_context(_opened(path))
        _feed(file, path.name, traffic, ports, judges, Random(seed), progress)
        if not any(one.judged for one in judges):
            raise CaptureError(_nothing(path.name, traffic, ports))
        outcomes = [_outcome(one, top) for one in judges]
        changes = _changes(judges[0], judges[1], top) if len(judges) == 2 else ()
    return Result(traffic, outcomes[0], outcomes[1] if len(outcomes) > 1 else None, changes)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise UsageError(f"{path}: cannot read: {error.strerror}") from None
    with file:
        yield file


def _datagrams(
    file: BinaryIO, name: str, traffic: Traffic, progress: Progress
) -> Iterator[tuple[int | None, bytes, Datagram | None]]:
    """Time in ns, Ethernet frame and what is in it, of each packet; counts packets and damage."""
    position = 0
    seekable = file.seekable()
    try:
        for time_ns, link, data, length in packets(file, name):
            traffic.packets += 1
            if seekable and traffic.packets % REPORT_EVERY == 0:
                before, position = position, file.tell()
                progress(position - before)
            frame = data if link == ETHERNET else to_ethernet(link, data)
            yield time_ns, frame, datagram(frame, len(data) >= length)
    except Damaged as damaged:
        traffic.damage = str(damaged)
    if not traffic.packets:
        raise CaptureError(traffic.damage or f"{name}: no packet in it: capture for longer")


def _find_servers(
    file: BinaryIO, name: str, ports: frozenset[int], progress: Progress
) -> list[Address]:
    """The destinations of requests, but for those that only the servers themselves ask: what they
    get their time from.
    """
    asked: dict[bytes, tuple[set[bytes], list[int]]] = {}
    for _, frame, one in _datagrams(file, name, Traffic(), progress):
        if one is None or one.port not in ports or len(frame) <= one.payload_at:
            continue
        if frame[one.payload_at] & 7 != CLIENT_MODE:
            continue
        if one.destination not in asked and len(asked) >= MOST_DESTINATIONS:
            continue
        senders, count = asked.setdefault(one.destination, (set(), [0]))
        count[0] += 1
        if len(senders) < FEW:
            senders.add(one.source)
    found: set[bytes] = set()
    order = sorted(asked, key=lambda one: (len(asked[one][0]), asked[one][1]), reverse=True)
    for address in order:
        senders, _ = asked[address]
        if len(senders) == FEW or not senders <= found:
            found.add(address)
    ordered = sorted(found, key=lambda one: (len(one), one))
    servers = [one for one in map(ipaddress.ip_address, ordered) if not one.is_multicast]
    shown = ", ".join(map(str, sorted(ports)))
    if not servers:
        raise CaptureError(
            f"{name}: no NTP request (mode 3 to port {shown}) in it that tells whose capture it "
            "is: if there is NTP in it, give --server ADDRESS"
        )
    if len(servers) > MOST_SERVERS:
        raise CaptureError(
            f"{name}: requests to {len(servers)} addresses: name the captured host's with "
            "--server ADDRESS"
        )
    return servers


def _feed(
    file: BinaryIO,
    name: str,
    traffic: Traffic,
    ports: frozenset[int],
    judges: Sequence[Judge],
    random: Random,
    progress: Progress,
) -> None:
    """Gives each packet to each judge, at the capture's time and with the same chance."""
    servers = frozenset(one.packed for one in traffic.servers)
    first_ns, elapsed_ns = None, 0
    for time_ns, frame, one in _datagrams(file, name, traffic, progress):
        if time_ns is None:
            traffic.untimed += 1
        elif first_ns is None:
            first_ns = time_ns
        elif time_ns - first_ns < elapsed_ns:
            traffic.backwards += 1
        else:
            elapsed_ns = time_ns - first_ns
            if elapsed_ns > LONGEST_NS:
                days = elapsed_ns // 10**9 // 86400
                raise CaptureError(
                    f"{name}: packet {traffic.packets} is {days} days after the first: "
                    "split the capture: editcap -i SECONDS"
                )
        if one is None:
            traffic.other += 1
        elif one.destination not in servers:
            traffic.sent += one.source in servers
            traffic.other += one.source not in servers
        elif one.cut and (one.port in ports or not one.payload_at):
            traffic.cut += 1
        else:
            now_ns, chance = START_NS + elapsed_ns, random.getrandbits(32)
            judged = [judge.judge(one, frame, now_ns, chance) for judge in judges]
            traffic.other += not any(judged)
    if first_ns is not None:
        traffic.first_ns, traffic.last_ns = first_ns, first_ns + elapsed_ns


def _nothing(name: str, traffic: Traffic, ports: frozenset[int]) -> str:
    shown = ", ".join(map(str, sorted(ports)))
    if traffic.cut:
        return (
            f"{name}: all {traffic.cut} packets to judge are cut before the end of their NTP "
            "header: capture with tcpdump -s 256"
        )
    servers = ", ".join(map(str, traffic.servers[:4]))
    return (
        f"{name}: no packet to port {shown} of {servers} in it: see ports and destinations of the "
        "policy, and --server"
    )


def _outcome(judge: Judge, top: int) -> Outcome:
    verdicts: dict[tuple[Verdict, Reason], int] = {}
    classes = {one.name: dict.fromkeys(Verdict, 0) for one in judge.policy.classes}
    names = list(classes)
    for cell in judge.counts().happened:
        key = (cell.verdict, cell.reason)
        verdicts[key] = verdicts.get(key, 0) + cell.packets
        classes[names[cell.class_index]][cell.verdict] += cell.packets
    return Outcome(
        judged=judge.judged,
        requests=judge.judged - judge.uncharged,
        verdicts=dict(sorted(verdicts.items())),
        classes=classes,
        sources=[_met(judge, one) for one in judge.top(top)],
        sources_seen=len(judge.sources) + judge.forgotten,
        sources_forgotten=judge.forgotten,
    )


def _met(judge: Judge, one: Source) -> Met:
    return Met(
        judge.name_of(one.key),
        one.requests,
        one.over,
        one.passed,
        one.kissed,
        one.dropped,
        one.rate,
        judge.signature_of(one),
    )


def _changes(first: Judge, second: Judge, top: int) -> tuple[SourceChange, ...]:
    """The sources whose verdicts differ most between two policies, the most first."""
    sides = [
        # of keys, only IPv4's say how long their prefix is
        {(key, judge.policy.ipv6_prefix): one for key, one in judge.sources.items()}
        for judge in (first, second)
    ]

    def difference(source: tuple[int, int]) -> int:
        one, other = (_verdicts(side.get(source)) for side in sides)
        return sum(abs(a - b) for a, b in zip(one, other, strict=True))

    differing = (one for one in sides[0].keys() | sides[1].keys() if difference(one))
    found = heapq.nsmallest(top, differing, key=lambda one: (-difference(one), one))
    changes = []
    for one in found:
        before, after = (
            _met(judge, side[one]) if one in side else Met(source_of_key(*one))
            for judge, side in zip((first, second), sides, strict=True)
        )
        changes.append(SourceChange(before, after))
    return tuple(changes)


def _verdicts(one: Source | None) -> tuple[int, int, int]:
    return (one.passed, one.kissed, one.dropped) if one else (0, 0, 0)
