"""The pages' console blocks, typed one after the other on a machine that is booted."""

import shutil

import pytest

from tests.bpf.daemon import wait_for
from tests.deploy.chroot import ROOT, debian
from tests.deploy.machine import booted
from tests.deploy.net import network
from tests.docs.blocks import PAGES, blocks

TYPED = (
    "README.md",
    "docs/howto/install.md",
    "docs/howto/pool-member.md",
    "docs/howto/service.md",
    "docs/howto/upgrade-and-remove.md",
)
# an example of the command's help, and the walk: tests/lab/test_examples.py, test_vagrant.py
ELSEWHERE = {"docs/howto/monitoring.md", "vagrant/README.md"}
# what the page is about has to be there first
INSTALLED = (
    "apt-get install ./ntpguard_0.1.0_all.deb",
    "sed -i 's/^# interfaces/interfaces/' /etc/ntpguard/ntpguard.toml",
    "systemctl reload ntpguard",
)
BEFORE = dict.fromkeys(TYPED[2:], INSTALLED)
OFFLINE = "PIP_NO_INDEX=1 PIP_FIND_LINKS=/root/wheels DEBIAN_FRONTEND=noninteractive"
# the package was removed by force before this
FORCED = "rm -r /sys/fs/bpf/ntpguard"


def lines(name: str) -> list[str]:
    """What is typed, without the prompt."""
    found = [
        line
        for one in blocks(ROOT / name)
        if one.language == "console"
        for line in one.text.splitlines()
    ]
    assert all(line.startswith("# ") for line in found)
    return [line.removeprefix("# ") for line in found]


def test_every_console_block_is_typed_somewhere() -> None:
    with_blocks = {
        str(page.relative_to(ROOT))
        for page in PAGES
        if any(one.language == "console" for one in blocks(page))
    }
    assert with_blocks == {*TYPED, *ELSEWHERE}


@pytest.mark.parametrize("name", TYPED)
def test_what_a_page_says_to_type_works(name: str) -> None:
    with network(), debian("bookworm") as root:
        packages = ("systemd-sysv", "dbus", "iproute2", "python3-venv")
        root.run("apt-get", "install", "-qq", "-y", "--no-install-recommends", *packages)
        for file in (ROOT / "dist").glob("ntpguard*0.1.0*"):
            shutil.copy(file, root / "/root")
        shutil.copytree(ROOT / "build/deploy/wheels", root / "/root/wheels")
        with booted(root) as machine:
            typed = [*BEFORE.get(name, ()), *lines(name)]
            if FORCED in typed:
                typed.insert(typed.index(FORCED), "apt-get install ./ntpguard_0.1.0_all.deb")
                typed.insert(typed.index(FORCED), "ntpguard up eth0; systemctl stop ntpguard")
            for line in typed:
                # without a network, and with nobody there to answer
                line = line.replace("apt-get ", "apt-get -y ")
                # the package's command is there already
                line = line.replace("ln -s ", "ln -sf ")
                if line.startswith("ntpguard doctor"):
                    line += " || [ $? = 1 ]"  # it finds something about the test's host
                machine.run("sh", "-ec", f"cd /root; export {OFFLINE}; {line}")
            if FORCED in typed:
                wait_for(lambda: "xdp" not in machine.run("ip", "link", "show", "eth0"), "detached")
