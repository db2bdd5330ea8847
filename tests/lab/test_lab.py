"""The guard in front of real daemons, over real packets."""

import contextlib
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from ntpguard import lifecycle, reading
from ntpguard.policy.check import parse_policy
from tests.bpf.daemon import wait_for
from tests.bpf.packets import Frame
from tests.lab import clients
from tests.lab.lab import (
    CLIENT,
    CLIENT4,
    CLIENT6,
    PEERS,
    SERVER,
    SERVER4,
    SERVER6,
    Lab,
    inside,
    namespace,
    packet_socket,
    run,
)

pytestmark = pytest.mark.skipif(
    "NTPGUARD_PRIVATE" not in os.environ, reason="the lab runs in tests/private, as make test does"
)
POLICY = """mode = "enforce"
[sources]
capacity = 4096
"""


@pytest.fixture
def lab(lab: Lab) -> Lab:
    lab.server()
    return lab


FAMILIES = [(SERVER4, CLIENT4), (SERVER6, CLIENT6)]


def request(lab: Lab, source: str) -> bytes:
    """A plain request of a simulated source to the server."""
    _, server = lab.link(SERVER)
    _, client = lab.link(CLIENT)
    return bytes(
        Frame(source=source, destination=SERVER4, source_mac=client, destination_mac=server)
    )


@contextmanager
def requests_seen() -> Iterator[list[float]]:
    """When requests left the client in the block, in seconds; filled at its end."""
    times: list[float] = []
    every_protocol, outgoing, timestamps = 3, 4, 35
    with namespace(CLIENT):
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(every_protocol))
    with wire:
        wire.setsockopt(socket.SOL_SOCKET, timestamps, 1)
        wire.setblocking(False)
        yield times
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, ((_, _, stamp), *_), _, address = wire.recvmsg(128, 64)
                port = frame[36:38] if frame[12:14] == b"\x08\x00" else frame[56:58]
                if address[2] == outgoing and port == b"\0\x7b":
                    seconds, nanoseconds = struct.unpack("qq", stamp)
                    times.append(seconds + nanoseconds / 1e9)


def requests_by_source(bpffs: Path) -> dict[str, int]:
    """Requests by source, as the running guard has them."""
    with namespace(SERVER), reading.open_running(bpffs) as guard:
        return {one.source: one.requests for one in guard.top(1000, "requests")}


def up(lab: Lab, *arguments: str, policy: str = POLICY) -> None:
    file = lab.directory / "ntpguard.toml"
    file.write_text(policy)
    lab.guard("up", "eth0", "--policy", str(file), *arguments)


def up_kissing(lab: Lab, client: str, *arguments: str, policy: str = POLICY) -> None:
    """As up, until the client is one that is kissed at once: each time, another hash decides."""
    up(lab, *arguments, policy=policy)
    while not lab.kisses(client):
        lab.guard("down")
        up(lab, *arguments, policy=policy)


def requests_of(lab: Lab, source: str) -> tuple[int, int]:
    """(requests, excess) of a source, as the guard has counted."""
    shown = lab.guard("show", source).stdout
    counts = re.search(r"requests   (\d+), (\d+) of them excess", shown)
    assert counts, shown
    return int(counts[1]), int(counts[2])


@pytest.mark.parametrize("xdp", ["native", "skb"])
@pytest.mark.parametrize("server, client", FAMILIES)
def test_a_hasty_chronyd_honours_the_kod_and_slows(
    lab: Lab, server: str, client: str, xdp: str
) -> None:
    up_kissing(lab, client, "--xdp", xdp)
    with requests_seen() as sent:
        hasty = lab.hasty(server)
        line = hasty.logged("Received KoD RATE", 30)
        assert line and server in line
        time.sleep(1)
        hasty.stop()
    intervals = sorted(later - earlier for earlier, later in pairwise(sent))
    # it asks 16 times a second, and pauses for four intervals more when it is told to
    assert intervals[len(intervals) // 2] < 0.1
    assert intervals[-1] > 0.24


@pytest.mark.parametrize("server, client", FAMILIES)
def test_a_busybox_ntpd_gets_the_time_and_is_not_limited(
    lab: Lab, server: str, client: str
) -> None:
    up(lab)
    log = clients.busybox(lab, [server])
    assert log.logged(f"reply from {server}", 20)
    reply = f"reply from {server}"  # some of which may come too late for it
    wait_for(lambda: log.log.read_text().count(reply) >= 3, "three answers")
    requests, excess = requests_of(lab, client)
    assert requests >= 3 and excess == 0


def test_an_openntpd_gets_the_time_and_is_not_limited(lab: Lab) -> None:
    up(lab)
    log = clients.openntpd(lab, [SERVER4, SERVER6])
    for server, client in FAMILIES:
        assert log.logged(f"reply from {server}", 20), log.log.read_text()
        requests, excess = requests_of(lab, client)
        assert requests >= 1 and excess == 0


@pytest.mark.parametrize("server, client", FAMILIES)
def test_a_systemd_timesyncd_gets_the_time_and_is_not_limited(
    lab: Lab, server: str, client: str
) -> None:
    up(lab)
    log = clients.timesyncd(lab, [server])
    assert log.logged("Initial clock synchronization", 20), log.log.read_text()
    assert requests_of(lab, client) == (1, 0)


def test_five_starting_clients_behind_one_address_are_not_limited(lab: Lab) -> None:
    up(lab)
    lab.chronyd(CLIENT, "first", f"server {SERVER4} iburst")
    lab.chronyd(CLIENT, "second", f"server {SERVER4} iburst")
    ntpsec = clients.ntpsec(lab, [SERVER4], "iburst")
    clients.openntpd(lab, [SERVER4])
    clients.busybox(lab, [SERVER4])
    assert ntpsec.logged("sys_peer", 40), ntpsec.log.read_text()
    requests, excess = requests_of(lab, CLIENT4)
    assert requests >= 15 and excess == 0


def test_an_ntpdig_gets_the_time_through_the_guard(lab: Lab) -> None:
    up(lab)
    environment = f"PYTHONPATH={PEERS}/usr/lib/python3/dist-packages"
    ntpdig = str(PEERS / "usr/bin/ntpdig")
    for server in (SERVER4, SERVER6):
        shown = run(*inside(CLIENT, "env", environment, "python3", ntpdig, "-t", "2", server))
        assert server in shown.stdout and "no-leap" in shown.stdout


@pytest.mark.parametrize("xdp", ["native", "skb"])
@pytest.mark.parametrize("server, client", FAMILIES)
def test_an_ntpsec_ntpd_honours_the_kod(lab: Lab, server: str, client: str, xdp: str) -> None:
    strict = POLICY + '[limit]\nrate = "1/minute"\nburst = 1\nleak = "1/1024"\n'
    up_kissing(lab, client, "--xdp", xdp, policy=strict)
    daemon = clients.ntpsec(lab, [server], "iburst minpoll 3 maxpoll 6")
    line = daemon.logged("rate_exceeded", 40)
    assert line and server in line, daemon.log.read_text()


def test_enforcement_goes_on_with_no_ntpguard_process_alive_and_up_again_forgets_no_one(
    lab: Lab,
) -> None:
    up_kissing(lab, "203.0.113.9")
    frame = request(lab, "203.0.113.9")
    with packet_socket() as wire:
        for _ in range(200):
            wire.send(frame)
            time.sleep(0.002)
        wait_for(
            lambda: "requests   200" in lab.guard("show", "203.0.113.9").stdout, "all are counted"
        )
        assert "203.0.113.9" in lab.guard("top").stdout
        up(lab)
        assert "requests   200" in lab.guard("show", "203.0.113.9").stdout
    answered, kissed = lab.replies()["polite"]
    assert kissed == 1
    assert 32 < answered < 200


def test_observe_answers_all_and_counts_what_would_have_happened(lab: Lab) -> None:
    up(lab, policy=POLICY.replace("enforce", "observe"))
    frame = request(lab, "203.0.113.9")
    with packet_socket() as wire:
        for _ in range(100):
            wire.send(frame)
            time.sleep(0.002)
    wait_for(lambda: lab.replies()["polite"] == (100, 0), "all are answered")
    assert "kod 0, drop 0" in lab.guard("status").stdout


def test_a_policy_that_blocks_all_holds_while_the_program_is_swapped_a_hundred_times(
    lab: Lab,
) -> None:
    policy = POLICY.replace("4096", "65536")  # whose gate lets a hundred in at once
    up(lab, policy=policy)
    bpffs = Path(os.environ["NTPGUARD_BPFFS"])
    block = policy + '[[class]]\nname = "all"\nprefixes = ["0.0.0.0/0"]\naction = "block"\n'
    known = [f"203.0.113.{number}" for number in range(1, 101)]
    frames = [request(lab, source) for source in known]
    with packet_socket() as wire:
        for frame in frames:
            wire.send(frame)
        ones = dict.fromkeys(known, 1)
        wait_for(lambda: ones.items() <= requests_by_source(bpffs).items(), "each is counted")
        held = requests_by_source(bpffs)
        up(lab, policy=block)
        before = lab.received()
        stop = threading.Event()
        sent = 0

        def load() -> None:
            nonlocal sent
            while not stop.is_set():
                for frame in frames:
                    wire.send(frame)
                sent += len(frames)
                time.sleep(0.005)  # a thread that never waits would keep the swaps from running

        thread = threading.Thread(target=load)
        thread.start()
        try:
            with namespace(SERVER):
                for _ in range(100):
                    (swapped,) = lifecycle.up(
                        ["eth0"],
                        parse_policy(block),
                        xdp="auto",
                        bpffs=bpffs,
                        policy_file=None,
                        warn=lambda text: None,
                    )
                    assert swapped.swapped
        finally:
            stop.set()
            thread.join()
    time.sleep(0.2)
    assert sent > 1000
    assert lab.received() == before
    assert requests_by_source(bpffs).keys() >= held.keys()


def test_down_leaves_nothing(lab: Lab) -> None:
    up(lab)
    lab.guard("down")
    assert lab.guard("status", check=False).returncode == 4
    assert list((Path(os.environ["NTPGUARD_BPFFS"]) / "ntpguard").iterdir()) == []


def test_a_foreign_program_is_named_and_left_alone(lab: Lab) -> None:
    generator = str(Path(__file__).parents[2] / "build" / "generator.bpf.o")
    run(
        *inside(SERVER, "ip", "link", "set", "dev", "eth0", "xdp", "obj", generator, "sec", "xdp"),
        check=False,
    )
    shown = run(*inside(SERVER, "ip", "link", "show", "eth0")).stdout
    if "prog/xdp" not in shown:
        pytest.fail(shown)
    refused = lab.guard("up", "eth0", check=False)
    assert refused.returncode == 1
    assert "another XDP program is attached" in refused.stderr
    assert "ip link set dev eth0 xdp off" in refused.stderr
