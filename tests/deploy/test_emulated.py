"""The package on a machine of its own, with Debian's kernel, from power-on: what a container hides."""

import re
import socket
import urllib.request
from collections.abc import Iterator

import pytest

from ntpguard import __version__
from tests.bpf.daemon import wait_for
from tests.deploy.chroot import ROOT, debian
from tests.deploy.emulated import TAP, Emulated, emulated
from tests.deploy.net import REQUEST, SERVER, ip
from tests.deploy.test_boot import BLOCK_ALL, guards, main_pid, restarted
from tests.deploy.test_deb import POLICY, install

SYSTEMD = ROOT / "deploy/systemd"
# one of them may be among those that no KoD is tried on
SOURCES = tuple(f"198.51.100.{host}" for host in range(2, 6))
LIMIT = 'interfaces = ["eth0"]\nmode = "enforce"\n[limit]\nrate = "1/minute"\nburst = 8\n'
EACH = 40
KISS = b"RATE"


@pytest.fixture(scope="module")
def machine() -> Iterator[Emulated]:
    """Guards eth0 when it starts, with the examples that bound the daemon and take its port."""
    with debian("bookworm") as root:
        root.run(
            *("apt-get", "install", "-qq", "-y", "--no-install-recommends"),
            *("systemd-sysv", "dbus", "chrony", "iproute2"),
        )
        install(root, ROOT / f"dist/ntpguard_{__version__}_all.deb")
        (root / POLICY).write_text(LIMIT)
        (root / "/etc/chrony/conf.d/test.conf").write_text("allow\nlocal stratum 10\n")
        drop_ins = root / "/etc/systemd/system/ntpguard.service.d"
        drop_ins.mkdir()
        for name in ("bounds.conf", "no-metrics.conf"):
            (drop_ins / name).write_bytes((SYSTEMD / "examples" / name).read_bytes())
        # a machine that is emulated is slow
        (drop_ins / "test.conf").write_text("[Service]\nCPUQuota=\nWatchdogSec=15s\n")
        with emulated(root) as one:
            for source in SOURCES:
                ip("address", "add", f"{source}/24", "dev", TAP)
            ip("link", "set", TAP, "up")
            one.run("ip", "address", "add", f"{SERVER}/24", "dev", "eth0")
            one.run("ip", "link", "set", "eth0", "up")
            yield one
            quiet(one)


def quiet(one: Emulated) -> None:
    """Nothing was forbidden to what ran, and nothing crashed."""
    journal = one.run("journalctl", "--no-pager", "--boot")
    for wrong in ("not permitted", "Permission denied", "Read-only file", "Traceback", "SIGSYS"):
        assert wrong not in journal, journal


def asked() -> tuple[int, int]:
    """Of EACH requests from each source: how many are served, and how many kissed."""
    served = kissed = 0
    for source in SOURCES:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.bind((source, 0))
            one.settimeout(1)
            for _ in range(EACH):
                one.sendto(REQUEST, (SERVER, 123))
            try:
                while True:
                    if one.recv(512)[12:16] == KISS:
                        kissed += 1
                    else:
                        served += 1
            except TimeoutError:
                pass
    return served, kissed


def scraped(address: str = SERVER) -> str:
    with urllib.request.urlopen(f"http://{address}:9721/metrics", timeout=60) as answer:
        return str(answer.read().decode())


def test_the_guard_is_in_force_before_the_servers_port_is_open(machine: Emulated) -> None:
    assert machine.systemctl("--failed", "--plain", "--no-legend") == ""
    assert "mode=700" in machine.run("findmnt", "--noheadings", "/sys/fs/bpf")
    assert "ready: guards eth0" in machine.journal()
    ready = int(machine.shown("ActiveEnterTimestampMonotonic"))
    begun = int(machine.shown("InactiveExitTimestampMonotonic", "chrony.service"))
    assert 0 < ready <= begun
    print("\n", machine.run("systemd-analyze"), machine.systemctl("status", "ntpguard"), sep="")


def test_what_the_kernel_does_not_tell_is_no_mistake(machine: Emulated) -> None:
    assert "modprobe udp_diag" in machine.run("ntpguard", "doctor", code=None)
    machine.write("/etc/modules-load.d/udp_diag.conf", "udp_diag\n")
    machine.systemctl("restart", "systemd-modules-load")
    shown = machine.run("ntpguard", "doctor", code=None)
    assert "modprobe" not in shown and "UDP port 123" in shown
    print("\n", shown, sep="")


def test_excess_is_kissed_through_a_network_driver_with_queues(machine: Emulated) -> None:
    served, kissed = asked()
    print(f"\n{served} served, {kissed} kissed of {len(SOURCES) * EACH};", end=" ")
    assert 8 * len(SOURCES) <= served < 0.6 * len(SOURCES) * EACH
    assert kissed > 0
    status = machine.run("ntpguard", "status", code=None)
    print(re.findall(r"eth0.*", status))


def test_the_tables_count_as_the_daemons_memory_and_are_within_the_example(
    machine: Emulated,
) -> None:
    used, most = int(machine.shown("MemoryCurrent")), int(machine.shown("MemoryMax"))
    print(f"\n{used / 2**20:.0f} MiB of {most / 2**20:.0f}")
    assert 70 * 2**20 < used < most


def test_an_exporter_without_a_capability_serves_the_metrics(machine: Emulated) -> None:
    machine.systemctl("start", "ntpguard-exporter")
    pid = machine.shown("MainPID", "ntpguard-exporter")
    status = machine.run("cat", f"/proc/{pid}/status")
    assert set(re.findall(r"^Cap\w+:\t(\w+)$", status, re.M)) == {"0" * 16}
    fetch = "from urllib.request import urlopen as u; print(u('http://127.0.0.1:9721/metrics').read().decode())"
    wait_for(
        lambda: "ntpguard_up 1.0" in machine.run("python3", "-c", fetch, code=None), "it serves"
    )
    found = machine.run("python3", "-c", fetch)
    assert re.findall(r"^ntpguard_collector_errors\S* [1-9].*", found, re.M) == []
    assert "ntpguard_daemon_socket_drops_total" in found
    machine.systemctl("stop", "ntpguard-exporter")


def test_the_socket_of_the_example_is_there_before_its_address(machine: Emulated) -> None:
    machine.run("rm", "/etc/systemd/system/ntpguard.service.d/no-metrics.conf")
    machine.run("mkdir", "/etc/systemd/system/ntpguard.socket.d")
    example = SYSTEMD / "examples/address.conf"
    text = example.read_text(encoding="utf-8")
    machine.write(f"/etc/systemd/system/ntpguard.socket.d/{example.name}", text)
    machine.systemctl("daemon-reload")
    machine.systemctl("stop", "ntpguard")
    machine.run("ip", "address", "del", f"{SERVER}/24", "dev", "eth0")
    machine.systemctl("start", "ntpguard.socket")
    machine.run("ip", "address", "add", f"{SERVER}/24", "dev", "eth0")
    # nobody has started the daemon but the scrape
    assert "ntpguard_up 1.0" in scraped()
    assert f"metrics on http://{SERVER}:9721/metrics" in machine.journal()


def test_whatever_becomes_of_the_daemon_the_limit_stays(machine: Emulated) -> None:
    machine.write(POLICY, BLOCK_ALL)
    machine.systemctl("reload", "ntpguard")
    guards(machine)
    assert asked() == (0, 0)
    pid = main_pid(machine)
    for signal in ("KILL", "STOP"):
        machine.systemctl("kill", f"--signal={signal}", "--kill-who=main", "ntpguard")
        assert asked() == (0, 0)
        pid = restarted(machine, pid)
    assert "Watchdog timeout" in machine.journal()
    machine.write(POLICY, "mode = 1\n")
    machine.systemctl("reload", "ntpguard", code=1)
    machine.systemctl("restart", "ntpguard")
    assert "the last good policy runs" in machine.journal()
    assert asked() == (0, 0)
    machine.write(POLICY, f'on_exit = "detach"\n{BLOCK_ALL}')
    machine.systemctl("reload", "ntpguard")
    machine.systemctl("stop", "ntpguard.socket", "ntpguard.service")
    served, kissed = asked()
    assert served > EACH and kissed == 0
