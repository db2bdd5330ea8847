"""Captures, written byte by byte from the pcap and pcapng drafts and from nothing that ntpguard has."""

import struct
from collections.abc import Iterable

SECOND = 10**9
ETHERNET, RAW, SLL, SLL2, NULL, LOOP = 1, 101, 113, 276, 0, 108
# time in ns since 1970, bytes captured, bytes the frame had (None: the same)
Record = tuple[int, bytes, int | None]


def pcap(
    records: Iterable[Record],
    *,
    link: int = ETHERNET,
    order: str = "<",
    nanoseconds: bool = False,
    snap: int = 262144,
) -> bytes:
    """A pcap file."""
    magic, unit = (0xA1B23C4D, 1) if nanoseconds else (0xA1B2C3D4, 1000)
    parts = [struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, snap, link)]
    for time_ns, data, length in records:
        seconds, rest = divmod(time_ns, SECOND)
        size = len(data) if length is None else length
        parts.append(struct.pack(order + "IIII", seconds, rest // unit, len(data), size) + data)
    return b"".join(parts)


def padded(data: bytes) -> bytes:
    """To a multiple of 4 bytes."""
    return data + bytes(-len(data) % 4)


def block(order: str, kind: int, body: bytes) -> bytes:
    """A pcapng block."""
    size = struct.pack(order + "I", 12 + len(padded(body)))
    return struct.pack(order + "I", kind) + size + padded(body) + size


def section(order: str = "<") -> bytes:
    """A section header, of unknown length."""
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))


def option(order: str, code: int, value: bytes) -> bytes:
    """An option of a block."""
    return struct.pack(order + "HH", code, len(value)) + padded(value)


def interface(
    order: str = "<",
    *,
    link: int = ETHERNET,
    snap: int = 0,
    resolution: int | None = None,
    offset: int = 0,
) -> bytes:
    """An interface description. `resolution`: if_tsresol's byte."""
    options = option(order, 2, b"eth0")
    if resolution is not None:
        options += option(order, 9, bytes([resolution]))
    if offset:
        options += option(order, 14, struct.pack(order + "q", offset))
    options += option(order, 0, b"")
    return block(order, 1, struct.pack(order + "HHI", link, 0, snap) + options)


def enhanced(
    data: bytes, ticks: int, *, order: str = "<", number: int = 0, length: int | None = None
) -> bytes:
    """An enhanced packet, with an option behind it."""
    size = len(data) if length is None else length
    head = struct.pack(order + "IIIII", number, ticks >> 32, ticks & 0xFFFFFFFF, len(data), size)
    flags = option(order, 2, bytes(4)) + option(order, 0, b"")
    return block(order, 6, head + padded(data) + flags)


def obsolete(data: bytes, ticks: int, *, order: str = "<", number: int = 0) -> bytes:
    """An obsolete packet block."""
    head = (number, 0, ticks >> 32, ticks & 0xFFFFFFFF, len(data), len(data))
    return block(order, 2, struct.pack(order + "HHIIII", *head) + padded(data))


def simple(data: bytes, *, order: str = "<", length: int | None = None) -> bytes:
    """A simple packet block: it has no time."""
    size = len(data) if length is None else length
    return block(order, 3, struct.pack(order + "I", size) + padded(data))


def ng(records: Iterable[Record], *, order: str = "<", resolution: int = 9) -> bytes:
    """A pcapng file of one section and one interface, its times in nanoseconds."""
    parts = [section(order), interface(order, resolution=resolution)]
    parts += [enhanced(d, t, order=order, length=n) for t, d, n in records]
    return b"".join(parts)
