"""A real chronyd does with a burst what the page on migrated policies has its model do."""

import math
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attack.peers import Chrony
from tests.bpf.packets import ntp
from tests.lab.lab import PEERS

PORT, BURST, REQUESTS = 11123, 8, 400


@pytest.fixture
def chronyd(tmp_path: Path) -> Iterator[Path]:
    """On this namespace's loopback interface, with chrony's default ratelimit; its log."""
    configuration = tmp_path / "chrony.conf"
    tmp_path.chmod(0o750)
    configuration.write_text(
        f"local stratum 1\nallow\nratelimit\nport {PORT}\npidfile {tmp_path}/pid\n"
        f"bindcmdaddress {tmp_path}/command\ncmdport 0\n"
    )
    command = [str(PEERS / "usr/sbin/chronyd"), "-x", "-d", "-u", "root", "-f", str(configuration)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield tmp_path / "log"
    finally:
        process.terminate()
        process.wait(10)


def answered(client: socket.socket) -> Iterator[int]:
    """The numbers of the requests whose answers are there."""
    try:
        while True:
            yield int.from_bytes(client.recv(1000)[24:32], "big")
    except TimeoutError:
        return


def wait(log: Path) -> None:
    """Until the daemon answers someone else."""
    deadline = time.monotonic() + 30
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.1)
        client.connect(("127.0.0.1", PORT))
        while True:
            try:
                client.send(ntp(transmit=b"12345678"))
                client.recv(1000)
                return
            except (TimeoutError, ConnectionRefusedError):
                assert time.monotonic() < deadline, log.read_text()


def test_a_real_chronyd_answers_a_burst_as_its_model_does(chronyd: Path) -> None:
    wait(chronyd)
    found: set[int] = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind(("127.0.0.7", 0))
        client.connect(("127.0.0.1", PORT))
        client.settimeout(0.02)
        begin = time.monotonic()
        for number in range(1, REQUESTS + 1):
            client.send(ntp(transmit=number.to_bytes(8, "big")))
            if number % 20 == 0:  # so that no buffer overflows
                found |= {*answered(client)}
        seconds = time.monotonic() - begin
        client.settimeout(1)
        found |= {*answered(client)}

    assert found >= {*range(1, BURST + 1)}
    shares = []
    for seed in range(50):
        model = Chrony(seed=seed)
        fates = [model.answer(1000 + seconds * number / REQUESTS, 1) for number in range(REQUESTS)]
        assert fates[:BURST] == ["answered"] * BURST
        shares.append(fates.count("answered"))
    mean = sum(shares) / len(shares)
    deviation = math.sqrt(REQUESTS * 3 / 16)  # a quarter of the excess, by chance
    assert abs(len(found) - mean) < 5 * deviation, (len(found), mean)
