"""What one seed makes: the control plane's changes and the packets, in their order."""

from dataclasses import dataclass, replace
from random import Random
from typing import Any

from ntpguard.abi import GCRA_UNIT_SHIFT as UNIT
from ntpguard.abi import KOD_UNIT_SHIFT as KOD
from ntpguard.abi import MARK_UNIT_SHIFT as MARK
from tests.bpf.packets import CLIENT_MAC, ETH_QINQ, ETH_VLAN, OTHER_MAC, Frame, ntp
from tests.model.frame import HOP_BY_HOP, ROUTING
from tests.model.model import Shape
from tests.model.policy import Policy, Root
from tests.model.world import (
    INTERVALS,
    SHAPES,
    Sources,
    some_addresses,
    some_entries,
    some_policy,
    some_prefixes,
    some_root,
    some_sources,
    temporary,
    tuned,
    with_flags,
)

SECOND_NS = 10**9
GCRA_WRAP_NS, KOD_WRAP_NS = 1 << 58, 1 << 44  # where 48 bits of gcra and 16 of kod units end
STARTS = (
    1000 * SECOND_NS,
    1 << 57,
    GCRA_WRAP_NS - 60 * SECOND_NS,
    KOD_WRAP_NS,
    KOD_WRAP_NS - 10 * SECOND_NS,
)
EVENT = 400  # packets between two changes, on average
DESTINATION, FRAGMENT = 60, 44
EXTENSION = bytes([0, 1, 4, 0, 0, 0, 0])  # PadN
TEMPO = (
    (0,),
    (0, 0, 0, 1, 999, 1024, 5000),
    (0, 1024, 10**5, 4 * 10**6),
    (0, 0, 10**6, 10**8, SECOND_NS),
    (0, 10**7, SECOND_NS, 2 * SECOND_NS, 16 * SECOND_NS),
    (0, 0, 0, 3 * SECOND_NS, 64 * SECOND_NS),
    (0,) * 40 + (3600 * SECOND_NS, 901 * SECOND_NS),
    (0, 0, 0, 0, SECOND_NS, 3 * SECOND_NS, 17600 * SECOND_NS),
    (0, 0, 2 * SECOND_NS, 2 * SECOND_NS, 3599 * SECOND_NS, 3600 * SECOND_NS, 3601 * SECOND_NS),
    (0, 0, 1 << KOD, 8 << KOD, 3351 << KOD, 3352 << KOD, 3353 << KOD),
    (0, 0, 0, 1 << MARK, 1 << MARK, 2 << MARK),
    # to the very unit when a limit has room again
    *((0, 0, unit << UNIT, unit << UNIT, 2 * unit << UNIT) for unit in INTERVALS[1:-1]),
)


@dataclass(frozen=True, slots=True)
class Packet:
    """A frame at a time with a chance."""

    clock_ns: int
    chance: int
    frame: bytes

    def __str__(self) -> str:
        return f"clock {self.clock_ns} ns, chance {self.chance:#x}, frame {self.frame.hex()}"


@dataclass(frozen=True, slots=True)
class Change:
    """A call of one of the `set_*` that model and program have."""

    name: str
    arguments: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.name}{self.arguments}"


Step = Packet | Change


@dataclass(frozen=True, slots=True)
class Template:
    """A frame and where its parts are that differ from packet to packet."""

    frame: bytes
    family: int
    source_at: int
    port_at: int
    transmit_at: int  # 0: it has none


def some_header(random: Random) -> bytes:
    """An NTP header."""
    mode = random.choice((3, 3, 3, 3, 3, 3, 0, 1, 2, 4, 5, 6, 7))
    version = random.choice((4, 4, 4, 3, 2, 1, 0, 5, 6, 7))
    return ntp(
        mode=mode,
        version=version,
        leap=random.randrange(4),
        stratum=random.choice((0, 2)),
        precision=random.choice((0x20, 0xEC)),
        poll=random.choice((0, 3, 6, 8, 10, 17, 127, -1, -128)),
        reference_id=random.choice((bytes(4), b"NICT")),
        reference=random.choice((bytes(8), b"NTP5NTP5")),
    )


def some_frame(random: Random, header: bytes) -> Frame:
    """A frame around a header: most are plain requests, each other thing comes now and then."""

    def rarely(usual: Any, *others: Any, share: float = 0.12) -> Any:
        return random.choice(others) if random.random() < share else usual

    ipv6 = random.random() < 0.5
    own, neighbour = ("2001:db8::1", "2001:db8::2") if ipv6 else ("198.51.100.1", "198.51.100.2")
    group = "ff02::101" if ipv6 else "224.0.1.1"
    payload = header + rarely(b"", b"x", bytes(20), bytes(range(72)), bytes(300))
    payload = payload[: rarely(len(payload), 0, 1, 12, 47)]
    chain = random.choice((1, 1, 2, 3, 7, 8, 8, 9))
    extension = rarely(EXTENSION, b"\x01" + bytes(13), b"\xff" + bytes(6))
    extensions = [(random.choice((HOP_BY_HOP, ROUTING, DESTINATION)), extension)] * chain
    extended = ipv6 and random.random() < 0.2
    protocol = rarely(17, 6, 1, 58, 44, share=0.04)
    if extended and random.random() < 0.3:
        extensions.append((FRAGMENT, bytes(7)))
        protocol = random.choice((17, 6, 58, 1, 7))
    return Frame(
        payload=payload,
        source="2001:db8:12::7" if ipv6 else "203.0.113.7",
        destination=rarely(own, neighbour, group),
        source_port=random.choice((123, 40000, 40000, 1337, 1024)),
        destination_port=rarely(123, 1123, 4123, 6123, 53),
        source_mac=rarely(CLIENT_MAC, b"\x01" + bytes(5), share=0.03),
        destination_mac=rarely(CLIENT_MAC[:5] + b"\x01", OTHER_MAC, b"\xff" * 6, share=0.03),
        tags=rarely(
            (),
            ((ETH_VLAN, 0x2064),),
            ((ETH_QINQ, 100), (ETH_VLAN, 200)),
            ((ETH_VLAN, 1), (ETH_QINQ, 1)),
            ((ETH_VLAN, 1),) * 3,
        ),
        ttl=random.choice((1, 57, 255)),
        tos=rarely(0, 0xB8, 3),
        fragment=rarely(0x4000, 0, 0x8000, 0x2000, 0x2005, 5, 1),
        options=b"" if ipv6 else rarely(b"", bytes(4), b"\x01" * 40),
        extensions=tuple(extensions) if extended else (),
        flow=rarely(0, 0xBEEF5),
        checksum=rarely(None, 0, 0xFFFF, 0x8C71),
        udp_length=rarely(None, 0, 7, 8, 9, 20, 55, 56, 57, 200, share=0.08),
        ip_length=rarely(None, 0, 8, 16, 19, 20, 24, 28, 75, 76, 80, 500, share=0.08),
        protocol=protocol,
        trailer=rarely(b"", bytes(6), b"\xff" * 18),
    )


def template(frame: Frame) -> Template:
    """The frame, cut where packets differ."""
    wire = bytes(frame)
    payload_at = len(wire) - len(frame.trailer) - len(frame.payload)
    source_at = 14 + 4 * len(frame.tags) + (8 if frame.ipv6 else 12)
    transmit_at = payload_at + 40 if len(frame.payload) >= 48 else 0
    return Template(wire, int(frame.ipv6), source_at, payload_at - 8, transmit_at)


def some_transmit(random: Random) -> bytes:
    """A transmit timestamp: also none, and those of the two mistaken clients."""
    seconds = random.choice((0, 0xEAF1B2C3, 0xEAF1B2C4))
    fraction = random.choice(
        (
            0,
            random.randrange(2**32),
            random.randrange(10**9),
            10**9 - random.randrange(2),
            (random.randrange(10**6) << 32) // 10**6,
        )
    )
    return seconds.to_bytes(4, "big") + fraction.to_bytes(4, "big")


class Sequence:
    """The steps that a seed makes, and the program's shape they are for."""

    def __init__(self, seed: int, packets: int) -> None:
        self.random = Random(seed)
        self.shape: Shape = SHAPES[seed % len(SHAPES)]
        self.sources: Sources = some_sources(self.random)
        self.headers = [some_header(self.random) for _ in range(8)]
        self.plain = ntp()
        self.clock_ns = self.random.choice(STARTS) + self.random.randrange(SECOND_NS)
        self.steps: list[Step] = []
        self._begin()
        while packets > 0:
            stretch = min(packets, self.random.randint(1, 2 * EVENT))
            self._packets(stretch)
            packets -= stretch
            self._event()

    def _change(self, name: str, *arguments: Any) -> None:
        self.steps.append(Change(name, arguments))

    def _begin(self) -> None:
        self.root = Root()
        self.policies: dict[int, Policy] = {}
        self.entries = self.random.random() < 0.4
        self._change("set_addresses", some_addresses(self.random))
        self._change("set_entries", self._some_entries() if self.entries else {})
        for copy in (0, 1):
            self._copy(copy)
        self._commit()

    def _some_entries(self) -> Any:
        return some_entries(self.random, self.sources, self.clock_ns)

    def _copy(self, copy: int) -> None:
        """Another policy and its prefixes; flags hold for both copies of the prefixes or for one."""
        prefixes = some_prefixes(self.random, self.sources)
        policy = some_policy(self.random, [*self.headers, self.plain])
        self._change("set_prefixes", copy, prefixes)
        self._set_policy(copy, with_flags(policy, prefixes, self.shape))

    def _set_policy(self, copy: int, policy: Policy) -> None:
        policy = temporary(self.random, policy, self.clock_ns)
        self.policies[copy] = policy
        self._change("set_policy", copy, policy)

    def _commit(self) -> None:
        self.root = some_root(self.random, self.root, self.entries)
        self._change("set_root", self.root)

    def _event(self) -> None:
        """The operator does something."""
        what = self.random.randrange(5)
        if what == 4:
            self._tune()
            return
        if what == 0:
            self._copy(1 - self.root.policy)
        elif what == 1:
            self.entries = self.random.random() < 0.6
            if self.entries:
                self._change("set_entries", self._some_entries())
        elif what == 2:
            self._change("set_addresses", some_addresses(self.random))
        self._commit()

    def _tune(self) -> None:
        """Other limits and all else as it was."""
        copy = 1 - self.root.policy
        self._set_policy(copy, tuned(self.random, self.policies[self.root.policy]))
        self.root = replace(self.root, policy=copy)
        self._change("set_root", self.root)

    def _templates(self) -> list[Template]:
        """Ordinary requests, and in most stretches as many others."""
        random = self.random
        usual = [template(one) for one in USUAL] * 3
        if random.random() < 0.3:
            return usual
        headers = [random.choice((self.plain, random.choice(self.headers))) for _ in range(16)]
        return usual + [template(some_frame(random, header)) for header in headers]

    def _packets(self, count: int) -> None:
        """A stretch of packets of one temper."""
        random = self.random
        roll, choice, bits = random.random, random.choice, random.getrandbits
        templates = self._templates()
        transmits = [some_transmit(random) for _ in range(8)]
        sources = (
            [one.to_bytes(4, "big") for one in self.sources[0]],
            [one.to_bytes(16, "big") for one in self.sources[1]],
        )
        few = random.choice((1, 2, 4, 1000))
        sources = (sources[0][-few:], sources[1][-few:])
        tempo = choice(TEMPO)
        leaky = choice((0.0, 0.3, 1.0))
        broken = choice((0.0, 0.02, 0.3))
        for _ in range(count):
            self.clock_ns += choice(tempo)
            chance = bits(32) if roll() < leaky else 0xFFFFFFFF
            one = choice(templates)
            wire = bytearray(one.frame)
            source = choice(sources[one.family])
            wire[one.source_at : one.source_at + len(source)] = source
            if roll() < 0.1:
                wire[one.port_at : one.port_at + 2] = choice(PORTS)
            if one.transmit_at and roll() < 0.3:
                wire[one.transmit_at : one.transmit_at + 8] = choice(transmits)
            if roll() < broken:
                spoil(random, wire)
            self.steps.append(Packet(self.clock_ns, chance, bytes(wire)))


USUAL = (
    Frame(),
    Frame(source_port=123, payload=ntp(version=3, poll=9)),
    Frame(checksum=0),
    Frame(destination="198.51.100.2"),
    Frame(source="2001:db8:12::7", destination="2001:db8::1"),
    Frame(
        source="2001:db8:12::7",
        destination="2001:db8::1",
        payload=ntp(leap=3, poll=-1),
        tos=0xB8,
        flow=0xBEEF5,
    ),
)
PORTS = [p.to_bytes(2, "big") for p in (0, 7, 19, 53, 122, 123, 124, 1023, 1024, 1337, 65535)]


def spoil(random: Random, wire: bytearray) -> None:
    """Cuts the frame or changes a byte of it."""
    if random.random() < 0.4:
        del wire[random.randrange(14, len(wire) + 1) :]
    else:
        for _ in range(random.choice((1, 1, 3))):
            wire[random.randrange(len(wire))] = random.choice((0, 0xFF, random.getrandbits(8)))
