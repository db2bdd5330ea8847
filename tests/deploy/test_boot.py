"""The package under a real systemd: the unit's life, its sandbox, an upgrade under load."""

import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from ntpguard import __version__
from tests.bpf.daemon import wait_for
from tests.deploy.chroot import ROOT, debian
from tests.deploy.machine import Machine, booted
from tests.deploy.net import CLIENT, Traffic, network
from tests.deploy.test_deb import BLOCK_ALL, LIMIT_ALL, POLICY, install, package

UNIT = "/etc/systemd/system/ntpguard.service.d/test.conf"
# a machine without the capability to set the clock, which is this host's; chronyd would refuse to run
ANYWAY = "[Unit]\nConditionCapability=\n"
CHRONY = f"{ANYWAY}[Service]\nExecStart=\nExecStart=!/usr/sbin/chronyd -x\n"


@pytest.fixture
def machine() -> Iterator[Machine]:
    with network(), debian("bookworm") as root:
        root.run(
            *("apt-get", "install", "-qq", "-y", "--no-install-recommends"),
            *("systemd-sysv", "dbus", "chrony", "iproute2"),
        )
        (root / "/etc/systemd/system/chrony.service.d").mkdir()
        (root / "/etc/systemd/system/chrony.service.d/test.conf").write_text(CHRONY)
        (root / UNIT).parent.mkdir()
        (root / UNIT).write_text("[Service]\nWatchdogSec=3s\n")
        install(root, ROOT / f"dist/ntpguard_{__version__}_all.deb")
        with booted(root) as one:
            yield one
            assert "not permitted" not in one.journal().lower()
            assert "Traceback" not in one.journal()


def write(one: Machine, policy: str) -> None:
    (one.root / POLICY).write_text(policy)


def status(one: Machine, code: int = 0) -> str:
    return one.run("ntpguard", "status", code=code)


def main_pid(one: Machine) -> int:
    return int(one.shown("MainPID"))


def guards(one: Machine) -> None:
    wait_for(lambda: one.shown("StatusText") == "guards eth0", one.shown("StatusText"))


def restarted(one: Machine, pid: int) -> int:
    """The process of the unit, as soon as it is another one than `pid` and guards."""
    wait_for(lambda: main_pid(one) not in (0, pid), "a restart")
    guards(one)
    return main_pid(one)


def test_it_runs_before_the_server_and_guards_what_is_named(machine: Machine) -> None:
    assert machine.shown("ActiveState") == "active"
    assert "no interface named" in machine.shown("StatusText")
    begun = [
        int(machine.shown("ActiveEnterTimestampMonotonic", f"{unit}.service"))
        for unit in ("ntpguard", "chrony")
    ]
    assert 0 < begun[0] < begun[1]
    status(machine, 4)
    begin = time.monotonic()
    machine.run("sed", "-i", "s/^# interfaces/interfaces/", POLICY)
    machine.systemctl("reload", "ntpguard")
    guards(machine)
    print(f"\nguarded {time.monotonic() - begin:.1f} s after one edit and a reload")
    assert "observe" in status(machine)
    assert "ntpguard_up 1.0" in machine.run(
        "python3",
        "-c",
        "from urllib.request import urlopen; print(urlopen('http://127.0.0.1:9721/metrics').read().decode())",
    )


def test_a_bad_file_fails_the_reload_and_changes_nothing(machine: Machine) -> None:
    write(machine, BLOCK_ALL)
    machine.systemctl("reload", "ntpguard")
    guards(machine)
    write(machine, 'interfaces = ["eth0"]\nmode = "enforced"\n')
    assert "failed" in machine.systemctl("reload", "ntpguard", code=1)
    wait_for(lambda: "refused" in machine.shown("StatusText"), "it tells")
    assert "enforce" in status(machine, 1)
    assert "did you mean" in machine.journal() or "must be" in machine.journal()
    # at the next start, the last good one
    machine.systemctl("restart", "ntpguard")
    assert "the last good policy runs" in machine.journal()
    assert "enforce" in status(machine, 1)


def test_no_packet_is_unguarded_whatever_becomes_of_the_daemon(machine: Machine) -> None:
    write(machine, BLOCK_ALL)
    machine.systemctl("stop", "chrony")
    machine.systemctl("reload", "ntpguard")
    guards(machine)
    with Traffic().flowing() as traffic:
        wait_for(lambda: traffic.sent > 500, "a load")
        machine.systemctl("restart", "ntpguard")
        pid = main_pid(machine)
        for sent in (signal.SIGKILL, signal.SIGSTOP):
            # the second is what the watchdog is for
            machine.run("sh", "-c", f"kill -{int(sent)} {pid}")
            pid = restarted(machine, pid)
        assert "watchdog" in machine.journal().lower()
        machine.systemctl("stop", "ntpguard")
        assert "eth0 stays guarded" in machine.journal()
        sent_before = traffic.sent
        wait_for(lambda: traffic.sent > sent_before + 500, "a load without the daemon")
        assert (traffic.arrived, "eth0" in status(machine)) == (0, True)
        write(machine, f'on_exit = "detach"\n{BLOCK_ALL}')
        machine.systemctl("start", "ntpguard")
        machine.systemctl("stop", "ntpguard")
        wait_for(lambda: traffic.arrived > 0, "detached")
    status(machine, 4)


def test_an_upgrade_swaps_the_program_under_load(machine: Machine) -> None:
    machine.systemctl("stop", "chrony")
    write(machine, LIMIT_ALL)
    machine.systemctl("reload", "ntpguard")
    guards(machine)
    machine.run("ntpguard", "block", "203.0.113.0/24", "--for", "1h")
    newer = package("0.9.9")
    programs = machine.run("ntpguard", "-o", "json", "status")
    with Traffic().flowing() as traffic:
        wait_for(lambda: traffic.sent > 1000, "a load")
        write(machine, BLOCK_ALL)
        machine.systemctl("reload", "ntpguard")
        wait_for(lambda: "applied" in machine.journal(), "the policy is applied")
        time.sleep(0.5)
        passed, pid = traffic.arrived, main_pid(machine)
        (machine.root / f"/root/{newer.name}").write_bytes(newer.read_bytes())
        said = machine.run("dpkg", "--install", f"/root/{newer.name}")
        newer.unlink()
        restarted(machine, pid)
        sent = traffic.sent
        wait_for(lambda: traffic.sent > sent + 1000, "a load")
        assert traffic.arrived == passed
    assert "swaps it" not in said
    assert programs
    shown = machine.run("ntpguard", "show", CLIENT)
    assert "block" in shown
    assert "203.0.113.0/24" in machine.run("ntpguard", "entries")


def test_a_socket_unit_serves_the_metrics(machine: Machine) -> None:
    example = ROOT / "deploy/systemd/ntpguard.socket"
    (machine.root / "/etc/systemd/system/ntpguard.socket").write_bytes(example.read_bytes())
    machine.systemctl("daemon-reload")
    machine.systemctl("stop", "ntpguard")
    machine.systemctl("start", "ntpguard.socket")
    fetch = "from urllib.request import urlopen; print(urlopen('http://127.0.0.1:9721/-/healthy').read())"
    # the socket starts the service
    assert "ok" in machine.run("python3", "-c", fetch)
    assert machine.shown("ActiveState") == "active"


def test_removal_detaches_under_systemd_too(machine: Machine) -> None:
    write(machine, BLOCK_ALL)
    machine.systemctl("reload", "ntpguard")
    guards(machine)
    machine.run("dpkg", "--remove", "ntpguard")
    attached = subprocess.run(["ip", "link", "show", "eth0"], capture_output=True, text=True)
    assert "xdp" not in attached.stdout
