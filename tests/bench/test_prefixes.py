"""How long commands take with a hundred thousand prefixes of a file."""

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from itertools import cycle
from pathlib import Path

import pytest

from ntpguard import lifecycle
from ntpguard.kernel import bpffs
from ntpguard.policy.check import parse_policy
from tests.bench.test_commands import ALLOWED, RESULTS, RUNS, measure
from tests.bpf.test_lifecycle import ip, pytestmark

__all__ = ["pytestmark"]
PREFIXES = 100_000
FIRST = 0x0B000000
FILE = """mode = "enforce"
[sources]
capacity = 4096
[[class]]
name = "banned"
prefixes_file = "banned.txt"
action = "block"
"""
LIMITS = {
    "policy check FILE": 2.0,
    "policy apply FILE": 2.0,
    "policy apply OTHER FILE": 2.0,
    "policy diff FILE": 2.0,
    "limit set --burst 16": 0.6,
    "status": 0.6,
}


def written(directory: Path, shift: int) -> Path:
    """A policy file that blocks every eighth /28, from one `shift` after the first."""
    directory.mkdir()
    numbers = (FIRST + 128 * index + 16 * shift for index in range(PREFIXES))
    lines = (".".join(str(n >> s & 255) for s in (24, 16, 8, 0)) + "/28\n" for n in numbers)
    (directory / "banned.txt").write_text("".join(lines))
    file = directory / "ntpguard.toml"
    file.write_text(FILE)
    return file


@pytest.fixture
def guarded() -> Iterator[None]:
    at = bpffs.directory(None)
    policy = parse_policy('mode = "enforce"\n[sources]\ncapacity = 4096\n')
    ip("link", "add", "bench0", "type", "veth", "peer", "name", "bench1")
    try:
        ip("link", "set", "bench0", "up")
        lifecycle.up(["bench0"], policy, xdp="auto", bpffs=at, policy_file=None, warn=print)
        yield
        lifecycle.down(None, bpffs=at)
    finally:
        ip("link", "del", "bench0")


def test_commands_with_a_hundred_thousand_prefixes_are_within_their_limits(
    guarded: None, tmp_path: Path
) -> None:
    files = [written(tmp_path / name, shift) for shift, name in enumerate(("one", "two"))]
    turns = cycle(files[::-1])
    command = str(Path(sys.executable).with_name("ntpguard"))

    def ran(arguments: str) -> None:
        file = next(turns) if "OTHER" in arguments else files[0]
        words = arguments.replace("OTHER FILE", "FILE").replace("FILE", str(file)).split()
        done = subprocess.run([command, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        if "OTHER" in arguments:
            assert "100000 -> 100000: added 11.0.0." in done.stdout, done.stdout

    ran(f"policy apply {files[1]}")
    rows = []
    for arguments, limit in LIMITS.items():
        rows.append({"command": arguments, "limit": limit, **measure(partial(ran, arguments))})
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.with_name("prefixes.json").write_text(
        json.dumps({"runs": RUNS, "allowed": ALLOWED, "prefixes": PREFIXES, "results": rows})
    )
    print(f"\n{PREFIXES} prefixes, median of {RUNS} runs, seconds:")
    for row in rows:
        print(f"  ntpguard {row['command']:24} {row['seconds']:6.3f}  of {row['limit']} allowed")
    assert [row for row in rows if row["seconds"] > ALLOWED * row["limit"]] == []
