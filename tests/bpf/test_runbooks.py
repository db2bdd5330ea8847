"""Each command of the runbooks runs beside a guard, as it is printed."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ntpguard.policy.check import parse_policy
from tests import NTPGUARD
from tests.bpf.live import packets
from tests.bpf.packets import IPV4
from tests.bpf.test_lifecycle import pytestmark, up, where

__all__ = ["pytestmark"]
PAGE = (Path(__file__).parents[2] / "docs/runbooks.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.S)
COMMANDS = list(dict.fromkeys(line for block in BLOCKS for line in block.splitlines()))
FILE = "/etc/ntpguard/ntpguard.toml"
POLICY = 'mode = "observe"\n[sources]\ncapacity = 4096\n'


@pytest.fixture(scope="module")
def guarded() -> Iterator[None]:
    make = where.__wrapped__()
    at = next(make)
    try:
        up(at, policy=parse_policy(POLICY))
        with packets(at) as send:
            for _ in range(100):
                send(IPV4.but(source="203.0.113.7"))
        yield
    finally:
        list(make)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_runbooks_does_what_it_says(
    guarded: None, tmp_path: Path, command: str
) -> None:
    (tmp_path / "ntpguard.toml").write_text(POLICY)
    words = shlex.split(command.replace(FILE, str(tmp_path / "ntpguard.toml")))
    assert words[0] == "ntpguard"
    done = subprocess.run([NTPGUARD, *words[1:]], capture_output=True, text=True, timeout=60)
    # 1: something is wrong with the host of the test, and is told
    allowed = (0, 1) if words[1] in ("doctor", "status", "-v") else (0,)
    assert done.returncode in allowed, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and done.stdout
