"""Captures, packet by packet: pcap (draft-ietf-opsawg-pcap) in both byte orders, of microseconds
and nanoseconds, and pcapng (draft-ietf-opsawg-pcapng); gzip around either. A capture may be far
larger than memory: no more than one record is held.
"""

import gzip
import io
import struct
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, NoReturn, cast

from ntpguard.errors import NtpguardError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

ETHERNET, SLL, SLL2 = 1, 113, 276
NULL, LOOP = 0, 108  # 4 bytes of address family before the IP header
RAW = (101, 12, 14, 228, 229)  # nothing before it; 12 and 14: as BSDs number it
LINKS = {ETHERNET, SLL, SLL2, NULL, LOOP, *RAW}
LINK_NAMES = {9: "PPP", 105: "802.11", 127: "802.11 radiotap", 189: "USB", 220: "USB"}

GZIP = b"\x1f\x8b"
PCAP = {  # first bytes: byte order, nanoseconds of a fraction's unit
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}
SECTION = b"\x0a\x0d\x0d\x0a"
ORDERS = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
INTERFACE, OBSOLETE_PACKET, SIMPLE_PACKET, ENHANCED_PACKET = 1, 2, 3, 6
OPTION_END, OPTION_TSRESOL, OPTION_TSOFFSET = 0, 9, 14
COMPRESSED = {b"\xfd7zX": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"PK\x03\x04": "zip"}

SECOND = 10**9
LARGEST_RECORD = 1 << 18  # bytes; as Wireshark and libpcap have it
LARGEST_BLOCK = 1 << 24
# of the years 1 to 9999, as datetime has them; pcapng can say more
FIRST_NS, LAST_NS = -62_135_596_800 * SECOND, 253_402_300_800 * SECOND - 1
BUFFER = 1 << 20

# time in nanoseconds since 1970 (None: the record has none), link type, bytes captured, bytes that
# the frame had
Packet = tuple[int | None, int, bytes, int]


class CaptureError(NtpguardError):
    """A file that cannot be read as a capture."""


class Damaged(CaptureError):
    """The capture cannot be read further; the packets before this are whole."""


class _Interface(NamedTuple):
    """Of a pcapng section. A time of n units is n * multiplier // divisor + offset ns."""

    link: int
    snap: int
    multiplier: int = 1000
    divisor: int = 1
    offset: int = 0


def packets(file: BinaryIO, name: str) -> Iterator[Packet]:
    """The packets of a capture, which is read once from where it stands. `name` stands in messages.

    Raises CaptureError if it is none, Damaged behind its last whole packet if more should follow.
    """
    stream = io.BufferedReader(cast(io.RawIOBase, file), BUFFER)
    if stream.peek(2)[:2] == GZIP:
        stream = io.BufferedReader(_Unzipped(stream), BUFFER)
    source = _Source(stream, name)
    try:
        magic = source.read(4)
        if magic in PCAP:
            yield from _pcap(source, *PCAP[magic])
        elif magic == SECTION:
            yield from _pcapng(source)
        else:
            _refuse(name, magic)
    except EOFError:
        source.damaged("the gzip stream ends too early")
    except (zlib.error, gzip.BadGzipFile) as error:
        source.damaged(f"the gzip stream is broken ({error})")


class _Unzipped(io.RawIOBase):
    """A gzip stream that gives all there is before it says that it is broken: gzip's own keeps for
    itself what it has read of a piece.
    """

    def __init__(self, zipped: "io.BufferedReader[Any]") -> None:
        self._file = gzip.GzipFile(fileobj=zipped)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer)
        data = self._file.read1(len(view))
        view[: len(data)] = data
        return len(data)


def _refuse(name: str, magic: bytes) -> NoReturn:
    if not magic:
        raise CaptureError(f"{name}: empty: capture with tcpdump -w {name} udp port 123")
    for head, what in COMPRESSED.items():
        if magic.startswith(head):
            raise CaptureError(f"{name}: compressed with {what}: decompress it first, or use gzip")
    raise CaptureError(
        f"{name}: neither pcap nor pcapng (begins with {magic.hex()}): "
        "if it is another capture format, convert it: editcap -F pcapng"
    )


class _Source:
    """A stream that knows where it is."""

    def __init__(self, stream: "io.BufferedReader[Any]", name: str) -> None:
        self.read = stream.read
        self.name = name
        self.record = 0  # how many were whole
        self.at = 0  # where the one that is being read begins, bytes

    def damaged(self, what: str) -> NoReturn:
        raise Damaged(
            f"{self.name}: record {self.record + 1}, at byte {self.at}: {what}: "
            "what came before counts"
        )

    def take(self, size: int) -> bytes:
        data = self.read(size)
        if len(data) < size:
            self.damaged("truncated")
        return data

    def link(self, link: int) -> int:
        if link not in LINKS:
            known = f" ({LINK_NAMES[link]})" if link in LINK_NAMES else ""
            raise CaptureError(
                f"{self.name}: link type {link}{known}: not supported: capture on an Ethernet "
                "interface, or with tcpdump -i any"
            )
        return link


def _pcap(source: _Source, order: str, unit_ns: int) -> Iterator[Packet]:
    head = source.take(20)
    link = source.link(
        struct.unpack(order + "I", head[16:])[0] & 0xFFFF
    )  # above: length of the FCS
    unpack = struct.Struct(order + "IIII").unpack
    read = source.read
    source.at = 24
    while head := read(16):
        if len(head) < 16:
            source.damaged("truncated")
        seconds, fraction, captured, length = unpack(head)
        if captured > LARGEST_RECORD:
            source.damaged(f"a record of {captured} bytes")
        data = read(captured)
        if len(data) < captured:
            source.damaged("truncated")
        source.at += 16 + captured
        source.record += 1
        yield seconds * SECOND + fraction * unit_ns, link, data, length


def _pcapng(source: _Source) -> Iterator[Packet]:
    interfaces: list[_Interface] = []
    for order, kind, body in _blocks(source):
        if kind == ENHANCED_PACKET:
            number, high, low, captured, length = _head(source, order + "IIIII", body)
            at = 20
        elif kind == OBSOLETE_PACKET:
            number, _, high, low, captured, length = _head(source, order + "HHIIII", body)
            at = 20
        elif kind == SIMPLE_PACKET:
            (length,) = _head(source, order + "I", body)
            number, high, at = 0, None, 4
            captured = length
            if interfaces and interfaces[0].snap:
                captured = min(length, interfaces[0].snap)
        else:
            if kind == INTERFACE:
                interfaces.append(_interface(source, order, body))
            elif kind is None:
                interfaces = []
            continue
        if number >= len(interfaces):
            source.damaged(f"interface {number} is not described before")
        if captured > len(body) - at:
            source.damaged(f"{captured} bytes in a block of {len(body)}")
        one = interfaces[number]
        time_ns = None
        if high is not None:
            time_ns = (high << 32 | low) * one.multiplier // one.divisor + one.offset
            if not FIRST_NS <= time_ns <= LAST_NS:
                source.damaged(f"a time of {time_ns // SECOND} s since 1970")
        yield time_ns, source.link(one.link), body[at : at + captured], length


def _head(source: _Source, layout: str, body: bytes) -> tuple[int, ...]:
    if len(body) < struct.calcsize(layout):
        source.damaged(f"a block of {len(body)} bytes")
    return struct.unpack_from(layout, body)


def _blocks(source: _Source) -> Iterator[tuple[str, int | None, bytes]]:
    """Byte order, type (None: a section begins) and body of each block."""
    order = ""
    head = SECTION + source.take(4)
    while head:
        kind = None
        if len(head) < 8:
            source.damaged("truncated")
        magic = b""
        if head[:4] == SECTION:  # reads the same in both orders, but its length does not
            magic = source.take(4)
            if magic not in ORDERS:
                source.damaged(f"byte-order magic {magic.hex()}")
            order = ORDERS[magic]
        else:
            (kind,) = struct.unpack(order + "I", head[:4])
        (size,) = struct.unpack(order + "I", head[4:])
        if not 12 + len(magic) <= size <= LARGEST_BLOCK:
            source.damaged(f"a block of {size} bytes")
        body = source.take(size - 8 - len(magic))
        if body[-4:] != head[4:]:
            source.damaged("a block that ends with another length than it begins with")
        yield order, kind, body[:-4]
        source.record += 1
        source.at += size
        head = source.read(8)


def _interface(source: _Source, order: str, body: bytes) -> _Interface:
    link, _, snap = _head(source, order + "HHI", body)
    multiplier, divisor, offset = 1000, 1, 0
    at = 8
    while at + 4 <= len(body):
        option, size = struct.unpack_from(order + "HH", body, at)
        value = body[at + 4 : at + 4 + size]
        if option == OPTION_END or len(value) < size:
            break
        if option == OPTION_TSRESOL and size == 1:
            power = value[0] & 0x7F
            multiplier, divisor = SECOND, 2**power if value[0] & 0x80 else 10**power
        elif option == OPTION_TSOFFSET and size == 8:
            offset = struct.unpack(order + "q", value)[0] * SECOND
        at += 4 + (size + 3 & ~3)
    return _Interface(link, snap, multiplier, divisor, offset)
