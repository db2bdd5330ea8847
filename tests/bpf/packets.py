"""Frames, built field by field from the RFCs and from nothing that ntpguard computes."""

import ipaddress
import struct
from dataclasses import dataclass, field, replace

SERVER_MAC = bytes.fromhex("020000000001")
CLIENT_MAC = bytes.fromhex("020000000002")
OTHER_MAC = bytes.fromhex("020000000003")

SERVER4, CLIENT4 = "198.51.100.1", "203.0.113.7"
SERVER6, CLIENT6 = "2001:db8::1", "2001:db8:12::7"

ETH_IPV4, ETH_IPV6, ETH_VLAN, ETH_QINQ = 0x0800, 0x86DD, 0x8100, 0x88A8
UDP = 17
TRANSMIT = bytes.fromhex("eaf1b2c3d4e5f607")


def ones_sum(data: bytes) -> int:
    """RFC 1071 checksum of `data`, not yet mapped for UDP."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ntp(
    *,
    mode: int = 3,
    version: int = 4,
    leap: int = 0,
    stratum: int = 0,
    poll: int = 6,
    precision: int = 0x20,
    root_delay: bytes = bytes(4),
    root_dispersion: bytes = bytes(4),
    reference_id: bytes = bytes(4),
    reference: bytes = bytes(8),
    origin: bytes = bytes(8),
    receive: bytes = bytes(8),
    transmit: bytes = TRANSMIT,
) -> bytes:
    """An NTP header (RFC 5905, 7.3), 48 bytes."""
    first = bytes([leap << 6 | version << 3 | mode, stratum, poll & 0xFF, precision & 0xFF])
    fields = (root_delay, root_dispersion, reference_id, reference, origin, receive, transmit)
    return first + b"".join(fields)


@dataclass(frozen=True)
class Frame:
    """One frame; `bytes(frame)` is what is on the wire."""

    payload: bytes = field(default_factory=ntp)
    source: str = CLIENT4
    destination: str = SERVER4
    source_port: int = 40000
    destination_port: int = 123
    source_mac: bytes = CLIENT_MAC
    destination_mac: bytes = SERVER_MAC
    tags: tuple[tuple[int, int], ...] = ()  # (EtherType, TCI), outermost first
    ttl: int = 57
    tos: int = 0
    identification: int = 0x1234
    fragment: int = 0x4000  # flags and offset
    options: bytes = b""  # IPv4
    extensions: tuple[tuple[int, bytes], ...] = ()  # IPv6: (type, whole header without its next)
    flow: int = 0  # IPv6 flow label
    checksum: int | None = None  # UDP; None: the right one
    udp_length: int | None = None
    ip_length: int | None = None  # IPv4 total length, IPv6 payload length
    protocol: int = UDP
    trailer: bytes = b""  # Ethernet padding

    @property
    def ipv6(self) -> bool:
        """Whether this is an IPv6 frame."""
        return ":" in self.source

    def udp(self) -> bytes:
        """UDP header and payload with the checksum over the pseudo header (RFC 768, RFC 8200 8.1)."""
        length = 8 + len(self.payload) if self.udp_length is None else self.udp_length
        header = struct.pack("!HHHH", self.source_port, self.destination_port, length, 0)
        addresses = b"".join(
            ipaddress.ip_address(a).packed for a in (self.source, self.destination)
        )
        if self.checksum is None:
            pseudo = addresses + struct.pack("!HH", UDP, length)
            check = ones_sum(pseudo + header + self.payload) or 0xFFFF
        else:
            check = self.checksum
        return header[:6] + struct.pack("!H", check) + self.payload

    def __bytes__(self) -> bytes:
        udp = self.udp()
        source, destination = (
            ipaddress.ip_address(a).packed for a in (self.source, self.destination)
        )
        if self.ipv6:
            chain, first = b"", self.protocol
            for kind, body in reversed(self.extensions):
                chain = bytes([first]) + body + chain
                first = kind
            length = len(chain) + len(udp) if self.ip_length is None else self.ip_length
            word = 6 << 28 | self.tos << 20 | self.flow
            ip = struct.pack("!IHBB", word, length, first, self.ttl) + source + destination + chain
            kind = ETH_IPV6
        else:
            size = 20 + len(self.options)
            length = size + len(udp) if self.ip_length is None else self.ip_length
            head = struct.pack(
                "!BBHHHBBH",
                0x40 | size // 4,
                self.tos,
                length,
                self.identification,
                self.fragment,
                self.ttl,
                self.protocol,
                0,
            )
            ip = head + source + destination + self.options
            ip = ip[:10] + struct.pack("!H", ones_sum(ip)) + ip[12:]
            kind = ETH_IPV4
        tags = b"".join(struct.pack("!HH", *tag) for tag in self.tags)
        ethernet = self.destination_mac + self.source_mac + tags + struct.pack("!H", kind)
        return ethernet + ip + udp + self.trailer

    def but(self, **changes: object) -> "Frame":
        """This frame with other fields."""
        return replace(self, **changes)  # type: ignore[arg-type]


IPV4 = Frame()
IPV6 = Frame(source=CLIENT6, destination=SERVER6)


def kod(request: Frame, *, poll: int = 6) -> bytes:
    """The Kiss-o'-Death that answers `request`, as protocol.md section 2.1 wants it."""
    transmit = request.payload[40:48]
    payload = ntp(
        leap=3,
        mode=4,
        version=request.payload[0] >> 3 & 7,
        poll=poll,
        precision=0xE9,
        reference_id=b"RATE",
        origin=transmit,
        receive=transmit,
        transmit=transmit,
    )
    return bytes(
        request.but(
            payload=payload,
            source=request.destination,
            destination=request.source,
            source_port=request.destination_port,
            destination_port=request.source_port,
            source_mac=request.destination_mac,
            destination_mac=request.source_mac,
            ttl=64,
            tos=0,
            flow=0,
            checksum=0 if request.checksum == 0 else None,
        )
    )
