"""A small HTTP server around prometheus-client's WSGI application. TLS and passwords: a proxy's."""

import signal
import socket
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from types import FrameType
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from ntpguard.errors import NtpguardError, UsageError
from ntpguard.exporter.collector import GuardCollector

LANDING = b"<h1>ntpguard</h1><p><a href='/metrics'>metrics</a></p>\n"


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Without HTTPServer's reverse DNS of the address, which can take half a minute."""
        TCPServer.server_bind(self)
        self.server_name = str(self.server_address[0])
        self.server_port = self.server_address[1]
        self.setup_environ()


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """A scrape is no news."""


def application(bpffs: Path) -> Callable[..., Iterable[bytes]]:
    """The WSGI application: /metrics, /-/healthy, and a landing page on /."""
    registry = CollectorRegistry()
    registry.register(GuardCollector(bpffs))
    metrics = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            found: Iterable[bytes] = metrics(environ, start_response)
            return found
        status, kind, body = {
            "/": ("200 OK", "text/html", LANDING),
            "/-/healthy": ("200 OK", "text/plain", b"ok\n"),
        }.get(path, ("404 Not Found", "text/plain", b"try /metrics\n"))
        start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
        return [body]

    return answer


def listening(listen: str, bpffs: Path) -> WSGIServer:
    """A server that has its port, and is to be told to serve. `listen` is HOST:PORT, an IPv6 host
    in brackets.

    Raises UsageError for an address that is none, NtpguardError if it cannot be bound.
    """
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"--listen: must be HOST:PORT, like 127.0.0.1:9721 (got {listen!r})")
    try:
        return make_server(
            host,
            int(port),
            application(bpffs),
            server_class=_Server6 if ":" in host else _Server,
            handler_class=_Handler,
        )
    except OSError as error:
        raise NtpguardError(f"{listen}: cannot listen: {error.strerror}: try another") from None


def serve(listen: str, bpffs: Path, message: Callable[[str], None]) -> None:
    """Serves until SIGINT or SIGTERM; raises as `listening`."""
    server = listening(listen, bpffs)

    def stop(_number: int, _frame: FrameType | None) -> None:
        threading.Thread(target=server.shutdown).start()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    message(f"listening on http://{listen}/metrics")
    with server:
        server.serve_forever()
