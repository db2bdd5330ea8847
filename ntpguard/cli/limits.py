"""limit list, set, unset."""

import click

from ntpguard import reading, running
from ntpguard.cli.output import Context, columns
from ntpguard.errors import UsageError


@click.group()
def limit() -> None:
    """See and change the limits, live. The policy file stays as it is."""


@limit.command("list")
@click.pass_obj
def list_(context: Context) -> None:
    """The limit of every class; live: changed since the policy was applied."""
    with reading.open_running(context.bpffs) as guard:
        policy = guard.policy()
        overrides = guard.document()["overrides"]
    data = [
        {
            "class": one.name,
            "action": one.action,
            "rate": str(one.rate),
            "rate_per_second": float(one.rate.per_second),
            "burst": one.burst,
            "leak": float(one.leak),
            "prefixes": one.prefix_count,
            "live": one.name in overrides,
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
            "live" if one["live"] else "",
        )
        for one in data
    ]
    context.emit(data, columns(("CLASS", "ACTION", "RATE", "BURST", "PREFIXES", ""), rows))


@limit.command("set", epilog="Example: ntpguard limit set --rate 30/minute --burst 16")
@click.argument("name", metavar="[CLASS]", default="default")
@click.option("--rate", metavar="N/UNIT", help="Like 60/minute.")
@click.option("--burst", type=int, metavar="N", help="Requests at once after a pause.")
@click.pass_obj
def set_(context: Context, name: str, rate: str | None, burst: int | None) -> None:
    """Change the limit of a class (of default, if none is named)."""
    if rate is None and burst is None:
        raise UsageError("nothing to set: give --rate, --burst or both")
    with running.writing(context.bpffs) as descriptors:
        before, after = running.set_limit(descriptors, name, rate=rate, burst=burst)
    _changed(context, name, before, after)


@limit.command("unset", epilog="Example: ntpguard limit unset campus")
@click.argument("name", metavar="[CLASS]", default="default")
@click.pass_obj
def unset(context: Context, name: str) -> None:
    """Back to what the applied policy says."""
    with running.writing(context.bpffs) as descriptors:
        before, after = running.unset_limit(descriptors, name)
    _changed(context, name, before, after)


def _changed(context: Context, name: str, before: str, after: str) -> None:
    context.emit(
        {"class": name, "before": before, "after": after}, [f"{name}: {before} -> {after}"]
    )
