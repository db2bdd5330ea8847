"""Arguments that commands take: a time, a prefix, a source."""

import ipaddress
import re
from collections.abc import Callable
from typing import Any, TypeAlias

import click

from ntpguard.errors import UsageError
from ntpguard.policy.kinds import Address, Network, PrefixKind

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
LONGEST_DAYS = 3650
EVER = float("inf")
Command: TypeAlias = Callable[..., Any]


class Duration(click.ParamType):
    """A time, in seconds; with `ever`, for ever is EVER."""

    name = "time"

    def __init__(self, *, ever: bool = False) -> None:
        self.ever = ever

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Raises UsageError."""
        if isinstance(value, float):
            return value
        if self.ever and value == "ever":
            return EVER
        match = re.fullmatch(r"(\d{1,20})([smhd])", str(value), re.ASCII)
        seconds = int(match[1]) * SECONDS[match[2]] if match else 0
        if not 0 < seconds <= LONGEST_DAYS * SECONDS["d"]:
            option = param.opts[0] if param else "time"
            ever = ", or ever" if self.ever else ""
            raise UsageError(
                f"{option}: must be a time like 90s, 10m, 24h or 7d, at most {LONGEST_DAYS}d{ever} "
                f"(got {value!r})"
            )
        return float(seconds)


class Prefix(click.ParamType):
    """An IPv4 or IPv6 prefix; an address alone is a prefix of its whole length."""

    name = "prefix"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Network:
        """Raises UsageError."""
        try:
            prefix: Network = PrefixKind().read(value)
        except ValueError as error:
            raise UsageError(f"{value}: {error}") from None
        mapped = prefix.version == 6 and prefix.network_address.ipv4_mapped
        if mapped:
            raise UsageError(f"{value}: IPv4 is written as such: did you mean {mapped}?")
        return prefix


def count_option(default: int, text: str) -> Callable[[Command], Command]:
    """-n, of commands that list no more than so many."""
    return click.option(
        "-n",
        "count",
        type=click.IntRange(1, 10_000),
        default=default,
        show_default=True,
        help=text,
    )


def parse_network(text: str) -> Network:
    """An address or a prefix; an address alone is a prefix of its whole length. Raises UsageError
    as parse_source does.
    """
    address, length = parse_source(text)
    return ipaddress.ip_network(address if length is None else f"{address}/{length}", strict=False)


def parse_source(text: str) -> tuple[Address, int | None]:
    """An address, and the prefix length written behind it. Raises UsageError."""
    head, slash, _ = text.partition("/")
    try:
        address = ipaddress.ip_address(head)
    except ValueError:
        raise UsageError(f"{text}: no IP address: write it like 203.0.113.7") from None
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id:
        plain = head.partition("%")[0]
        raise UsageError(f"{text}: sources are known without an interface: write {plain}")
    if not slash:
        return address, None
    try:
        return address, ipaddress.ip_network(text, strict=False).prefixlen
    except ValueError:
        raise UsageError(f"{text}: no such prefix: write the address alone: {head}") from None
