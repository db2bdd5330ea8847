"""Whatever lies in a file that ntpguard reads: what it says, or an error of ntpguard's own."""

import contextlib
import io
import json
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ntpguard import episodes
from ntpguard.daemon import lastgood
from ntpguard.episodes import Episode, Kept
from ntpguard.errors import NtpguardError
from ntpguard.policy.check import read_policy
from ntpguard.replay.capture import packets
from ntpguard.replay.frame import datagram, to_ethernet
from tests import captures
from tests.bpf.packets import IPV4, IPV6
from tests.docs.reference import EXAMPLE

RECORDS = [(10**9 * n, bytes(one), None) for n, one in enumerate((IPV4, IPV6, IPV4))]
KEPT = Kept(open=(Episode("203.0.113.7", 1.8e9, 1.8e9 + 60, requests=90, excess=60),))
PREFIXES = b"# banned\n203.0.113.0/24\n2001:db8::/32 # a network\n198.51.100.7\n\n"


def mutated(data: bytes, seed: int) -> bytes:
    """Some bytes of it changed, taken out, doubled or moved."""
    chance = random.Random(seed)
    out = bytearray(data)
    for _ in range(chance.randrange(1, 8)):
        at, size = chance.randrange(len(out) + 1), chance.choice((1, 1, 2, 4, 16))
        piece = bytes(out[at : at + size])
        new = chance.choice(
            (
                b"",
                chance.randbytes(size),
                piece * chance.randrange(2, 9),
                bytes([(one ^ 1 << chance.randrange(8)) & 0xFF for one in piece]),
                chance.choice(
                    (b"\0", b"\xff" * 4, b'"', b"[[", b"]", b"=", b"\n", b"-", b"9" * 30)
                ),
            )
        )
        out[at : at + size] = new
    return bytes(out)


def policy(folder: Path, data: bytes) -> None:
    (folder / "ntpguard.toml").write_bytes(data)
    read_policy(folder / "ntpguard.toml")


def prefixes(folder: Path, data: bytes) -> None:
    (folder / "banned.txt").write_bytes(data)
    (folder / "ntpguard.toml").write_text(
        '[[class]]\nname = "banned"\nprefixes_file = "banned.txt"\naction = "block"\n'
    )
    read_policy(folder / "ntpguard.toml")


def last_good(folder: Path, data: bytes) -> None:
    (folder / lastgood.NAME).write_bytes(data)
    lastgood.read()


def kept(folder: Path, data: bytes) -> None:
    (folder / episodes.NAME).write_bytes(data)
    episodes.load()


def capture(folder: Path, data: bytes) -> None:
    for time_ns, link, frame, size in packets(io.BytesIO(data), "some.pcap"):
        with contextlib.suppress(NtpguardError):  # of a link type that is none
            datagram(to_ethernet(link, frame), size == len(frame))
        assert time_ns is None or time_ns >= 0


READERS: dict[str, tuple[Callable[[Path, bytes], None], bytes]] = {
    "policy": (policy, EXAMPLE.encode()),
    "prefixes": (prefixes, PREFIXES),
    "last good": (last_good, EXAMPLE.encode()),
    "episodes": (kept, json.dumps({"schema": episodes.SCHEMA, **asdict(KEPT)}).encode()),
    "pcap": (capture, captures.pcap(RECORDS)),
    "pcapng": (capture, captures.ng(RECORDS)),
}


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=400, suppress_health_check=list(HealthCheck), deadline=None)
@given(seed=st.integers(0, 2**32), noise=st.none() | st.binary(max_size=80))
def test_a_file_is_read_or_refused_in_words(
    name: str, seed: int, noise: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, whole = READERS[name]
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    try:
        read(tmp_path, mutated(whole, seed) if noise is None else noise)
    except NtpguardError as error:
        text = str(error)
        assert text and "Traceback" not in text
        # it names the file
        assert any(one in text for one in (str(tmp_path), "some.pcap")), text
