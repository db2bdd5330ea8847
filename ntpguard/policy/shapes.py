"""What a request's header tells of the client that made it: which signatures it has, and which of
the shapes of clients that are known from their source code or from incidents.

A shape is no proof: FortiGate, nagios and an old ntpdate send the same header, and who forges an
address may forge a header too.
"""

from dataclasses import dataclass
from functools import cached_property

from ntpguard.abi import HEADER_BYTES
from ntpguard.policy.header import Header
from ntpguard.policy.model import SignaturePolicy

TRANSMIT = 40  # octet at which the transmit timestamp begins (RFC 5905, 7.3)
MICROSECOND = 1_000_000
# just below the next microsecond, as bpf/policy.h has it
TRUNCATED = (999 << 32) // 1000
NANOSECONDS = 1_000_000_000


@dataclass(frozen=True)
class Shape:
    """What one client's requests look like. `transmits`: its transmit timestamp is set."""

    client: str
    begins: str  # hex, as a signature's header; all up to the transmit timestamp is 0 from there on
    transmits: bool = True
    fraction: str | None = None

    def fits(self, header: bytes, source_port: int) -> bool:
        """Whether a whole header has this shape."""
        return any(header[TRANSMIT:]) == self.transmits and matches(
            self._signature, header, source_port
        )

    @cached_property
    def _signature(self) -> SignaturePolicy:
        digits = self.begins.replace(" ", "").ljust(2 * TRANSMIT, "0")
        return SignaturePolicy(self.client, Header(digits), None, self.fraction)


SHAPES = (
    Shape("Arduino NTPClient", "e3 00 06 ec 00000000 00000000 314e3134", transmits=False),
    Shape("MicroPython ntptime", "23", transmits=False),
    Shape("MicroPython ntptime", "1b", transmits=False),
    Shape("FortiGate", "e3 00 04 fa 00010000 00010000", fraction="microseconds"),
    Shape("FortiGate", "db 00 04 fa 00010000 00010000", fraction="microseconds"),
    Shape("nagios check_ntp_time", "e3 00 04 fa 00010000 00010000"),
    Shape("ntpdate", "e3 00 03 fa 00010000 00010000"),
    Shape("ntpdate", "e3 00 04 fa 00010000 00010000"),
    Shape("ios-ntp", "23 00 04 fa 00010000 00010000"),
    Shape("systemd-timesyncd", "23", fraction="nanoseconds"),
    Shape("Android", "1b"),
    Shape("Go beevik/ntp", "23 00 00 20"),
    Shape("chrony", "23 00 ?? 20"),
)


def clients(header: bytes, source_port: int) -> tuple[str, ...]:
    """The clients known to send such a header, by name; the likelier first."""
    found = [one.client for one in SHAPES if one.fits(header, source_port)]
    return tuple(dict.fromkeys(found))


def matches(one: SignaturePolicy, header: bytes, source_port: int) -> bool:
    """Whether a whole header has a signature's shape: as has_shape in bpf/policy.h."""
    if one.source_port not in (None, source_port) or len(header) != HEADER_BYTES:
        return False
    if one.header:
        mask, value = (int.from_bytes(b, "big") for b in (one.header.mask, one.header.value))
        if int.from_bytes(header, "big") & mask != value:
            return False
    fraction = int.from_bytes(header[TRANSMIT + 4 :], "big")
    if one.fraction == "microseconds":
        return fraction * MICROSECOND & 0xFFFFFFFF >= TRUNCATED
    return one.fraction != "nanoseconds" or fraction < NANOSECONDS
