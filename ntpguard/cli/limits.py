"""limit list, set, unset."""

from typing import Any

import click

from ntpguard import live, reading
from ntpguard.cli.arguments import Duration
from ntpguard.cli.output import Context, columns, when
from ntpguard.errors import UsageError
from ntpguard.temporary import limit_of


@click.group()
def limit() -> None:
    """See and change the limits, live. The policy file stays as it is."""


@limit.command("list", epilog="Example: ntpguard limit list")
@click.pass_obj
def list_(context: Context) -> None:
    """The limit of every class that holds now; live: changed since the policy was applied."""
    with reading.open_running(context.bpffs) as guard:
        policy = guard.policy()
        overrides = guard.document()["overrides"]
        endings = {one.name: guard.ending(limit_of(one.name)) for one in policy.classes}
    data: list[dict[str, Any]] = [
        {
            "class": one.name,
            "action": one.action,
            "rate": str(one.rate),
            "rate_per_second": float(one.rate.per_second),
            "burst": one.burst,
            "leak": float(one.leak),
            "prefixes": one.prefix_count,
            "live": one.name in overrides,
            "until": when(ending.until) if (ending := endings[one.name]) else None,
        }
        for one in policy.classes
    ]
    rows = [
        (
            one["class"],
            one["action"],
            one["rate"],
            one["burst"],
            one["prefixes"],
            _live(one["class"], endings[one["class"]]) if one["live"] else "",
        )
        for one in data
    ]
    context.emit(data, columns(("CLASS", "ACTION", "RATE", "BURST", "PREFIXES", ""), rows))


def _live(name: str, ending: reading.Ending | None) -> str:
    after = ending.after.class_named(name) if ending else None
    if ending is None or after is None:
        return "live"
    return f"live {ending.until.words()}, then {after.rate} burst {after.burst}"


@limit.command(
    "set", epilog="Example: ntpguard limit set default --rate 30/minute --burst 16 --for 1h"
)
@click.argument("name", metavar="[CLASS]", default="default")
@click.option("--rate", metavar="N/UNIT", help="Like 60/minute.")
@click.option("--burst", type=int, metavar="N", help="Requests at once after a pause.")
@click.option("--for", "seconds", type=Duration(), metavar="TIME", help="Like 90s, 10m, 24h or 7d.")
@click.pass_obj
def set_(
    context: Context, name: str, rate: str | None, burst: int | None, seconds: float | None
) -> None:
    """Change the limit of a class (of default, if none is named).

    With --for, the packet path itself goes back when the time is over. A change takes the place of
    a temporary one: what it does not name is as it was before that.
    """
    if rate is None and burst is None:
        raise UsageError("nothing to set: give --rate, --burst or both")
    _changed(
        context, name, live.set_limit(context.bpffs, name, rate=rate, burst=burst, seconds=seconds)
    )


@limit.command("unset", epilog="Example: ntpguard limit unset default")
@click.argument("name", metavar="[CLASS]", default="default")
@click.pass_obj
def unset(context: Context, name: str) -> None:
    """Back to what the applied policy says; ends a temporary limit too."""
    _changed(context, name, live.unset_limit(context.bpffs, name))


def _changed(context: Context, name: str, change: live.Change) -> None:
    context.emit(
        {
            "class": name,
            "before": change.before,
            "after": change.after,
            "until": when(change.until),
            "then": change.then,
        },
        [f"{name}: {change.words()}"],
    )
