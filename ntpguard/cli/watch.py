"""export, trace."""

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from ntpguard import reading
from ntpguard.cli.arguments import parse_network
from ntpguard.cli.output import Context
from ntpguard.errors import NotRunning, NtpguardError

if TYPE_CHECKING:
    from ntpguard.trace.outcome import Outcome, Sockets


@click.command(epilog="Example: ntpguard export --listen 127.0.0.1:9721")
@click.option(
    "--listen",
    default="127.0.0.1:9721",
    show_default=True,
    metavar="HOST:PORT",
    help="Where Prometheus finds the counters.",
)
@click.pass_obj
def export(context: Context, listen: str) -> None:
    """Serve the counters to Prometheus, on /metrics, until stopped."""
    from ntpguard.exporter.server import serve

    serve(listen, context.bpffs, context.message)


@click.command(epilog="Example: ntpguard trace 203.0.113.7 --seconds 10")
@click.argument("source", required=False)
@click.option("--seconds", type=click.FloatRange(min=0.1), help="Stop after so long.")
@click.pass_obj
def trace(context: Context, source: str | None, seconds: float | None) -> None:
    """What becomes of NTP requests after the guard has passed them (needs bcc).

    Those that the stack drops, with the kernel's reason: at most 50 a second are shown. In the end,
    all: dropped by reason, read by the daemon, answered and after how long, and what its sockets
    say. SOURCE: of one address or prefix alone. -o ndjson: an object for each drop, then the sum;
    -o json: the sum. It costs about a microsecond for each request that the guard passes.
    """
    from ntpguard import trace as tracing

    only = parse_network(source) if source else None
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
        tracing.run(seconds, click.echo, only=only)
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

    with tracing.observed_sockets() as sockets:
        found = tracing.watch(seconds, show, only=only, ready=lambda: context.message("tracing"))
    context.emit(_sum(found, sockets(), shown), [])


def _sum(found: "Outcome", own: "Sockets | None", shown: int) -> dict[str, Any]:
    """A whole trace for JSON."""
    return {
        "packets": found.causes.total(),
        "shown": shown,
        "causes": [
            {**dataclasses.asdict(cause), "packets": count}
            for cause, count in found.causes.most_common()
        ],
        "read": found.read,
        "answered": found.answered,
        "answered_within": [
            {"seconds": (1 << bits) / 1e6, "packets": count}
            for bits, count in enumerate(found.delays)
            if count
        ],
        "buffer_full": found.buffer_full(),
        "sockets_dropped": own.dropped if own else None,
        "buffer_bytes": own.buffer_bytes if own else None,
    }
