"""up, down, status, mode."""

import dataclasses
from pathlib import Path

import click

from ntpguard import health, lifecycle, reading, running
from ntpguard.cli.output import Context
from ntpguard.policy.check import DEFAULT, read_policy
from ntpguard.words import Family, Mode, Verdict

DEFAULT_FILE = Path("/etc/ntpguard/ntpguard.toml")


@click.command(epilog="Example: ntpguard up eth0 --policy /etc/ntpguard/ntpguard.toml")
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
@click.pass_obj
def up(context: Context, interfaces: tuple[str, ...], file: Path | None, xdp: str | None) -> None:
    """Load, attach and pin; enforcement stays.

    On an interface that is guarded already, the program and the policy are swapped: no packet
    unguarded, no source forgotten.
    """
    if file is None and DEFAULT_FILE.is_file():
        file = DEFAULT_FILE
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


@click.command(epilog="Exit codes: 0 healthy, 1 degraded, 4 not running.")
@click.option("--brief", is_flag=True, help="One line.")
@click.pass_context
def status(click_context: click.Context, brief: bool) -> None:
    """What is attached where, the mode, the policy, the verdicts, the table, what is wrong."""
    context: Context = click_context.obj
    with reading.open_running(context.bpffs) as guard:
        first = health.untracked(guard)
        policy = guard.policy()
        document = guard.document()
        totals = guard.counts().verdicts()
        held = guard.sources_held()
        table = guard.table_counters()
        mode = guard.mode()
        attached = guard.interfaces()
        differs = guard.differs_from_file()
        problems = health.problems(guard, context.bpffs, first)
        data = {
            "healthy": not problems,
            "problems": problems,
            "interfaces": [dataclasses.asdict(one) for one in attached],
            "mode": mode.word,
            "policy": {
                "file": document["file"],
                "applied": document["applied"],
                "revision": guard.revision(),
                "differs_from_file": differs,
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
    where = ", ".join(f"{one.name} ({one.xdp})" for one in attached) or "nowhere"
    verdicts = ", ".join(f"{one.word} {totals[one]}" for one in Verdict)
    lines = [
        f"attached   {where}",
        f"mode       {mode.word}",
        f"policy     {document['file'] or 'built-in'}, revision {data['policy']['revision']}"  # type: ignore[index]
        + (", running differs from the file" if differs else ""),
        f"limit      {policy.classes[0].rate} burst {policy.classes[0].burst}, "
        f"{len(policy.classes) - 1} classes besides",
        f"packets    {verdicts}",
        f"sources    {sum(held.values())} of {data['sources']['capacity']}",  # type: ignore[index]
        *(f"problem    {problem}" for problem in problems),
    ]
    state = "degraded" if problems else "ok"
    context.emit(data, [f"{state}: {mode.word} on {where}; {verdicts}"] if brief else lines)
    click_context.exit(1 if problems else 0)


@click.command(epilog="Example: ntpguard mode observe")
@click.argument("word", metavar="enforce|observe|off", type=click.Choice([m.word for m in Mode]))
@click.pass_obj
def mode(context: Context, word: str) -> None:
    """Change the mode, live: the policy file stays as it is."""
    with running.writing(context.bpffs) as descriptors:
        before = running.set_mode(descriptors, Mode(Mode.of(word)))
    context.emit({"before": before, "mode": word}, [f"mode: {before} -> {word}"])
