"""Captures read back: both formats, both byte orders, whole, damaged and foreign."""

import gzip
import io
import struct
from typing import Any, BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntpguard.replay.capture import CaptureError, Damaged, Packet, packets
from tests import captures
from tests.captures import Record, enhanced, interface, obsolete, section, simple

NAME = "day.pcap"
ORDERS = ("<", ">")
RECORDS: list[Record] = [
    (1_700_000_000_123_456_000, b"first packet", None),
    (1_700_000_000_123_457_000, b"", 60),
    (1_700_000_001_000_000_000, b"cut", 90),
]
EXPECTED = [(time, 1, data, len(data) if size is None else size) for time, data, size in RECORDS]
TIMES = st.integers(0, 2**32 * 10**9 - 1)
SOME = st.lists(
    st.tuples(TIMES, st.binary(max_size=200), st.integers(0, 2000)).map(
        lambda one: (one[0], one[1], len(one[1]) + one[2])
    ),
    min_size=1,
    max_size=8,
)


def read(data: bytes) -> list[Packet]:
    return list(packets(io.BytesIO(data), NAME))


def until_damage(data: bytes) -> tuple[list[Packet], str]:
    """The packets before the damage, and what is said of it."""
    found = []
    with pytest.raises(Damaged) as told:
        for one in packets(io.BytesIO(data), NAME):
            found.append(one)
    return found, str(told.value)


def refused(data: bytes) -> str:
    with pytest.raises(CaptureError) as told:
        read(data)
    assert not isinstance(told.value, Damaged)
    return str(told.value)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("nanoseconds", [False, True])
def test_a_pcap_is_read_in_either_byte_order_and_resolution(order: str, nanoseconds: bool) -> None:
    assert read(captures.pcap(RECORDS, order=order, nanoseconds=nanoseconds)) == EXPECTED


@pytest.mark.parametrize("order", ORDERS)
def test_a_pcapng_is_read_in_either_byte_order(order: str) -> None:
    assert read(captures.ng(RECORDS, order=order)) == EXPECTED


def test_a_length_of_checksums_beside_the_link_type_is_no_part_of_it() -> None:
    assert read(captures.pcap(RECORDS, link=0x14000001)) == EXPECTED


@given(SOME, st.sampled_from(ORDERS), st.booleans())
def test_what_is_written_as_pcap_is_read(records: list[Record], order: str, zipped: bool) -> None:
    data = captures.pcap(records, order=order, nanoseconds=True)
    expected = [(time, 1, frame, size) for time, frame, size in records]
    assert read(gzip.compress(data) if zipped else data) == expected


@given(SOME, st.sampled_from(ORDERS), st.booleans())
def test_what_is_written_as_pcapng_is_read(records: list[Record], order: str, zipped: bool) -> None:
    data = captures.ng(records, order=order)
    expected = [(time, 1, frame, size) for time, frame, size in records]
    assert read(gzip.compress(data) if zipped else data) == expected


@pytest.mark.parametrize(
    ("resolution", "ticks", "time_ns"),
    [
        (None, 1_500_000, 1_500_000_000),
        (0, 3, 3_000_000_000),
        (9, 1_234_567_890, 1_234_567_890),
        (12, 1_234_567_890_999, 1_234_567_890),
        (0x80 | 10, 1536, 1_500_000_000),
        (0x80 | 32, 1 << 31, 500_000_000),
    ],
)
def test_a_time_has_the_resolution_of_its_interface(
    resolution: int | None, ticks: int, time_ns: int
) -> None:
    data = section() + interface(resolution=resolution) + enhanced(b"x", ticks)
    assert read(data) == [(time_ns, 1, b"x", 1)]


def test_several_sections_and_interfaces_each_have_their_own_order_link_and_time() -> None:
    data = (
        section("<")
        + interface("<", link=captures.RAW)
        + interface("<", link=captures.SLL, resolution=3, offset=100)
        + captures.block("<", 5, bytes(20))  # interface statistics: no packet
        + enhanced(b"second", 2000, number=1)
        + enhanced(b"first", 7)
        + section(">")
        + interface(">", link=captures.SLL2)
        + obsolete(b"old", 9, order=">")
        + simple(b"timeless", order=">")
    )
    assert read(data) == [
        (102 * 10**9, captures.SLL, b"second", 6),
        (7000, captures.RAW, b"first", 5),
        (9000, captures.SLL2, b"old", 3),
        (None, captures.SLL2, b"timeless", 8),
    ]


def test_a_simple_packet_is_as_long_as_its_interface_snaps() -> None:
    assert read(section() + interface(snap=5) + simple(b"short", length=90)) == [
        (None, 1, b"short", 90)
    ]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("written", [captures.pcap(RECORDS), captures.ng(RECORDS)])
def test_a_capture_cut_anywhere_gives_all_that_came_before(written: bytes, zipped: bool) -> None:
    # where each record ends: there, a capture is whole
    head = 24 if written[:4] == captures.pcap([])[:4] else len(captures.ng([]))
    ends = [
        head + len(captures.pcap(RECORDS[:count])) - 24
        if head == 24
        else len(captures.ng(RECORDS[:count]))
        for count in range(len(RECORDS) + 1)
    ]
    for size in range(head, len(written)):
        data = written[:size]
        whole = sum(end <= size for end in ends) - 1
        if size in ends:
            assert read(gzip.compress(data) if zipped else data) == EXPECTED[:whole]
            continue
        found, said = until_damage(gzip.compress(data) if zipped else data)
        assert found == EXPECTED[:whole]
        assert f"at byte {ends[whole]}: truncated: what came before counts" in said


def test_a_gzip_stream_that_ends_too_early_gives_what_came_before() -> None:
    whole = gzip.compress(captures.pcap(RECORDS), compresslevel=0)
    found, said = until_damage(whole[:-20])
    assert found == EXPECTED[: len(found)] and len(found) == 2
    assert said.startswith(f"{NAME}: record 3, at byte ")
    assert "the gzip stream ends too early" in said


def test_a_gzip_stream_that_is_broken_is_said_to_be() -> None:
    whole = bytearray(gzip.compress(captures.pcap(RECORDS), compresslevel=0))
    whole[-8] ^= 1  # its checksum
    _, said = until_damage(bytes(whole))
    assert "the gzip stream is broken (CRC check failed" in said


def test_lengths_that_cannot_be_are_damage() -> None:
    huge = captures.pcap(RECORDS[:1]) + struct.pack("<IIII", 1, 2, 1 << 30, 60)
    assert until_damage(huge) == (
        EXPECTED[:1],
        f"{NAME}: record 2, at byte 52: a record of 1073741824 bytes: what came before counts",
    )
    one = captures.ng(RECORDS[:1])
    for tail, what in (
        (struct.pack("<II", 6, 8), "a block of 8 bytes"),
        (struct.pack("<II", 6, 1 << 30), "a block of 1073741824 bytes"),
        (struct.pack("<IIII", 6, 16, 0, 20), "a block that ends with another length"),
        (captures.block("<", 6, bytes(8)), "a block of 8 bytes"),
        (enhanced(b"x", 1, number=3), "interface 3 is not described before"),
        (
            captures.block("<", 6, struct.pack("<IIIII", 0, 0, 0, 40, 40)),
            "40 bytes in a block of 20",
        ),
        (struct.pack("<III", 0x0A0D0D0A, 28, 7), "byte-order magic 07000000"),
    ):
        found, said = until_damage(one + tail)
        assert found == EXPECTED[:1]
        assert said.startswith(f"{NAME}: record 4, at byte {len(one)}: {what}"), said


@pytest.mark.parametrize(("ticks", "offset"), [(1 << 50, 0), (5, -(1 << 40))])
def test_a_time_that_no_calendar_has_is_damage(ticks: int, offset: int) -> None:
    begin = section() + interface(resolution=0, offset=offset)
    _, said = until_damage(begin + enhanced(b"x", ticks))
    assert f"record 3, at byte {len(begin)}: a time of {ticks + offset} s since 1970" in said


class Endless(io.RawIOBase):
    """A capture that never ends, and how much of it was read."""

    def __init__(self) -> None:
        self.rest = captures.pcap([])
        self.given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        while len(self.rest) < len(view):
            self.rest += captures.pcap([RECORDS[0]])[24:] * 1000
        view[:] = self.rest[: len(view)]
        self.rest = self.rest[len(view) :]
        self.given += len(view)
        return len(view)


def test_no_more_of_a_capture_is_read_than_is_needed() -> None:
    endless = Endless()
    stream = packets(cast(BinaryIO, endless), NAME)
    for expected in (1 << 20, 2 << 20, 3 << 20):
        while endless.given < expected:
            assert next(stream) == EXPECTED[0]
        assert endless.given == expected


def test_what_is_no_capture_is_named_with_a_remedy() -> None:
    assert refused(b"") == f"{NAME}: empty: capture with tcpdump -w {NAME} udp port 123"
    assert refused(b"\x7fELF and more") == (
        f"{NAME}: neither pcap nor pcapng (begins with 7f454c46): if it is another capture format, "
        "convert it: editcap -F pcapng"
    )
    assert refused(b"\xfd7zXZ\0") == (
        f"{NAME}: compressed with xz: decompress it first, or use gzip"
    )


def test_a_link_type_that_is_not_supported_is_named() -> None:
    remedy = "capture on an Ethernet interface, or with tcpdump -i any"
    assert refused(captures.pcap(RECORDS, link=127)) == (
        f"{NAME}: link type 127 (802.11 radiotap): not supported: {remedy}"
    )
    ng = section() + interface(link=250) + enhanced(b"x", 1)
    assert refused(ng) == f"{NAME}: link type 250: not supported: {remedy}"


def test_an_interface_of_which_no_packet_comes_may_be_of_any_link_type() -> None:
    ng = section() + interface(link=250) + interface() + enhanced(b"x", 1, number=1)
    assert read(ng) == [(1000, 1, b"x", 1)]
