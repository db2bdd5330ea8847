"""Which client a header looks like."""

import pytest

from ntpguard.policy.check import parse_policy
from ntpguard.policy.shapes import clients, matches
from tests.bpf.packets import ntp

ROOT = {"root_delay": bytes.fromhex("00010000"), "root_dispersion": bytes.fromhex("00010000")}
SECONDS = bytes.fromhex("eaf1b2c3")


def fraction(value: int) -> bytes:
    return SECONDS + value.to_bytes(4, "big")


# a count of microseconds, scaled: just below the next one
TRUNCATED = fraction(123456 * 2**32 // 1_000_000)
ANY = fraction(0xDEADBEEF)


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        (
            ntp(leap=3, poll=4, precision=0xFA, **ROOT, transmit=TRUNCATED),
            ("FortiGate", "nagios check_ntp_time", "ntpdate"),
        ),
        (
            ntp(leap=3, poll=4, precision=0xFA, **ROOT, transmit=ANY),
            ("nagios check_ntp_time", "ntpdate"),
        ),
        (
            ntp(leap=3, version=3, poll=4, precision=0xFA, **ROOT, transmit=TRUNCATED),
            ("FortiGate",),
        ),
        (ntp(leap=3, poll=3, precision=0xFA, **ROOT, transmit=ANY), ("ntpdate",)),
        (ntp(poll=4, precision=0xFA, **ROOT, transmit=ANY), ("ios-ntp",)),
        (ntp(poll=0, precision=0, transmit=fraction(999_999_999)), ("systemd-timesyncd",)),
        (ntp(poll=0, precision=0, transmit=ANY), ()),
        (ntp(poll=0, precision=0, transmit=bytes(8)), ("MicroPython ntptime",)),
        (ntp(version=3, poll=0, precision=0, transmit=ANY), ("Android",)),
        (ntp(version=3, poll=0, precision=0, transmit=bytes(8)), ("MicroPython ntptime",)),
        (ntp(poll=0, precision=0x20, transmit=ANY), ("Go beevik/ntp", "chrony")),
        (ntp(poll=10, precision=0x20, transmit=ANY), ("chrony",)),
        (ntp(poll=10, precision=0x20, origin=ANY, transmit=ANY), ()),
        (
            ntp(leap=3, precision=0xEC, reference_id=b"1N14", transmit=bytes(8)),
            ("Arduino NTPClient",),
        ),
    ],
)
def test_a_client_is_known_by_its_header(header: bytes, wanted: tuple[str, ...]) -> None:
    assert clients(header, 40000) == wanted


@pytest.mark.parametrize(
    ("row", "header", "port", "wanted"),
    [
        ("source_port = 1337", ntp(), 1337, True),
        ("source_port = 1337", ntp(), 1338, False),
        ('header = "2? 00 .. 20"', ntp(poll=10), 1, True),
        ('header = "2? 00 .. 20"', ntp(leap=1), 1, False),
        ('header = "2? 00 .. 21"', ntp(), 1, False),
        ('fraction = "microseconds"', ntp(transmit=TRUNCATED), 1, True),
        (
            'fraction = "microseconds"',
            ntp(transmit=fraction(123457 * 2**32 // 1_000_000 + 1000)),
            1,
            False,
        ),
        ('fraction = "nanoseconds"', ntp(transmit=fraction(999_999_999)), 1, True),
        ('fraction = "nanoseconds"', ntp(transmit=fraction(1_000_000_000)), 1, False),
    ],
)
def test_a_signature_is_matched_as_the_packet_path_does(
    row: str, header: bytes, port: int, wanted: bool
) -> None:
    (one,) = parse_policy(f'[[signature]]\nname = "one"\n{row}\n').signatures
    assert matches(one, header, port) == wanted
