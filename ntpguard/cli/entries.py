"""block, exempt, clear, entries."""

import os
from collections.abc import Callable

import click

from ntpguard import live, reading
from ntpguard.cli.arguments import EVER, Duration, Prefix
from ntpguard.cli.output import Context, columns, when
from ntpguard.entries import LiveEntry, Note
from ntpguard.policy.kinds import Network
from ntpguard.words import Action


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """What block and exempt have in common."""
    for option in (
        click.option("--yes", is_flag=True, help="A very short prefix is meant."),
        click.option("--reason", metavar="TEXT", help="One line, shown by entries and logged."),
        click.option(
            "--for",
            "seconds",
            type=Duration(ever=True),
            default="24h",
            show_default=True,
            metavar="TIME",
            help="Like 90s, 10m, 24h or 7d, or ever.",
        ),
        click.argument("prefix", type=Prefix()),
    ):
        command = option(command)
    return command


@click.command(epilog='Example: ntpguard block 203.0.113.0/24 --for 24h --reason "ticket 4711"')
@_options
@click.pass_obj
def block(context: Context, prefix: Network, seconds: float, reason: str | None, yes: bool) -> None:
    """Drop every NTP packet from a prefix, live, for a time.

    The packet path itself lets go when the time is over. An entry that the prefix has already is
    replaced; the longest prefix with an entry decides.
    """
    _set(context, Action.BLOCK, prefix, seconds, reason, yes)


@click.command(epilog='Example: ntpguard exempt 2001:db8:7::/48 --for 7d --reason "load test"')
@_options
@click.pass_obj
def exempt(
    context: Context, prefix: Network, seconds: float, reason: str | None, yes: bool
) -> None:
    """Pass every NTP request from a prefix, live, for a time: no limit, no signature.

    The packet path itself lets go when the time is over. An entry that the prefix has already is
    replaced; the longest prefix with an entry decides.
    """
    _set(context, Action.EXEMPT, prefix, seconds, reason, yes)


def _set(
    context: Context,
    action: Action,
    prefix: Network,
    seconds: float,
    reason: str | None,
    yes: bool,
) -> None:
    session = os.environ.get("SSH_CONNECTION") or os.environ.get("SSH_CLIENT") or ""
    entry = live.set_entry(
        context.bpffs,
        prefix,
        action,
        seconds=None if seconds == EVER else seconds,
        reason=reason,
        wide=yes,
        session=session.partition(" ")[0] or None,
        warn=context.warn,
    )
    context.emit(_data(entry), [f"{prefix}: {entry.words()}"])


@click.command(epilog="Example: ntpguard clear 203.0.113.0/24")
@click.argument("prefix", type=Prefix())
@click.pass_obj
def clear(context: Context, prefix: Network) -> None:
    """Remove the live entry of a prefix: what it lay over holds again."""
    entry = live.clear_entry(context.bpffs, prefix)
    context.emit(_data(entry), [f"{prefix}: no longer {entry.action.word}ed"])


@click.command(epilog="Example: ntpguard entries")
@click.pass_obj
def entries(context: Context) -> None:
    """The live entries: prefix, what is done, for how long still, by whom and why."""
    with reading.open_running(context.bpffs) as guard:
        found = guard.live_entries()
    data = [_data(entry) | {"by": note.by, "reason": note.reason} for entry, note in found]
    rows = [_row(entry, note) for entry, note in found]
    context.emit(data, columns(("PREFIX", "ACTION", "REMAINING", "BY", "REASON"), rows))


def _data(entry: LiveEntry) -> dict[str, str | None]:
    return {
        "prefix": str(entry.prefix),
        "action": entry.action.word,
        "expires": when(entry.moment()),
    }


def _row(entry: LiveEntry, note: Note) -> tuple[str, ...]:
    moment = entry.moment()
    remaining = moment.left() if moment else "ever"
    return (str(entry.prefix), entry.action.word, remaining, note.by or "-", note.reason or "")
