"""Many clients, a guarded server and another one: a namespace each, joined by a bridge, and all that
is said between them seen on the servers' wires.
"""

import contextlib
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.lab import SERVER, SERVER4, Daemon, Lab, namespace, run

BRIDGE, SPARE = "bridge", "spare"
SPARE4 = "198.51.100.2"
SERVERS = {SERVER: SERVER4, SPARE: SPARE4}
CLIENTS = "198.51.100."
NTP_PORT = 123
ETH_IPV4 = b"\x08\x00"


@dataclass(frozen=True)
class Seen:
    """A packet: when, by time.monotonic(); to or from which server; whether it is a request; its
    stratum.
    """

    seconds: float
    server: str
    request: bool
    stratum: int


@dataclass
class Wire:
    """Everything between the servers and each client's address."""

    seen: dict[str, list[Seen]] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Within the block."""
        with namespace(BRIDGE):
            wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
            wire.settimeout(0.2)
        thread = threading.Thread(target=self._watch, args=(wire,))
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()
            wire.close()

    def _watch(self, wire: socket.socket) -> None:
        while not self._stop.is_set():
            try:
                frame, where = wire.recvfrom(2048)
            except TimeoutError:
                continue
            # what is said to one server is seen on its port of the bridge, and on the client's
            address = SERVERS.get(where[0])
            if not address or len(frame) < 90 or frame[12:14] != ETH_IPV4:
                continue
            source, destination = (socket.inet_ntoa(frame[at : at + 4]) for at in (26, 30))
            ports = struct.unpack("!HH", frame[34:38])
            request = destination == address and ports[1] == NTP_PORT
            answer = source == address and ports[0] == NTP_PORT
            if frame[23] == socket.IPPROTO_UDP and (request or answer):
                one = Seen(time.monotonic(), where[0], request, frame[43])
                self.seen.setdefault(source if request else destination, []).append(one)

    def between(self, client: str, begin: float, end: float) -> list[Seen]:
        """What was seen of a client in that time."""
        return [one for one in self.seen.get(client, []) if begin <= one.seconds < end]


@dataclass
class Seat(Lab):
    """A client's place: its daemons run in its own namespace, whatever namespace they are given.
    The address is given to it later.
    """

    name: str = ""
    address: str = ""

    def start(self, namespace: str, *arguments: object) -> Daemon:
        """As Lab's."""
        return super().start(self.name, *arguments)  # type: ignore[arg-type]


@contextlib.contextmanager
def network(directory: Path, count: int) -> Iterator[tuple[Lab, list[Seat]]]:
    """The guarded server, the spare one, which runs, and so many seats."""
    server, spare = (Lab(directory / name) for name in SERVERS)
    for one in (server, spare):
        one.directory.mkdir(parents=True)
    names = [f"seat{number}" for number in range(count)]
    seats = []
    try:
        for name in (BRIDGE, *SERVERS, *names):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", BRIDGE, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", BRIDGE, "link", "set", "br0", "up")
        for name in (*SERVERS, *names):
            peer = ["peer", "name", name, "netns", BRIDGE]
            run("ip", "link", "add", "eth0", "netns", name, "type", "veth", *peer)
            run("ip", "-n", BRIDGE, "link", "set", name, "master", "br0", "up")
            run("ip", "-n", name, "link", "set", "eth0", "up")
            if name in SERVERS:
                run("ip", "-n", name, "address", "add", f"{SERVERS[name]}/24", "dev", "eth0")
            else:
                seats.append(Seat(directory / name, name=name))
                seats[-1].directory.mkdir()
        spare.chronyd(SPARE, SPARE, "allow\nlocal stratum 10")
        yield server, seats
    finally:
        for one in (*seats, spare, server):
            for daemon in reversed(one.daemons):
                daemon.stop()
        server.guard("down", check=False)
        for name in (*SERVERS, *names, BRIDGE):
            subprocess.run(["ip", "netns", "del", name], env=os.environ)
