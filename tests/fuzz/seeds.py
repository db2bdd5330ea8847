"""What the fuzzer begins with: frames of every shape that the tests know, in steps of decision.c."""

import struct
from collections.abc import Iterator
from itertools import product

from tests.bpf.packets import (
    ETH_QINQ,
    ETH_VLAN,
    IPV4,
    IPV6,
    OTHER_MAC,
    SERVER6,
    Frame,
    ntp,
)
from tests.fuzz.policies import POLICIES

CLOCK, CHANCE, ENTRY, POLICY, AGAIN, _, FRAME = range(7)
SOURCES = ("198.18.5.7", "198.18.6.7", "198.18.7.200", "198.18.8.7", "203.0.113.8", "127.0.0.1")
SOURCES6 = ("2001:db8:5::1", "2001:db8:6::1", "2001:db8:7::1", "2001:db8:8::1", "ff02::1", "::1")
FRAGMENT = (44, bytes([0, 0, 0, 1, 0, 0, 0, 1]))


def frames() -> Iterator[Frame]:
    """One of each shape."""
    yield from (IPV4, IPV6)
    yield from (IPV4.but(source=one) for one in SOURCES)
    yield from (IPV6.but(source=one, destination=SERVER6) for one in SOURCES6)
    for base in (IPV4, IPV6):
        yield from (base.but(payload=ntp(mode=mode)) for mode in range(8))
        yield from (base.but(payload=ntp(version=version)) for version in range(8))
        yield from (base.but(payload=ntp()[:size]) for size in (0, 1, 12, 47))
        yield from (base.but(payload=ntp() + bytes(size)) for size in (4, 20, 24, 100))
        yield base.but(payload=ntp(transmit=bytes(8)))
        yield base.but(payload=ntp(poll=-128))
        yield base.but(source_mac=b"\xff" * 6)
        yield base.but(destination_mac=OTHER_MAC)
        yield from (base.but(source_port=port) for port in (0, 7, 19, 53, 123, 1023, 1337))
        yield from (base.but(destination_port=port) for port in (53, 1123))
        yield from (base.but(udp_length=size) for size in (0, 8, 9, 55, 57, 65535))
        yield from (base.but(ip_length=size) for size in (0, 20, 28, 40, 65535))
        yield from (base.but(checksum=one) for one in (0, 0x1234, 0xFFFF))
        yield base.but(trailer=bytes(20))
        yield base.but(tos=0xB8)
        yield base.but(protocol=6)
        tag = (ETH_VLAN, 7)
        yield from (base.but(tags=one) for one in ((tag,), ((ETH_QINQ, 8), tag), (tag, tag, tag)))
    yield from (IPV4.but(options=bytes([1]) * size) for size in (4, 40))
    yield from (IPV4.but(fragment=one) for one in (0, 0x2000, 0x0001, 0x3FFF, 0x8000))
    for kind in (0, 43, 60):
        yield IPV6.but(extensions=((kind, bytes([0, 0, 1, 4, 0, 0, 0, 0])),))
        yield IPV6.but(extensions=((kind, bytes([0, 1]) + bytes(14)),) * 3)
    yield IPV6.but(extensions=(FRAGMENT,))
    yield IPV6.but(extensions=((60, bytes(8)),) * 9)


def step(kind: int, number: int, data: bytes = b"") -> bytes:
    """One step."""
    return struct.pack("<BH", kind, number) + data


def seeds() -> Iterator[bytes]:
    """Each frame under each policy: three times at once, and after a while."""
    for variant, frame in product(range(len(POLICIES)), frames()):
        raw = bytes(frame)
        once = step(FRAME, len(raw), raw)
        yield bytes([variant]) + once * 3 + step(CLOCK, 20_000) + step(CHANCE, 3) + once * 2
        if frame in (IPV4, IPV6):
            yield bytes([variant]) + (once + step(AGAIN, 40) + step(CLOCK, 7_000)) * 2
            entry = step(ENTRY, 0x130 | frame.ipv6)
            yield bytes([variant]) + entry + once + step(ENTRY, 0x132 | frame.ipv6) + once
