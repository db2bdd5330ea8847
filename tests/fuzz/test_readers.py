"""Whatever lies in a file or an argument that ntpguard reads: what it says, or an error of its own."""

import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ntpguard.cli.arguments import Duration
from ntpguard.errors import PolicyError, UsageError
from ntpguard.exporter.server import address_of
from ntpguard.policy.check import parse_policy
from tests.fuzz.readers import READERS, attempt, mutated, search


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=200, suppress_health_check=list(HealthCheck), deadline=None)
@example(seed=0, noise=b"9" * 5000 + b"s")
@example(seed=0, noise=b"9" * 5000 + b"/minute")
@given(seed=st.integers(0, 2**32), noise=st.none() | st.binary(max_size=80))
def test_a_file_is_read_or_refused_in_words(
    name: str, seed: int, noise: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "")  # as it was, afterwards
    attempt(name, tmp_path, mutated(READERS[name][1], seed) if noise is None else noise)


def test_a_number_longer_than_python_reads_is_refused_in_words(tmp_path: Path) -> None:
    long = "9" * 5000
    for line in (
        f"mode = {long}",
        f"sources.capacity = 0x{'f' * 5000}",
        f"upstreams = [0b{'1' * 20000}]",
        f'limit.rate = "{long}/day"',
        f'kod.interval = "{long}s"',
    ):
        with pytest.raises(PolicyError, match=r"^policy:1: .*(too many digits|must be)"):
            parse_policy(line)
    with pytest.raises(UsageError, match="must be a time like 90s"):
        Duration().convert(f"{long}s", None, None)


@pytest.mark.parametrize("host", ["", "[]", "\udcff", "é.example", "a b", "127.0.0.1\n"])
@pytest.mark.parametrize("port", ["", "-1", "65536", "9" * 5000, "²", "٣", "9721\n", "0x10"])
def test_an_address_to_listen_on_that_is_none_is_refused_in_words(host: str, port: str) -> None:
    for listen in (f"127.0.0.1:{port}", f"{host}:9721", host, port):
        with pytest.raises(UsageError, match=r"^--listen: must be HOST:PORT, like .* \(got '"):
            address_of(listen)
    assert address_of("[::1]:0") == ("::1", 0)
    assert address_of("localhost:65535") == ("localhost", 65535)


def test_what_breaks_a_reader_is_kept_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "")
    monkeypatch.setitem(READERS, "length", (lambda _, data: int(data), b"12"))
    count, found = search(tmp_path, tmp_path, 0, time.monotonic() + 60)
    assert count and "ValueError" in found[0]
    assert [one for one in tmp_path.glob("unread-length-*") if str(one) in found[0]]
