"""The lab's provisioning scripts, each run twice on a Debian that is booted, and the walk of its page."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.bpf.daemon import wait_for
from tests.deploy.chroot import ROOT, debian
from tests.deploy.machine import Machine, booted
from tests.deploy.net import CLIENT, PEER, SERVER, network
from tests.deploy.test_boot import ANYWAY, CHRONY

# as Debian's wrapper starts it, but for giving its privileges away, which wants that capability too
NTPSEC = f"{ANYWAY}[Service]\nType=simple\nExecStart=\nExecStart=/usr/sbin/ntpd -n\n"
README = (ROOT / "vagrant/README.md").read_text(encoding="utf-8")


@contextmanager
def machine(within: str | None = None) -> Iterator[Machine]:
    """A minimal Debian with a systemd, and the project where Vagrant would put it."""
    with debian("bookworm") as root:
        packages = ("systemd-sysv", "dbus", "iproute2", "mawk", "procps")
        root.run("apt-get", "install", "-qq", "-y", "--no-install-recommends", *packages)
        for daemon, text in (("chrony", CHRONY), ("ntpsec", NTPSEC)):
            (root / f"/etc/systemd/system/{daemon}.service.d").mkdir()
            (root / f"/etc/systemd/system/{daemon}.service.d/test.conf").write_text(text)
        (root / "/ntpguard").mkdir()
        with booted(root, within=within, binds=[f"{ROOT}:/ntpguard"]) as one:
            yield one


def provision(one: Machine, role: str, address: str) -> str:
    """As Vagrant does it."""
    settings = [f"ADDRESS={address}", f"SERVER={SERVER}", "SERVER2=198.51.100.3"]
    return one.run("env", *settings, "sh", f"/ntpguard/vagrant/{role}.sh")


@pytest.mark.parametrize(("role", "daemon"), [("server", "chrony"), ("server2", "ntpsec")])
def test_a_server_is_guarded_and_its_client_is_limited(role: str, daemon: str) -> None:
    with ExitStack() as stack:
        stack.enter_context(network())
        server = stack.enter_context(machine())
        client = stack.enter_context(machine(PEER))
        for _ in range(2):
            provision(server, role, SERVER)
            provision(client, "client", CLIENT)
        for unit, one in ((daemon, server), ("ntpguard", server), ("chrony", client)):
            assert one.systemctl("is-active", unit).strip() == "active", one.journal(unit)
        wait_for(lambda: server.shown("StatusText") == "guards eth0", "it guards")
        assert "enforce" in server.run("ntpguard", "status", code=None)

        def asked(*words: str) -> list[int]:
            shown = client.run("ask", SERVER, *words)
            return [int(one) for one in re.findall(r"\d+", shown)]

        client.systemctl("stop", "chrony")
        # no faster: ntpsec has a limit of its own, a request a second
        wait_for(lambda: asked("1", "3")[1] == 1, "the daemon answers")
        sent, served, *_ = asked("5000", "0")
        assert sent == 5000 and served < 2500
        assert CLIENT in server.run("ntpguard", "top")
        server.run("ntpguard", "block", CLIENT, "--for", "2m", "--reason", "the walk")
        assert asked("100")[1:3] == [0, 0]
        server.run("ntpguard", "clear", CLIENT)
        server.run("ntpguard", "limit", "set", "--rate", "10/second", "--burst", "100")
        if daemon == "chrony":
            # what conforms is answered, whatever came before
            wait_for(lambda: asked("4", "0.5")[1] == 4, "it is served again")
        metrics = f"http://{SERVER}:9721/metrics"
        fetch = f"from urllib.request import urlopen; print(urlopen('{metrics}').read().decode())"
        assert "ntpguard_up 1.0" in client.run("python3", "-c", fetch)


def test_the_monitors_prometheus_accepts_what_is_written(tmp_path: Path) -> None:
    settings = {"ROOT": str(tmp_path), "SERVER": SERVER, "SERVER2": "198.51.100.3"}
    command = [str(ROOT / "vagrant/configure"), "monitor"]
    subprocess.run(command, env={**os.environ, **settings}, check=True)
    rules = (ROOT / "deploy/prometheus/ntpguard.rules.yml").read_bytes()
    (tmp_path / "etc/prometheus/ntpguard.rules.yml").write_bytes(rules)
    file = tmp_path / "etc/prometheus/prometheus.yml"
    subprocess.run(["promtool", "check", "config", str(file)], check=True)


def test_the_lab_is_valid_for_libvirt(tmp_path: Path) -> None:
    environment = {
        "VAGRANT_CWD": str(ROOT / "vagrant"),
        "VAGRANT_HOME": str(tmp_path / "home"),
        "VAGRANT_DOTFILE_PATH": str(tmp_path / "state"),
        "VAGRANT_CHECKPOINT_DISABLE": "1",
        "VAGRANT_DEFAULT_PROVIDER": "libvirt",
    }
    done = subprocess.run(
        ["vagrant", "validate"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_walk_names_machines_and_commands_that_there_are() -> None:
    lines = [
        line
        for block in re.findall(r"```console\n(.*?)```", README, re.S)
        for line in block.splitlines()
    ]
    assert lines
    named = {word for line in lines for word in re.findall(r"vagrant ssh (\w+)", line)}
    assert named == {"server", "client"}
    for line in lines:
        for command in re.findall(r"sudo ntpguard ([a-z]+)", line):
            help_text = subprocess.run(
                [ROOT / ".venv/bin/ntpguard", command, "--help"], capture_output=True
            )
            assert help_text.returncode == 0, line
