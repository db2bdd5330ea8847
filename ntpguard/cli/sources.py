"""top, show."""

import time
from typing import Any

import click

from ntpguard import reading
from ntpguard.cli.arguments import count_option, parse_source
from ntpguard.cli.explained import ago, show_data, show_lines, source_data
from ntpguard.cli.output import Context, columns, when
from ntpguard.cli.redraw import screen, until_stopped
from ntpguard.errors import UsageError
from ntpguard.explain import explain
from ntpguard.ranking import BY, SORTS, Ranked, Ranking
from ntpguard.sources import Source

WATCH_SECONDS = "2"
OVER = "no source has been over its limit: try --sort requests"
NONE = {
    "excess": OVER,
    "last": OVER,
    "kod": "no source ignores KoDs: try --sort excess",
    "requests": "no request has come yet",
}


def letter(one: Source) -> str:
    """ntpq mrulist's verdict letter: K kissed and still at it, L limited, else a dot."""
    if one.excess_since_pass == 0:
        return "."
    return "K" if one.unheeded else "L"


@click.command(epilog="Example: ntpguard top -n 5 --sort excess --by prefix")
@count_option(20, "So many lines.")
@click.option(
    "--sort",
    type=click.Choice(SORTS),
    default="excess",
    show_default=True,
    help="last: whose excess was noted last; kod: most KoDs not heeded. Both of sources only.",
)
@click.option(
    "--by",
    type=click.Choice(BY),
    default="source",
    show_default=True,
    help="prefix: sources put together to IPv4 /24 and IPv6 /48.",
)
@click.option(
    "-w",
    "--watch",
    "seconds",
    type=click.FloatRange(0.1, 86400),
    is_flag=False,
    flag_value=WATCH_SECONDS,
    metavar="[SECONDS]",
    help=f"Again every so many seconds ({WATCH_SECONDS}), with rates, until Ctrl-C.",
)
@click.pass_obj
def top(context: Context, count: int, sort: str, by: str, seconds: float | None) -> None:
    """The sources with the most excess, or requests. R: K ignores KoDs, L over its limit.

    LAST: since its excess was noted, of which there is a sample. With -w, -o ndjson prints an
    object for each source, every time.
    """
    ranking = Ranking(by, sort, count)
    if seconds is None:
        found = _look(context, ranking)
        context.emit([_data(one, by) for one in found], _lines(context, found, by, rates=False))
        if not found and context.output == "table":
            context.message(NONE[sort])
        return
    if context.output == "json":
        raise UsageError("-w: one JSON document would have no end: use -o ndjson")
    with until_stopped(), screen() as draw:
        while True:
            found = _look(context, ranking)
            if context.output == "table":
                draw(list(_lines(context, found, by, rates=True)))
            else:
                context.emit([_data(one, by) for one in found], [])
            time.sleep(seconds)


def _look(context: Context, ranking: Ranking) -> list[Ranked]:
    # anew each time: another policy may have made another table
    with reading.open_running(context.bpffs) as guard:
        return ranking.look(guard)


def _data(one: Ranked, by: str) -> dict[str, Any]:
    rates = {
        "requests_per_second": one.requests_per_second,
        "excess_per_second": one.excess_per_second,
    }
    if one.source:
        return source_data(one.source, one.class_name) | {"last_seen": when(one.last_seen)} | rates
    counts = {"sources": one.sources, "requests": one.requests, "excess": one.excess}
    return {by: one.name} | counts | rates


def _lines(context: Context, found: list[Ranked], by: str, *, rates: bool) -> list[str]:
    header = [by.upper(), "REQUESTS", "EXCESS"]
    rows: list[list[object]] = [[one.name or "-", one.requests, one.excess] for one in found]
    if rates:
        header += ["REQ/S", "EXC/S"]
        for row, one in zip(rows, found, strict=True):
            row += [_rate(one.requests_per_second), _rate(one.excess_per_second)]
    if by != "source":
        header.insert(1, "SOURCES")
        for row, one in zip(rows, found, strict=True):
            row.insert(1, one.sources)
        return list(columns(header, rows))
    header += ["R", "LAST", "CLASS"]
    for row, one in zip(rows, found, strict=True):
        last = ago(one.last_seen) if one.last_seen else "-"
        row += [letter(one.source) if one.source else "", last, one.class_name or "-"]
    if context.verbose:
        header += ["SINCE PASS", "UNHEEDED", "DEAF", "TAT AHEAD"]
        for row, one in zip(rows, found, strict=True):
            if one.source:
                deaf = "yes" if one.source.deaf else "no"
                ahead = f"{one.source.tat_ahead_seconds:.1f} s"
                row += [one.source.excess_since_pass, one.source.unheeded, deaf, ahead]
    return list(columns(header, rows))


def _rate(per_second: float | None) -> str:
    return "-" if per_second is None else f"{per_second:.1f}"


@click.command(epilog="Example: ntpguard show 203.0.113.7")
@click.argument("source")
@click.pass_obj
def show(context: Context, source: str) -> None:
    """All that is known of one source: its class and why, its counts, what happens next.

    What is told of its limit and its KoDs is as of now; its header is the last one noted of its
    excess, of which there is a sample. A client is guessed from that: a shape is no proof.
    """
    address, length = parse_source(source)
    with reading.open_running(context.bpffs) as guard:
        own_length = guard.table.ipv4_prefix if address.version == 4 else guard.table.ipv6_prefix
        if length not in (None, own_length):
            raise UsageError(
                f"{source}: not one source: an IPv{address.version} source is a /{own_length}: "
                f"write one address, like {address}"
            )
        one = explain(guard, address)
    context.emit(show_data(one), show_lines(one, verbose=context.verbose))
