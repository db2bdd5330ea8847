"""The package on a machine of its own: from power-on to a guarded server, by Debian's kernel."""

import time
from collections.abc import Iterator

import pytest

from ntpguard import __version__
from tests.deploy.chroot import ROOT, debian
from tests.deploy.emulated import Emulated, emulated
from tests.deploy.test_deb import install


@pytest.fixture(scope="module")
def machine() -> Iterator[Emulated]:
    with debian("bookworm") as root:
        root.run(
            *("apt-get", "install", "-qq", "-y", "--no-install-recommends"),
            *("systemd-sysv", "dbus", "chrony", "iproute2"),
        )
        install(root, ROOT / f"dist/ntpguard_{__version__}_all.deb")
        with emulated(root) as one:
            yield one


def test_x(machine: Emulated) -> None:
    for line in (
        "uname -a",
        "systemctl --failed",
        "systemctl status ntpguard chrony",
        "ip -d address",
        "mount | grep bpf",
        "ls -ld /sys/fs/bpf",
        "systemd-analyze",
        "systemd-analyze blame | head",
        "journalctl --no-pager -u ntpguard",
        "journalctl --no-pager -k -p warning | tail -50",
        "ntpguard doctor",
        "systemctl show -p MemoryCurrent ntpguard",
    ):
        t = time.monotonic()
        print("$", line, machine.run("sh", "-c", line, code=None), time.monotonic() - t, flush=True)
