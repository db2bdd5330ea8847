"""The group of all commands: global options, names almost typed right, errors in one line."""

import difflib
import signal
from pathlib import Path
from typing import Any, NoReturn

import click

from ntpguard import __version__
from ntpguard.cli import (
    completion,
    doctor,
    entries,
    episodes,
    kod,
    life,
    limits,
    migrate,
    policies,
    replay,
    run,
    sources,
    watch,
)
from ntpguard.cli.output import Context, wants_color, watching_stdout
from ntpguard.errors import NtpguardError
from ntpguard.kernel import bpffs, maps

INTERRUPTED = 128 + signal.SIGINT  # as a shell counts
# what people type, and what they mean: the nearest by its letters may be the opposite
MEANT = {
    "unblock": "clear",
    "unexempt": "clear",
    "start": "up",
    "stop": "down",
    "reload": "policy apply",
    "help": "--help",
    "version": "--version",
}


class Group(click.Group):
    """Suggests the nearest command, as click does from 8.5 on; ends with an error's exit code."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with a hint."""
        if args and self.get_command(ctx, args[0]) is None:
            close = difflib.get_close_matches(args[0], self.list_commands(ctx), 1)
            meant = MEANT.get(args[0]) or (close[0] if close else "")
            hint = f" Did you mean '{meant}'?" if meant else ""
            ctx.fail(f"No such command '{args[0]}'.{hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """As click's; ntpguard's errors become one line each."""
        try:
            with watching_stdout():
                return super().invoke(ctx)
        except NtpguardError as error:
            _report(error)
        except click.NoSuchOption as error:
            raise self._placed(error) from None
        except KeyboardInterrupt:
            click.echo("ntpguard: interrupted", err=True)
            ctx.exit(INTERRUPTED)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """As click's; prints --help and --version."""
        try:
            with watching_stdout():
                return super().make_context(*args, **kwargs)
        except NtpguardError as error:
            _report(error)
        except click.NoSuchOption as error:
            raise self._placed(error) from None

    def _placed(self, error: click.NoSuchOption) -> click.UsageError:
        """Says where a global option goes that came after the command; --json is -o json."""
        name = error.option_name
        json = name in ("--json", "-o", "--output")
        if error.ctx is None or not (json or any(name in one.opts for one in self.params)):
            return error
        program, _, command = error.ctx.command_path.partition(" ")
        words = [program, "-o json" if json else name, command or "COMMAND"]
        return click.UsageError(f"No such option: {name}: try {' '.join(words)}", error.ctx)


def _show_version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    """Which object it is tells apart what the version does not: builds by another compiler."""
    if wanted and not context.resilient_parsing:
        click.echo(f"ntpguard {__version__}\nprogram sha256:{maps.object_digest()}")
        context.exit()


def _report(error: NtpguardError) -> NoReturn:
    for line in str(error).splitlines():
        click.echo(f"ntpguard: {line}", err=True)
    raise SystemExit(error.exit_code)


def _summarise(group: click.Group) -> None:
    """Gives each command its help's first sentence as summary: click would cut it to one line."""
    for command in group.commands.values():
        text = " ".join((command.help or "").partition("\n\n")[0].split())
        command.short_help = command.short_help or text.partition(". ")[0].removesuffix(".")
        if isinstance(command, click.Group):
            _summarise(command)


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 ok, 1 failed or degraded, 2 usage, 3 bad policy, 4 not running, "
    "5 permission.",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "ndjson"]),
    default="table",
    help="Format of what goes to stdout.",
)
@click.option("-q", "--quiet", is_flag=True, help="No messages but warnings and errors.")
@click.option(
    "-v", "--verbose", is_flag=True, help="More lines in status and show, more columns in top."
)
@click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    help="Colour modes, verdicts and problems; auto: on a terminal, unless NO_COLOR is set.",
)
@click.option(
    "--bpffs",
    "bpffs_option",
    type=click.Path(path_type=Path),
    help="Where the bpffs is mounted.  [default: $NTPGUARD_BPFFS or /sys/fs/bpf]",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version, and of the program for the kernel its hash, and exit.",
)
@click.pass_context
def main(
    context: click.Context,
    output: str,
    quiet: bool,
    verbose: bool,
    color: str,
    bpffs_option: Path | None,
) -> None:
    """Limit what each client may ask of this NTP server, in front of it, in XDP.

    Excess requests become RATE Kiss-o'-Death replies or are dropped, before they cost a socket.
    Enforcement stays when the command returns.
    """
    where = bpffs.directory(bpffs_option)
    context.obj = Context(output, quiet, verbose, where, wants_color(color))


for command in (
    life.up,
    life.down,
    run.run,
    life.status,
    life.mode,
    sources.top,
    sources.show,
    limits.limit,
    entries.block,
    entries.exempt,
    entries.clear,
    entries.entries,
    policies.policy,
    episodes.episodes,
    watch.export,
    watch.trace,
    kod.kod,
    doctor.doctor,
    replay.replay,
    migrate.migrate,
    completion.completion,
):
    main.add_command(command)
_summarise(main)
completion.complete_names(main)
