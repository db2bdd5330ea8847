"""A capture that tcpdump wrote of what really came, replayed."""

import json
import subprocess
from pathlib import Path

import pytest

from tests import NTPGUARD
from tests.lab.lab import CLIENT4, SERVER, SERVER4, Lab, inside
from tests.lab.test_lab import pytestmark
from tests.lab.test_trace import requests

__all__ = ["pytestmark"]
REQUESTS = 50
POLICY = 'mode = "enforce"\n[limit]\nrate = "1/minute"\nburst = 4\nleak = "1/1024"\n'


@pytest.mark.parametrize("precision", ["micro", "nano"])
def test_a_capture_by_tcpdump_is_replayed(lab: Lab, tmp_path: Path, precision: str) -> None:
    capture, policy = tmp_path / "ntp.pcap", tmp_path / "ntpguard.toml"
    policy.write_text(POLICY)
    tcpdump = [
        "tcpdump",
        "-i",
        "eth0",
        "-c",
        str(REQUESTS),
        "-w",
        str(capture),
        "-Z",
        "root",
        "-s",
        "256",
    ]
    tcpdump += [f"--time-stamp-precision={precision}", "--immediate-mode", "udp dst port 123"]
    process = subprocess.Popen(inside(SERVER, *tcpdump), stderr=subprocess.PIPE, text=True)
    assert process.stderr
    for line in process.stderr:
        if "listening on" in line:
            break
    requests(REQUESTS)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 0, messages
    done = subprocess.run(
        [NTPGUARD, "-o", "json", "replay", str(capture), "--policy", str(policy)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["data"]
    assert found["capture"]["servers"] == [SERVER4]
    (source,) = found["policy"]["sources"]
    assert (source["source"], source["requests"]) == (CLIENT4, REQUESTS)
    assert 4 <= source["passed"] < 10  # the burst, and what leaks by chance
