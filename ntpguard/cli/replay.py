"""replay."""

import dataclasses
import ipaddress
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from ntpguard.cli.arguments import count_option
from ntpguard.cli.output import Context, columns
from ntpguard.errors import UsageError
from ntpguard.policy.check import read_policy
from ntpguard.policy.kinds import Address
from ntpguard.policy.model import Policy
from ntpguard.replay import outcome as outcomes
from ntpguard.replay import run


class Server(click.ParamType):
    """An address."""

    name = "address"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Address:
        """Raises UsageError."""
        try:
            return ipaddress.ip_address(str(value))
        except ValueError:
            raise UsageError(
                f"--server: {value}: no IP address: write it like 203.0.113.7"
            ) from None


@click.command(
    epilog="Example: ntpguard replay ntp.pcap --policy ntpguard.toml\n\n"
    "Example: ntpguard replay ntp.pcap --policy ntpguard.toml --compare new.toml"
)
@click.argument("capture", type=click.Path(path_type=Path))
@click.option(
    "--policy", "file", type=click.Path(path_type=Path), required=True, help="Policy file."
)
@click.option(
    "--compare",
    "other",
    type=click.Path(path_type=Path),
    help="A second policy file: what it would do differently.",
)
@click.option(
    "--server",
    "servers",
    type=Server(),
    multiple=True,
    metavar="ADDRESS",
    help="An address of the captured host; may be repeated.  [default: where requests go]",
)
@count_option(10, "So many sources are listed.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Of chance (which excess is leaked): the same seed gives the same result.",
)
@click.pass_obj
def replay(
    context: Context,
    capture: Path,
    file: Path,
    other: Path | None,
    servers: tuple[Address, ...],
    count: int,
    seed: int,
) -> None:
    """Judge a capture by a policy: who would have been limited.

    The real program runs over each packet, on the capture's own clock; no interface is touched and
    nothing stays. CAPTURE is pcap or pcapng, gzip or not, of Ethernet, "any" (Linux cooked), raw IP
    or loopback. Each policy is judged as if its mode were enforce.
    """
    files = [file, other] if other else [file]
    policies = [read_policy(one) for one in files]
    with _progress(context, capture, run.passes(servers)) as progress:
        result = run.replay(
            capture, policies, servers=servers, seed=seed, top=count, progress=progress
        )
    for path, policy in zip(files, policies, strict=True):
        _say_mode(context, path, policy)
    _warn(context, capture, result.traffic)
    seconds = result.traffic.seconds
    data = {
        "capture": {"file": str(capture), **_traffic_data(result.traffic)},
        "policy": {"file": str(file), **outcomes.as_data(result.outcome, seconds)},
        "compare": None,
    }
    lines = [*_traffic_lines(capture, result), *_outcome_lines(context, result.outcome)]
    if other and result.other:
        data["compare"] = {
            "policy": {"file": str(other), **outcomes.as_data(result.other, seconds)},
            "classes": outcomes.differences_data(result.outcome, result.other),
            "sources": [dataclasses.asdict(one) for one in result.changes],
        }
        lines += _difference_lines(file, other, result)
    context.emit(data, lines)


@contextmanager
def _progress(context: Context, capture: Path, passes: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, if people look at it."""
    if context.quiet or not sys.stderr.isatty() or not capture.is_file():
        yield lambda done: None
        return
    total = passes * capture.stat().st_size
    with click.progressbar(length=total, label=capture.name, file=sys.stderr) as bar:
        yield bar.update
        bar.update(total - bar.pos)


def _say_mode(context: Context, path: Path, policy: Policy) -> None:
    if policy.mode != "enforce":
        context.message(f"{path}: mode is {policy.mode}: judged as if it were enforce")
    for one in policy.classes:
        if one.mode != "enforce":
            context.message(
                f"{path}: class {one.name}: mode is {one.mode}: judged as if it were enforce"
            )


def _warn(context: Context, capture: Path, traffic: outcomes.Traffic) -> None:
    if traffic.damage:
        context.warn(traffic.damage)
    if traffic.cut:
        context.warn(
            f"{capture.name}: {traffic.cut} packets are cut before the end of their NTP header and "
            "not judged: capture with tcpdump -s 256"
        )
    if traffic.backwards:
        context.warn(
            f"{capture.name}: {traffic.backwards} packets are earlier than one before them: judged "
            "at the time of that one: if there are many, reordercap mends it"
        )
    if traffic.untimed:
        context.warn(
            f"{capture.name}: {traffic.untimed} packets have no time (simple packet blocks): "
            "judged at the time of the packet before"
        )


def _traffic_data(traffic: outcomes.Traffic) -> dict[str, Any]:
    return {
        "servers": [str(one) for one in traffic.servers],
        "packets": traffic.packets,
        "first_time": _moment(traffic.first_ns),
        "last_time": _moment(traffic.last_ns),
        "span_seconds": traffic.seconds,
        "sent_by_server": traffic.sent,
        "cut": traffic.cut,
        "other": traffic.other,
        "untimed": traffic.untimed,
        "backwards": traffic.backwards,
        "damage": traffic.damage,
    }


def _moment(time_ns: int | None) -> str | None:
    if time_ns is None:
        return None
    moment = datetime.fromtimestamp(time_ns // 10**9, UTC).replace(microsecond=0)
    text = moment.replace(tzinfo=None).isoformat(timespec="seconds")
    return f"{text}.{time_ns % 10**9 // 1000:06}Z"


def _traffic_lines(capture: Path, result: outcomes.Result) -> Iterator[str]:
    traffic, outcome = result.traffic, result.outcome
    begin = _moment(traffic.first_ns)
    yield f"capture    {capture}: {traffic.packets} packets in {traffic.seconds:.1f} s" + (
        f" from {begin}" if begin else ""
    )
    yield "server     " + ", ".join(map(str, traffic.servers))
    rate = f" ({_rate(outcome.requests / traffic.seconds)})" if traffic.seconds else ""
    requests = f"{outcome.requests} requests{rate} of {outcome.sources_seen} sources"
    yield f"judged     {outcome.judged}: {requests}, {outcome.judged - outcome.requests} others"
    left_out = f"{traffic.sent} that the server sent, {traffic.cut} cut, {traffic.other} others"
    yield f"not judged {left_out}"
    if outcome.sources_forgotten:
        yield f"forgotten  {outcome.sources_forgotten} sources of few requests; all verdicts count"


def _share(count: int, outcome: outcomes.Outcome) -> str:
    # a policy may judge nothing where the one beside it does
    return f"{100 * count / outcome.judged:.1f}%" if outcome.judged else "-"


def _outcome_lines(context: Context, outcome: outcomes.Outcome) -> Iterator[str]:
    yield ""
    for verdict, count in outcomes.verdicts_of(outcome).items():
        reasons = ", ".join(
            f"{reason.word} {some}"
            for (of, reason), some in outcome.verdicts.items()
            if of == verdict
        )
        word = context.paint(verdict.word) + " " * (11 - len(verdict.word))
        yield f"{word}{count} ({_share(count, outcome)})" + (f": {reasons}" if reasons else "")
    yield ""
    yield from columns(
        ["CLASS", "PASS", "KOD", "DROP"],
        [[name, *counts.values()] for name, counts in outcome.classes.items()],
    )
    yield ""
    if not outcome.sources:
        yield "no source was over its limit"
        return
    yield from columns(
        ["SOURCE", "REQUESTS", "EXCESS", "PASSED", "KISSED", "DROPPED", "RATE", "SIGNATURE"],
        [
            [
                *(one.source, one.requests, one.excess, one.passed, one.kissed, one.dropped),
                _rate(one.rate_per_second),
                one.signature or "-",
            ]
            for one in outcome.sources
        ],
    )


def _rate(per_second: float | None) -> str:
    if per_second is None:
        return "-"
    return f"{per_second:.1f}/s" if per_second >= 1 else f"{per_second * 60:.1f}/min"


def _difference_lines(file: Path, other: Path, result: outcomes.Result) -> Iterator[str]:
    assert result.other
    first, second = result.outcome, result.other
    yield ""
    yield f"A: {file}, B: {other}"
    yield from columns(
        ["CLASS", "VERDICT", "A", "B", "B - A"],
        [
            [name, verdict.word, a, b, b - a]
            for name, verdict, a, b in outcomes.differences(first, second)
        ],
    )
    yield ""
    if not result.changes:
        yield "no source is treated differently"
        return
    yield from columns(
        ["SOURCE", "PASS A", "B", "KOD A", "B", "DROP A", "B"],
        [
            [
                one.before.source,
                *(one.before.passed, one.after.passed, one.before.kissed, one.after.kissed),
                *(one.before.dropped, one.after.dropped),
            ]
            for one in result.changes
        ],
    )
