"""A signature's header: which bits of an NTP header are compared, and with what."""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ntpguard.abi import HEADER_BYTES
from ntpguard.policy.kinds import quote

MASKED = str.maketrans(".", "?")
# what people write for hex that is none
SLIPS = str.maketrans(
    {"o": "0", "l": "1", "*": "?", "x": "?", ":": " ", ",": " ", "_": "", "-": ""}
)


@dataclass(frozen=True)
class Header:
    """The first bytes of an NTP header as lower-case hex digits, two a byte; "?": any digit."""

    digits: str

    @cached_property
    def mask(self) -> bytes:
        """Ones where a bit is compared; 48 bytes."""
        mask = re.sub("[^?]", "f", self.digits).replace("?", "0")
        return bytes.fromhex(mask).ljust(HEADER_BYTES, b"\0")

    @cached_property
    def value(self) -> bytes:
        """What is compared with; 0 where nothing is; 48 bytes."""
        return bytes.fromhex(self.digits.replace("?", "0")).ljust(HEADER_BYTES, b"\0")

    @property
    def fixed_bits(self) -> int:
        """How many bits are compared."""
        return 4 * len(self.digits.replace("?", ""))

    def __str__(self) -> str:
        """The first four bytes apart, then RFC 5905's words of four."""
        some = [self.digits[i : i + 2] for i in range(0, len(self.digits), 2)]
        words = ["".join(some[i : i + 4]) for i in range(4, len(some), 4)]
        return " ".join([*some[:4], *words]).replace("??", "..")


class HeaderKind:
    """Hex of the first bytes of an NTP header, blanks anywhere between bytes."""

    wanted = (
        f'hex like "e3 00 06 ec" of 1 to {HEADER_BYTES} bytes, '
        'with ".." for a byte that may be any, "?" for a digit'
    )

    def read(self, value: Any) -> Header:
        """See Kind. The error points at the byte that is wrong."""
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"must be {self.wanted}")
        wrong = _wrong(value)
        if wrong:
            meant = re.sub("0[xX]", "", value).lower().translate(SLIPS)
            hint = "" if _wrong(meant) else f': did you mean "{_header(meant)}"?'
            raise ValueError(wrong + hint)
        return _header(value)

    def write(self, value: Header) -> str:
        """See Kind."""
        return quote(value)


def _header(text: str) -> Header:
    digits = "".join(text.lower().translate(MASKED).split())
    while digits.endswith("??"):
        digits = digits[:-2]
    return Header(digits)


def _wrong(text: str) -> str:
    """What is wrong with a header's text, and where; "" if nothing is."""
    byte = 1
    for group in text.split():
        bad = re.search(r"[^0-9a-fA-F.?]", group)
        if bad:
            at = byte + bad.start() // 2
            return f'byte {at}: "{bad[0]}" of "{group}" is no hex digit, "." or "?"'
        if len(group) % 2:
            return f'byte {byte + len(group) // 2}: "{group}" ends with half a byte'
        byte += len(group) // 2
    if byte - 1 > HEADER_BYTES:
        return f"is {byte - 1} bytes: an NTP header has {HEADER_BYTES}"
    if not _header(text).digits:
        return "compares no byte: give at least one hex digit"
    return ""
