"""Frames that are not what a polite client sends: each minute has its own sort."""

import random
import struct
from collections.abc import Callable, Iterator
from itertools import count, repeat

from tests.bpf.packets import ETH_VLAN, Frame, ntp
from tests.lab.lab import SERVER6

SOURCES = 1_000
# more at once than the burst of the policies
ABUSERS, AT_ONCE = 20_000, 45
# by the minute; "flood" is the generator's single source, as fast as it may.
# sources and faulty ones are the same, for two minutes: episodes, as many as are kept
SORTS = (
    *("flood", "abusers", "sources", "faulty", "forged"),
    *("answers", "control", "malformed", "odd", "tagged"),
)


def _forged(chance: random.Random) -> str:
    return f"198.19.{chance.randrange(256)}.{chance.randrange(1, 255)}"


def _one_of_many(chance: random.Random) -> str:
    number = chance.randrange(SOURCES)
    return f"198.18.{8 + number // 250}.{1 + number % 250}"


def _faulty(chance: random.Random) -> bytes:
    """FortiGate's, timesyncd's loop, a nixie clock's: shapes of requests (protocol.md, section 5)."""
    return chance.choice(
        (
            ntp(version=4, leap=3, poll=4, precision=-6, transmit=chance.randbytes(8)),
            ntp(transmit=struct.pack("!II", 0xEAF1B2C3, chance.randrange(10**9))),
            ntp(leap=3, poll=6, precision=-20, reference_id=b"1N14", transmit=chance.randbytes(8)),
        )
    )


def _always_new(base: Frame, chance: random.Random) -> Iterator[bytes]:
    """Requests of 2001:db8::/32: of four thousand million sources, hardly one comes twice. Of the
    address, the last word that is not zero keeps the checksum right.
    """
    made = bytes(base.but(source="2001:db8::", destination=SERVER6))
    before, after = made[:26], made[32:]
    while True:
        high, low = chance.randrange(1 << 16), chance.randrange(1 << 16)
        yield before + struct.pack("!HHH", high, low, -(high + low) % 0xFFFF) + after


def _one_after_another(base: Frame, chance: random.Random) -> Iterator[bytes]:
    """Of more sources than details are kept of: each asks until it is over its limit."""
    for number in count(chance.randrange(ABUSERS)):
        number %= ABUSERS
        yield from repeat(
            bytes(base.but(source=f"198.18.{64 + number // 250}.{1 + number % 250}")), AT_ONCE
        )


# those that must not be made once and sent again and again
ENDLESS = {"forged": _always_new, "abusers": _one_after_another}


def frames(sort: str, base: Frame, chance: random.Random) -> Iterator[bytes]:
    """Without an end. `base` has the lab's MAC addresses and the server's address."""
    if sort in ENDLESS:
        yield from ENDLESS[sort](base, chance)
    makers: dict[str, Callable[[], Frame]] = {
        "sources": lambda: base.but(source=_one_of_many(chance)),
        "answers": lambda: base.but(
            source=_forged(chance), payload=ntp(mode=chance.choice((2, 4, 5)), stratum=2)
        ),
        "control": lambda: base.but(
            source=_one_of_many(chance),
            payload=bytes([chance.choice((0x16, 0x17)), 2, 0, 1]) + bytes(8),
        ),
        "malformed": lambda: base.but(
            source=_one_of_many(chance), payload=chance.randbytes(chance.randrange(0, 60))
        ),
        "odd": lambda: base.but(
            source=_one_of_many(chance),
            **chance.choice(({"fragment": 0x2000}, {"fragment": 8}, {"options": b"\1" * 4})),
        ),
        "tagged": lambda: base.but(
            source=_one_of_many(chance),
            tags=((ETH_VLAN, chance.randrange(1, 4095)),) * chance.choice((1, 2)),
        ),
        "faulty": lambda: base.but(source=_one_of_many(chance), payload=_faulty(chance)),
    }
    make = makers[sort]
    while True:
        yield bytes(make())
