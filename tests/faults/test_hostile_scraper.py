"""Whoever may connect to the daemon's exporter, and means ill: the daemon goes on as if nobody did."""

import contextlib
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from ntpguard.exporter.server import MOST_THREADS
from tests.bpf.daemon import running, wait_for
from tests.bpf.test_health import status
from tests.bpf.test_lifecycle import pytestmark, where
from tests.faults.test_hostile import USER

__all__ = ["pytestmark", "where"]
SECONDS = 15 if "NTPGUARD_ALL" in os.environ else 5  # of an attack
OF_A_GUARD = 64  # descriptors of a reading, of the loop, of a survey
MOST_MIB = 64  # more than at rest
WATCHDOG_SECONDS = 10  # a third of what the unit allows
# a user's process; BODY makes and keeps connections in `kept`
CLIENT = """
import itertools, socket, sys, time
end, kept = time.monotonic() + {seconds}, []
def connected(buffer=None):
    one = socket.socket()
    if buffer:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    one.settimeout(5)
    one.connect(("127.0.0.1", 9721))
    return one
while time.monotonic() < end:
    try:
{body}
    except OSError:
        pass
    del kept[:-600]
"""
SCRAPE = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
ATTACKS = {
    "a byte at a time": """
        kept.append(connected())
        for one in kept[-100:]:
            one.send(b"G")
    """,
    "headers that never end": """
        kept.append(connected())
        kept[-1].send(b"GET / HTTP/1.1\\r\\n")
        for one in kept[-20:]:
            one.send(b"a: " + b"b" * 60000 + b"\\r\\n")
    """,
    "answers that nobody reads": f"""
        kept.append(connected(1))
        kept[-1].send({SCRAPE!r})
    """,
    "answers that are not waited for": f"""
        connected().send({SCRAPE!r})
    """,
    "many requests in one": f"""
        kept.append(connected())
        kept[-1].send({SCRAPE!r} * 1000)
    """,
    "every path, method and header": """
        for method, path, rest in itertools.product(
            (b"GET", b"HEAD", b"POST", b"PUT", b"CONNECT", b"TRACE", b"\\xff", b"GET\\0"),
            (b"/", b"/metrics?" + b"name[]=a&" * 5000, b"/-/ready", b"/../../etc/passwd", b"*", b"/%00%ff"),
            (
                b"", b"HTTP/1.1\\r\\nContent-Length: -1", b"HTTP/1.1\\r\\nTransfer-Encoding: chunked",
                b"HTTP/1.1\\r\\nContent-Length: 99999999999", b"HTTP/1.1\\r\\nAccept-Encoding: gzip",
                b"HTTP/1.1\\r\\nAccept: application/openmetrics-text; version=1.0.0\\r\\nExpect: 100-continue",
                b"HTTP/1.1\\r\\nX-Forwarded-For: 127.0.0.1\\r\\nHost: \\xff\\0", b"HTTP/9.9", b"HTTP/1.1\\r\\n: ",
            ),
        ):
            with connected() as one:
                one.sendall(method + b" " + path + b" " + rest + b"\\r\\n\\r\\n")
                if path != b"/metrics":
                    one.recv(100)
    """,
}


@contextlib.contextmanager
def attacked(body: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """By two processes of a user, until they end."""
    code = CLIENT.format(seconds=SECONDS, body=body)
    both = [subprocess.Popen([*USER, sys.executable, "-c", code], cwd="/") for _ in range(2)]
    try:
        yield both
    finally:
        for one in both:
            one.kill()
            one.wait()


def held(pid: int) -> tuple[int, int, float]:
    """Descriptors, threads and MiB of memory of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    (kib,) = re.findall(r"^VmRSS:\s+(\d+) kB", text, re.M)
    (threads,) = re.findall(r"^Threads:\s+(\d+)", text, re.M)
    return len(os.listdir(f"/proc/{pid}/fd")), int(threads), int(kib) / 1024


def scraped() -> str:
    with urllib.request.urlopen("http://127.0.0.1:9721/metrics", timeout=60) as answer:
        return str(answer.read().decode())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("attack", ATTACKS)
def test_the_daemon_answers_systemd_and_holds_no_more_than_it_may(
    where: Path, tmp_path: Path, attack: str
) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with running(tmp_path, "--listen", "127.0.0.1:9721") as daemon:
        scraped()
        before = held(daemon.process.pid)
        most, longest = before, 0.0
        with attacked(ATTACKS[attack]) as attackers:
            while any(one.poll() is None for one in attackers):
                begin = time.monotonic()
                assert not daemon.silent(WATCHDOG_SECONDS)
                longest = max(longest, time.monotonic() - begin)
                most = tuple(map(max, most, held(daemon.process.pid)))  # type: ignore[assignment]
                assert status() == (0, [])
            text = daemon.file.read_text()
            daemon.reload(f'{text}[limit]\nrate = "7/minute"\n')
            daemon.logs("applied")
        print(f"{attack}: {before} -> {most}, watchdog within {longest:.1f} s")
        assert most[0] <= MOST_THREADS + OF_A_GUARD
        assert most[1] <= MOST_THREADS + OF_A_GUARD
        assert most[2] <= before[2] + MOST_MIB

        def released() -> bool:
            now = held(daemon.process.pid)
            return now[0] <= before[0] + 2 and now[1] <= before[1] + 2

        wait_for(released, f"{attack}: {before} -> {held(daemon.process.pid)}")
        assert "ntpguard_up 1.0" in scraped()
        assert daemon.log().count("applied") == 1
        assert "Traceback" not in daemon.log() and "rror" not in daemon.log(), daemon.log()
