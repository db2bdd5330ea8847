"""eth0 in the test's namespace, a client at the other end, and requests that are counted."""

import contextlib
import ctypes
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SERVER, CLIENT = "198.51.100.1", "198.51.100.2"
PEER = "deploy-peer"
REQUEST = bytes([0x23]) + bytes(39) + b"\x12\x34\x56\x78\x9a\xbc\xde\xf0"
CLONE_NEWNET = 0x40000000


def ip(*words: str) -> None:
    """Runs ip(8)."""
    subprocess.run(["ip", *words], check=True)


@contextmanager
def network() -> Iterator[None]:
    """A veth pair: eth0 here, eth0 in PEER."""
    ip("netns", "add", PEER)
    try:
        ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", PEER)
        for address, at in ((SERVER, []), (CLIENT, ["-n", PEER])):
            ip(*at, "address", "add", f"{address}/24", "dev", "eth0")
            ip(*at, "link", "set", "eth0", "up")
        yield
    finally:
        subprocess.run(["ip", "link", "del", "eth0"], check=True)
        ip("netns", "del", PEER)


class Traffic:
    """Requests from CLIENT, some 2,000 a second, and those that reached a socket on port 123."""

    def __init__(self) -> None:
        self.sent = self.arrived = 0
        self._stop = False

    def _send(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/run/netns/{PEER}") as namespace:
            # this thread only
            assert libc.setns(namespace.fileno(), CLONE_NEWNET) == 0, os.strerror(
                ctypes.get_errno()
            )
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            out.connect((SERVER, 123))
            while not self._stop:
                with contextlib.suppress(ConnectionRefusedError):
                    out.send(REQUEST)
                    self.sent += 1
                time.sleep(0.0005)

    def _receive(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as into:
            into.bind((SERVER, 123))
            into.settimeout(0.1)
            while not self._stop:
                with contextlib.suppress(TimeoutError):
                    into.recv(512)
                    self.arrived += 1

    @contextmanager
    def flowing(self) -> Iterator["Traffic"]:
        """Until the block ends."""
        threads = [threading.Thread(target=one) for one in (self._receive, self._send)]
        for one in threads:
            one.start()
        try:
            yield self
        finally:
            self._stop = True
            for one in threads:
                one.join()
