"""Which frames are judged, and whose they are: as the model's own parser has it."""

import ipaddress
import struct
from random import Random

import pytest

from ntpguard.replay.frame import STATION, Datagram, datagram, to_ethernet
from tests import captures
from tests.bpf.packets import IPV4, IPV6, Frame, ntp
from tests.model.frame import MAPPED, Kind, parse
from tests.model.sequence import some_frame, spoil

PORTS = (123, 1123)
FRAMES = 20_000


def mapped(address: bytes) -> int:
    return int.from_bytes(address, "big") | (MAPPED if len(address) == 4 else 0)


def test_random_frames_are_judged_or_not_as_the_model_says() -> None:
    random = Random(1)
    kinds = dict.fromkeys(Kind, 0)
    for _ in range(FRAMES):
        wire = bytearray(bytes(some_frame(random, ntp(mode=random.randrange(8)))))
        if random.random() < 0.3:
            spoil(random, wire)
        frame = STATION + bytes(wire[6:])
        expected = parse(frame, STATION, PORTS)
        found = datagram(frame, True)
        kinds[expected.kind] += 1
        if expected.kind == Kind.OTHER:
            assert found is None or (found.payload_at and found.port not in PORTS), frame.hex()
            continue
        assert found, frame.hex()
        assert mapped(found.destination) == expected.to
        assert (found.payload_at == 0) == (expected.kind == Kind.ODD), frame.hex()
        assert not found.cut
        if expected.kind == Kind.NTP:
            assert int.from_bytes(found.source, "big") == expected.source
            assert found.source_port == expected.source_port
            assert frame[found.payload_at] & 7 == expected.mode
    assert min(kinds.values()) > FRAMES / 100


def cooked(kind: int, frame: bytes) -> bytes:
    """As Linux cooks a packet that came as `kind`."""
    return struct.pack("!HHH", kind, 1, 6) + bytes(8) + frame[12:14] + frame[14:]


def cooked2(kind: int, frame: bytes) -> bytes:
    """The same, version 2."""
    return frame[12:14] + struct.pack("!HIHBB", 0, 2, 1, kind, 6) + bytes(8) + frame[14:]


@pytest.mark.parametrize("one", [IPV4, IPV6, IPV4.but(tags=((0x8100, 7),))], ids=["4", "6", "vlan"])
def test_every_link_type_gives_the_same_datagram(one: Frame) -> None:
    frame = bytes(one)
    expected = datagram(frame, True)
    assert expected and expected.destination == ipaddress.ip_address(one.destination).packed
    assert to_ethernet(captures.ETHERNET, frame) == frame
    assert datagram(to_ethernet(captures.SLL, cooked(0, frame)), True) == expected
    assert datagram(to_ethernet(captures.SLL2, cooked2(0, frame)), True) == expected
    if one.tags:
        return
    family = {4: 2, 16: 10}[len(expected.source)]
    for link, data in (
        (captures.RAW, frame[14:]),
        (captures.NULL, struct.pack("<I", family) + frame[14:]),
        (captures.NULL, struct.pack(">I", family) + frame[14:]),
        (captures.LOOP, struct.pack(">I", family) + frame[14:]),
    ):
        assert datagram(to_ethernet(link, data), True) == expected


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_what_is_cooked_as_broadcast_multicast_or_for_another_is_not_judged(kind: int) -> None:
    frame = bytes(IPV4)
    assert datagram(to_ethernet(captures.SLL, cooked(kind, frame)), True) is None
    assert datagram(to_ethernet(captures.SLL2, cooked2(kind, frame)), True) is None


def test_short_packets_of_every_link_type_are_none() -> None:
    for link in (0, 1, 101, 108, 113, 276):
        for size in range(20):
            assert datagram(to_ethernet(link, bytes(size)), False) is None


def seen(one: Frame, size: int, whole: bool = False) -> Datagram:
    found = datagram(bytes(one)[:size], whole)
    assert found
    return found


def test_a_packet_is_cut_if_its_ntp_header_was_not_captured_whole() -> None:
    header_ends = 14 + 20 + 8 + 48
    assert seen(IPV4, header_ends - 1).cut
    assert not seen(IPV4, header_ends).cut
    assert not seen(IPV4.but(payload=ntp() + bytes(20)), header_ends).cut
    assert seen(IPV4, 14 + 20 + 4).cut  # not even its ports
    assert not seen(IPV4.but(payload=b"\x17"), 43).cut  # sent as short as that
    assert not seen(IPV4, header_ends - 1, whole=True).cut
