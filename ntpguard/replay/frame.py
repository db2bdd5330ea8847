"""What a captured frame is to the program: mirror of bpf/packet.h, as far as it must be known from
outside which packets are judged and whose they are. The verdict is the program's alone.
"""

import struct
from typing import NamedTuple

from ntpguard.abi import HEADER_BYTES
from ntpguard.replay.capture import ETHERNET, LOOP, NULL, SLL, SLL2

IPV4, IPV6 = b"\x08\x00", b"\x86\xdd"
VLAN = (b"\x81\x00", b"\x88\xa8")
VLAN_TAGS, EXTENSION_HEADERS = 2, 8
ETHERNET_BYTES, UDP_BYTES = 14, 8
TCP, UDP, ICMPV6 = 6, 17, 58
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60
MORE_OR_OFFSET = 0x3FFF

SLL_BYTES, SLL2_BYTES, FAMILY_BYTES = 16, 20, 4
TO_HOST = 0
STATION = bytes.fromhex("020000000001")  # any unicast address
GROUP = b"\xff" * 6
SENDER = bytes.fromhex("020000000002")


class Datagram(NamedTuple):
    """A packet that the program judges if it is to a guarded port."""

    source: bytes  # addresses: 4 or 16 bytes
    destination: bytes
    payload_at: (
        int  # of UDP, in the frame; 0: its ports cannot be seen (a fragment, too many headers)
    )
    source_port: int
    port: int
    cut: bool  # the capture lacks bytes that the program would look at


def to_ethernet(link: int, data: bytes) -> bytes:
    """The frame as an Ethernet frame; too short to be one if it is too short."""
    if link == ETHERNET:
        return data
    station = STATION
    if link == SLL:
        kind, kept = data[14:16], data[SLL_BYTES:]
        # broadcast, multicast, for another host; what the host itself sent is known by its address
        if data[:2] in (b"\0\1", b"\0\2", b"\0\3"):
            station = GROUP
    elif link == SLL2:
        kind, kept = data[:2], data[SLL2_BYTES:]
        if data[10:11] in (b"\1", b"\2", b"\3"):
            station = GROUP
    else:
        kept = data[FAMILY_BYTES:] if link in (NULL, LOOP) else data
        kind = IPV6 if kept[:1] and kept[0] >> 4 == 6 else IPV4
    return station + SENDER + kind + kept


def datagram(frame: bytes, whole: bool) -> Datagram | None:
    """What an Ethernet frame carries; None: nothing that the program judges. `whole`: the capture
    has all of the frame.
    """
    size = len(frame)
    if size < ETHERNET_BYTES + 20 or frame[0] & 1:
        return None
    at = ETHERNET_BYTES
    kind = frame[12:14]
    for _ in range(VLAN_TAGS):
        if kind in VLAN:
            kind = frame[at + 2 : at + 4]
            at += 4
    if kind == IPV4:
        if size < at + 20 or frame[at + 9] != UDP:
            return None
        total, _, fragment = struct.unpack_from("!HHH", frame, at + 2)
        header = (frame[at] & 15) * 4
        if frame[at] >> 4 != 4 or header < 20 or total < header:
            return None
        source, destination = frame[at + 12 : at + 16], frame[at + 16 : at + 20]
        udp = 0 if fragment & MORE_OR_OFFSET else at + header
    elif kind == IPV6:
        if size < at + 40 or frame[at] >> 4 != 6:
            return None
        source, destination = frame[at + 8 : at + 24], frame[at + 24 : at + 40]
        if frame[at + 6] == UDP:
            udp = at + 40
        else:
            found = _behind_extensions(frame, at)
            if found is None:
                return None
            udp = found
    else:
        return None
    if not udp or size < udp + UDP_BYTES:
        return Datagram(source, destination, 0, 0, 0, bool(udp) and not whole)
    source_port, port, length = struct.unpack_from("!HHH", frame, udp)
    cut = not whole and size < udp + min(length, UDP_BYTES + HEADER_BYTES)
    return Datagram(source, destination, udp + UDP_BYTES, source_port, port, cut)


def _behind_extensions(frame: bytes, at: int) -> int | None:
    """Where UDP is behind the extension headers of the IPv6 header at `at`; 0: it may be there, but
    cannot be seen; None: it is not.
    """
    following = frame[at + 6]
    left = frame[at + 4] << 8 | frame[at + 5]
    if not left and following == HOP_BY_HOP:  # RFC 2675
        return 0
    at += 40
    for _ in range(EXTENSION_HEADERS):
        if following == UDP:
            return at
        if following not in (HOP_BY_HOP, ROUTING, DESTINATION, FRAGMENT):
            return None
        if len(frame) < at + 2:
            return 0
        if following == FRAGMENT:
            return None if frame[at] in (TCP, ICMPV6) else 0
        length = (frame[at + 1] + 1) * 8
        if length > left:
            return None
        following = frame[at]
        left -= length
        at += length
    return at if following == UDP else 0
