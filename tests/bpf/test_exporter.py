"""The exporter: every metric, of a guard that runs; the HTTP server before clients of every kind."""

import contextlib
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from ntpguard.exporter.collector import GuardCollector
from ntpguard.exporter.page import Page
from ntpguard.exporter.server import IDLE_SECONDS, MOST_CONNECTIONS, application
from ntpguard.kernel import driver
from ntpguard.policy.check import parse_policy
from tests import NTPGUARD
from tests.bpf.live import packets
from tests.bpf.packets import IPV4, IPV6
from tests.bpf.test_lifecycle import NAMES, ip, pytestmark, up, where
from tests.pages import filled, table

__all__ = ["pytestmark", "where"]
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/metrics.md"
POLICY = """mode = "enforce"
[sources]
capacity = 4096
[limit]
rate = "1/minute"
burst = 2
leak = "1/1024"
[[class]]
name = "campus"
prefixes = ["198.51.100.0/24"]
"""
LISTEN = "127.0.0.1:9721"
# not a capability, as uid 0
POWERLESS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all")
SECONDS = 30.0  # others may be using the processors


def scrape(where: Path) -> dict[str, float]:
    """Every sample by its name with labels."""
    registry = CollectorRegistry()
    registry.register(GuardCollector(where))
    return samples(generate_latest(registry).decode())


def samples(text: str) -> dict[str, float]:
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            assert name not in found, name
            found[name] = float(value)
    return found


@contextmanager
def exporter(*wrap: str, listen: str = LISTEN) -> Iterator[subprocess.Popen[str]]:
    """`ntpguard export`, ready."""
    command = [*wrap, NTPGUARD, "export", "--listen", listen]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        assert process.stderr.readline().startswith("listening on http://")
        try:
            yield process
        finally:
            process.terminate()
            assert process.wait(SECONDS) == 0, process.stderr.read()


def ask(request: bytes, family: int = socket.AF_INET) -> bytes:
    """The whole answer to a request."""
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(SECONDS)
        client.connect((host, 9721))
        client.sendall(request)
        return b"".join(iter(lambda: client.recv(65536), b""))


def get(path: str) -> bytes:
    return ask(f"GET {path} HTTP/1.0\r\n\r\n".encode())


def flood(where: Path) -> None:
    with packets(where) as send:
        for host in range(20):
            for _ in range(10 if host % 2 else 1):
                send(IPV4.but(source=f"203.0.113.{host + 1}"))
        send(IPV4.but(source="198.51.100.7"))
        for _ in range(5):
            send(IPV6)


def test_every_metric_counts_what_happened(where: Path) -> None:
    up(where, policy=parse_policy(POLICY))
    flood(where)
    found = scrape(where)
    assert found[f'ntpguard_attached{{interface="{NAMES[0]}",xdp="native"}}'] == 1
    assert found['ntpguard_mode{mode="enforce"}'] == 1
    judged = {
        (verdict, family): found[
            f'ntpguard_packets_total{{family="{family}",interface="{NAMES[0]}",verdict="{verdict}"}}'
        ]
        for verdict in ("pass", "kod", "drop")
        for family in ("ipv4", "ipv6")
    }
    assert sum(judged.values()) == 10 + 100 + 1 + 5
    passes = {name: value for name, value in found.items() if "ntpguard_passes_total" in name}
    assert sum(passes.values()) == judged["pass", "ipv4"] + judged["pass", "ipv6"]
    assert found['ntpguard_passes_total{reason="conform"}'] == 10 + 20 + 1 + 2
    drops = sum(value for name, value in found.items() if "ntpguard_drops_total" in name)
    assert drops == judged["drop", "ipv4"] + judged["drop", "ipv6"]
    assert found['ntpguard_class_packets_total{class="campus",verdict="pass"}'] == 1
    assert found['ntpguard_sources{family="ipv4"}'] == 21
    assert found['ntpguard_sources_limited{family="ipv4"}'] == 10
    assert found['ntpguard_sources_limited{family="ipv6"}'] == 1
    assert found['ntpguard_source_last_seen_seconds_bucket{le="+Inf"}'] == 22
    assert found['ntpguard_source_last_seen_seconds_bucket{le="1.0"}'] >= 11
    assert found["ntpguard_survey_sources"] == 22
    assert found["ntpguard_degraded"] == 0
    assert found["ntpguard_policy_last_apply_successful"] == 1
    assert time.time() - 60 < found["ntpguard_policy_last_apply_success_timestamp_seconds"]
    assert found['ntpguard_map_memory_bytes{map="sources"}'] >= 4096 * 64
    assert f'ntpguard_driver_xdp_total{{counter="xdp_tx",interface="{NAMES[0]}"}}' in found
    assert [name for name, value in found.items() if "collector_errors" in name and value] == []


def test_the_daemons_losses_are_seen(where: Path) -> None:
    up(where)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        one.bind(("127.0.0.1", 123))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            for _ in range(100):
                client.sendto(bytes(48), ("127.0.0.1", 123))
        assert 50 < scrape(where)['ntpguard_daemon_socket_drops_total{family="ipv4"}'] < 100


def test_what_the_program_takes_is_told_while_the_kernel_counts_it(where: Path) -> None:
    up(where)
    switch = Path("/proc/sys/kernel/bpf_stats_enabled")
    before = switch.read_text()
    name = f'ntpguard_program_runs_total{{interface="{NAMES[0]}"}}'
    try:
        switch.write_text("0")
        assert name not in scrape(where)
        switch.write_text("1")
        flood(where)
        assert name in scrape(where)
    finally:
        switch.write_text(before)


def test_a_part_that_cannot_be_read_is_counted_and_the_rest_is_shown(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up(where)

    def broken(name: str) -> dict[str, int]:
        raise OSError(name)

    monkeypatch.setattr("ntpguard.kernel.driver.xdp_counters", broken)
    found = scrape(where)
    assert found['ntpguard_collector_errors_total{collector="driver"}'] == 1
    assert found["ntpguard_up"] == 1 and 'ntpguard_sources{family="ipv4"}' in found


def test_a_driver_that_gets_more_queues_meanwhile_is_not_told(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel writes as many counters as there are then: more than were asked for."""
    queues = ["numrxqueues", "64", "numtxqueues", "64"]
    ip("link", "add", "queues0", *queues, "type", "veth", "peer", "name", "queues1", *queues)
    ask = driver.ethtool

    def meanwhile(name: str, command: bytes) -> bytes | None:
        if command.startswith(struct.pack("I", driver.ETHTOOL_GSTRINGS)):
            subprocess.run(["ethtool", "-L", name, "rx", "64", "tx", "64"], check=True)
        return ask(name, command)

    try:
        subprocess.run(["ethtool", "-L", "queues0", "rx", "1", "tx", "1"], check=True)
        with monkeypatch.context() as patched:
            patched.setattr(driver, "ethtool", meanwhile)
            assert driver.xdp_counters("queues0") == {}
        assert "xdp_drops" in driver.xdp_counters("queues0")
    finally:
        ip("link", "del", "queues0")


def test_the_page_has_every_metric(where: Path) -> None:
    up(where)
    switch = Path("/proc/sys/kernel/bpf_stats_enabled")
    before = switch.read_text()
    try:
        switch.write_text("1")
        registry = CollectorRegistry()
        registry.register(GuardCollector(where))
        text = generate_latest(registry).decode()
    finally:
        switch.write_text(before)
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True
    )
    assert (checked.returncode, checked.stderr) == (0, "")
    assert openmetrics(registry).endswith(b"# EOF\n")
    rows = [
        (
            f"`{family.name}{'_total' if family.type == 'counter' else ''}`",
            family.type,
            ", ".join(sorted({f"`{label}`" for one in family.samples for label in one.labels})),
            family.documentation,
        )
        for family in text_string_to_metric_families(text)
    ]
    made = filled(
        PAGE.read_text(encoding="utf-8"),
        {
            "metrics": table(
                ["metric", "type", "labels", "what it tells"], sorted(rows), align="---"
            )
        },
    )
    expected = ROOT / "build/metrics.md"
    expected.write_text(made, encoding="utf-8")
    assert made == PAGE.read_text(encoding="utf-8"), f"cp {expected} {PAGE}"


def test_export_needs_no_capability(where: Path) -> None:
    up(where)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with exporter(*POWERLESS) as process:
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert len(re.findall(r"^Cap(?:Prm|Eff|Bnd):\s*0+$", status, re.M)) == 3
        _, _, body = get("/metrics").partition(b"\r\n\r\n")
    found = samples(body.decode())
    assert found["ntpguard_up"] == 1
    wrong = [name for name, value in found.items() if "collector_errors" in name and value]
    assert wrong == []


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET /-/healthy HTTP/1.1\r\nHost: a\r\nConnection: close", b"200"),
        (b"GET /-/ready HTTP/1.0", b"503"),
        (b"GET /nothing HTTP/1.0", b"404"),
        (b"HEAD / HTTP/1.0", b"200"),
        (b"POST /metrics HTTP/1.0", b"405"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),
        (b"GET " + b"a" * 70_000 + b" HTTP/1.0", b"414"),
        (b"GET " + b"a" * 17_000 + b" HTTP/1.0", b"414"),
        (b"GET / HTTP/9.9", b"505"),
        (b"GET / HTTP/1.0\r\na: " + b"b" * 17_000, b"431"),
        (b"GET / HTTP/1.0\r\n" + (b"a: " + b"b" * 500 + b"\r\n") * 40, b"431"),
        (b"GET / HTTP/1.0\r\n" + b"a: b\r\n" * 200, b"431"),
    ],
)
def test_a_request_of_any_kind_is_answered(request_line: bytes, status: bytes) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with exporter():
        answer = ask(request_line + b"\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert status in answer.splitlines()[0] or status in head or status in body, answer[:500]
    if request_line.startswith(b"HEAD"):
        assert body == b""


def test_a_thousand_slow_clients_keep_nobody_waiting() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with exporter() as process, contextlib.ExitStack() as stack:
        for number in range(1000):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", 9721), SECONDS))
            if number % 2:
                client.sendall(b"GET /metrics HTTP/1.1\r\nHost: s")
        begin = time.monotonic()
        assert b"200 OK" in get("/-/healthy")
        assert b"ntpguard_up 0.0" in get("/metrics")
        assert time.monotonic() - begin < IDLE_SECONDS
        threads = len(os.listdir(f"/proc/{process.pid}/task"))
        assert threads <= MOST_CONNECTIONS + 8


def test_who_asks_while_the_maps_are_read_shares_the_next_reading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = []

    def slow(_: GuardCollector) -> Iterator[Metric]:
        begun.append(time.monotonic())
        time.sleep(0.5)
        yield from ()

    monkeypatch.setattr(GuardCollector, "collect", slow)
    answer = application(Path("/nowhere"), Page(Path("/nowhere")))

    def scrape(_: int) -> object:
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics"}
        return answer(environ, lambda *_: None)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(scrape, range(20)))
    assert len(begun) <= 3  # of twenty: some may have been started late
    scrape(0)
    asked = time.monotonic()
    scrape(0)
    assert begun[-1] >= asked


def test_a_socket_that_systemd_opened_is_used(where: Path) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as one:
        one.bind(("::1", 9721))
        one.listen()
        script = 'exec 3<&"$0"; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"'
        command = ["bash", "-c", script, str(one.fileno()), NTPGUARD, "export"]
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, pass_fds=[one.fileno()]
        ) as process:
            assert process.stderr
            assert "http://[::1]:9721/metrics" in process.stderr.readline()
            answer = ask(b"GET /-/healthy HTTP/1.0\r\n\r\n", socket.AF_INET6)
            process.terminate()
    assert answer.endswith(b"ok\n") and process.returncode == 0


@pytest.mark.parametrize(("family", "count"), [(socket.AF_UNIX, 1), (socket.AF_INET, 2)])
def test_sockets_of_no_use_from_systemd_are_told(
    where: Path, family: socket.AddressFamily, count: int
) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as one:
        script = 'exec 3<&"$0"; LISTEN_FDS=$1 LISTEN_PID=$$ exec "${@:2}"'
        command = ["bash", "-c", script, str(one.fileno()), str(count), NTPGUARD, "export"]
        done = subprocess.run(command, capture_output=True, text=True, pass_fds=[one.fileno()])
    assert done.returncode == 1
    assert done.stderr == (
        f"ntpguard: LISTEN_FDS: must be one TCP socket (got {count}, the first of {family.name}): "
        "the socket unit needs exactly one ListenStream=, an address and a port\n"
    )


ARENAS = """
import ctypes, pathlib, threading
from ntpguard.exporter.server import listening
listening("127.0.0.1:0", pathlib.Path("/nowhere"))
all_at_once = threading.Barrier(8)
def allocate():
    kept = [bytes(2000) for _ in range(100)]
    all_at_once.wait()
threads = [threading.Thread(target=allocate) for _ in range(8)]
for one in threads: one.start()
for one in threads: one.join()
ctypes.CDLL(None).malloc_stats()
"""


def test_its_threads_share_their_memory() -> None:
    done = subprocess.run([sys.executable, "-c", ARENAS], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.count("Arena ") == 1, done.stderr
