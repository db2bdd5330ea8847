"""What reads files and arguments, each with one that it reads; and what must hold of an error."""

import contextlib
import io
import json
import os
import random
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from ntpguard import episodes
from ntpguard.cli.arguments import Duration, Prefix, parse_source
from ntpguard.daemon import lastgood
from ntpguard.episodes import Episode, Kept
from ntpguard.errors import NtpguardError
from ntpguard.exporter.server import address_of
from ntpguard.migrate import migrated
from ntpguard.policy.check import parse_policy, read_policy
from ntpguard.replay.capture import packets
from ntpguard.replay.frame import datagram, to_ethernet
from tests import captures
from tests.bpf.packets import IPV4, IPV6
from tests.docs.reference import EXAMPLE

RECORDS = [(10**9 * n, bytes(one), None) for n, one in enumerate((IPV4, IPV6, IPV4))]
KEPT = Kept(open=(Episode("203.0.113.7", 1.8e9, 1.8e9 + 60, requests=90, excess=60),))
# more than Python reads as a number, nests, and writes as a number
LONG = (b"9" * 5000, b"[" * 2000, b"0x" + b"f" * 5000)
# in what words Python tells programmers of it
PYTHONS = ("Traceback", "sys.", "codec can't", " object ", "recursion", "invalid literal")
CHRONY = b"allow 203.0.113.0/24\nratelimit interval 1 burst 16 leak 2\nport 123\n"
NTP = (
    b"restrict default kod limited nomodify\ndiscard average 3 minimum 1\nrestrict source noquery\n"
)
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
                    (b"\0", b"\xff" * 4, b'"', b"[[", b"]", b"=", b"\n", b"-", b"9" * 30, *LONG)
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


def _text(data: bytes) -> str:
    """An argument, as a shell gives it."""
    return os.fsdecode(data)


def _rate(data: bytes) -> None:
    parse_policy(f"[limit]\nrate = {json.dumps(_text(data))}\nleak = {json.dumps(_text(data))}\n")


def _configuration(kind: str) -> Callable[[Path, bytes], object]:
    return lambda _, data: migrated([("some.conf", data.decode("utf-8", "replace"))], kind).toml()


READERS: dict[str, tuple[Callable[[Path, bytes], object], bytes]] = {
    "policy": (policy, EXAMPLE.encode()),
    "prefixes": (prefixes, PREFIXES),
    "last good": (last_good, EXAMPLE.encode()),
    "episodes": (kept, "".join(episodes.lines(KEPT)).encode()),
    "pcap": (capture, captures.pcap(RECORDS)),
    "pcapng": (capture, captures.ng(RECORDS)),
    "chrony.conf": (_configuration("chrony"), CHRONY),
    "ntp.conf": (_configuration("ntpd"), NTP),
    "duration": (lambda _, data: Duration(ever=True).convert(_text(data), None, None), b"24h"),
    "prefix": (lambda _, data: Prefix().convert(_text(data), None, None), b"2001:db8::/32"),
    "source": (lambda _, data: parse_source(_text(data)), b"203.0.113.7/32"),
    "rate": (lambda _, data: _rate(data), b"60/minute"),
    "listen": (lambda _, data: address_of(_text(data)), b"[2001:db8::1]:9721"),
}


def attempt(name: str, folder: Path, data: bytes) -> None:
    """Reads it. Raises whatever is no error of ntpguard's, AssertionError for one that says too little."""
    os.environ["STATE_DIRECTORY"] = str(folder)
    try:
        READERS[name][0](folder, data)
    except NtpguardError as error:
        text = str(error)
        named = (str(folder), "some.", "policy:", _text(data), "time: must be", "--listen: must")
        assert any(one in text for one in named), text
        assert not any(one in text for one in PYTHONS), text


def search(folder: Path, keep: Path, seed: int, until: float) -> tuple[int, list[str]]:
    """How many mutated files and arguments were read, and each that broke its reader.

    `folder` is for those that are read, `keep` for those that break; `until` is of time.monotonic.
    """
    count, found = 0, list[str]()
    while time.monotonic() < until:
        for name, (_, whole) in READERS.items():
            data = mutated(whole, seed)
            count += 1
            try:
                attempt(name, folder, data)
            except Exception:
                path = keep / f"unread-{name.replace(' ', '-')}-{seed}"
                path.write_bytes(data)
                found.append(f"{name}: {path}: {traceback.format_exc(limit=-3)}")
        if found:
            break
        seed += 1
    return count, found
