"""export. Room for: trace."""

import click

from ntpguard.cli.output import Context


@click.command(epilog="Example: ntpguard export --listen 127.0.0.1:9721")
@click.option("--listen", default="127.0.0.1:9721", show_default=True, metavar="HOST:PORT")
@click.pass_obj
def export(context: Context, listen: str) -> None:
    """Serve the counters to Prometheus, on /metrics, until stopped."""
    from ntpguard.exporter.server import serve

    serve(listen, context.bpffs, context.message)
