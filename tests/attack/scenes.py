"""Attacks on the real program, on the virtual clock, and what honest sources get meanwhile."""

import random
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.attack.drive import ANSWERED, Lane, guarded
from tests.bpf.guard import Guard
from tests.bpf.packets import IPV4, IPV6, Frame, ntp

SPACING = 110.0  # seconds, of requests that establish a source
ATTACK_AT = 1000.0  # seconds after the start
SPOOFED_PER_SECOND = 200.0
Source = Callable[[int], bytes]  # of the attack's packet of that number


def ipv4(net: int) -> Source:
    """The address of a number in a net."""
    return lambda number: struct.pack("!I", net + number)


ESTABLISHED, NEWCOMERS, VICTIMS = ipv4(0x0B000000), ipv4(0x0C000000), ipv4(0x0D000000)
FORGED = 0x20000000


@dataclass(frozen=True)
class Crowd:
    """The honest: how many established ones poll every 64 s, how many new ones a second start with
    four requests 2 s apart and poll on, how many victims poll while a forger sends in their name.
    """

    established: int = 3000
    newcomers_per_second: float = 50
    victims: int = 8
    victim_polls_every: float = 0.5


@dataclass(frozen=True)
class Attack:
    """One attack. `source` gives the source of each of its packets."""

    name: str
    frame: Frame
    source: Source
    per_second: float
    seconds: float
    before: float = 0.0  # seconds that it runs before anyone is counted
    scale: str = ""
    capacity: int = 262_144
    ceiling: int | None = None
    warm: Callable[[Guard, random.Random], float] | None = None  # returns when it ended
    crowd: Crowd = field(default_factory=Crowd)


@dataclass(frozen=True)
class Outcome:
    """Of each kind's requests the share answered, in percent; packets a second."""

    established: float
    first: float
    later: float
    victim: float
    offered_per_second: float
    passed_per_second: float
    replaced: int
    full: int
    gated: int
    slots: int


def _honest(attack: Attack, start: float, chosen: random.Random) -> list[tuple[float, str, bytes]]:
    """Everything but the attack, in order: (time, kind, source)."""
    crowd = attack.crowd
    end = start + attack.before + attack.seconds
    events: list[tuple[float, str, bytes]] = []
    for number in range(crowd.established):
        at = start - 64 + chosen.uniform(0, 64)
        while at < end:
            events.append((at, "established", ESTABLISHED(number)))
            at += 64
    for number in range(int(crowd.newcomers_per_second * (end - start))):
        at = start + chosen.uniform(0, end - start)
        events.append((at, "first", NEWCOMERS(number)))
        events += [(at + 2 * i, "later", NEWCOMERS(number)) for i in (1, 2, 3)]
    for number in range(crowd.victims):
        at = start - 40 + chosen.uniform(0, 1)
        while at < end:
            events.append((at, "spoofed", VICTIMS(number)))
            at += 1 / SPOOFED_PER_SECOND
        at = start + chosen.uniform(0, 1)
        while at < end:
            events.append((at, "victim", VICTIMS(number)))
            at += crowd.victim_polls_every * chosen.uniform(0.9, 1.1)
    return sorted(event for event in events if event[0] < end)


def establish(lane: Lane, sources: list[bytes], start: float = 0.0, per_second: float = 1000) -> None:
    """Four well-spaced requests of each."""
    for step in range(4):
        for number, source in enumerate(sources):
            lane.send(start + step * max(SPACING, len(sources) / per_second) + number / per_second, source)


def run(attack: Attack, seed: int = 1) -> Outcome:
    """Runs one attack over a fresh table."""
    chosen = random.Random(seed)
    with guarded(attack.capacity, ceiling=attack.ceiling) as one:
        honest = Lane(one, IPV4, chosen)
        crowd = attack.crowd
        establish(
            honest,
            [ESTABLISHED(n) for n in range(crowd.established)]
            + [VICTIMS(n) for n in range(crowd.victims)],
        )
        start = ATTACK_AT
        if attack.warm:
            start = max(start, attack.warm(one, chosen) + 64)
        flood = Lane(one, attack.frame, chosen)
        counted_from = start + attack.before
        asked: Counter[str] = Counter()
        answered: Counter[str] = Counter()
        sent = 0

        def attack_until(at: float) -> None:
            nonlocal sent
            while (now := start + sent / attack.per_second) < at:
                code = flood.send(now, attack.source(sent))
                sent += 1
                if now >= counted_from:
                    asked["attack"] += 1
                    answered["attack"] += code == ANSWERED

        for at, kind, source in _honest(attack, start, chosen):
            if at >= start and attack.per_second:
                attack_until(at)
            code = honest.send(at, source)
            if at >= counted_from:
                asked[kind] += 1
                answered[kind] += code == ANSWERED
        if attack.per_second:
            attack_until(counted_from + attack.seconds)
        counters = one.table_counters()

        def percent(kind: str) -> float:
            return round(100 * answered[kind] / asked[kind], 2) if asked[kind] else 100.0

        return Outcome(
            established=percent("established"),
            first=percent("first"),
            later=percent("later"),
            victim=percent("victim"),
            offered_per_second=round(asked.total() / attack.seconds),
            passed_per_second=round(answered.total() / attack.seconds),
            replaced=sum(counters.replaced),
            full=counters.full,
            gated=counters.gated,
            slots=sum(counters.inserted) - sum(counters.replaced),
        )


def shuffled(count: int, net: int = FORGED) -> Source:
    """Each of `count` (a power of two) sources once in each round, in an order that looks random."""
    return lambda number: struct.pack("!I", net + (number * 0x9E3779B1 + 7) % count)


def hopping(number: int) -> bytes:
    """Another /64 of one /48 for each packet."""
    return bytes.fromhex("20010db80012") + struct.pack("!H", number * 40503 & 0xFFFF) + bytes(8)


def slotted(sources: int) -> Callable[[Guard, random.Random], float]:
    """Gives the forged sources their slots, slowly enough for the gate."""

    def warm(one: Guard, chosen: random.Random) -> float:
        lane, forged = Lane(one, IPV4, chosen), ipv4(FORGED)
        for number in range(sources):
            lane.send(ATTACK_AT + number / 3000, forged(number))
        return ATTACK_AT + sources / 3000

    return warm


def patient(sources: int, per_second: float) -> Callable[[Guard, random.Random], float]:
    """Makes so many forged sources established, slowly enough for the gate not to bite."""

    def warm(one: Guard, chosen: random.Random) -> float:
        lane = Lane(one, IPV4, chosen)
        forged = ipv4(FORGED)
        establish(lane, [forged(n) for n in range(sources)], ATTACK_AT, per_second)
        return ATTACK_AT + 4 * max(SPACING, sources / per_second)

    return warm


def attacks(scale: float = 1.0) -> list[Attack]:
    """All of them; `scale` shortens them."""
    seconds = 10 * scale
    options = IPV4.but(options=bytes(8))
    over = dict(
        frame=IPV4,
        source=shuffled(16_384),
        per_second=80_000.0,
        seconds=seconds,
        before=9.0,  # until their bursts are spent
        warm=slotted(16_384),
    )
    within = dict(frame=IPV4, source=shuffled(1 << 20), per_second=100_000.0, seconds=seconds)
    hop = dict(frame=IPV6, source=hopping, per_second=100_000.0, seconds=seconds, before=17.0 * scale)
    slots = 2 * 16_384
    return [
        Attack("nothing", IPV4, lambda _: b"", 0, seconds),
        Attack("1 M over-limit spoofed sources", **over, scale="16,384 sources of 5 packets a second"),
        Attack(
            "1 M over-limit spoofed sources, ceiling",
            **over,
            ceiling=10_000,
            scale="16,384 sources of 5 packets a second; ceiling 10,000 a second",
        ),
        Attack("1 M within-burst spoofed sources", **within),
        Attack("1 M within-burst spoofed sources, ceiling", **within, ceiling=20_000),
        Attack("mode-4 flood", IPV4.but(payload=ntp(mode=4)), ipv4(FORGED), 100_000, seconds / 2),
        Attack("options flood, one source", options, lambda _: struct.pack("!I", FORGED), 50_000, seconds / 2),
        Attack("options flood, forged sources", options, shuffled(1 << 20), 100_000, seconds / 2),
        Attack("fragment flood", IPV4.but(fragment=0x2000), ipv4(FORGED), 100_000, seconds / 2),
        Attack("hopping inside a /48", **hop),
        Attack("hopping inside a /48, ceiling", **hop, ceiling=20_000),
        Attack(
            "patient forger, then idle",
            IPV4,
            ipv4(FORGED),
            0,
            seconds,
            capacity=16_384,
            warm=patient(2 * slots, 250.0),
            crowd=Crowd(established=500),
        ),
        Attack(
            "patient forger, then a flood of new sources",
            IPV4,
            shuffled(1 << 20, 0x40000000),
            100_000,
            seconds / 2,
            capacity=16_384,
            warm=patient(2 * slots, 250.0),
            crowd=Crowd(established=500),
        ),
    ]
