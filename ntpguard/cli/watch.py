"""export, trace."""

import click

from ntpguard.cli.output import Context


@click.command(epilog="Example: ntpguard export --listen 127.0.0.1:9721")
@click.option("--listen", default="127.0.0.1:9721", show_default=True, metavar="HOST:PORT")
@click.pass_obj
def export(context: Context, listen: str) -> None:
    """Serve the counters to Prometheus, on /metrics, until stopped."""
    from ntpguard.exporter.server import serve

    serve(listen, context.bpffs, context.message)


@click.command(epilog="Example: ntpguard trace --seconds 10")
@click.option("--seconds", type=click.FloatRange(min=0.1), help="Stop after so long.")
def trace(seconds: float | None) -> None:
    """NTP packets that the stack dropped after the guard passed them, and why (needs bcc)."""
    from ntpguard.trace import run

    run(seconds, click.echo)
