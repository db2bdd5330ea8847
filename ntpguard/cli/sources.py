"""top, show."""

import dataclasses
import ipaddress
from typing import Any

import click

from ntpguard import reading
from ntpguard.cli.output import Context, columns
from ntpguard.errors import UsageError
from ntpguard.policy.model import Policy


def letter(one: reading.Source) -> str:
    """ntpq mrulist's verdict letter: K kissed and still at it, L limited, else a dot."""
    if one.excess_since_pass == 0:
        return "."
    return "K" if one.unheeded else "L"


def _data(one: reading.Source, policy: Policy) -> dict[str, Any]:
    data = dataclasses.asdict(one)
    del data["key"]
    index = data.pop("class_index")
    classes = policy.classes
    known = index is not None and index < len(classes)
    return {**data, "class": classes[index].name if known else None}


@click.command(epilog="Example: ntpguard top -n 5 --sort excess")
@click.option("-n", "count", type=click.IntRange(1, 10_000), default=20, show_default=True)
@click.option(
    "--sort", type=click.Choice(["requests", "excess"]), default="excess", show_default=True
)
@click.pass_obj
def top(context: Context, count: int, sort: str) -> None:
    """The sources with the most excess, or requests. R: K ignores KoDs, L over its limit."""
    with reading.open_running(context.bpffs) as guard:
        policy = guard.policy()
        found = guard.top(count, sort)
    data = [_data(one, policy) for one in found]
    header = ["SOURCE", "REQUESTS", "EXCESS", "R", "CLASS"]
    rows: list[list[object]] = [
        [one.source, one.requests, one.excess, letter(one), own["class"] or "-"]
        for one, own in zip(found, data, strict=True)
    ]
    if context.verbose:
        header += ["SINCE PASS", "UNHEEDED", "DEAF", "TAT AHEAD"]
        for row, one in zip(rows, found, strict=True):
            deaf = "yes" if one.deaf else "no"
            row += [one.excess_since_pass, one.unheeded, deaf, f"{one.tat_ahead_seconds:.1f} s"]
    context.emit(data, columns(header, rows))


Address = ipaddress.IPv4Address | ipaddress.IPv6Address


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


@click.command(epilog="Example: ntpguard show 203.0.113.7")
@click.argument("source")
@click.pass_obj
def show(context: Context, source: str) -> None:
    """All that is known of one source: its class and why, its counts, what happens next."""
    address, length = parse_source(source)
    with reading.open_running(context.bpffs) as guard:
        own_length = guard.table.ipv4_prefix if address.version == 4 else guard.table.ipv6_prefix
        if length not in (None, own_length):
            raise UsageError(
                f"{source}: not one source: an IPv{address.version} source is a /{own_length}: "
                f"write one address, like {address}"
            )
        policy = guard.policy()
        one = guard.find(address)
        index, prefix = guard.match(address)
        own = policy.classes[index]
        entry = guard.entry(address)
        following = guard.next_request(one, index, entry)
    data = {
        "address": str(address),
        "class": own.name,
        "prefix": prefix,
        "action": own.action,
        "entry": {"prefix": str(entry.prefix), "action": entry.action.word} if entry else None,
        "rate": str(own.rate),
        "burst": own.burst,
        "source": _data(one, policy) if one else None,
        "next_request": following,
    }
    lines = [
        f"source     {one.source if one else address}",
        f"class      {own.name}" + (f", by prefix {prefix}" if prefix else ""),
        f"limit      {own.rate} burst {own.burst}"
        if own.action == "limit"
        else f"action     {own.action}",
    ]
    if one:
        lines += [
            f"requests   {one.requests}, {one.excess} of them excess"
            + (", established" if one.established else ""),
            f"kod        {one.unheeded} not heeded" + (", deaf" if one.deaf else ""),
        ]
        if context.verbose:
            lines += [
                f"since pass {one.excess_since_pass} excess",
                f"tat        {one.tat_ahead_seconds:.1f} s ahead",
            ]
    else:
        lines.append("requests   none seen, or forgotten")
    context.emit(data, [*lines, f"next       {following}"])
