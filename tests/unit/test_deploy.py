"""What is shipped beside the package, and what the README claims."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from ntpguard import __version__
from ntpguard.cli import main
from ntpguard.daemon.privileges import NEEDED
from ntpguard.policy.check import parse_policy

ROOT = Path(__file__).parents[2]
SYSTEMD = ROOT / "deploy/systemd"
UNITS = sorted(path for path in SYSTEMD.iterdir() if path.is_file())
EXAMPLES = sorted((SYSTEMD / "examples").iterdir())
UNIT = (ROOT / "deploy/systemd/ntpguard.service").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def verify(folder: Path, drop_in: Path | None = None) -> list[Path]:
    """Asserts that systemd has nothing to say of the units as they are shipped, and of one example
    of a drop-in; returns the services.
    """
    folder.mkdir(exist_ok=True)
    for unit in UNITS:
        text = unit.read_text(encoding="utf-8")
        (folder / unit.name).write_text(text.replace("/usr/bin/ntpguard", "/bin/true"))
    if drop_in:
        text = drop_in.read_text(encoding="utf-8")
        # where it says that it belongs
        found = re.match(r"# /etc/systemd/system/(\S+)\.d/(\S+)\n", text)
        assert found and found[2] == drop_in.name
        (folder / f"{found[1]}.d").mkdir()
        (folder / f"{found[1]}.d" / drop_in.name).write_text(
            text.replace("/usr/bin/ntpguard", "/bin/true")
        )
    units = [str(folder / unit.name) for unit in UNITS]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [folder / unit.name for unit in UNITS if unit.suffix == ".service"]


def test_the_units_are_valid(tmp_path: Path) -> None:
    assert len(verify(tmp_path)) == 2


def test_the_unit_is_before_each_server_under_each_of_its_names() -> None:
    (before,) = re.findall(r"^Before=(.*)$", UNIT, re.M)
    servers = {"chrony.service", "ntpsec.service", "openntpd.service"}
    packaged = [one for one in (ROOT / "build/peers").rglob("*.service") if one.name in servers]
    assert {one.name for one in packaged} == servers
    for one in packaged:
        names = {one.name, *re.findall(r"^Alias=(.*)$", one.read_text(encoding="utf-8"), re.M)}
        assert names <= set(before.split())


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_of_a_drop_in_is_valid_and_exposes_no_more(
    example: Path, tmp_path: Path
) -> None:
    for unit in verify(tmp_path, example):
        command = ["systemd-analyze", "security", "--offline=yes", "--threshold=25", str(unit)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_a_wrong_line_in_a_drop_in_is_found(tmp_path: Path) -> None:
    example = tmp_path / "wrong.conf"
    example.write_text(
        "# /etc/systemd/system/ntpguard.service.d/wrong.conf\n[Service]\nMemory=1M\n"
    )
    with pytest.raises(AssertionError, match=r"Unknown key .*Memory"):
        verify(tmp_path / "units", example)


def test_the_socket_listens_where_the_daemon_does() -> None:
    (listen,) = (one for one in main.commands["run"].params if one.name == "listen")
    socket = (SYSTEMD / "ntpguard.socket").read_text(encoding="utf-8")
    assert f"ListenStream={listen.default}\n" in socket


def test_the_version_is_stated_once() -> None:
    changelog = (ROOT / "deploy/debian/changelog").read_text(encoding="utf-8")
    assert changelog.startswith(f"ntpguard ({__version__}) ")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\S+?),? ", changes, re.M)[1] == __version__  # type: ignore[index]


def test_the_policy_of_the_package_guards_nothing_until_it_is_edited() -> None:
    policy = parse_policy((ROOT / "deploy/debian/ntpguard.toml").read_text(encoding="utf-8"))
    assert (policy.interfaces, policy.mode) == ((), "observe")
    edited = (ROOT / "deploy/debian/ntpguard.toml").read_text(encoding="utf-8")
    assert parse_policy(edited.replace("# interfaces", "interfaces")).interfaces == ("eth0",)


# tenths; left are root, the network, and what an XDP program needs
@pytest.mark.parametrize(("name", "exposure"), [("ntpguard", 24), ("ntpguard-exporter", 20)])
def test_a_service_gives_away_what_it_does_not_need(name: str, exposure: int) -> None:
    path = str(SYSTEMD / f"{name}.service")
    command = ["systemd-analyze", "security", "--offline=yes", f"--threshold={exposure}", path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_daemons_capabilities_are_those_that_the_unit_leaves() -> None:
    (bound,) = re.findall(r"^CapabilityBoundingSet=(.*)$", UNIT, re.M)
    assert set(bound.split()) == set(NEEDED)


def test_each_command_in_the_unit_is_accepted(tmp_path: Path) -> None:
    commands = re.findall(r"^Exec\w+=/usr/bin/ntpguard (.*)$", UNIT, re.M)
    assert len(commands) == 2
    for line in commands:
        done = CliRunner().invoke(main, [*line.split(), "--help"])
        assert done.exit_code == 0, done.output


def test_the_vagrantfile_is_ruby() -> None:
    subprocess.run(["ruby", "-c", str(ROOT / "vagrant/Vagrantfile")], check=True)


@pytest.mark.skipif(not shutil.which("vagrant"), reason="vagrant is not installed")
def test_the_vagrantfile_is_valid(tmp_path: Path) -> None:
    environment = {
        "VAGRANT_CWD": str(ROOT / "vagrant"),
        "VAGRANT_HOME": str(tmp_path / "home"),
        "VAGRANT_DOTFILE_PATH": str(tmp_path / "state"),
        "VAGRANT_CHECKPOINT_DISABLE": "1",
    }
    done = subprocess.run(
        ["vagrant", "validate", "--ignore-provider"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "script",
    [
        "vagrant/server.sh",
        "vagrant/server2.sh",
        "vagrant/client.sh",
        "vagrant/monitor.sh",
        "vagrant/configure",
        "tests/private",
        "tests/setup-packages",
        "tests/setup-busybox",
        "tests/setup-suite",
        "tests/mirror",
        "tests/clients/fetch",
        "tests/kernels/fetch",
        "tests/deploy/debootstrap",
        "deploy/debian/build",
        "deploy/debian/ntpguard.postinst",
        "deploy/debian/ntpguard.postrm",
        "deploy/debian/ntpguard.prerm",
        ".ci/run",
    ],
)
def test_a_script_is_clean(script: str) -> None:
    subprocess.run(["shellcheck", str(ROOT / script)], check=True)


@pytest.mark.parametrize("role", ["chrony", "ntpsec", "client", "monitor"])
def test_the_machines_configuration_is_written_the_same_twice(role: str, tmp_path: Path) -> None:
    settings = {"ROOT": str(tmp_path), "INTERFACE": "eth1", "ADDRESS": "198.51.100.10"}
    settings |= {"SERVER": "198.51.100.10", "SERVER2": "198.51.100.11"}
    written = []
    for _ in range(2):
        command = [str(ROOT / "vagrant/configure"), role]
        subprocess.run(command, env={**os.environ, **settings}, check=True)
        files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
        written.append({path: path.read_text() for path in files})
    assert written[0] and written[0] == written[1]
    for path in tmp_path.rglob("*.toml"):
        assert parse_policy(path.read_text()).interfaces == ("eth1",)


def test_the_policy_in_the_readme_is_valid() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", README, re.S)
    policy = parse_policy(block)
    assert [one.name for one in policy.classes] == ["default", "campus", "banned"]


def test_every_command_in_the_readme_exists() -> None:
    for words in re.findall(r"`ntpguard ([a-z ]+)", README):
        group = main
        for word in words.split():
            command = getattr(group, "commands", {}).get(word)
            if command is None:
                break
            group = command
        assert group is not main, words


def test_the_readme_names_the_make_targets_that_there_are() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make (demo|test|setup|build|bench)", README):
        assert re.search(rf"^{target}:", makefile, re.M)
