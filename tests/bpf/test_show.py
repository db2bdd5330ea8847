"""show: through the command, on a running guard; packets go through the pinned program."""

import shlex
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ntpguard.abi import Xdp
from ntpguard.policy.check import parse_policy
from tests.bpf.live import data, packets, told, up_kissing
from tests.bpf.packets import CLIENT4, IPV4, IPV6, SERVER4, ntp
from tests.bpf.test_lifecycle import NAMES, ip, pytestmark, up, where

__all__ = ["pytestmark", "where"]
POLICY = """mode = "enforce"
upstreams = ["198.51.100.64/26"]
[sources]
capacity = 4096
[limit]
rate = "1/hour"
burst = 2
leak = "1/1024"
[[class]]
name = "campus"
prefixes = ["198.51.100.0/24", "2001:db8:12::/64"]
rate = "6/hour"
burst = 8
[[class]]
name = "banned"
prefixes = ["2001:db8:12::bad", "2001:db8:12:0:1::/80"]
action = "block"
[[class]]
name = "friends"
prefixes = ["198.18.0.0/16"]
action = "exempt"
[[class]]
name = "canary"
prefixes = ["198.19.0.0/16"]
rate = "1/hour"
burst = 1
mode = "observe"
"""
NIXIE = ntp(leap=3, stratum=0, poll=6, precision=0xEC, reference_id=b"1N14", transmit=bytes(8))


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who runs the tests is logged in from nowhere, and is alice."""
    for name in ("SSH_CONNECTION", "SSH_CLIENT", "SUDO_UID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SUDO_USER", "alice")


@pytest.fixture
def guard(where: Path) -> Iterator[Path]:
    up(where, policy=parse_policy(POLICY))
    yield where


def age(text: str) -> timedelta:
    assert text.endswith("Z")
    return datetime.now(UTC) - datetime.fromisoformat(text)


def part(shown: Any, *names: str) -> tuple[Any, ...]:
    return tuple(shown[name] for name in names)


def test_a_source_over_its_limit_is_shown_whole(guard: Path) -> None:
    with packets(guard) as send:
        for _ in range(50):
            send(IPV4.but(source_port=40123, ttl=51))
    shown = data("show", CLIENT4)
    assert part(shown, "name", "class", "prefix", "action") == (CLIENT4, "default", None, "limit")
    assert part(shown, "rate", "burst", "left", "live") == ("1/hour", 2, 0, False)
    assert shown["rate_per_second"] == pytest.approx(1 / 3600)
    assert 0 < shown["wait_seconds"] <= 3600
    source = shown["source"]
    assert part(source, "source", "requests", "excess") == (CLIENT4, 50, 48)
    assert part(source, "class", "established", "deaf") == ("default", False, False)
    noted = shown["noted"]
    assert part(noted, "version", "mode", "poll", "stratum", "leap", "precision") == (
        4,
        3,
        6,
        0,
        0,
        32,
    )
    assert part(noted, "source_port", "ttl", "header") == (40123, 51, IPV4.payload.hex())
    assert timedelta(seconds=-2) < age(noted["last_seen"]) < timedelta(minutes=1)
    assert age(noted["first_seen"]) < timedelta(minutes=1)
    assert 1 <= sum(noted["sampled"].values()) <= 48
    assert noted["clients"] == ["chrony"] and noted["signatures"] == []
    assert shown["next_verdicts"] == shown["enforce_verdicts"]
    text = told("-v", "show", CLIENT4)
    assert "requests   50, 48 of them excess\nstate      newcomer\n" in text
    assert "header     version 4, mode 3, poll 6, stratum 0, from port 40123, TTL 51\n" in text
    assert "client     looks like chrony\n" in text


def test_an_unknown_source_is_told_so_and_what_its_first_request_meets(guard: Path) -> None:
    text = told("show", "203.0.113.200")
    assert text.startswith("source     203.0.113.200, not in the source table\n")
    assert "limit      1/hour burst 2, 2 left now\n" in text
    assert "next       passes: within 1/hour burst 2; it gets a slot in the source table" in text
    shown = data("show", "203.0.113.200")
    assert part(shown, "source", "noted", "entry", "last_kod", "deaf_until") == (None,) * 5
    assert part(shown, "next_verdicts", "next_reason") == (["pass"], "conform")
    with packets(guard) as send:
        assert send(IPV4.but(source="203.0.113.200")) == Xdp.PASS
    assert data("show", "203.0.113.200")["left"] == 1


def test_a_limit_that_was_raised_holds_at_once_for_who_was_over_the_old_one(guard: Path) -> None:
    with packets(guard) as send:
        for _ in range(5):
            send(IPV4.but(source="203.0.113.200"))
    assert data("show", "203.0.113.200")["left"] == 0
    told("limit", "set", "--rate", "1/second", "--burst", "4")
    assert data("show", "203.0.113.200")["left"] == 1


@pytest.mark.parametrize(
    ("address", "class_name", "prefix", "next_request"),
    [
        ("198.51.100.9", "campus", "198.51.100.0/24", "passes: within 6/hour burst 8"),
        ("198.18.3.4", "friends", "198.18.0.0/16", "passes: class friends is exempt"),
        ("2001:db8:12::bad", "banned", "2001:db8:12::bad/128", "dropped: class banned is blocked"),
        ("2001:db8:12::7", "campus", "2001:db8:12::/64", "passes: within 6/hour burst 8"),
    ],
)
def test_the_class_that_decides_is_named_with_its_prefix(
    guard: Path, address: str, class_name: str, prefix: str, next_request: str
) -> None:
    shown = data("show", address)
    assert part(shown, "class", "prefix") == (class_name, prefix)
    assert shown["next_request"].startswith(next_request)
    assert f"class      {class_name}, by prefix {prefix}\n" in told("show", address)


def test_an_upstream_is_told_and_its_class_is_the_one_around_it(guard: Path) -> None:
    shown = data("show", "198.51.100.65")
    assert part(shown, "class", "prefix") == ("campus", "198.51.100.0/24")
    assert shown["upstream"] == "198.51.100.64/26"
    assert "upstream   198.51.100.64/26: its answers pass\n" in told("show", "198.51.100.65")
    told("exempt", "198.51.100.65")
    assert "upstream   198.51.100.64/26: its answers pass\n" in told("show", "198.51.100.65")
    told("block", "198.51.100.65")
    assert ": its answers are dropped too\n" in told("show", "198.51.100.65")
    told("mode", "observe")
    assert ": its answers pass\n" in told("show", "198.51.100.65")


def test_prefixes_within_one_source_that_are_treated_otherwise_are_listed(guard: Path) -> None:
    told("exempt", "2001:db8:12::5")
    shown = data("show", "2001:db8:12::7")
    assert shown["inside"] == [
        {"prefix": "2001:db8:12::bad/128", "class": "banned", "action": "block"},
        {"prefix": "2001:db8:12:0:1::/80", "class": "banned", "action": "block"},
        {"prefix": "2001:db8:12::5/128", "class": None, "action": "exempt"},
    ]
    text = told("show", "2001:db8:12::7")
    assert "           2001:db8:12::bad/128 in it is of class banned: block\n" in text
    assert "           2001:db8:12::5/128 in it has a live entry: exempt\n" in text
    assert shown["entry"] is None and data("show", "198.51.100.9")["inside"] == []


def test_what_is_left_of_a_limit_is_what_passes(guard: Path) -> None:
    campus = IPV4.but(source="198.51.100.9")
    with packets(guard) as send:
        for used in range(1, 9):
            assert send(campus) == Xdp.PASS
            assert data("show", "198.51.100.9")["left"] == 8 - used
        told("limit", "set", "campus", "--rate", "1/day", "--burst", "3", "--for", "1h")
        shown = data("show", "198.51.100.9")
        assert part(shown, "rate", "burst", "live", "left") == ("1/day", 3, True, 2)
        assert timedelta(minutes=-61) < age(shown["until"]) < timedelta(minutes=-59)
        assert shown["then"] == {
            "rate": "6/hour",
            "rate_per_second": pytest.approx(6 / 3600),
            "burst": 8,
        }
        assert "live until" in told("show", "198.51.100.9")
        assert [send(campus) for _ in range(2)] == [Xdp.PASS] * 2
        assert data("show", "198.51.100.9")["left"] == 0


def test_who_ignores_kods_is_shown_deaf_and_until_when(guard: Path) -> None:
    ip("address", "add", f"{SERVER4}/24", "dev", NAMES[0])  # a KoD is sent from no other
    up_kissing(guard, CLIENT4, parse_policy(POLICY + '[kod]\ninterval = "60s"\npatience = 1\n'))
    with packets(guard) as send:
        met = [send(IPV4) for _ in range(10)]  # the leak may take a few
        assert Xdp.TX in met
        shown = data("show", CLIENT4)
        assert timedelta(seconds=-2) < age(shown["last_kod"]) < timedelta(minutes=1)
        assert "dropped: no KoD: the last was" in shown["next_request"]
        assert shown["next_verdicts"] == ["pass", "drop"]
        begin = time.monotonic()
        while not (shown := data("show", CLIENT4))["source"]["deaf"]:
            assert time.monotonic() < begin + 60
            send(IPV4)
            time.sleep(0.1)
    assert part(shown, "last_kod", "patience") == (None, 1)
    assert shown["source"]["unheeded"] == 1
    assert timedelta(minutes=-15, seconds=-5) < age(shown["deaf_until"]) < timedelta(minutes=-13)
    assert "the rest is dropped: no KoD: deaf: 1 not heeded" in shown["next_request"]
    assert "deaf, until it sends no excess for 15m" in told("show", CLIENT4)


def test_the_live_entry_is_shown_with_its_end_its_author_and_its_reason(guard: Path) -> None:
    told("block", "203.0.113.0/24", "--reason", "ticket 4711", "--for", "2h")
    told("exempt", "203.0.0.0/16", "--for", "ever")
    shown = data("show", CLIENT4)
    assert part(shown["entry"], "prefix", "action", "by", "reason") == (
        "203.0.113.0/24",
        "block",
        "alice",
        "ticket 4711",
    )
    assert timedelta(minutes=-121) < age(shown["entry"]["expires"]) < timedelta(minutes=-119)
    assert part(shown, "next_verdicts", "next_reason") == (["drop"], "entry")
    assert ", by alice: ticket 4711\n" in told("show", CLIENT4)
    with packets(guard) as send:
        assert send(IPV4) == Xdp.DROP
    assert data("show", "203.0.114.1")["entry"]["expires"] is None


def test_in_observe_it_is_told_what_enforce_would_do(guard: Path) -> None:
    canary = IPV4.but(source="198.19.0.7")
    with packets(guard) as send:
        assert {send(canary) for _ in range(100)} == {Xdp.PASS}
    shown = data("show", "198.19.0.7")
    assert part(shown, "mode", "judged", "next_verdicts") == ("enforce", "observe", ["pass"])
    assert "drop" in shown["enforce_verdicts"]
    assert shown["next_request"].startswith("passes: class canary's mode is observe; else excess")
    assert "mode       enforce, class canary: observe\n" in told("show", "198.19.0.7")
    told("block", "198.19.0.7")  # an entry is no canary
    assert data("show", "198.19.0.7")["judged"] == "enforce"
    told("mode", "observe", "--for", "1h")
    shown = data("show", "198.19.0.7")
    assert part(shown, "mode", "judged", "mode_after") == ("observe", "observe", "enforce")
    assert shown["next_request"].startswith("passes: mode is observe; else dropped: live entry")
    told("mode", "off")
    assert data("show", CLIENT4)["next_request"] == "passes: mode is off"


def test_a_client_is_guessed_by_the_running_policys_signature_and_by_known_shapes(
    guard: Path,
) -> None:
    signature = (
        '[[signature]]\nname = "nixie-clock"\nheader = "e3 00 06 ec 00000000 00000000 314e3134"\n'
        'source_port = 1337\nwhen = "excess"\n'
    )
    nixie = IPV4.but(payload=NIXIE, source_port=1337)
    up(guard, policy=parse_policy(POLICY + signature))
    with packets(guard) as send:
        assert [send(nixie) for _ in range(20)][2:] == [Xdp.DROP] * 18
    shown = data("show", CLIENT4)
    assert part(shown["noted"], "signatures", "clients") == (
        ["nixie-clock"],
        ["Arduino NTPClient"],
    )
    assert part(shown, "next_verdicts", "next_reason") == (["drop"], "signature")
    assert "dropped if it looks like the last one noted: signature nixie-clock" in told(
        "show", CLIENT4
    )
    up(guard, policy=parse_policy(POLICY))
    assert data("show", CLIENT4)["noted"]["signatures"] == []


@pytest.mark.parametrize("source", [CLIENT4, "2001:db8:12::7", "198.18.3.4", "2001:db8:12::bad"])
@pytest.mark.parametrize(
    "before", ["", "block {} --for 1h", "exempt {}", "mode observe", "limit set campus --burst 7"]
)
def test_every_command_that_is_offered_can_be_pasted(guard: Path, source: str, before: str) -> None:
    with packets(guard) as send:
        for _ in range(12):
            send(IPV4), send(IPV6)
    if before:
        told(*before.format(source).split())
    offered = data("show", source)["commands"]
    assert offered
    text = told("show", source)
    for one in offered:
        assert one["command"] in text
        words = shlex.split(one["command"])
        assert words[0] == "ntpguard"
        told(*words[1:])
