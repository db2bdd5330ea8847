"""episodes: list, report."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click

from ntpguard import episodes as kept
from ntpguard import reading
from ntpguard.cli.arguments import count_option, parse_network
from ntpguard.cli.output import Context, columns
from ntpguard.episodes import Episode, Kept
from ntpguard.errors import NotRunning, NtpguardError, UsageError
from ntpguard.kernel import interfaces
from ntpguard.moments import span
from ntpguard.policy.kinds import Address
from ntpguard.policy.model import Policy
from ntpguard.words import Verdict

STALE_SECONDS = 180.0  # the daemon writes once a minute what goes on
NONE = "no episode is kept: ntpguard run watches for them"


@click.group(invoke_without_command=True)
@click.pass_context
def episodes(click_context: click.Context) -> None:
    """Sources that were over their limit for long; alone: episodes list."""
    if not click_context.invoked_subcommand:
        click_context.invoke(list_)


@episodes.command("list", epilog="Example: ntpguard episodes list -n 50")
@count_option(20, "So many episodes are listed.")
@click.pass_obj
def list_(context: Context, count: int) -> None:
    """Who was over its limit for long, when and how much: what goes on, then the last one first.

    `ntpguard run` watches for them: 60 seconds of excess, or 10,000 requests in excess.
    `ntpguard episodes` alone lists them too.
    """
    found = kept.load() or Kept()
    both = [*sorted(found.open, key=lambda one: -one.start), *found.ended]
    shown = both[:count]
    fresh = abs(time.time() - found.written) < STALE_SECONDS  # the clock may have been set back
    rows = [
        (
            one.source,
            kept.rfc(one.start),
            span(one.seconds),
            "" if one.end else "goes on" if fresh else f"seen until {kept.rfc(found.written)}",
            one.requests,
            f"{one.peak_per_second:.1f}",
            "deaf" if one.deaf else f"{one.unheeded} unheeded" if one.unheeded else "-",
            one.clients[0] + "?" if one.clients else "-",
        )
        for one in shown
    ]
    head = ("SOURCE", "START", "FOR", "", "REQUESTS", "PEAK/s", "KOD", "CLIENT")
    lines = list(columns(head, rows)) if rows else [NONE]
    if len(both) > count:
        lines.append(f"{len(both) - count} more: ntpguard episodes list -n {len(both)}")
    context.emit([_data(one) for one in shown], lines)


@episodes.command(epilog="Example: ntpguard episodes report 203.0.113.7")
@click.argument("source")
@click.pass_obj
def report(context: Context, source: str) -> None:
    """What the abuse desk of the source's network needs, to be pasted into a mail.

    Times are UTC. Of a source with several episodes, all that are kept.
    """
    network = parse_network(source)
    own = _own(context, network.version)
    found = (kept.load() or Kept()).of(network)
    names = sorted({one.source for one in found})
    if len(names) > 1:
        raise UsageError(
            f"{source}: {len(names)} sources of it have episodes: write one of {', '.join(names)}"
        )
    if not found:
        raise NtpguardError(f"{source}: no episode of it is kept: ntpguard episodes lists them")
    data = {
        "source": found[0].source,
        "servers": [str(one) for one in own.servers],
        "policy": own.words,
        "episodes": [{**_data(one), "header": one.header, "ttls": list(one.ttls)} for one in found],
    }
    context.emit(data, _lines(found, own))


@dataclass(frozen=True)
class _Own:
    """Of this host: its addresses, and what it says that a client may do."""

    servers: list[Address]
    words: str | None


def _own(context: Context, version: int) -> _Own:
    try:
        with reading.open_running(context.bpffs) as guard:
            words = _stated(guard.policy())
    except NotRunning:
        words = None
    own = interfaces.local_addresses()
    public = (
        one for one in own if one.version == version and not (one.is_loopback or one.is_link_local)
    )
    return _Own(sorted(public, key=lambda one: (one.version, int(one))), words)


def _stated(policy: Policy) -> str:
    default = policy.classes[0]
    return f"at most {default.rate} from one source, {default.burst} at once"


def _data(one: Episode) -> dict[str, Any]:
    return {
        "source": one.source,
        "start": kept.rfc(one.start),
        "last": kept.rfc(one.last),
        "end": kept.rfc(one.end) if one.end else None,
        "seconds": round(one.seconds, 1),
        "requests": one.requests,
        "excess": one.excess,
        "per_second": round(one.per_second, 3),
        "peak_per_second": round(one.peak_per_second, 3),
        "sampled": {verdict.word: one.sampled[verdict] for verdict in Verdict},
        "kods_unheeded": one.unheeded,
        "deaf": one.deaf,
        "source_port": one.source_port,
        "clients": list(one.clients),
        "rules_broken": one.broken(),
    }


def _lines(found: list[Episode], own: _Own) -> Iterator[str]:
    """A mail's text."""
    servers = ", ".join(map(str, own.servers)) or "this host"
    yield f"NTP requests in excess from {found[0].source} to {servers}, UDP port 123."
    if own.words:
        yield f"The server's access policy: {own.words}."
    for one in found:
        until = f"until {kept.rfc(one.end)}" if one.end else f"and going on at {kept.rfc(one.last)}"
        yield ""
        yield f"from {kept.rfc(one.start)} {until} ({span(one.seconds)})"
        yield f"  requests     {one.requests}, {one.excess} of them beyond the policy"
        yield (
            f"  rate         {one.per_second:.1f} a second on average, "
            f"{one.peak_per_second:.1f} a second in the busiest 10 seconds"
        )
        samples = ", ".join(f"{verdict.word} {one.sampled[verdict]}" for verdict in Verdict)
        judged = "would-be verdicts (all were answered)" if one.observed else "verdicts"
        yield f"  {judged:11}  of a sample of the excess: {samples}"
        if one.unheeded:
            yield f"  KoD          {one.unheeded} Kiss-o'-Death (RATE) packets were not heeded"
        ttls = ", ".join(map(str, one.ttls))
        yield f"  packets      source port {one.source_port}, TTL {ttls}"
        yield f"  NTP header   {one.header}"
        if one.clients:
            yield f"  looks like   {' or '.join(one.clients)}"
        for rule in one.broken():
            yield f"  RFC 4330, 10 {rule}"
    yield ""
    one_ttl = len({ttl for one in found for ttl in one.ttls}) == 1
    yield "The source address of a UDP packet can be forged, and several hosts may share one. " + (
        "All packets that were noted had the same TTL, as those of one host have: this one, or one "
        "that forges its address."
        if one_ttl
        else "The packets had different TTLs: they may come from several hosts."
    )
