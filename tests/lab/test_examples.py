"""Every example in a command's help does what it says: run as printed, beside a running guard."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ntpguard import episodes
from ntpguard.cli import main
from ntpguard.episodes import Episode, Kept
from tests import captures
from tests.bpf.packets import IPV4
from tests.lab.lab import SERVER, Lab, inside
from tests.lab.test_lab import POLICY, pytestmark

__all__ = ["pytestmark"]
CAMPUS = '[[class]]\nname = "campus"\nprefixes = ["198.51.100.0/24"]\nrate = "10/second"\n'
# these go on until they are stopped
BLOCKING = {"export", "run", "trace"}
# what has to be there first
BEFORE = {
    "limit unset": "ntpguard limit set campus --rate 20/second",
    "clear": "ntpguard block 203.0.113.0/24",
    # examples before it have changed mode and limits
    "policy diff": "ntpguard policy apply ntpguard.toml",
}
WITHOUT_EXAMPLE: set[str] = set()


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command below a group that is none itself, by the words that call it."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def examples(command: click.Command) -> list[str]:
    """The lines "Example: ..." of a command's epilog."""
    return [
        line.removeprefix("Example: ")
        for line in (command.epilog or "").splitlines()
        if line.startswith("Example: ")
    ]


EXAMPLES = [
    pytest.param(name, example, id=example)
    for name, command in commands(main)
    for example in examples(command)
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("lab")) as one:
        # an /etc of the lab's own: examples name the file where an operator has it
        shutil.copytree("/etc", one.directory / "etc", symlinks=True)
        (one.directory / "etc/ntpguard").mkdir(exist_ok=True)
        for folder in ("etc/ntpguard", "."):
            file = one.directory / folder / "ntpguard.toml"
            file.write_text('interfaces = ["eth0"]\n' + POLICY + CAMPUS)
        (one.directory / "new.toml").write_text(POLICY)
        (one.directory / "etc/chrony").mkdir(exist_ok=True)
        (one.directory / "etc/chrony/chrony.conf").write_text("ratelimit\n")
        (one.directory / "etc/ntp.conf").write_text("restrict default limited kod\n")
        requests = [(second * 10**9, bytes(IPV4), None) for second in range(3)]
        (one.directory / "ntp.pcap").write_bytes(captures.pcap(requests))
        kept = Kept(open=(Episode("203.0.113.7", 1.8e9, 1.8e9 + 60, requests=90, excess=60),))
        (one.directory / episodes.NAME).write_text("".join(episodes.lines(kept)))
        yield one


def start(lab: Lab, line: str) -> subprocess.Popen[str]:
    """A line typed on the server, in a directory with a policy file."""
    own = f'mount --bind {lab.directory}/etc /etc && cd {lab.directory} && exec sh -c "$0"'
    return subprocess.Popen(
        inside(SERVER, "unshare", "--mount", "sh", "-c", own, f"exec {line}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "STATE_DIRECTORY": str(lab.directory),
        },
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and what was shown besides."""
    try:
        shown, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, shown


def test_every_command_has_an_example_that_calls_it() -> None:
    without = {name for name, command in commands(main) if not examples(command)}
    assert without <= WITHOUT_EXAMPLE
    for name, command in commands(main):
        for example in examples(command):
            assert f"{example} ".startswith(f"ntpguard {name} ")


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_an_example_does_what_it_says(lab: Lab, name: str, example: str) -> None:
    for line in ("ntpguard up eth0 --policy ntpguard.toml", BEFORE.get(name)):
        if line:
            assert ended(start(lab, line))[0] == 0, line
    process = start(lab, example)
    if name in BLOCKING:
        assert process.stdout
        first = process.stdout.readline()  # it says that it has begun
        assert process.poll() is None, first
        process.send_signal(signal.SIGINT)
    code, shown = ended(process)
    assert code == 0, shown
    assert "Traceback" not in shown
