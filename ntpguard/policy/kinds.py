"""Kinds of values in a policy file: each reads a TOML value, and writes it back as TOML.

`read` raises ValueError with what is expected; the checker adds where and what was got.
"""

import ipaddress
import json
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
INTERVAL_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Rate:
    """Requests per unit of time, in nft's words: 60/minute."""

    count: int
    unit: str

    @property
    def per_second(self) -> Fraction:
        """Requests per second."""
        return Fraction(self.count, SECONDS[self.unit])

    def __str__(self) -> str:
        return f"{self.count}/{self.unit}"


class Kind(Protocol):
    """How one sort of value is read and written."""

    def read(self, value: Any) -> Any:
        """The value meant by a TOML value. Raises ValueError."""

    def write(self, value: Any) -> str:
        """TOML that reads as `value`."""


def network_of(packed: bytes, length: int) -> Network:
    """The prefix of an address in network byte order."""
    return ipaddress.ip_network((packed, length))


def quote(text: object) -> str:
    """A TOML basic string: JSON's escapes are a subset of TOML's."""
    return json.dumps(str(text), ensure_ascii=False)


def is_integer(value: Any) -> bool:
    """Whether this is a TOML integer (Python counts booleans among them)."""
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class RateKind:
    """A rate with an upper bound, in requests per second."""

    most: int

    def read(self, value: Any) -> Rate:
        """See Kind."""
        match = re.fullmatch(r"(\d[\d_]*)/(second|minute|hour|day)", str(value))
        if not isinstance(value, str) or not match:
            raise ValueError('must be a rate like "60/minute" (per second, minute, hour or day)')
        rate = Rate(int(match[1].replace("_", "")), match[2])
        if not 0 < rate.per_second <= self.most:
            raise ValueError(f'must be more than 0 and at most "{self.most}/second"')
        return rate

    def write(self, value: Rate) -> str:
        """See Kind."""
        return quote(value)


@dataclass(frozen=True)
class Integer:
    """A whole number within bounds."""

    least: int
    most: int

    def read(self, value: Any) -> int:
        """See Kind."""
        if not is_integer(value) or not self.least <= value <= self.most:
            raise ValueError(f"must be a whole number from {self.least} to {self.most}")
        return int(value)

    def write(self, value: int) -> str:
        """See Kind."""
        return f"{value:_}" if value >= 10_000 else str(value)


class Boolean:
    """true or false."""

    def read(self, value: Any) -> bool:
        """See Kind."""
        if not isinstance(value, bool):
            raise ValueError("must be true or false")
        return value

    def write(self, value: bool) -> str:
        """See Kind."""
        return "true" if value else "false"


@dataclass(frozen=True)
class Choice:
    """One of a few words."""

    words: tuple[str, ...]

    def read(self, value: Any) -> str:
        """See Kind."""
        if value not in self.words:
            raise ValueError("must be " + " or ".join(f'"{word}"' for word in self.words))
        return str(value)

    def write(self, value: str) -> str:
        """See Kind."""
        return quote(value)


class Share:
    """A share of excess, as a fraction: never 0, so that nobody is silenced."""

    def read(self, value: Any) -> Fraction:
        """See Kind."""
        match = re.fullmatch(r"(\d+)/(\d+)", value) if isinstance(value, str) else None
        if not match or not int(match[2]) or not Fraction(1, 1024) <= Fraction(value) <= 1:
            raise ValueError('must be a fraction from "1/1024" to "1/1"')
        return Fraction(value)

    def write(self, value: Fraction) -> str:
        """See Kind."""
        return quote(f"{value.numerator}/{value.denominator}")


@dataclass(frozen=True)
class Interval:
    """A time from `least` to `most` seconds."""

    least: int
    most: int

    def read(self, value: Any) -> int:
        """See Kind; in seconds."""
        match = re.fullmatch(r"(\d+)([smh])", value) if isinstance(value, str) else None
        seconds = int(match[1]) * INTERVAL_UNITS[match[2]] if match else 0
        if not self.least <= seconds <= self.most:
            least, most = self.write(self.least), self.write(self.most)
            raise ValueError(f'must be a time like "16s", "5m" or "1h", from {least} to {most}')
        return seconds

    def write(self, value: int) -> str:
        """See Kind."""
        for unit, seconds in reversed(INTERVAL_UNITS.items()):
            if value % seconds == 0:
                return quote(f"{value // seconds}{unit}")
        raise AssertionError("a second divides every time")


class ListKind:
    """A list whose items `item` reads."""

    most = 1_000_000

    def item(self, value: Any) -> Any:
        """One item. Raises ValueError."""
        if not isinstance(value, str) or not value:
            raise ValueError("must be a list of names")
        return value

    def read(self, value: Any) -> tuple[Any, ...]:
        """See Kind."""
        if not isinstance(value, list) or len(value) > self.most:
            raise ValueError(f"must be a list of at most {self.most}")
        return tuple(self.item(one) for one in value)

    def write(self, value: tuple[Any, ...]) -> str:
        """See Kind."""
        items = [str(one) if isinstance(one, int) else quote(one) for one in value]
        if sum(map(len, items)) < 80:
            return f"[{', '.join(items)}]"
        return "[\n" + "".join(f"    {item},\n" for item in items) + "]"


class Ports(ListKind):
    """UDP ports."""

    most = 4

    def read(self, value: Any) -> tuple[int, ...]:
        """See Kind."""
        if not isinstance(value, list) or not 1 <= len(value) <= self.most:
            raise ValueError(f"must be a list of 1 to {self.most} ports")
        return super().read(value)

    def item(self, value: Any) -> int:
        """One port."""
        return Integer(1, 65535).read(value)


class Addresses(ListKind):
    """IP addresses."""

    def item(self, value: Any) -> Address:
        """One address."""
        try:
            if isinstance(value, str):
                return ipaddress.ip_address(value)
        except ValueError:
            pass
        raise ValueError(f"{value!r} is no IP address")


def read_prefix(value: Any) -> Network:
    """One prefix. Raises ValueError with the prefix that was probably meant."""
    if not isinstance(value, str):
        raise ValueError(f'{value!r} is no prefix: write it like "198.51.100.0/24"')
    try:
        return ipaddress.ip_network(value)
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise ValueError(f'"{value}" is no prefix: write it like "198.51.100.0/24"') from None
    raise ValueError(f'"{value}" has host bits set: did you mean "{meant}"?')


class Prefixes(ListKind):
    """Prefixes."""

    def item(self, value: Any) -> Network:
        """One prefix."""
        return read_prefix(value)
