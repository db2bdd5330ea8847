"""run."""

from pathlib import Path

import click

from ntpguard.cli.life import DEFAULT_FILE
from ntpguard.cli.output import Context


@click.command(epilog="Example: ntpguard run --policy ntpguard.toml --listen 127.0.0.1:9721")
@click.option(
    "--policy",
    "file",
    type=click.Path(path_type=Path),
    default=DEFAULT_FILE,
    show_default=True,
    help="Policy file; SIGHUP reads it again.",
)
@click.option(
    "--listen",
    default="127.0.0.1:9721",
    show_default=True,
    metavar="HOST:PORT",
    help="Where Prometheus finds the counters; none: nowhere.",
)
@click.pass_obj
def run(context: Context, file: Path, listen: str) -> None:
    """Guard the policy's interfaces in the foreground, until stopped; what systemd runs.

    Follows interfaces that come, go and change, takes over what is guarded already, and serves
    metrics. With on_exit = "keep" (the default), and after a crash, enforcement stays. A bad file
    changes nothing: at the start, the last good one runs.
    """
    from ntpguard.daemon import loop

    log = loop.levelled(lambda text: click.echo(text, err=True), quiet=context.quiet)
    loop.run(file, listen, context.bpffs, log)
