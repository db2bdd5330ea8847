"""policy check, show."""

from pathlib import Path

import click

from ntpguard import reading
from ntpguard.cli.life import DEFAULT_FILE
from ntpguard.cli.output import Context
from ntpguard.kernel import libbpf
from ntpguard.policy.check import read_policy
from ntpguard.policy.compile import memory_bytes
from ntpguard.policy.render import to_toml


@click.group()
def policy() -> None:
    """Check a policy file, show the policy that runs."""


@policy.command(epilog="Example: ntpguard policy check ntpguard.toml")
@click.argument("file", type=click.Path(path_type=Path), default=DEFAULT_FILE)
@click.pass_obj
def check(context: Context, file: Path) -> None:
    """All that is wrong with a policy file, and the memory it needs. Changes nothing."""
    checked = read_policy(file)
    for warning in checked.warnings:
        context.warn(warning)
    memory = memory_bytes(checked, libbpf.possible_cpus())
    data = {
        "file": str(file),
        "classes": len(checked.classes),
        "prefixes": sum(len(one.prefixes) for one in checked.classes),
        "sources_held": checked.capacity,
        "memory_bytes": memory,
        "warnings": list(checked.warnings),
    }
    total = sum(memory.values()) / 2**20
    context.emit(
        data,
        [
            f"{file}: ok, mode {checked.mode}",
            f"classes    {data['classes']}, with {data['prefixes']} prefixes",
            f"sources    {checked.capacity} held; 4 % of so many find their bucket full",
            f"memory     {total:.1f} MiB: "
            + ", ".join(f"{name} {size / 2**20:.1f}" for name, size in memory.items()),
        ],
    )


@policy.command(epilog="Example: ntpguard policy show")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.pass_obj
def show(context: Context, file: Path | None) -> None:
    """The policy that runs, live changes included; or FILE with every default filled in."""
    if file:
        shown = read_policy(file)
    else:
        with reading.open_running(context.bpffs) as guard:
            shown = guard.policy()
    text = to_toml(shown)
    context.emit({"toml": text}, text.rstrip("\n").split("\n"))
