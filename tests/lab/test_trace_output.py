"""trace for machines: -o json and -o ndjson."""

import json
import signal
import subprocess
from typing import Any

import pytest

from tests import NTPGUARD
from tests.lab.lab import CLIENT4, SERVER, Lab, inside
from tests.lab.test_lab import pytestmark, up
from tests.lab.test_trace import requests

__all__ = ["pytestmark"]


@pytest.fixture
def lab(lab: Lab) -> Lab:
    up(lab)
    return lab


def traced(output: str, *only: str) -> list[Any]:
    """The objects printed while seven requests find no daemon, until SIGINT."""
    process = subprocess.Popen(
        inside(SERVER, NTPGUARD, "-o", output, "trace", *only),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    for line in process.stderr:
        if line == "tracing\n":
            break
    requests(7)
    process.send_signal(signal.SIGINT)
    text, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return [json.loads(one) for one in (text.splitlines() if output == "ndjson" else [text])]


def test_ndjson_is_an_object_for_each_drop_and_then_the_sum(lab: Lab) -> None:
    *drops, last = [one["data"] for one in traced("ndjson")]
    assert len(drops) == 7
    assert {(one["source"], one["interface"], one["reason"]) for one in drops} == {
        (CLIENT4, "eth0", "NO_SOCKET")
    }
    assert (last["packets"], last["shown"]) == (7, 7)
    assert [(one["reason"], one["packets"]) for one in last["causes"]] == [("NO_SOCKET", 7)]


def test_json_is_the_sum(lab: Lab) -> None:
    (shown,) = traced("json")
    assert shown["schema"] == 1
    assert (shown["data"]["packets"], shown["data"]["shown"]) == (7, 0)


@pytest.mark.parametrize(
    ("only", "packets"), [(CLIENT4, 7), ("198.51.100.0/24", 7), ("203.0.113.0/24", 0)]
)
def test_only_the_source_that_is_asked_for_is_traced(lab: Lab, only: str, packets: int) -> None:
    (shown,) = traced("json", only)
    assert shown["data"]["packets"] == packets
    assert shown["data"]["read"] is None  # a socket does not tell whose datagram it gave
