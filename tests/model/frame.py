"""What a frame is to the guard, and the Kiss-o'-Death that answers it: from design.md "The datapath"
step 1 and protocol.md section 2, on bytes and integers.
"""

from dataclasses import dataclass
from enum import Enum

from ntpguard import abi
from ntpguard.words import Family
from tests.bpf.packets import ones_sum

VLAN_TYPES = (b"\x81\x00", b"\x88\xa8")
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60
TCP, UDP, ICMPV6 = 6, 17, 58
HEADERS = 8  # IPv6 extension headers that are followed
NTP_HEADER = 48
MAPPED = 0xFFFF << 32  # ::ffff:0:0/96
POLL_LEAST, POLL_MOST = 6, 10
LEAST_PORT = 1024  # of a client, but for 123


class Kind(Enum):
    """OTHER: not for the guard. ODD: UDP cannot be found. MALFORMED: no NTP packet. NTP: one."""

    OTHER, ODD, MALFORMED, NTP = range(4)


@dataclass(slots=True)
class Packet:
    """A frame, parsed as far as its kind says. Addresses are integers, `to` IPv4-mapped."""

    kind: Kind
    frame: bytes
    family: Family = Family.IPV4
    source: int = 0
    to: int = 0
    ip_at: int = 0
    ttl: int = 0
    plain: bool = True  # no IP options, no extension headers, only the datagram in it
    source_port: int = 0
    udp_at: int = 0
    payload_bytes: int = 0
    mode: int = 0
    version: int = 0
    header: bytes = b""  # 48 bytes if the packet is whole

    @property
    def whole(self) -> bool:
        """Whether the NTP header is whole, by the UDP length and by the frame's."""
        return len(self.header) == NTP_HEADER


def number(data: bytes) -> int:
    """An integer in network byte order."""
    return int.from_bytes(data, "big")


def parse(frame: bytes, mac: bytes, ports: tuple[int, ...]) -> Packet:
    """The frame as the guard of an interface with this MAC and these guarded ports sees it."""
    packet = Packet(Kind.OTHER, frame)
    if frame[:6] != mac:
        return packet
    at = 12
    for _ in range(2):
        if frame[at : at + 2] in VLAN_TYPES:
            at += 4
    ethertype = frame[at : at + 2]
    packet.ip_at = at + 2
    if ethertype == b"\x08\x00":
        parse_ipv4(packet, ports)
    elif ethertype == b"\x86\xdd":
        parse_ipv6(packet, ports)
    return packet


def parse_ipv4(packet: Packet, ports: tuple[int, ...]) -> None:
    """RFC 791."""
    ip = packet.frame[packet.ip_at : packet.ip_at + 20]
    if len(ip) < 20 or ip[9] != UDP or ip[0] >> 4 != 4:
        return
    header_bytes = (ip[0] & 15) * 4
    total = ip[2] << 8 | ip[3]
    if header_bytes < 20 or total < header_bytes:
        return
    packet.source = number(ip[12:16])
    packet.to = MAPPED | number(ip[16:20])
    packet.ttl = ip[8]
    packet.plain = header_bytes == 20
    if (ip[6] << 8 | ip[7]) & 0x3FFF:  # more fragments, or an offset
        packet.kind = Kind.ODD
        return
    packet.udp_at = packet.ip_at + header_bytes
    parse_udp(packet, total - header_bytes, ports)


def parse_ipv6(packet: Packet, ports: tuple[int, ...]) -> None:
    """RFC 8200; the chain of headers is followed to a bound."""
    frame, at = packet.frame, packet.ip_at
    ip = frame[at : at + 40]
    if len(ip) < 40 or ip[0] >> 4 != 6:
        return
    packet.family = Family.IPV6
    packet.source, packet.to = number(ip[8:24]), number(ip[24:40])
    packet.ttl = ip[7]
    left = ip[4] << 8 | ip[5]
    following = ip[6]
    at += 40
    headers = 0
    if left == 0 and following == HOP_BY_HOP:  # a jumbogram, or one that says so: RFC 2675
        packet.kind = Kind.ODD
        return
    while following in (HOP_BY_HOP, ROUTING, DESTINATION) and headers < HEADERS:
        headers += 1
        packet.plain = False
        if len(frame) < at + 2:
            packet.kind = Kind.ODD
            return
        following, size = frame[at], (frame[at + 1] + 1) * 8
        if size > left:
            return
        left -= size
        at += size
    if following == UDP:
        packet.udp_at = at
        parse_udp(packet, left, ports)
        return
    too_long = headers == HEADERS  # whatever follows
    fragment = following == FRAGMENT and (len(frame) < at + 2 or frame[at] not in (TCP, ICMPV6))
    if too_long or fragment:
        packet.kind = Kind.ODD


def parse_udp(packet: Packet, ip_payload: int, ports: tuple[int, ...]) -> None:
    """RFC 768; `ip_payload` is what the IP header leaves for UDP, in bytes."""
    frame, at = packet.frame, packet.udp_at
    udp = frame[at : at + 8]
    if len(udp) < 8:
        packet.kind = Kind.ODD
        return
    if udp[2] << 8 | udp[3] not in ports:
        return
    length = udp[4] << 8 | udp[5]
    ipv6 = packet.family == Family.IPV6
    packet.kind = Kind.MALFORMED
    if length <= 8 or length > ip_payload or len(frame) <= at + 8:
        return
    if ipv6 and (udp[6:] == b"\0\0" or packet.source >> 120 == 0xFF):
        return
    packet.kind = Kind.NTP
    packet.source_port = udp[0] << 8 | udp[1]
    packet.payload_bytes = length - 8
    packet.plain = packet.plain and length == ip_payload
    packet.mode = frame[at + 8] & 7
    packet.version = frame[at + 8] >> 3 & 7
    if packet.payload_bytes >= NTP_HEADER:
        packet.header = frame[at + 8 : at + 8 + NTP_HEADER]


def unicast(family: Family, source: int, key: int) -> bool:
    """Whether a packet from this address, of the source `key`, can come over a wire from one host."""
    if family == Family.IPV4:
        return source >> 24 not in (0, 127) and source >> 24 < 224
    return key != abi.KEY_ZERO_TAG  # multicast was malformed


def kissable(packet: Packet, key: int, local: set[int]) -> bool:
    """Whether a KoD may answer this request (protocol.md 2.3).

    `key` is its source's, `local` has this host's addresses.
    """
    source = packet.source if packet.family == Family.IPV6 else MAPPED | packet.source
    return (
        packet.mode == 3
        and 1 <= packet.version <= 4
        and packet.payload_bytes == NTP_HEADER
        and packet.plain
        and packet.header[40:48] != bytes(8)
        and packet.to in local
        and source not in local
        and unicast(packet.family, packet.source, key)
        and (packet.source_port == 123 or packet.source_port >= LEAST_PORT)
        and not packet.frame[6] & 1  # a group's MAC
    )


def kod(packet: Packet) -> bytes:
    """The frame that answers a kissable request: protocol.md 2.1, the recommended column."""
    frame, ip_at, udp_at = packet.frame, packet.ip_at, packet.udp_at
    poll = packet.header[2] - 256 if packet.header[2] > 127 else packet.header[2]
    poll = min(max(poll, POLL_LEAST), POLL_MOST)
    transmit = packet.header[40:48]
    ntp = bytes((0xC0 | packet.version << 3 | 4, 0, poll, 0xE9)) + bytes(8) + b"RATE" + bytes(8)
    ntp += transmit * 3
    ip = bytearray(frame[ip_at:udp_at])
    if packet.family == Family.IPV4:
        addresses = frame[ip_at + 16 : ip_at + 20] + frame[ip_at + 12 : ip_at + 16]
        ip[1], ip[6], ip[7], ip[8] = 0, ip[6] & 0x40, 0, 64
        ip[10:] = b"\0\0" + addresses
        ip[10:12] = ones_sum(bytes(ip)).to_bytes(2, "big")
    else:
        addresses = frame[ip_at + 24 : ip_at + 40] + frame[ip_at + 8 : ip_at + 24]
        ip[0], ip[1], ip[2], ip[3], ip[7] = 0x60, 0, 0, 0, 64
        ip[8:] = addresses
    udp = (
        frame[udp_at + 2 : udp_at + 4] + frame[udp_at : udp_at + 2] + frame[udp_at + 4 : udp_at + 6]
    )
    if frame[udp_at + 6 : udp_at + 8] == b"\0\0":
        checksum = 0
    else:
        pseudo = addresses + bytes((0, UDP)) + udp[4:6]
        checksum = ones_sum(pseudo + udp + ntp) or 0xFFFF
    macs = frame[6:12] + frame[:6]
    rest = frame[udp_at + 8 + NTP_HEADER :]
    return macs + frame[12:ip_at] + bytes(ip) + udp + checksum.to_bytes(2, "big") + ntp + rest
