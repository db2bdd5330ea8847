"""A small HTTP server around prometheus-client's WSGI application. TLS and passwords: a proxy's."""

import contextlib
import ctypes
import io
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from http.client import HTTPException
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from types import FrameType
from typing import Any, TextIO
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from ntpguard.errors import NotRunning, NtpguardError, UsageError
from ntpguard.exporter.collector import GuardCollector
from ntpguard.exporter.page import HEADERS, Page
from ntpguard.reading import open_running

MOST_CONNECTIONS = 128
MOST_THREADS = 2 * MOST_CONNECTIONS  # those of connections that had to give way still end
MOST_BYTES = 16 << 10  # of a request's first line, and of its headers
IDLE_SECONDS = 10.0
FIRST_FD = 3  # sd_listen_fds(3)
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # malloc.h
LARGE_BYTES = 64 << 10
Answer = tuple[str, str, bytes]  # status, type, body


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each connection, and so many of them: the one that has been open longest, most
    likely a client that never finishes its request, gives way to a new one. A new one is closed at
    once while too many of those that gave way are still being answered.
    """

    daemon_threads = True
    request_queue_size = MOST_CONNECTIONS
    page: Page

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._open: dict[socket.socket, None] = {}  # the oldest first
        self._threads_running = 0
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
            if self._threads_running >= MOST_THREADS:
                request.close()
                return
            self._threads_running += 1
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
            self._threads_running -= 1
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Errors(io.TextIOBase):
    """stderr, but that a client goes away, or reads nothing, is no news."""

    def write(self, text: str) -> int:
        """Text of an exception that is being handled."""
        return len(text) if isinstance(sys.exception(), OSError) else sys.stderr.write(text)


class _Headers:
    """The lines of a request after its first; of more bytes than a scrape has, they are refused."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._file = file
        self._left = MOST_BYTES

    def readline(self, size: int) -> bytes:
        """As a file's. Raises HTTPException."""
        line = self._file.readline(min(size, self._left + 1))
        self._left -= len(line)
        if self._left < 0:
            raise HTTPException(f"more than {MOST_BYTES} bytes")
        return line


class _Handler(WSGIRequestHandler):
    timeout = IDLE_SECONDS
    raw_requestline: bytes

    def parse_request(self) -> bool:
        """As http.server's, which would take 6 MiB of each client."""
        if len(self.raw_requestline) > MOST_BYTES:
            self.requestline = self.request_version = self.command = ""
            self.send_error(414)
            return False
        whole, self.rfile = self.rfile, _Headers(self.rfile)  # type: ignore[assignment]
        try:
            return super().parse_request()
        finally:
            self.rfile = whole

    def get_stderr(self) -> TextIO:
        """Where it tells of what the application raised."""
        return _Errors()  # type: ignore[return-value]

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """A scrape is no news."""


class _Shared(Collector):
    """What another collector has read last, for all who asked for it before that reading began."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._found: list[Metric] = []
        self._begun = float("-inf")

    def describe(self) -> Iterable[Metric]:
        """Nothing, as GuardCollector."""
        return []

    def collect(self) -> Iterable[Metric]:
        """What was read last."""
        return self._found

    def read(self, asked: float) -> None:
        """Reads again, unless that has begun since it was `asked` for (time.monotonic())."""
        if self._begun < asked:
            self._begun = time.monotonic()
            self._found = list(self._collector.collect())


def application(bpffs: Path, page: Page) -> Callable[..., Iterable[bytes]]:
    """The WSGI application: /metrics, /-/healthy, /-/ready, and a landing page on /.

    One request is answered at a time, however many ask: the daemon's loop shares the processor and
    the descriptors with them.
    """
    registry = CollectorRegistry()
    shared = _Shared(GuardCollector(bpffs))
    registry.register(shared)
    metrics = make_wsgi_app(registry)
    turn = threading.Lock()

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        asked = time.monotonic()
        with turn:
            method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
            if method in ("GET", "HEAD") and path == "/metrics":
                shared.read(asked)
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
    _set_up_malloc()
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


def _set_up_malloc() -> None:
    """For a process that scrapes and surveys for months. To be called before there are threads.

    Python's threads allocate one at a time: an arena for each, glibc's default, would only keep
    what another could use. And a large block goes back once it is freed: by default glibc would
    take ever larger ones from its heap, where small ones that stay between them make it grow.
    """
    with contextlib.suppress(AttributeError):  # another libc
        libc = ctypes.CDLL(None)
        libc.mallopt(M_ARENA_MAX, 1)
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


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
