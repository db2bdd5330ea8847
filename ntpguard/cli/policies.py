"""policy check, show, diff, apply, describe, signatures."""

import dataclasses
import gc
from importlib.resources import files
from pathlib import Path
from typing import Any

import click

from ntpguard import applying, reading
from ntpguard.cli.life import DEFAULT_FILE, default_file
from ntpguard.cli.output import Context, columns
from ntpguard.kernel import libbpf
from ntpguard.policy import describe as words
from ntpguard.policy.check import DEFAULT, parse_policy, read_policy, read_text
from ntpguard.policy.compile import memory_bytes
from ntpguard.policy.difference import differences, listed
from ntpguard.policy.model import Policy
from ntpguard.policy.render import to_toml, values_of
from ntpguard.policy.settings import SETTINGS

FILE = click.Path(path_type=Path)
RUNNING_FILE = f"\n\nWithout FILE: the running policy's file, or else {DEFAULT_FILE}."


@click.group()
def policy() -> None:
    """Check a policy file, apply it, compare it with what runs, put it in words."""
    # looking for cycles among a hundred thousand prefixes takes a quarter of a command's time
    if gc.isenabled():
        gc.disable()
        click.get_current_context().call_on_close(gc.enable)


@policy.command(epilog="Example: ntpguard policy check ntpguard.toml")
@click.argument("file", type=FILE, default=DEFAULT_FILE)
@click.pass_obj
def check(context: Context, file: Path) -> None:
    """All that is wrong with a policy file, what it sets, and the memory it needs.

    Changes nothing.
    """
    checked = read_policy(file)
    _warn(context, checked)
    memory = memory_bytes(checked, libbpf.possible_cpus())
    of_file = {row.key for row in SETTINGS}
    changes = [one for one in differences(DEFAULT, checked) if one.setting in of_file]
    data = {
        "file": str(file),
        "mode": checked.mode,
        "classes": len(checked.classes),
        "prefixes": sum(one.prefix_count for one in checked.classes),
        "signatures": [one.name for one in checked.signatures],
        "settings": {one.setting: one.after for one in changes},
        "sources_held": checked.capacity,
        "memory_bytes": memory,
        "warnings": list(checked.warnings),
    }
    total = sum(memory.values()) / 2**20
    lines = [
        f"{file}: ok, mode {checked.mode}",
        f"classes    {data['classes']}, with {data['prefixes']} prefixes",
        f"signatures {', '.join(one.name for one in checked.signatures) or 'none'}",
        f"sources    {checked.capacity} held; 1 % of so many find no slot",
        f"memory     {total:.1f} MiB: "
        + ", ".join(f"{name} {size / 2**20:.1f}" for name, size in memory.items()),
    ]
    if changes:
        stated, default = values_of(checked), values_of(DEFAULT)
        rows = [
            (
                one.setting,
                listed(stated[one.setting]) or one.new_in_words(),
                listed(default[one.setting]) or one.old_in_words(),
            )
            for one in changes
        ]
        lines += ["", *columns(("SETTING", "VALUE", "DEFAULT"), rows)]
    context.emit(data, lines)


@policy.command(epilog="Example: ntpguard policy show")
@click.argument("file", type=FILE, required=False)
@click.pass_obj
def show(context: Context, file: Path | None) -> None:
    """The policy that runs, live changes included; or FILE. Every default is written out."""
    if file:
        shown = read_policy(file)
    else:
        with reading.open_running(context.bpffs) as guard:
            shown = guard.whole_policy()
    text = to_toml(shown)
    context.emit({"toml": text}, text.rstrip("\n").split("\n"))


@policy.command(
    epilog="Example: ntpguard policy diff --exit-code /etc/ntpguard/ntpguard.toml" + RUNNING_FILE
)
@click.argument("file", type=FILE, required=False)
@click.option("--exit-code", is_flag=True, help="End with 1 if they differ.")
@click.pass_context
def diff(click_context: click.Context, file: Path | None, exit_code: bool) -> None:
    """What FILE would change of the policy that runs, and the TOML for it to say what runs.

    Settings changed live (mode, limit set) are marked.
    """
    context: Context = click_context.obj
    with reading.open_running(context.bpffs) as guard:
        named = file or _named(guard.document())
        if named is None:
            other, text, name = DEFAULT, "", "the built-in policy"
        else:
            text, name = read_text(named), str(named)
            other = parse_policy(text, name, named.parent)
        found = applying.compare(guard, other, text)
    changes = [
        {**dataclasses.asdict(one), "live": one.setting in found.live} for one in found.changes
    ]
    for change in changes:
        change["running"], change["file"] = change.pop("before"), change.pop("after")
    data = {
        "file": str(named) if named else None,
        "differs": bool(changes),
        "changes": changes,
        "toml": found.toml,
    }
    lines = []
    if changes:
        lines = [f"# what runs -> {name}"]
        lines += [f"# {one}{' (live)' * (one.setting in found.live)}" for one in found.changes]
        lines += ["", f"# to make {named or DEFAULT_FILE} say what runs:", ""]
        lines += found.toml.rstrip("\n").split("\n")
    else:
        context.message(f"{name} says what runs")
    context.emit(data, lines)
    click_context.exit(1 if exit_code and changes else 0)


@policy.command(
    epilog="Example: ntpguard policy apply /etc/ntpguard/ntpguard.toml --dry-run" + RUNNING_FILE
)
@click.argument("file", type=FILE, required=False)
@click.option("--dry-run", is_flag=True, help="Tell what would change, change nothing.")
@click.option("--keep-live", is_flag=True, help="Keep live changes of the mode and of limits.")
@click.pass_obj
def apply(context: Context, file: Path | None, dry_run: bool, keep_live: bool) -> None:
    """Make the guard run FILE's policy, whole and at once; sources keep their state.

    Live changes of the mode and of limits give way to the file, unless they are kept. Live entries
    (block, exempt) stay. What needs ntpguard up or down is named, and nothing is applied.
    """
    if file is None:
        with reading.open_running(context.bpffs) as guard:
            file = _named(guard.document()) or DEFAULT_FILE
    new = read_policy(file)
    _warn(context, new)
    done = applying.apply(
        new, str(file.resolve()), bpffs=context.bpffs, keep_live=keep_live, dry_run=dry_run
    )
    data = {
        "file": str(file),
        "applied": not dry_run,
        "changes": [dataclasses.asdict(one) for one in done.changes],
        "live_dropped": done.dropped,
        "live_kept": done.kept,
        "warnings": list(new.warnings),
    }
    context.emit(data, map(str, done.changes))
    if not done.changes:
        context.message(f"{file}: no setting changes")
    if done.dropped:
        context.warn(
            f"live changes {'would give' if dry_run else 'gave'} way to {file}: "
            f"{'; '.join(done.dropped)}: --keep-live keeps what it can"
        )
    if done.kept:
        context.message(f"live changes kept: {'; '.join(done.kept)}")
    if dry_run:
        context.message("nothing is applied: --dry-run")


@policy.command(
    epilog="Example: ntpguard policy describe --markdown --contact ntp@example.net > access.md"
)
@click.argument("file", type=FILE, required=False)
@click.option("--markdown", is_flag=True, help="Write Markdown.")
@click.option("--contact", metavar="TEXT", help="Whom to ask about the server.")
@click.pass_obj
def describe(context: Context, file: Path | None, markdown: bool, contact: str | None) -> None:
    """The access policy that runs, or FILE's, in plain words for the server's web page."""
    if file:
        described = read_policy(file)
    else:
        with reading.open_running(context.bpffs) as guard:
            described = dataclasses.replace(guard.policy(), mode=guard.mode().word)
    sections = words.describe(described, contact)
    data = {
        "enforced": described.mode == "enforce",
        "sections": [dataclasses.asdict(one) for one in sections],
    }
    context.emit(data, words.render(sections, markdown=markdown))


@policy.command(epilog="Example: ntpguard policy signatures >> /etc/ntpguard/ntpguard.toml")
@click.pass_obj
def signatures(context: Context) -> None:
    """Signatures of known faulty clients, to be appended to a policy file. All only observe."""
    text = (files("ntpguard.policy") / "signatures.toml").read_text(encoding="utf-8")
    names = [one.name for one in parse_policy(text, "signatures.toml").signatures]
    context.emit({"names": names, "toml": text}, text.rstrip("\n").split("\n"))


def _named(document: dict[str, Any]) -> Path | None:
    """The file of the running policy, or the default one if it is there."""
    return Path(document["file"]) if document["file"] else default_file()


def _warn(context: Context, checked: Policy) -> None:
    for warning in checked.warnings:
        context.warn(warning)
