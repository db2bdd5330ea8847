"""Kinds of values in a policy file: each reads a TOML value, and writes it back as TOML.

`read` raises ValueError with what is expected; the checker adds where and what was got.
"""

import ipaddress
import json
import re
import socket
from contextlib import suppress
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

    @property
    def wanted(self) -> str:
        """What is accepted, unit and range included: "a whole number from 1 to 15"."""

    def read(self, value: Any) -> Any:
        """The value meant by a TOML value. Raises ValueError."""

    def write(self, value: Any) -> str:
        """TOML that reads as `value`."""


def network_of(packed: bytes, length: int) -> Network:
    """The prefix of an address in network byte order."""
    # ip_network() tries one version after the other
    if len(packed) == 4:
        return ipaddress.IPv4Network((packed, length))
    return ipaddress.IPv6Network((packed, length))


def quote(text: object) -> str:
    """A TOML basic string: JSON's escapes are a subset of TOML's."""
    return json.dumps(str(text), ensure_ascii=False).replace("\x7f", "\\u007f")


def is_integer(value: Any) -> bool:
    """Whether this is a TOML integer (Python counts booleans among them)."""
    return isinstance(value, int) and not isinstance(value, bool)


def choices(words: tuple[str, ...]) -> str:
    """The words, quoted: "this" or "that"."""
    return " or ".join(f'"{word}"' for word in words)


class BadItems(ValueError):
    """What is wrong with some items of a list: (index, item, what is wrong)."""

    def __init__(self, items: list[tuple[int, Any, str]]) -> None:
        super().__init__("; ".join(what for _, _, what in items))
        self.items = items


@dataclass(frozen=True)
class RateKind:
    """A rate with an upper bound, in requests per second; with `off`, "off" is none at all."""

    most: int
    off: bool = False

    @property
    def wanted(self) -> str:
        """See Kind."""
        either = '"off" or ' if self.off else ""
        return (
            f'{either}a rate like "60/minute" (per second, minute, hour or day), '
            f'more than 0 and at most "{self.most}/second"'
        )

    def read(self, value: Any) -> Rate | None:
        """See Kind."""
        if self.off and value == "off":
            return None
        if isinstance(value, str):
            match = re.fullmatch(r"(\d[\d_]{0,40})/(second|minute|hour|day)", value, re.ASCII)
            rate = Rate(int(match[1].replace("_", "")), match[2]) if match else None
            if rate and 0 < rate.per_second <= self.most:
                return rate
        raise ValueError(f"must be {self.wanted}{self._meant(value)}")

    def write(self, value: Rate | None) -> str:
        """See Kind."""
        return quote("off" if value is None else value)

    def _meant(self, value: Any) -> str:
        """Of "60 / min", "60/m", "60 per minute": that 60/minute was meant, if that is accepted."""
        if self.off and value in (0, False, "", "none", "no", "unlimited"):
            return ': did you mean "off"?'
        if not isinstance(value, str):
            return ""
        match = re.fullmatch(r"(\d{1,20})\s*(?:/|per\b|a\b|p)?\s*([a-z]+)", value.lower(), re.ASCII)
        for unit in SECONDS if match else ():
            if match and unit.startswith(match[2].removesuffix("s") or "s"):
                meant = Rate(int(match[1]), unit)
                possible = 0 < meant.per_second <= self.most
                return f': did you mean "{meant}"?' if possible else ""
        return ""


@dataclass(frozen=True)
class Integer:
    """A whole number within bounds."""

    least: int
    most: int

    @property
    def wanted(self) -> str:
        """See Kind."""
        return f"a whole number from {self.least} to {self.most}"

    def read(self, value: Any) -> int:
        """See Kind."""
        if not is_integer(value) or not self.least <= value <= self.most:
            raise ValueError(f"must be {self.wanted}")
        return int(value)

    def write(self, value: int) -> str:
        """See Kind."""
        return f"{value:_}" if value >= 10_000 else str(value)


class Boolean:
    """true or false."""

    wanted = "true or false"

    def read(self, value: Any) -> bool:
        """See Kind."""
        if not isinstance(value, bool):
            raise ValueError(f"must be {self.wanted}")
        return value

    def write(self, value: bool) -> str:
        """See Kind."""
        return "true" if value else "false"


@dataclass(frozen=True)
class Choice:
    """One of a few words."""

    words: tuple[str, ...]

    @property
    def wanted(self) -> str:
        """See Kind."""
        return choices(self.words)

    def read(self, value: Any) -> str:
        """See Kind."""
        if value not in self.words:
            raise ValueError(f"must be {self.wanted}")
        return str(value)

    def write(self, value: str) -> str:
        """See Kind."""
        return quote(value)


@dataclass(frozen=True)
class Text:
    """A text of some form; `wanted` says which."""

    wanted: str
    form: str = ".+"

    def read(self, value: Any) -> str:
        """See Kind."""
        if not isinstance(value, str) or not re.fullmatch(self.form, value):
            raise ValueError(f"must be {self.wanted}")
        return value

    def write(self, value: str) -> str:
        """See Kind."""
        return quote(value)


class Share:
    """A share of excess, as a fraction: never 0, so that nobody is silenced."""

    wanted = 'a fraction from "1/1024" to "1/1"'

    def read(self, value: Any) -> Fraction:
        """See Kind."""
        match = (
            re.fullmatch(r"(\d{1,20})/(\d{1,20})", value, re.ASCII)
            if isinstance(value, str)
            else None
        )
        if not match or not int(match[2]) or not Fraction(1, 1024) <= Fraction(value) <= 1:
            raise ValueError(f"must be {self.wanted}")
        return Fraction(value)

    def write(self, value: Fraction) -> str:
        """See Kind."""
        return quote(f"{value.numerator}/{value.denominator}")


@dataclass(frozen=True)
class Interval:
    """A time from `least` to `most` seconds."""

    least: int
    most: int

    @property
    def wanted(self) -> str:
        """See Kind."""
        least, most = self.write(self.least), self.write(self.most)
        return f'a time like "16s", "5m" or "1h", from {least} to {most}'

    def read(self, value: Any) -> int:
        """See Kind; in seconds."""
        match = (
            re.fullmatch(r"(\d{1,20})([smh])", value, re.ASCII) if isinstance(value, str) else None
        )
        seconds = int(match[1]) * INTERVAL_UNITS[match[2]] if match else 0
        if not self.least <= seconds <= self.most:
            raise ValueError(f"must be {self.wanted}")
        return seconds

    def write(self, value: int) -> str:
        """See Kind."""
        for unit, seconds in reversed(INTERVAL_UNITS.items()):
            if value % seconds == 0:
                return quote(f"{value // seconds}{unit}")
        raise AssertionError("a second divides every time")


@dataclass(frozen=True)
class ListKind:
    """A list of `least` to `most` items, each of which `item` reads. `what` names them."""

    item: Kind
    what: str
    least: int = 0
    most: int = 1_000_000

    @property
    def wanted(self) -> str:
        """See Kind."""
        return f"a list of {self._size} {self.what}"

    @property
    def _size(self) -> str:
        return f"{self.least} to {self.most}" if self.least else f"at most {self.most}"

    def read(self, value: Any) -> tuple[Any, ...]:
        """See Kind. Raises BadItems with every item that is wrong."""
        if not isinstance(value, list) or not self.least <= len(value) <= self.most:
            raise ValueError(f"must be {self.wanted}")
        found, bad = [], []
        for index, one in enumerate(value):
            try:
                found.append(self.item.read(one))
            except ValueError as error:
                bad.append((index, one, str(error)))
        if bad:
            raise BadItems(bad)
        return tuple(found)

    def write(self, value: tuple[Any, ...]) -> str:
        """See Kind."""
        items = [self.item.write(one) for one in value]
        if sum(map(len, items)) < 80:
            return f"[{', '.join(items)}]"
        return "[\n" + "".join(f"    {item},\n" for item in items) + "]"


class AddressKind:
    """An IP address."""

    wanted = 'an IP address like "198.51.100.1" or "2001:db8::1"'

    def read(self, value: Any) -> Address:
        """See Kind."""
        try:
            if isinstance(value, str):
                return ipaddress.ip_address(value)
        except ValueError:
            pass
        raise ValueError(f"must be {self.wanted}")

    def write(self, value: Address) -> str:
        """See Kind."""
        return quote(value)


def _plain_prefix(text: str) -> Network:
    """As ip_network, for what is written plainly; in a third of the time. Raises OSError,
    ValueError.
    """
    address, slash, length = text.partition("/")
    if not (length.isascii() and length.isdecimal() if slash else True):
        raise ValueError(text)
    packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    return network_of(packed, int(length) if slash else 8 * len(packed))


class PrefixKind:
    """A prefix; an address alone is a prefix of its whole length."""

    wanted = 'a prefix like "198.51.100.0/24" or "2001:db8::/32", or an address'

    def read(self, value: Any) -> Network:
        """See Kind. The error names the prefix that was probably meant."""
        if isinstance(value, str):
            with suppress(OSError, ValueError):
                return _plain_prefix(value)
            with suppress(ValueError):
                return ipaddress.ip_network(value)
            try:
                meant = ipaddress.ip_network(value, strict=False)
            except ValueError:
                pass
            else:
                raise ValueError(f'has host bits set: did you mean "{meant}"?')
        raise ValueError(f"must be {self.wanted}")

    def write(self, value: Network) -> str:
        """See Kind."""
        return quote(value)
