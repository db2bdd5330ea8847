"""Golden packets: each fixture is a sentence, a packet in, a verdict, and the packet out, to the byte."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from ntpguard.abi import Xdp
from ntpguard.words import Family, Reason, Verdict
from tests.bpf.guard import Guard, guard
from tests.bpf.packets import (
    CLIENT4,
    CLIENT6,
    ETH_QINQ,
    ETH_VLAN,
    IPV4,
    IPV6,
    OTHER_MAC,
    SERVER4,
    SERVER6,
    TRANSMIT,
    Frame,
    kod,
    ntp,
)

HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION, TCP, ICMP = 0, 43, 44, 60, 6, 1
PADDING = bytes([0, 1, 4, 0, 0, 0, 0])  # an extension header of 8 bytes: length 0, PadN


@dataclass(frozen=True)
class Fixture:
    """`frame` comes from a source that is over its limit, with no leak."""

    name: str
    frame: Frame | bytes
    verdict: Verdict | None  # None: passes untouched and uncounted
    reason: Reason | None = None
    out: bytes | None = None
    family: Family = Family.IPV4


def kissed(name: str, frame: Frame, poll: int = 6) -> Fixture:
    return Fixture(
        name, frame, Verdict.KOD, Reason.LIMIT, kod(frame, poll=poll), Family(int(frame.ipv6))
    )


def dropped(name: str, frame: Frame, reason: Reason = Reason.LIMIT) -> Fixture:
    return Fixture(name, frame, Verdict.DROP, reason, family=Family(int(frame.ipv6)))


def passed(name: str, frame: Frame, reason: Reason) -> Fixture:
    return Fixture(name, frame, Verdict.PASS, reason, family=Family(int(frame.ipv6)))


def untouched(name: str, frame: Frame | bytes) -> Fixture:
    return Fixture(name, frame, None)


def fixtures() -> Iterator[Fixture]:
    for base, name in ((IPV4, "ipv4"), (IPV6, "ipv6")):

        def but(base: Frame = base, **changes: object) -> Frame:
            return base.but(**changes)

        yield kissed(f"{name} excess is kissed", base)
        for version in range(8):
            frame = but(payload=ntp(version=version))
            if 1 <= version <= 4:
                yield kissed(f"{name} version {version} is kissed", frame)
            else:
                yield dropped(f"{name} version {version} is never kissed", frame)
        for mode in (0, 1):
            yield dropped(f"{name} mode {mode} is never kissed", but(payload=ntp(mode=mode)))
        for mode in (2, 4, 5):
            frame = but(payload=ntp(mode=mode))
            yield passed(f"{name} mode {mode} is an answer and passes", frame, Reason.ANSWER)
        for mode in (6, 7):
            frame = but(payload=ntp(mode=mode))
            yield dropped(f"{name} mode {mode} is dropped", frame, Reason.CONTROL)
        yield dropped(
            f"{name} monlist is dropped", but(payload=bytes.fromhex("1700032a")), Reason.CONTROL
        )
        yield kissed(
            f"{name} every field of the request but version, poll and transmit is forgotten",
            but(
                payload=ntp(
                    leap=2,
                    stratum=7,
                    poll=8,
                    precision=0xEC,
                    root_delay=b"abcd",
                    root_dispersion=b"efgh",
                    reference_id=b"NICT",
                    reference=b"NTP5NTP5",
                    origin=b"12345678",
                    receive=b"abcdefgh",
                )
            ),
            poll=8,
        )
        for asked, told in (
            (-128, 6),
            (-6, 6),
            (0, 6),
            (5, 6),
            (6, 6),
            (9, 9),
            (10, 10),
            (11, 10),
            (17, 10),
            (127, 10),
        ):
            yield kissed(f"{name} poll {asked} becomes {told}", but(payload=ntp(poll=asked)), told)
        for length, what in (
            (52, "crypto-NAK"),
            (60, "DES"),
            (68, "MD5"),
            (72, "SHA-1"),
            (76, "extension field"),
            (120, "MS-SNTP"),
            (228, "NTS"),
        ):
            yield dropped(
                f"{name} {length} bytes ({what}) are never kissed",
                but(payload=ntp() + bytes(range(length - 48))),
            )
        yield dropped(f"{name} 49 bytes are never kissed", but(payload=ntp() + b"x"))
        yield dropped(
            f"{name} transmit timestamp zero is never kissed", but(payload=ntp(transmit=bytes(8)))
        )
        yield kissed(
            f"{name} transmit timestamp without fraction is kissed",
            but(payload=ntp(transmit=TRANSMIT[:4] + bytes(4))),
        )
        yield kissed(
            f"{name} transmit timestamp without seconds is kissed",
            but(payload=ntp(transmit=bytes(4) + TRANSMIT[4:])),
        )
        for length in (1, 12, 47):
            yield dropped(
                f"{name} mode 3 with {length} bytes is malformed",
                but(payload=ntp()[:length]),
                Reason.MALFORMED,
            )
        yield dropped(f"{name} without payload is malformed", but(payload=b""), Reason.MALFORMED)
        yield dropped(f"{name} UDP length 7 is malformed", but(udp_length=7), Reason.MALFORMED)
        yield dropped(
            f"{name} UDP longer than IP is malformed", but(udp_length=57), Reason.MALFORMED
        )
        yield dropped(
            f"{name} UDP shorter than a header is malformed though the frame is whole",
            but(udp_length=55),
            Reason.MALFORMED,
        )
        yield kissed(f"{name} frame's padding is not payload", but(trailer=bytes(6)))
        yield dropped(
            f"{name} with more in it than the datagram is never kissed",
            but(trailer=bytes(4), ip_length=(60 if base.ipv6 else 80)),
        )
        for port in (123, 1024, 65535):
            yield kissed(f"{name} source port {port} is kissed", but(source_port=port))
        for port in (0, 7, 19, 53, 122, 124, 1023):
            yield dropped(f"{name} source port {port} is never kissed", but(source_port=port))
        yield kissed(f"{name} traffic class and TTL are ours", but(tos=0xB8, ttl=1))
        yield kissed(f"{name} VLAN tag stays", but(tags=((ETH_VLAN, 0x2064),)))
        yield kissed(f"{name} QinQ tags stay", but(tags=((ETH_QINQ, 100), (ETH_VLAN, 200))))
        yield kissed(f"{name} two VLAN tags stay", but(tags=((ETH_VLAN, 1), (ETH_VLAN, 2))))
        yield untouched(f"{name} three tags pass", but(tags=((ETH_VLAN, 1),) * 3))
        yield untouched(f"{name} foreign destination MAC passes", but(destination_mac=OTHER_MAC))
        yield untouched(f"{name} broadcast MAC passes", but(destination_mac=b"\xff" * 6))
        yield untouched(
            f"{name} multicast MAC passes", but(destination_mac=bytes.fromhex("01005e000101"))
        )
        yield dropped(
            f"{name} group source MAC is never kissed", but(source_mac=b"\x01" + bytes(5))
        )
        yield untouched(f"{name} another port passes", but(destination_port=124))
        yield untouched(
            f"{name} source port 123 alone passes", but(destination_port=5000, source_port=123)
        )
        yield untouched(f"{name} TCP passes", but(protocol=TCP))
        yield kissed(f"{name} partial checksum is computed anew", but(checksum=0x8C71))
        yield kissed(f"{name} all-ones checksum is computed anew", but(checksum=0xFFFF))

    yield kissed("ipv4 checksum zero stays zero", IPV4.but(checksum=0))
    yield dropped("ipv6 checksum zero is malformed", IPV6.but(checksum=0), Reason.MALFORMED)
    for base, name in ((IPV4, "ipv4"), (IPV6, "ipv6")):
        yield kissed(
            f"{name} checksum computed to zero is sent as all ones", _computed_to_zero(base)
        )
    for fragment, what in ((0, "no flags"), (0x4000, "DF"), (0x8000, "reserved bit")):
        out = kod(IPV4.but(fragment=fragment & 0x4000))
        yield Fixture(
            f"ipv4 {what} is kissed", IPV4.but(fragment=fragment), Verdict.KOD, Reason.LIMIT, out
        )
    for fragment, what in ((0x2000, "first"), (0x2005, "middle"), (0x0005, "last")):
        yield passed(f"ipv4 {what} fragment is odd", IPV4.but(fragment=fragment), Reason.ODD)
    for size in (4, 8, 40):
        options = b"\x01" * (size - 1) + b"\0"
        yield dropped(
            f"ipv4 with {size} bytes of options is limited, never kissed", IPV4.but(options=options)
        )
    yield dropped(
        "ipv4 with options and 47 bytes is malformed",
        IPV4.but(options=bytes(4), payload=ntp()[:47]),
        Reason.MALFORMED,
    )
    yield untouched("ipv4 total length below its header passes", IPV4.but(ip_length=19))
    yield dropped(
        "ipv4 total length cutting UDP is malformed", IPV4.but(ip_length=75), Reason.MALFORMED
    )
    yield untouched("ARP passes", IPV4.but().__bytes__()[:12] + b"\x08\x06" + bytes(46))
    yield untouched("an ICMP error passes", IPV4.but(protocol=ICMP))
    wrong_version = bytearray(bytes(IPV4))
    wrong_version[14] = 0x55
    yield untouched("ipv4 with version 5 passes", bytes(wrong_version))
    short_header = bytearray(bytes(IPV4))
    short_header[14] = 0x44
    yield untouched("ipv4 with ihl 4 passes", bytes(short_header))

    for kind, what in (
        (HOP_BY_HOP, "hop-by-hop"),
        (DESTINATION, "destination"),
        (ROUTING, "routing"),
    ):
        yield dropped(
            f"ipv6 with {what} options is limited, never kissed",
            IPV6.but(extensions=((kind, PADDING),)),
        )
    yield dropped(
        "ipv6 with three extension headers is limited, never kissed",
        IPV6.but(extensions=((HOP_BY_HOP, PADDING), (DESTINATION, PADDING), (ROUTING, PADDING))),
    )
    yield passed(
        "ipv6 with a chain of nine is odd",
        IPV6.but(extensions=((DESTINATION, PADDING),) * 9),
        Reason.ODD,
    )
    yield passed("ipv6 fragment is odd", IPV6.but(extensions=((FRAGMENT, bytes(7)),)), Reason.ODD)
    yield passed(
        "ipv6 fragment behind options is odd",
        IPV6.but(extensions=((HOP_BY_HOP, PADDING), (FRAGMENT, bytes(7)))),
        Reason.ODD,
    )
    yield untouched(
        "ipv6 extension header longer than the packet passes",
        IPV6.but(extensions=((DESTINATION, b"\xff" + PADDING[1:]),)),
    )
    yield dropped("ipv6 of no length is malformed", IPV6.but(ip_length=0), Reason.MALFORMED)
    yield passed(
        "ipv6 of no length with hop-by-hop options is odd: Linux delivers it",
        IPV6.but(extensions=((HOP_BY_HOP, PADDING),), ip_length=0),
        Reason.ODD,
    )
    yield untouched(
        "ipv6 of no length with destination options passes: Linux drops it",
        IPV6.but(extensions=((DESTINATION, PADDING),), ip_length=0),
    )
    yield kissed("ipv6 flow label is forgotten", IPV6.but(flow=0xBEEF5))

    for address in ("198.51.100.2", "198.51.100.255", "255.255.255.255", "224.0.1.1"):
        yield dropped(
            f"destination {address} is not ours: never kissed", IPV4.but(destination=address)
        )
    for address in ("2001:db8::2", "ff02::101", "ff05::101"):
        yield dropped(
            f"destination {address} is not ours: never kissed", IPV6.but(destination=address)
        )
    yield dropped("ipv4 our own address as source is never kissed", IPV4.but(source=SERVER4))
    yield dropped("ipv6 our own address as source is never kissed", IPV6.but(source=SERVER6))
    for address in ("127.0.0.1", "0.0.0.0", "0.1.2.3", "224.0.1.1", "240.0.0.1", "255.255.255.255"):
        yield dropped(f"source {address} is never kissed", IPV4.but(source=address))
    for address in ("::1", "::", "::ffff:203.0.113.7"):
        yield dropped(f"source {address} is never kissed", IPV6.but(source=address))
    yield dropped(
        "an ipv6 multicast source is malformed", IPV6.but(source="ff02::1"), Reason.MALFORMED
    )
    yield kissed("ipv6 link-local source is kissed", IPV6.but(source="fe80::7"))


def _computed_to_zero(base: Frame) -> Frame:
    """A request whose KoD's UDP checksum computes to zero: the transmit timestamp makes it so."""
    # the timestamp counts three times, so that only a third of all sums is in its reach
    for number in range(3 * 0x10000):
        transmit = TRANSMIT[:6] + (number >> 2 & 0xFFFF).to_bytes(2, "big")
        frame = base.but(payload=ntp(transmit=transmit), source_port=40000 + (number & 3))
        answer = kod(frame)
        at = 14 + (40 if base.ipv6 else 20) + 6
        if answer[at : at + 2] == b"\xff\xff":
            return frame
    raise AssertionError("no such timestamp")


FIXTURES = list(fixtures())


@pytest.fixture(scope="module")
def loaded() -> Iterator[Guard]:
    with guard() as one:
        yield one


def prime(one: Guard, frame: Frame | bytes) -> None:
    """Puts the frame's source over its limit of one request a second."""
    one.advance(3600)
    if isinstance(frame, Frame):
        plain = IPV6 if frame.ipv6 else IPV4
        one.run(plain.but(source=frame.source))


def test_there_are_at_least_a_hundred_fixtures_and_no_two_have_one_name() -> None:
    assert len({f.name for f in FIXTURES}) == len(FIXTURES) >= 100


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda f: f.name)
def test_packet(loaded: Guard, fixture: Fixture) -> None:
    prime(loaded, fixture.frame)
    before = loaded.counted()
    code, out = loaded.run(fixture.frame)
    counted = {
        key: count - before.get(key, 0)
        for key, count in loaded.counted().items()
        if count != before.get(key, 0)
    }

    expected_code = {
        None: Xdp.PASS,
        Verdict.PASS: Xdp.PASS,
        Verdict.KOD: Xdp.TX,
        Verdict.DROP: Xdp.DROP,
    }[fixture.verdict]
    assert code == expected_code
    assert out == (fixture.out or bytes(fixture.frame))
    if fixture.verdict is None:
        assert counted == {}
    else:
        assert counted == {(fixture.family, fixture.verdict, fixture.reason, 0): 1}


@pytest.mark.parametrize("base", [IPV4, IPV6, IPV4.but(tags=((ETH_QINQ, 1), (ETH_VLAN, 2)))])
def test_a_request_cut_at_any_byte_is_never_kissed_and_never_changed(
    loaded: Guard, base: Frame
) -> None:
    whole = bytes(base)
    for length in range(14, len(whole)):
        prime(loaded, base)
        code, out = loaded.run(whole[:length])
        assert code in (Xdp.PASS, Xdp.DROP), length
        assert out == whole[:length]
        ntp_begins = len(whole) - 48
        assert code == (Xdp.DROP if length >= ntp_begins else Xdp.PASS), length


def test_clients_are_the_ones_that_the_fixtures_name() -> None:
    assert (IPV4.source, IPV6.source) == (CLIENT4, CLIENT6)
