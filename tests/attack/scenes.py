"""Attacks on the real program, on the virtual clock, and what honest sources get meanwhile."""

import random
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ntpguard import abi
from ntpguard.policy.check import DEFAULT
from ntpguard.policy.compile import GATE_SECONDS
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
    victims: int = 24
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
    new_per_second: float = 0.0  # of its packets those whose source has no slot yet
    tracked: float = 0.0  # of its packets those a second that conform, once it goes on
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
    stated: float  # a newcomer's share, by the policy's figures
    full: int  # requests that found every slot of their bucket kept
    gated: int
    forged_established: int  # slots of established forged sources


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


def establish(
    lane: Lane, sources: list[bytes], start: float = 0.0, per_second: float = 1000
) -> None:
    """Four well-spaced requests of each."""
    for step in range(4):
        for number, source in enumerate(sources):
            lane.send(
                start + step * max(SPACING, len(sources) / per_second) + number / per_second, source
            )


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
            per_second=min(1000.0, 0.8 * attack.capacity / GATE_SECONDS),
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
        forged = sum(
            abi.field(aux, abi.AUX_ESTABLISHED_SHIFT, 1)
            for key, _, aux, _ in (one.slots() if attack.capacity < 65_536 else ())
            if key & 0xFFFFFFFF >= FORGED
        )

        def percent(kind: str) -> float:
            return round(100 * answered[kind] / asked[kind], 1) if asked[kind] else 100.0

        passed = answered.total() / attack.seconds
        return Outcome(
            established=percent("established"),
            first=percent("first"),
            later=percent("later"),
            victim=percent("victim"),
            offered_per_second=round(asked.total() / attack.seconds),
            passed_per_second=round(passed),
            stated=round(100 * stated_share(attack), 1),
            full=counters.full,
            gated=counters.gated,
            forged_established=forged,
        )


def stated_share(attack: Attack) -> float:
    """What the policy promises a request of a source that has no slot, at least: its part of the gate
    and of [newcomers] rate, then of what the established leave of the ceiling (at its worst, everything
    that passed before is as low as it). The leak comes on top.
    """
    honest = attack.crowd.newcomers_per_second * 4 + attack.crowd.established / 64
    gate = attack.capacity / GATE_SECONDS
    newcomers = float(DEFAULT.newcomers_rate.per_second)
    admitted = gate + newcomers
    share = min(1.0, admitted / (attack.new_per_second + honest))
    if attack.ceiling:
        leaked = float(DEFAULT.leak_max.per_second)
        tracked = 0.0 if attack.new_per_second else min(attack.per_second, attack.tracked)
        before = min(admitted, attack.new_per_second) + tracked + leaked + honest
        share *= min(1.0, (attack.ceiling - attack.crowd.established / 64) / before)
    return share


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


@dataclass(frozen=True)
class Held:
    """What a patient forger holds of the table after so many waves."""

    waves: int
    packets: int
    minutes: float
    slots_percent: float  # of all slots, held by its established sources
    sets_percent: float  # of all sets of two buckets, held whole: a newcomer there finds no slot


def patience(at: tuple[int, ...] = (1, 2, 4, 8, 16), capacity: int = 4096) -> list[Held]:
    """A forger alone that makes a quarter of a table's slots established at a time, four requests to
    each new source, slower than the gate, and every half hour sends one to each it has, to keep them. (More at
    a time, and they replace one another before they are established.)
    """
    found: list[Held] = []
    batch, pace = capacity * 2 // 4, 0.9 * capacity / GATE_SECONDS
    with guarded(capacity) as one:
        lane, forged = Lane(one, IPV4, random.Random(1)), ipv4(FORGED)
        now, packets, refreshed = 0.0, 0, 0.0
        for wave in range(max(at)):
            numbers = range(wave * batch, (wave + 1) * batch)
            for _ in range(4):
                begun = now
                for number in numbers:
                    lane.send(now, forged(number))
                    now += 1 / pace
                packets += batch
                now = max(now, begun + SPACING)
            held = [
                key & 0xFFFFFFFF
                for key, _, aux, _ in one.slots()
                if abi.field(aux, abi.AUX_ESTABLISHED_SHIFT, 1)
            ]
            if now - refreshed > 1800:
                refreshed = now
                packets += len(held)
                for address in held:
                    lane.send(now, struct.pack("!I", address))
                    now += 1 / pace
            if wave + 1 in at:
                full = [
                    all(abi.field(aux, abi.AUX_ESTABLISHED_SHIFT, 1) for aux in bucket.aux)
                    for bucket in one.sources
                ]
                sets = [*zip(full[::2], full[1::2], strict=True)]
                slots = len(one.sources) * abi.WAYS
                found.append(
                    Held(
                        wave + 1,
                        packets,
                        round(now / 60, 1),
                        round(100 * len(held) / slots, 1),
                        round(100 * sum(map(all, sets)) / len(sets), 1),
                    )
                )
    return found


def attacks(scale: float = 1.0) -> list[Attack]:
    """All of them; `scale` shortens them."""
    seconds = 10 * scale
    million, capacity, slots = 1 << 20, 16_384, 32_768
    over: dict[str, Any] = {
        "frame": IPV4,
        "source": shuffled(16_384),
        "per_second": 80_000.0,
        "seconds": seconds,
        "before": 9.0,  # until their bursts are spent
        "warm": slotted(16_384),
        "tracked": 16_384,
    }
    within: dict[str, Any] = {
        "frame": IPV4,
        "source": shuffled(million),
        "per_second": 100_000.0,
        "seconds": seconds,
        "new_per_second": 100_000.0,
    }
    hop: dict[str, Any] = within | {
        "frame": IPV6,
        "source": hopping,
        "before": 17.0,  # until every /64 has its slot
        "new_per_second": 0.0,
        "tracked": 100_000,  # their bursts last a minute
    }
    patience: dict[str, Any] = {
        "frame": IPV4,
        "seconds": seconds,
        "capacity": capacity,
        "warm": patient(slots, 250.0),
        "crowd": Crowd(established=500),
        "scale": "a table for 16,384 sources, 500 established ones",
    }
    one = struct.pack("!I", FORGED)
    scaled = "16,384 sources of 5 packets a second each"
    return [
        Attack("none but on the victim", IPV4, lambda _: one, 0, seconds),
        Attack("over-limit forged sources", **over, scale=scaled),
        Attack("over-limit forged sources, ceiling 10,000/s", **over, ceiling=10_000, scale=scaled),
        Attack("1 M within-burst forged sources", **within),
        Attack("1 M within-burst forged sources, ceiling 20,000/s", **within, ceiling=20_000),
        Attack(
            "mode-4 flood",
            **within | {"frame": IPV4.but(payload=ntp(mode=4)), "new_per_second": 0},
        ),
        Attack(
            "options flood, one source",
            IPV4.but(options=bytes(8)),
            lambda _: one,
            100_000,
            seconds,
        ),
        Attack("options flood, 1 M sources", **within | {"frame": IPV4.but(options=bytes(8))}),
        Attack(
            "fragment flood",
            **within | {"frame": IPV4.but(fragment=0x2000), "new_per_second": 0},
        ),
        Attack("hopping inside a /48", **hop),
        Attack("hopping inside a /48, ceiling 20,000/s", **hop, ceiling=20_000),
        Attack("patient forger, idle after", **patience, source=lambda _: one, per_second=0),
        Attack(
            "patient forger, then 1 M sources",
            **patience,
            source=shuffled(million, 0x40000000),
            per_second=100_000,
            new_per_second=100_000,
        ),
    ]
