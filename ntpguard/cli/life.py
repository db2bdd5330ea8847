"""up, down, status, mode."""

import dataclasses
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from ntpguard import health, lifecycle, live, reading
from ntpguard.cli.arguments import Duration
from ntpguard.cli.output import Context, when
from ntpguard.counts import Cell, Counts
from ntpguard.moments import rfc3339, span
from ntpguard.policy.check import DEFAULT, read_policy
from ntpguard.policy.model import Policy
from ntpguard.temporary import MODE, limit_of
from ntpguard.words import Family, Mode, Verdict

DEFAULT_FILE = Path("/etc/ntpguard/ntpguard.toml")


def default_file() -> Path | None:
    """The policy file where none is named; None: it is not there."""
    return DEFAULT_FILE if DEFAULT_FILE.is_file() else None


@click.command(epilog="Example: ntpguard up eth0 --policy ntpguard.toml --revert-after 10m")
@click.argument("interfaces", nargs=-1, metavar="[IFACE]...")
@click.option(
    "--policy",
    "file",
    type=click.Path(path_type=Path),
    help=f"Policy file.  [default: {DEFAULT_FILE} if it exists, else built-in, mode observe]",
)
@click.option(
    "--xdp",
    type=click.Choice(["native", "skb", "auto"]),
    help="Where the program runs.  [default: the policy's, auto]",
)
@click.option(
    "--revert-after",
    "revert_after",
    type=Duration(),
    metavar="TIME",
    help="Go from enforce to observe after so long, like 10m, unless ntpguard mode enforce "
    "confirms it: the packet path does so itself.",
)
@click.pass_obj
def up(
    context: Context,
    interfaces: tuple[str, ...],
    file: Path | None,
    xdp: str | None,
    revert_after: float | None,
) -> None:
    """Load, attach and pin; enforcement stays.

    On an interface that is guarded already, the program and the policy are swapped: no packet
    unguarded, no source forgotten.
    """
    file = file or default_file()
    policy = read_policy(file) if file else DEFAULT
    for warning in policy.warnings:
        context.warn(warning)
    attached = lifecycle.up(
        interfaces or policy.interfaces,
        policy,
        xdp=xdp or policy.xdp,
        bpffs=context.bpffs,
        policy_file=str(file.resolve()) if file else None,
        warn=context.warn,
        revert_after=revert_after,
    )
    data = [dataclasses.asdict(one) for one in attached]
    verb = {True: "guarded on", False: "guarded"}
    context.emit(
        data,
        [f"{one.name}: {verb[one.swapped]}, xdp {one.xdp}, mode {policy.mode}" for one in attached],
    )
    if policy.mode != "enforce":
        context.message(
            f"mode is {policy.mode}: every packet passes; when the counters look right: "
            "ntpguard mode enforce"
        )
        if revert_after is not None:
            context.warn("--revert-after: the mode is not enforce: there is nothing to revert")
    elif revert_after is not None:
        context.message(
            f"mode is enforce for {span(revert_after)}, then observe; to keep it: "
            "ntpguard mode enforce"
        )


@click.command(epilog="Example: ntpguard down eth0")
@click.argument("interfaces", nargs=-1, metavar="[IFACE]...")
@click.pass_obj
def down(context: Context, interfaces: tuple[str, ...]) -> None:
    """Detach from the interfaces named, or from all; with the last, forget everything."""
    names = lifecycle.down(interfaces or None, bpffs=context.bpffs)
    context.emit(
        [{"name": name} for name in names], [f"{name}: no longer guarded" for name in names]
    )
    if not names:
        context.message("removed what an interruption had left")


@click.command(
    epilog="Example: ntpguard status --brief\n\nExit codes: 0 healthy, 1 degraded, 4 not running."
)
@click.option("--brief", is_flag=True, help="One line: how it stands, mode, where, problems.")
@click.pass_context
def status(click_context: click.Context, brief: bool) -> None:
    """What is attached where, the mode, the policy, the verdicts, the table, what is wrong."""
    context: Context = click_context.obj
    with reading.open_running(context.bpffs) as guard:
        first = health.untracked(guard)
        counts = guard.counts()
        data = _status(guard, counts)
        policy = guard.policy()
        ending = guard.ending(MODE)
        limit_ending = guard.ending(limit_of(policy.classes[0].name))
        problems = health.problems(guard, context.bpffs, first)
    data = {
        "healthy": not problems,
        "problems": problems,
        **data,
        "mode_until": when(ending.until) if ending else None,
        "mode_after": ending.after.mode if ending else None,
    }
    paint = context.paint
    mode = paint(data["mode"])
    then = f" {ending.until.words()}, then {paint(ending.after.mode)}" if ending else ""
    where = ", ".join(f"{one['name']} ({one['xdp']})" for one in data["interfaces"]) or "nowhere"
    verdicts = ", ".join(f"{paint(word)} {count}" for word, count in data["packets"].items())
    default, applied, sources = policy.classes[0], data["policy"], data["sources"]
    stated = "the file" if applied["file"] else "it"
    differs = f", running differs from {stated}" if applied["differs_from_file"] else ""
    lines = [
        f"attached   {where}",
        f"mode       {mode}{then}",
        f"policy     {applied['file'] or 'built-in'}, revision {applied['revision']}{differs}",
        f"limit      {default.rate} burst {default.burst}"
        + (f" {limit_ending.until.words()}" if limit_ending else "")
        + f", {len(policy.classes) - 1} classes besides",
        f"packets    {verdicts}",
        f"sources    {sum(sources['held'].values())} of {sources['capacity']}",
    ]
    if context.verbose:
        lines += _more_lines(data, policy, counts)
    lines += [f"{paint('problem')}    {problem}" for problem in problems]
    state = paint("degraded" if problems else "ok")
    count = f"{len(problems)} problem{'' if len(problems) == 1 else 's'}"
    brief_line = f"{state}: {mode}{then} on {where}; {count}; {verdicts}"
    context.emit(data, [brief_line] if brief else lines)
    click_context.exit(1 if problems else 0)


def _status(guard: reading.Running, counts: Counts) -> dict[str, Any]:
    document, table = guard.document(), guard.table_counters()
    totals, held = counts.verdicts(), guard.sources_held()
    return {
        "interfaces": [dataclasses.asdict(one) for one in guard.interfaces()],
        "mode": guard.mode().word,
        "policy": {
            "file": document["file"],
            "applied": rfc3339(datetime.fromisoformat(document["applied"])),
            "revision": guard.revision(),
            "differs_from_file": guard.differs_from_file(),
        },
        "packets": {one.word: totals[one] for one in Verdict},
        "sources": {
            "held": {one.word: held[one] for one in Family},
            "capacity": guard.capacity,
            "found_bucket_full": table["full"],
            "lost_race": table["lost"],
            "gated": table["gated"],
        },
    }


def _more_lines(data: dict[str, Any], policy: Policy, counts: Counts) -> list[str]:
    """What status tells with -v."""
    sources = data["sources"]
    return [
        f"applied    {data['policy']['applied']}",
        f"ports      {', '.join(map(str, policy.ports))}",
        *_reasons("reasons", counts.happened),
        *_reasons("observed", counts.observed),
        f"table      {sources['gated']} came with too many others, "
        f"{sources['found_bucket_full']} found no room, "
        f"{sources['lost_race']} lost a race for it",
    ]


def _reasons(title: str, cells: list[Cell]) -> list[str]:
    """Packets by verdict and reason, a line for each verdict there is."""
    lines = []
    for verdict in Verdict:
        sums: Counter[str] = Counter()
        for cell in cells:
            if cell.verdict == verdict:
                sums[cell.reason.word] += cell.packets
        if sums:
            parts = ", ".join(f"{reason} {count}" for reason, count in sums.most_common())
            lines.append(f"{title:11}{verdict.word}: {parts}")
    return lines


@click.command(epilog="Example: ntpguard mode observe --for 10m")
@click.argument("word", metavar="enforce|observe|off", type=click.Choice([m.word for m in Mode]))
@click.option("--for", "seconds", type=Duration(), metavar="TIME", help="Like 90s, 10m, 24h or 7d.")
@click.pass_obj
def mode(context: Context, word: str, seconds: float | None) -> None:
    """Change the mode, live: the policy file stays as it is.

    With --for, the packet path itself goes back when the time is over. The next change of mode
    takes the place of a temporary one.
    """
    change = live.set_mode(context.bpffs, Mode(Mode.of(word)), seconds)
    context.emit(
        {
            "before": change.before,
            "mode": word,
            "mode_until": when(change.until),
            "mode_after": change.then,
        },
        [f"mode: {change.words(context.paint)}"],
    )
