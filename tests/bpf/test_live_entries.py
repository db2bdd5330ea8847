"""block, exempt, clear, entries: through the command, on a running guard; packets follow."""

import re
import shlex
import socket
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.registry import CollectorRegistry

from ntpguard import running
from ntpguard.abi import Xdp
from ntpguard.exporter.collector import GuardCollector
from ntpguard.kernel import bpffs, maps
from ntpguard.policy.check import parse_policy
from tests.bpf.live import data, logged, packets, refused, told
from tests.bpf.packets import IPV4, IPV6
from tests.bpf.test_lifecycle import pytestmark, up, where

__all__ = ["pytestmark", "where"]
POLICY = """mode = "enforce"
upstreams = ["198.51.100.1"]
[sources]
capacity = 4096
"""
STRICT = POLICY + '[limit]\nrate = "1/day"\nburst = 1\nleak = "1/1024"\n[kod]\nenabled = false\n'


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who runs the tests is logged in from nowhere, and is alice."""
    for name in ("SSH_CONNECTION", "SSH_CLIENT", "SUDO_UID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SUDO_USER", "alice")


@pytest.mark.parametrize(("frame", "prefix"), [(IPV4, "203.0.113.0/24"), (IPV6, "2001:db8::/32")])
def test_a_blocked_prefix_is_dropped_until_its_time_is_over_and_nothing_need_run(
    where: Path, frame: object, prefix: str
) -> None:
    up(where, policy=parse_policy(POLICY))
    with packets(where) as send:
        assert send(frame) == Xdp.PASS
        begin = time.monotonic()
        told("block", prefix, "--for", "4s")
        assert send(frame) == Xdp.DROP
        while send(frame) == Xdp.DROP and time.monotonic() < begin + 60:
            time.sleep(0.02)
        assert 3.9 < time.monotonic() - begin < 60
    assert data("entries") == []


def test_an_exempt_address_passes_over_its_limit_until_it_is_cleared(where: Path) -> None:
    up(where, policy=parse_policy(STRICT))
    with packets(where) as send:
        told("exempt", IPV4.source)
        assert {send(IPV4) for _ in range(50)} == {Xdp.PASS}
        assert told("clear", f"{IPV4.source}/32") == f"{IPV4.source}/32: no longer exempted\n"
        assert [send(IPV4) for _ in range(50)].count(Xdp.DROP) > 40


def test_entries_tells_until_when_by_whom_and_why(where: Path) -> None:
    up(where, policy=parse_policy(POLICY))
    begin = datetime.now(UTC).replace(microsecond=0)
    assert re.fullmatch(
        r"203\.0\.113\.0/24: block until .*\(24h left\)\n",
        told("block", "203.0.113.0/24", "--reason", "ticket 4711"),
    )
    assert told("exempt", "2001:db8:7::1", "--for", "ever") == (
        "2001:db8:7::1/128: exempt for ever\n"
    )
    first, second = data("entries")
    expires = datetime.fromisoformat(first.pop("expires"))
    assert timedelta(0) <= expires - begin - timedelta(days=1) < timedelta(minutes=1)
    assert first == {
        "prefix": "203.0.113.0/24",
        "action": "block",
        "by": "alice",
        "reason": "ticket 4711",
    }
    assert second == {
        "prefix": "2001:db8:7::1/128",
        "action": "exempt",
        "expires": None,
        "by": "alice",
        "reason": None,
    }
    assert told("entries").splitlines() == [
        "PREFIX             ACTION  REMAINING  BY     REASON",
        "203.0.113.0/24     block   24h        alice  ticket 4711",
        "2001:db8:7::1/128  exempt  ever       alice",
    ]
    metrics = CollectorRegistry()
    metrics.register(GuardCollector(where))
    text = generate_latest(metrics).decode()
    assert 'ntpguard_entries{action="block"} 1.0' in text
    assert 'ntpguard_entries{action="exempt"} 1.0' in text


def notes(where: Path) -> dict[str, object]:
    with maps.opened(bpffs.pins(where)) as descriptors:
        found: dict[str, object] = running.read_document(descriptors)["notes"]
        return found


def test_what_is_noted_of_an_entry_outlives_a_policy_and_goes_with_the_entry(where: Path) -> None:
    up(where, policy=parse_policy(POLICY))
    told("block", "203.0.113.0/24", "--reason", "first", "--for", "1s")
    told("block", "198.18.0.0/15", "--reason", "second")
    up(where, policy=parse_policy(STRICT))
    told("mode", "observe")
    assert [one["reason"] for one in data("entries")][:1] == ["second"]
    time.sleep(1.1)
    told("exempt", "198.18.0.0/15")
    assert [(one["action"], one["reason"]) for one in data("entries")] == [("exempt", None)]
    assert list(notes(where)) == ["198.18.0.0/15"]
    told("clear", "198.18.0.0/15")
    assert notes(where) == {}


def test_of_more_notes_than_there_is_room_for_the_oldest_are_left_out(where: Path) -> None:
    up(where, policy=parse_policy(POLICY))
    told("block", "203.0.113.0/24", "--reason", "last", "--for", "ever")
    with running.writing(where) as descriptors:
        document = running.read_document(descriptors)
        (last,) = document["notes"].items()
        many = {
            f"198.18.{i >> 8}.{i & 255}/32": last[1] | {"reason": "x" * 200} for i in range(9999)
        }
        running.write_document(descriptors, {**document, "notes": {**many, last[0]: last[1]}})
    assert len(notes(where)) > 1000
    assert [one["reason"] for one in data("entries")] == ["last"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("block 203.0.113.7/24", 'host bits set: did you mean "203.0.113.0/24"?'),
        ("exempt 2001:db8::1/64", 'host bits set: did you mean "2001:db8::/64"?'),
        ("block campus", 'must be a prefix like "198.51.100.0/24" or "2001:db8::/32"'),
        ("block ::ffff:203.0.113.7", "did you mean 203.0.113.7?"),
        ("block 203.0.113.7 --for 10", "like 90s, 10m, 24h or 7d, at most 3650d, or ever (got"),
        ("block 203.0.113.7 --for 0s", "like 90s, 10m, 24h or 7d"),
        ("block 203.0.113.7 --for 4000d", "at most 3650d"),
        ("block 203.0.113.7 --reason a\nb", "--reason: must be one line"),
        ("block 0.0.0.0/0", "0.0.0.0/0: shorter than /8: if every client in it is to be blocked"),
        ("exempt 2000::/15", "2000::/15: shorter than /16: if every client in it is to be exempt"),
        (
            "clear 203.0.113.7",
            "203.0.113.7/32: no live entry has exactly this prefix: near it: 203",
        ),
        ("clear 198.18.0.0/15", "no live entry has exactly this prefix: ntpguard entries lists"),
    ],
)
def test_a_slip_is_refused_with_what_to_write_instead_and_changes_nothing(
    where: Path, arguments: str, why: str
) -> None:
    up(where, policy=parse_policy(POLICY))
    told("block", "203.0.113.0/24")
    before = data("entries")
    output = refused(*arguments.split(" "))
    assert why in output and output.startswith("ntpguard: ") and output.count("\n") == 1
    assert data("entries") == before


def test_a_very_short_prefix_is_blocked_if_that_is_meant(where: Path) -> None:
    up(where, policy=parse_policy(POLICY))
    told("block", "0.0.0.0/0", "--yes")
    with packets(where) as send:
        assert (send(IPV4), send(IPV6)) == (Xdp.DROP, Xdp.PASS)


def test_what_may_be_a_slip_is_done_and_warned_of(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up(where, policy=parse_policy(POLICY))
    monkeypatch.setenv("SSH_CONNECTION", "203.0.113.9 50000 198.51.100.2 22")
    upstream = told("block", "198.51.100.0/24")
    assert "warning: 198.51.100.0/24: upstream 198.51.100.1/32 lies in it" in upstream
    session = told("block", "203.0.113.0/24")
    assert "warning: 203.0.113.0/24: your own session comes from there (203.0.113.9)" in session
    assert "warning" not in told("block", "198.18.0.0/15") + told("exempt", "203.0.113.0/24")
    monkeypatch.delenv("SSH_CONNECTION")
    monkeypatch.setenv("SSH_CLIENT", "2001:db8::9 50000 22")
    assert "your own session" in told("block", "2001:db8::/64")
    told("mode", "observe")
    assert "nothing is dropped before ntpguard mode enforce" in told("block", "198.18.0.0/16")
    assert len(data("entries")) == 5


def test_the_example_in_the_help_of_each_live_change_can_be_pasted(where: Path) -> None:
    up(where, policy=parse_policy(POLICY))
    for command in ("mode", "limit list", "limit set", "limit unset", "block", "entries", "clear"):
        words = told(*command.split(), "--help").replace("\n", " ").split()
        example = shlex.split(" ".join(words[words.index("Example:") + 1 :]))
        assert example[: 1 + len(command.split())] == ["ntpguard", *command.split()]
        told(*example[1:])
    assert told("exempt", "2001:db8:7::/48", "--for", "7d", "--reason", "load test") and (
        '--for 7d --reason "load test"' in told("exempt", "--help")
    )


def test_each_live_change_is_a_line_in_the_system_log(where: Path, tmp_path: Path) -> None:
    up(where, policy=parse_policy(POLICY))
    log = tmp_path / "log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reader:
        reader.bind(str(log))
        reader.settimeout(30)

        def line(*arguments: str) -> str:
            done = logged(log, *arguments, SUDO_USER="bob", SUDO_UID="1000")
            assert done.returncode == 0, done.stderr
            return reader.recv(4096).decode().rstrip("\0")

        # <30>: facility daemon, severity info
        until = r"until 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ"
        for arguments, form in (
            ("mode observe", "mode: enforce -> observe"),
            ("mode off --for 5m", f"mode: observe -> off {until}, then observe"),
            ("limit set --burst 16", "limit default: 60/minute burst 32 -> 60/minute burst 16"),
            ("limit unset", "limit default: 60/minute burst 16 -> 60/minute burst 32"),
            ("block 203.0.113.7 --reason why", f"entry 203.0.113.7/32: none -> block {until}: why"),
            ("exempt 203.0.113.7 --for ever", f"entry .*: block {until} -> exempt for ever"),
            ("clear 203.0.113.7", "entry 203.0.113.7/32: exempt for ever -> none"),
        ):
            said = line(*arguments.split())
            assert re.fullmatch(rf"<30>ntpguard\[\d+\]: bob \(uid 1000\): {form}", said), said
        refusal = logged(log, "clear", "203.0.113.7")
        assert refusal.returncode == 2
        reader.setblocking(False)
        with pytest.raises(BlockingIOError):
            reader.recv(4096)


def test_without_a_system_log_a_change_is_made_in_silence(where: Path, tmp_path: Path) -> None:
    up(where, policy=parse_policy(POLICY))
    done = logged(tmp_path / "log", "block", "203.0.113.7")
    assert (done.returncode, done.stderr) == (0, "")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as gone:
        gone.bind(str(tmp_path / "log"))  # closed: nobody reads there
    done = logged(tmp_path / "log", "block", "203.0.113.8")
    assert (done.returncode, done.stderr) == (0, "")
    assert [one["prefix"] for one in data("entries")] == ["203.0.113.7/32", "203.0.113.8/32"]
