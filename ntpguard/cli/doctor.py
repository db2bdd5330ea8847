"""doctor."""

import dataclasses
from pathlib import Path

import click

from ntpguard import doctor as examination
from ntpguard.cli.life import DEFAULT_FILE, default_file
from ntpguard.cli.output import Context


@click.command(
    epilog="Example: ntpguard doctor\n\nExit codes: 0 nothing fails, 1 something does, 2 usage."
)
@click.argument("interfaces", nargs=-1, metavar="[IFACE]...")
@click.option(
    "--policy",
    "file",
    type=click.Path(path_type=Path),
    help=f"Policy file, if no guard runs.  [default: {DEFAULT_FILE} if it exists, else built-in]",
)
@click.pass_context
def doctor(click_context: click.Context, interfaces: tuple[str, ...], file: Path | None) -> None:
    """Look whether this host can be guarded well, and say what to do where not.

    Sends no packet and changes nothing; works before, while and after a guard runs. ok: as it
    should be; warn: works, but worse than it could; fail: ntpguard up would fail; unknown: cannot
    be seen, often for want of root. Without IFACE: the guarded interfaces, else the policy's, else
    all.
    """
    context: Context = click_context.obj
    findings = examination.examine(
        interfaces, bpffs=context.bpffs, policy_file=file or default_file()
    )
    lines = []
    for one in findings:
        name = f"{one.interface} {one.check}" if one.interface else one.check
        lines.append(
            f"{context.paint(one.result)}{' ' * (9 - len(one.result))}{name:20} {one.found}"
        )
        if one.remedy:
            lines.append(f"{'':9}{'':20} try: {one.remedy}")
    context.emit([dataclasses.asdict(one) for one in findings], lines)
    click_context.exit(1 if any(one.result == examination.FAIL for one in findings) else 0)
