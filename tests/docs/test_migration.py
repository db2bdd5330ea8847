"""A real chronyd does with a burst what the page on migrated policies has its model do, and serves
whom the migrated policy does not block.
"""

import ipaddress
import math
import random
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ntpguard.migrate import migrated
from ntpguard.policy.check import parse_policy
from tests.attack.peers import Chrony
from tests.bpf.packets import ntp
from tests.lab.lab import PEERS

PORT, BURST, REQUESTS = 11123, 8, 400


@contextmanager
def chronyd(directory: Path, text: str) -> Iterator[None]:
    """On this namespace's loopback interface."""
    configuration = directory / "chrony.conf"
    directory.chmod(0o750)
    configuration.write_text(
        f"{text}local stratum 1\nport {PORT}\npidfile {directory}/pid\n"
        f"bindcmdaddress {directory}/command\ncmdport 0\n"
    )
    command = [str(PEERS / "usr/sbin/chronyd"), "-x", "-d", "-u", "root", "-f", str(configuration)]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait(directory / "log")
        yield
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


def test_a_real_chronyd_answers_a_burst_as_its_model_does(tmp_path: Path) -> None:
    found: set[int] = set()
    with (
        chronyd(tmp_path, "allow\nratelimit\n"),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
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


def rules() -> Iterator[str]:
    """At random, in one network, so that many are within another."""
    chosen = random.Random(1)
    for _ in range(60):
        bits = chosen.randrange(24, 33)
        net = ipaddress.ip_network(f"198.51.100.{chosen.randrange(256)}/{bits}", strict=False)
        whole = "all " if chosen.random() < 0.1 else ""
        yield f"{chosen.choice(('allow', 'deny'))} {whole}{net}\n"


def test_a_real_chronyd_denies_whom_the_migrated_policy_blocks(tmp_path: Path) -> None:
    text = "allow\n" + "".join(rules())
    hosts = [*ipaddress.ip_network("198.51.100.0/24")]
    chronyc = [str(PEERS / "usr/bin/chronyc"), "-h", str(tmp_path / "command"), "-m"]
    with chronyd(tmp_path, text):
        checks = [f"accheck {one}" for one in hosts]
        done = subprocess.run([*chronyc, *checks], capture_output=True, text=True, check=False)
    denied = ["denied" in line for line in done.stdout.splitlines() if "Access" in line]
    assert len(denied) == len(hosts), done.stdout + done.stderr

    classes = parse_policy(migrated([("f", text)]).toml()).classes
    prefixes = {prefix: one.action == "block" for one in classes for prefix in one.prefixes}
    blocked = []
    for host in hosts:
        holding = [one for one in prefixes if host in one]
        longest = max(holding, key=lambda one: one.prefixlen, default=None)
        blocked.append(longest is not None and prefixes[longest])
    assert blocked == denied
    assert 20 < sum(denied) < 236
