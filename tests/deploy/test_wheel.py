"""The wheel and the sdist, installed where there is nothing of Debian's Python packages."""

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from ntpguard import __version__
from tests.deploy.chroot import ROOT, debian
from tests.deploy.net import network

WHEELS = ROOT / "build/deploy/wheels"
WHEEL = ROOT / f"dist/ntpguard-{__version__}-py3-none-any.whl"
SDIST = ROOT / f"dist/ntpguard-{__version__}.tar.gz"


def test_the_wheel_of_the_sdist_is_the_wheel(tmp_path: Path) -> None:
    subprocess.run(["/usr/bin/python3", "-m", "venv", str(tmp_path / "venv")], check=True)
    pip = [str(tmp_path / "venv/bin/python"), "-m", "pip", "--quiet", "wheel", "--no-deps"]
    offline = ["--no-index", f"--find-links={WHEELS}", f"--wheel-dir={tmp_path}"]
    subprocess.run([*pip, *offline, str(SDIST)], check=True)
    contents = [
        {one.filename: one.CRC for one in zipfile.ZipFile(path).infolist()}
        for path in (WHEEL, tmp_path / WHEEL.name)
    ]
    assert contents[0].keys() == contents[1].keys()
    differing = {name for name in contents[0] if contents[0][name] != contents[1][name]}
    # the metadata names the version of hatchling
    assert {name for name in differing if "dist-info" not in name} == set()


@pytest.mark.parametrize(("suite", "python"), [("bookworm", "3.11"), ("trixie", "3.13")])
def test_the_wheel_guards_an_interface_in_a_clean_environment(suite: str, python: str) -> None:
    with network(), debian(suite) as one:
        one.run("apt-get", "install", "-qq", "-y", "python3-venv", "libbpf1")
        shutil.copytree(WHEELS, one / "/root/wheels")
        shutil.copy(WHEEL, one / "/root/wheels")
        one.run("python3", "-m", "venv", "/opt/ntpguard")
        pip = ("/opt/ntpguard/bin/pip", "install", "--quiet", "--no-index")
        one.run(*pip, "--find-links=/root/wheels", "ntpguard")
        assert python in one.run("/opt/ntpguard/bin/python", "--version").stdout
        command = "/opt/ntpguard/bin/ntpguard"
        assert f"ntpguard {__version__}" in one.run(command, "--version").stdout
        assert "eth0: guarded" in one.run(command, "up", "eth0").stdout
        assert "attached" in one.run(command, "status").stdout
        one.run(command, "down")
