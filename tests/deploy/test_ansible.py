"""The Ansible role, played on a machine that is booted, twice."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from ntpguard import __version__
from tests.deploy.chroot import ROOT, debian
from tests.deploy.machine import Machine, booted
from tests.deploy.net import network

ROLE = ROOT / "deploy/ansible/roles/ntpguard"
README = (ROOT / "deploy/ansible/README.md").read_text(encoding="utf-8")
PACKAGE = ROOT / f"dist/ntpguard_{__version__}_all.deb"


@pytest.fixture
def machine() -> Iterator[Machine]:
    with network(), debian("bookworm") as root:
        root.run(
            *("apt-get", "install", "-qq", "-y", "--no-install-recommends"),
            *("systemd-sysv", "dbus", "python3-apt", "iproute2"),
        )
        for folder in ("targets", "rules"):
            (root / f"/etc/prometheus/{folder}").mkdir(parents=True)
        with booted(root) as one:
            yield one


def play(one: Machine, folder: Path, **variables: object) -> subprocess.CompletedProcess[str]:
    """The README's play, on the machine, with some variables changed."""
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.S)
    (one_play,) = yaml.safe_load(block)
    one_play["hosts"] = "all"
    one_play["roles"] = [{"role": str(ROLE)}]
    prometheus = {
        "ntpguard_prometheus_targets": "/etc/prometheus/targets",
        "ntpguard_prometheus_rules": "/etc/prometheus/rules",
    }
    one_play["vars"] |= {"ntpguard_package": str(PACKAGE), **prometheus, **variables}
    (folder / "play.yml").write_text(yaml.safe_dump([one_play]))
    # Ansible's connection to a chroot, into the machine instead
    enter = folder / "enter"
    enter.write_text(f'#!/bin/sh\nshift\nexec nsenter --all --target {one.leader} "$@"\n')
    enter.chmod(0o755)
    inventory = (
        f"machine ansible_connection=community.general.chroot ansible_host={one.root.path} "
        f"ansible_chroot_exe={enter} ansible_python_interpreter=/usr/bin/python3\n"
    )
    (folder / "inventory").write_text(inventory)
    return subprocess.run(
        ["/usr/bin/ansible-playbook", "-i", str(folder / "inventory"), str(folder / "play.yml")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )


def changed(done: subprocess.CompletedProcess[str]) -> int:
    assert done.returncode == 0, done.stdout
    return int(re.findall(r"changed=(\d+)", done.stdout)[-1])


def test_the_role_installs_guards_and_changes_nothing_the_second_time(
    machine: Machine, tmp_path: Path
) -> None:
    assert changed(play(machine, tmp_path)) > 0
    status = json.loads(machine.run("ntpguard", "-o", "json", "status"))["data"]
    assert status["mode"] == "observe"
    shown = machine.run("ntpguard", "policy", "show")
    assert 'name = "campus"' in shown and 'rate = "100000/second"' in shown
    assert (machine.root / "/etc/prometheus/rules/ntpguard.rules.yml").exists()
    targets = (machine.root / "/etc/prometheus/targets/ntpguard.yml").read_text()
    assert yaml.safe_load(targets) == [{"targets": ["127.0.0.1:9721"]}]

    second = play(machine, tmp_path)
    assert changed(second) == 0, second.stdout

    third = play(machine, tmp_path, ntpguard_mode="enforce")
    assert changed(third) == 2  # the file, and the reload
    machine.systemctl("is-active", "ntpguard")
    assert "enforce" in machine.run("ntpguard", "status", "--brief", code=None)

    bad = play(machine, tmp_path, ntpguard_mode="enforced")
    assert bad.returncode != 0 and "mode: must be" in bad.stdout
    assert 'mode = "enforce"\n' in (machine.root / "/etc/ntpguard/ntpguard.toml").read_text()


def test_the_role_is_clean(tmp_path: Path) -> None:
    command = ["/usr/bin/ansible-lint", "--offline", "--strict", "site.yml", "roles/ntpguard"]
    done = subprocess.run(
        command,
        cwd=ROOT / "deploy/ansible",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout
