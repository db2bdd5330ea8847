"""The guard in front of real daemons, over real packets."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bpf.packets import Frame
from tests.lab.lab import (
    CLIENT,
    PEERS,
    SERVER,
    SERVER4,
    SERVER6,
    Lab,
    inside,
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
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path) as one:
        one.server()
        yield one


def up(lab: Lab, *arguments: str, policy: str = POLICY) -> None:
    file = lab.directory / "ntpguard.toml"
    file.write_text(policy)
    lab.guard("up", "eth0", "--policy", str(file), *arguments)


@pytest.mark.parametrize("xdp", ["native", "skb"])
@pytest.mark.parametrize("server", [SERVER4, SERVER6])
def test_a_hasty_chronyd_honours_the_kod(lab: Lab, server: str, xdp: str) -> None:
    up(lab, "--xdp", xdp)
    client = lab.chronyd(CLIENT, "hasty", f"server {server} minpoll -4 maxpoll -4")
    line = client.logged("Received KoD RATE", 30)
    assert line and server in line


def test_an_ntpdig_gets_the_time_through_the_guard(lab: Lab) -> None:
    up(lab)
    environment = f"PYTHONPATH={PEERS}/usr/lib/python3/dist-packages"
    ntpdig = str(PEERS / "usr/bin/ntpdig")
    for server in (SERVER4, SERVER6):
        shown = run(*inside(CLIENT, "env", environment, "python3", ntpdig, "-t", "2", server))
        assert server in shown.stdout and "no-leap" in shown.stdout


def test_an_ntpsec_ntpd_honours_the_kod(lab: Lab) -> None:
    up(lab, policy=POLICY + '[limit]\nrate = "1/minute"\nburst = 1\nleak = "1/1024"\n')
    directory = lab.directory / "ntpd"
    directory.mkdir()
    configuration = directory / "ntp.conf"
    # disable ntp: the machine's clock is left alone
    configuration.write_text(
        f"disable ntp\nlogconfig =allall\nserver {SERVER4} iburst minpoll 3 maxpoll 6\n"
    )
    ntpd = str(PEERS / "usr/sbin/ntpd")
    client = lab.start(CLIENT, "ntpd", [ntpd, "-n", "-c", str(configuration)], {})
    line = client.logged("rate_exceeded", 40)
    assert line and SERVER4 in line, client.log.read_text()


def test_enforcement_goes_on_with_no_ntpguard_process_alive_and_up_again_forgets_no_one(
    lab: Lab,
) -> None:
    up(lab)
    _, server_mac = lab.link(SERVER)
    _, client_mac = lab.link(CLIENT)
    request = Frame(
        source="203.0.113.9",
        destination=SERVER4,
        source_mac=client_mac,
        destination_mac=server_mac,
    )
    with packet_socket() as wire:
        for _ in range(200):
            wire.send(bytes(request))
            time.sleep(0.002)
        time.sleep(0.2)
        assert "203.0.113.9" in lab.guard("top").stdout
        before = lab.guard("show", "203.0.113.9").stdout
        assert "requests   200" in before
        up(lab)
        assert "requests   200" in lab.guard("show", "203.0.113.9").stdout
    answered, kissed = lab.replies()["polite"]
    assert kissed == 1
    assert 32 < answered < 200


def test_observe_answers_all_and_counts_what_would_have_happened(lab: Lab) -> None:
    up(lab, policy=POLICY.replace("enforce", "observe"))
    _, server_mac = lab.link(SERVER)
    _, client_mac = lab.link(CLIENT)
    request = Frame(
        source="203.0.113.9", destination=SERVER4, source_mac=client_mac, destination_mac=server_mac
    )
    with packet_socket() as wire:
        for _ in range(100):
            wire.send(bytes(request))
            time.sleep(0.002)
        time.sleep(0.2)
    assert lab.replies()["polite"] == (100, 0)
    assert "kod 0, drop 0" in lab.guard("status").stdout


def test_a_policy_that_blocks_all_holds_while_the_program_is_swapped(lab: Lab) -> None:
    block = POLICY + '[[class]]\nname = "all"\nprefixes = ["0.0.0.0/0"]\naction = "block"\n'
    up(lab, policy=block)
    before = lab.received()
    _, server_mac = lab.link(SERVER)
    _, client_mac = lab.link(CLIENT)
    request = bytes(
        Frame(
            source="203.0.113.9",
            destination=SERVER4,
            source_mac=client_mac,
            destination_mac=server_mac,
        )
    )
    import threading

    stop = threading.Event()
    sent = 0

    def load() -> None:
        nonlocal sent
        with packet_socket() as wire:
            while not stop.is_set() and sent < 1_000_000:
                wire.send(request)
                sent += 1

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for _ in range(10):
            up(lab, policy=block)
    finally:
        stop.set()
        thread.join()
    time.sleep(0.2)
    assert sent > 1000
    assert lab.received() == before


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
