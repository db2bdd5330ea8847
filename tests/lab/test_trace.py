"""What the stack dropped behind the guard, and why: bcc at kfree_skb, on the running kernel."""

import contextlib
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.lab import (
    CLIENT,
    CLIENT4,
    CLIENT6,
    SERVER,
    SERVER4,
    SERVER6,
    Lab,
    inside,
    namespace,
    set_buffer,
)
from tests.lab.test_lab import POLICY, pytestmark, up

__all__ = ["pytestmark"]
TRACE = "from ntpguard.trace import run; run(None, lambda line: print(line, flush=True))"
BLOCK = POLICY + '[[class]]\nname = "all"\nprefixes = ["0.0.0.0/0"]\naction = "block"\n'


@contextmanager
def trace(where: str) -> Iterator[list[str]]:
    """Traces in a namespace for the length of the block; the list is filled when it ends."""
    lines: list[str] = []
    process = subprocess.Popen(
        inside(where, sys.executable, "-c", TRACE), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline().startswith("TIME")
    yield lines
    process.send_signal(signal.SIGINT)
    lines += process.communicate(timeout=60)[0].splitlines()
    assert process.returncode == 0


def requests(count: int, server: str = SERVER4, port: int = 123) -> None:
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with namespace(CLIENT), socket.socket(family, socket.SOCK_DGRAM) as one:
        for _ in range(count):
            one.sendto(bytes([0x23]) + bytes(47), (server, port))


@contextmanager
def daemon_that_never_reads() -> Iterator[None]:
    with namespace(SERVER), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        one.bind((SERVER4, 123))
        yield


@pytest.mark.parametrize("xdp", ["native", "skb"])
@pytest.mark.parametrize("server, client", [(SERVER4, CLIENT4), (SERVER6, CLIENT6)])
def test_requests_that_find_no_daemon_are_traced_with_source_and_reason(
    lab: Lab, server: str, client: str, xdp: str
) -> None:
    up(lab, "--xdp", xdp)
    with trace(SERVER) as lines:
        requests(10, server)
        requests(10, server, port=124)
    text = "\n".join(lines)
    assert len(re.findall(rf"^\S+  {client} +\d+  eth0 +NO_SOCKET ", text, re.M)) == 10, text
    assert re.search(r"^ +10  eth0 +NO_SOCKET +\S*udp", text, re.M), text
    assert "        10  in total, 10 of them shown above" in lines
    assert "         0  read by the daemon" in lines


def test_requests_that_overflow_the_daemon_are_counted_exactly_and_shown_in_part(lab: Lab) -> None:
    up(lab, policy=POLICY.replace("enforce", "observe"))
    with daemon_that_never_reads(), trace(SERVER) as lines:
        requests(5000)
    (total,) = [line for line in lines if "SOCKET_RCVBUFF" in line and line.startswith("  ")]
    dropped = int(total.split()[0])
    assert 4900 < dropped < 5000
    # as the socket itself counts them
    (full,) = [line for line in lines if "receive buffer full" in line]
    assert full.split()[0] == str(dropped) and full.endswith(f"its sockets count {dropped}")
    assert len(lines) < 300


@pytest.mark.parametrize("xdp", ["native", "skb"])
def test_what_the_guard_drops_is_not_the_stacks(lab: Lab, xdp: str) -> None:
    up(lab, "--xdp", xdp, policy=BLOCK)
    with trace(SERVER) as lines:
        requests(200)
    assert "         0  in total, 0 of them shown above" in lines, lines


def test_another_namespace_is_not_ours(lab: Lab) -> None:
    with daemon_that_never_reads(), trace(CLIENT) as lines:
        requests(500)
        requests(10, SERVER6)
    assert "         0  in total, 0 of them shown above" in lines, lines
    assert "         0  read by the daemon" in lines


@pytest.mark.parametrize("xdp", ["native", "skb"])
@pytest.mark.parametrize("server", [SERVER4, SERVER6])
def test_what_a_daemon_reads_and_answers_is_counted_and_timed(
    lab: Lab, server: str, xdp: str
) -> None:
    lab.server()
    up(lab, "--xdp", xdp, policy=POLICY.replace("enforce", "observe"))
    with trace(SERVER) as lines:
        for _ in range(20):
            asked(server)
    text = "\n".join(lines)
    assert re.search(r"^ +20  read by the daemon$", text, re.M), text
    assert re.search(r"^ +20  answered$", text, re.M), text
    delays = [int(count) for count in re.findall(r"^ +(\d+) +up to \d+ us", text, re.M)]
    assert sum(delays) == 20


def asked(server: str) -> None:
    """One request, and its answer awaited."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with namespace(CLIENT), socket.socket(family, socket.SOCK_DGRAM) as one:
        one.settimeout(2)
        for _ in range(10):
            one.sendto(bytes([0x23]) + bytes(47), (server, 123))
            with contextlib.suppress(TimeoutError):
                assert one.recv(100)[0] & 7 == 4
                return
        raise AssertionError("no answer")


def test_a_chronyd_whose_receive_buffer_is_too_small_is_told_with_its_sockets_own_count(
    lab: Lab,
) -> None:
    daemon = lab.server()
    set_buffer(daemon.process.pid, 4096)
    up(lab, policy=POLICY.replace("enforce", "observe"))
    with trace(SERVER) as lines:
        requests(3000)
        asked(SERVER4)
    text = "\n".join(lines)
    found = re.search(
        r"^ +(\d+)  found the daemon's receive buffer full \((\d+) bytes\); "
        r"its sockets count (\d+)$",
        text,
        re.M,
    )
    assert found, text
    traced, size, counted = map(int, found.groups())
    assert traced == counted > 0 and size == 4096
    assert (
        lines[-1].strip() == "try: sysctl -w net.core.rmem_default=4194304, and restart the daemon"
    )
    read = int(re.findall(r"^ +(\d+)  read by the daemon$", text, re.M)[0])
    answered = int(re.findall(r"^ +(\d+)  answered$", text, re.M)[0])
    assert 0 < answered <= read < 3010 - traced
