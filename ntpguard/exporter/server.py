"""A small HTTP server around prometheus-client's WSGI application. TLS and passwords: a proxy's."""

import contextlib
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from types import FrameType
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from ntpguard.errors import NotRunning, NtpguardError, UsageError
from ntpguard.exporter.collector import GuardCollector
from ntpguard.exporter.page import HEADERS, Page
from ntpguard.reading import open_running

MOST_CONNECTIONS = 128
IDLE_SECONDS = 10.0
FIRST_FD = 3  # sd_listen_fds(3)
Answer = tuple[str, str, bytes]  # status, type, body


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each connection, and so many of them: the one that has been open longest, most
    likely a client that never finishes its request, gives way to a new one.
    """

    daemon_threads = True
    request_queue_size = MOST_CONNECTIONS
    page: Page

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._open: dict[socket.socket, None] = {}  # the oldest first
        self._lock = threading.Lock()
        super().__init__(*arguments, **named)

    def named(self) -> None:
        """Without HTTPServer's reverse DNS of the address, which can take half a minute."""
        self.server_name = str(self.server_address[0])
        self.server_port = self.server_address[1]
        self.setup_environ()

    def server_bind(self) -> None:
        """As HTTPServer's, but for the reverse DNS."""
        TCPServer.server_bind(self)
        self.named()

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """And takes the page's samples: in a thread that begins now, since the daemon has given its
        capabilities away meanwhile, and a thread keeps those that it began with.
        """
        self.page.watch()
        super().serve_forever(poll_interval)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serves a connection in a thread of its own."""
        with self._lock:
            self._open[request] = None
            oldest = next(iter(self._open)) if len(self._open) > MOST_CONNECTIONS else None
            if oldest is not None:
                del self._open[oldest]
                with contextlib.suppress(OSError):  # it has gone by itself
                    oldest.shutdown(socket.SHUT_RDWR)  # its thread reads the end, and closes it
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """The end of a connection."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = IDLE_SECONDS

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """A scrape is no news."""


def application(bpffs: Path, page: Page) -> Callable[..., Iterable[bytes]]:
    """The WSGI application: /metrics, /-/healthy, /-/ready, and a landing page on /."""
    registry = CollectorRegistry()
    registry.register(GuardCollector(bpffs))
    metrics = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if method in ("GET", "HEAD") and path == "/metrics":
            found: Iterable[bytes] = metrics(environ, start_response)
            return found if method == "GET" else []
        if method in ("GET", "HEAD") and path == "/":
            body = page.render(environ)
            start_response("200 OK", [*HEADERS, ("Content-Length", str(len(body)))])
            return [body] if method == "GET" else []
        status, kind, body = (
            _answer(path, bpffs)
            if method in ("GET", "HEAD")
            else ("405 Method Not Allowed", "text/plain", b"try GET\n")
        )
        headers = [("Content-Type", kind), ("Content-Length", str(len(body)))]
        if status.startswith("405"):
            headers.append(("Allow", "GET, HEAD"))
        start_response(status, headers)
        return [body] if method != "HEAD" else []

    return answer


def _answer(path: str, bpffs: Path) -> Answer:
    if path == "/-/healthy":
        return "200 OK", "text/plain", b"ok\n"
    if path == "/-/ready":
        return _ready(bpffs)
    return "404 Not Found", "text/plain", b"try /metrics\n"


def _ready(bpffs: Path) -> Answer:
    try:
        with open_running(bpffs):
            return "200 OK", "text/plain", b"ok\n"
    except NotRunning as error:
        return "503 Service Unavailable", "text/plain", f"{error}\n".encode()
    except NtpguardError as error:
        return "500 Internal Server Error", "text/plain", f"{error}\n".encode()


def _activated() -> socket.socket:
    """The socket that systemd has opened. Raises NtpguardError unless it is one, of TCP."""
    count = os.environ.get("LISTEN_FDS", "")
    one = socket.socket(fileno=FIRST_FD)
    one.set_inheritable(False)
    if count != "1" or one.family not in (socket.AF_INET, socket.AF_INET6):
        raise NtpguardError(
            f"LISTEN_FDS: must be one TCP socket (got {count}, the first of {one.family.name}): "
            "the socket unit needs exactly one ListenStream=, an address and a port"
        )
    return one


def url(server: WSGIServer) -> str:
    """Where the counters are."""
    host, port = server.server_name, server.server_port
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"


def address_of(listen: str) -> tuple[str, int]:
    """Host and port of HOST:PORT, an IPv6 host in brackets or not. Raises UsageError."""
    match = re.fullmatch(r"\[?([!-Z^-~]+)\]?:([0-9]{1,5})", listen)
    if not match or int(match[2]) > 65535:
        raise UsageError(f"--listen: must be HOST:PORT, like 127.0.0.1:9721 (got {listen!r})")
    return match[1], int(match[2])


def listening(listen: str, bpffs: Path) -> WSGIServer:
    """A server that has its port, and is to be told to serve. `listen` is HOST:PORT, an IPv6 host
    in brackets; a socket that systemd has opened for us (sd_listen_fds(3)) goes before it.

    Raises UsageError for an address that is none, NtpguardError if it cannot be bound, or systemd's
    socket is of no use.
    """
    host, port = address_of(listen)
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        server = _Server((host, port), _Handler, bind_and_activate=False)
        server.socket.close()
        server.socket = _activated()
        server.server_address = server.socket.getsockname()[:2]
        server.named()
    else:
        kind = _Server6 if ":" in host else _Server
        try:
            server = kind((host, port), _Handler)
        except OSError as error:
            raise NtpguardError(f"{listen}: cannot listen: {error.strerror}: try another") from None
    server.page = Page(bpffs)
    server.set_app(application(bpffs, server.page))
    return server


def serve(listen: str, bpffs: Path, message: Callable[[str], None]) -> None:
    """Serves until SIGINT or SIGTERM; raises as `listening`."""
    server = listening(listen, bpffs)

    def stop(_number: int, _frame: FrameType | None) -> None:
        threading.Thread(target=server.shutdown).start()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    message(f"listening on {url(server)}")
    with server:
        server.serve_forever()
