"""export, trace."""

import dataclasses

import click

from ntpguard import reading
from ntpguard.cli.output import Context
from ntpguard.errors import NotRunning, NtpguardError


@click.command(epilog="Example: ntpguard export --listen 127.0.0.1:9721")
@click.option("--listen", default="127.0.0.1:9721", show_default=True, metavar="HOST:PORT")
@click.pass_obj
def export(context: Context, listen: str) -> None:
    """Serve the counters to Prometheus, on /metrics, until stopped."""
    from ntpguard.exporter.server import serve

    serve(listen, context.bpffs, context.message)


@click.command(epilog="Example: ntpguard trace --seconds 10")
@click.option("--seconds", type=click.FloatRange(min=0.1), help="Stop after so long.")
@click.pass_obj
def trace(context: Context, seconds: float | None) -> None:
    """NTP packets that the stack dropped after the guard passed them, and why (needs bcc).

    At most 50 a second are shown; the sum at the end is exact. -o ndjson: an object for each, then
    the sum; -o json: the sum.
    """
    from ntpguard import trace as tracing

    try:
        with reading.open_running(context.bpffs):
            pass
    except NotRunning:
        context.warn(
            "not running: what the stack drops has passed no guard: try ntpguard up INTERFACE"
        )
    except NtpguardError:
        pass  # of the guard's pins: tracing needs none of them
    if tracing.addresses_hidden():
        context.warn(tracing.HIDDEN)
    if context.output == "table":
        tracing.run(seconds, click.echo)
        return
    shown = 0

    def show(drop: tracing.Drop) -> None:
        nonlocal shown
        if context.output == "ndjson":
            shown += 1
            cause = dataclasses.asdict(drop.cause)
            when = drop.time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
            context.emit(
                {"dropped": when, "source": drop.source, "source_port": drop.port, **cause}, []
            )

    sums = tracing.watch(seconds, show, ready=lambda: context.message("tracing"))
    causes = [
        {**dataclasses.asdict(cause), "packets": count} for cause, count in sums.most_common()
    ]
    context.emit({"packets": sums.total(), "shown": shown, "causes": causes}, [])
