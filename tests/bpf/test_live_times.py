"""A mode and a limit for a time: through the command, on a running guard; packets follow."""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.registry import CollectorRegistry

from ntpguard import reading, running, temporary
from ntpguard.abi import Xdp
from ntpguard.document import effective_policy
from ntpguard.exporter.collector import GuardCollector
from ntpguard.kernel import binding, libbpf
from ntpguard.moments import Moment
from ntpguard.policy.check import parse_policy
from ntpguard.survey import Surveyor
from ntpguard.words import Family
from tests.bpf.live import data, packets, refused, told
from tests.bpf.packets import IPV4
from tests.bpf.test_lifecycle import NAMES, pytestmark, up, where

__all__ = ["pytestmark", "where"]
POLICY = """mode = "enforce"
[sources]
capacity = 4096
[limit]
rate = "1/day"
burst = 1
leak = "1/1024"
[kod]
enabled = false
[[class]]
name = "banned"
prefixes = ["203.0.113.0/24"]
action = "block"
[[class]]
name = "friends"
prefixes = ["198.18.1.0/24"]
action = "exempt"
"""
BANNED, ANYBODY = IPV4, IPV4.but(source="198.18.7.7")
CLOCK = r"(?:20\d\d-\d\d-\d\d )?\d\d:\d\d"


def becomes(wanted: object, look: Callable[[], object], begin: float, seconds: float) -> None:
    """Waits until what is looked at has changed; it must not have done so before its time."""
    while look() != wanted:
        assert time.monotonic() < begin + seconds + 60
        time.sleep(0.02)
    assert time.monotonic() > begin + seconds - 0.1


def mode_metric(where: Path) -> str:
    metrics = CollectorRegistry()
    metrics.register(GuardCollector(where))
    (mode,) = re.findall(r'ntpguard_mode\{mode="(\w+)"\} 1', generate_latest(metrics).decode())
    return str(mode)


def test_a_temporary_mode_ends_by_itself_and_everybody_tells_the_mode_that_holds(
    where: Path,
) -> None:
    up(where, policy=parse_policy(POLICY))
    with packets(where) as send:
        assert send(BANNED) == Xdp.DROP
        begin = time.monotonic()
        said = told("mode", "observe", "--for", "4s")
        assert send(BANNED) == Xdp.PASS
        assert re.fullmatch(
            rf"mode: enforce -> observe until {CLOCK} \(\ds left\), then enforce\n", said
        )
        now = data("status")
        assert (now["mode"], now["mode_after"], mode_metric(where)) == (
            "observe",
            "enforce",
            "observe",
        )
        assert abs(datetime.fromisoformat(now["mode_until"]) - datetime.now(UTC)) < timedelta(
            minutes=1
        )
        assert re.search(rf"mode +observe until {CLOCK} \(\ds left\), then enf", told("status"))
        assert 'mode = "observe"' in told("policy", "show")
        becomes(Xdp.DROP, lambda: send(BANNED), begin, 4)
    now = data("status")
    assert (now["mode"], now["mode_until"], now["mode_after"]) == ("enforce", None, None)
    assert mode_metric(where) == "enforce"
    assert "mode       enforce\n" in told("status")
    assert 'mode = "enforce"' in told("policy", "show")
    assert told("mode", "off").startswith("mode: enforce -> off")


def test_a_change_of_mode_takes_the_place_of_a_temporary_one(where: Path) -> None:
    up(where, policy=parse_policy(POLICY))
    told("mode", "off", "--for", "1h")
    begin = time.monotonic()
    assert told("mode", "observe", "--for", "3s").endswith("then enforce\n")
    becomes("enforce", lambda: data("status")["mode"], begin, 3)
    told("mode", "off", "--for", "1s")
    told("mode", "observe")
    time.sleep(1.1)
    with packets(where) as send:
        assert send(BANNED) == Xdp.PASS
    assert data("status")["mode"] == "observe"


def test_up_reverts_to_observe_unless_it_is_confirmed(where: Path, tmp_path: Path) -> None:
    file = tmp_path / "ntpguard.toml"
    file.write_text(POLICY)
    arguments = ["up", NAMES[0], "--policy", str(file), "--revert-after"]
    begin = time.monotonic()
    said = told(*arguments, "4s")
    with packets(where) as send:
        assert send(BANNED) == Xdp.DROP
        assert "enforce for 4s, then observe; to keep it: ntpguard mode enforce\n" in said
        assert "then observe" in told("status")
        becomes(Xdp.PASS, lambda: send(BANNED), begin, 4)
        now = data("status")
        assert (now["mode"], now["policy"]["differs_from_file"]) == ("observe", True)

        told(*arguments, "2s")
        told("mode", "enforce")
        time.sleep(2.1)
        assert send(BANNED) == Xdp.DROP
    now = data("status")
    assert (now["mode"], now["policy"]["differs_from_file"]) == ("enforce", False)


def test_up_says_when_there_is_nothing_to_revert(where: Path, tmp_path: Path) -> None:
    file = tmp_path / "ntpguard.toml"
    file.write_text(POLICY.replace("enforce", "observe"))
    said = told("up", NAMES[0], "--policy", str(file), "--revert-after", "1h")
    assert "warning: --revert-after: the mode is not enforce: there is nothing to revert" in said
    assert data("status")["mode_until"] is None


def test_a_temporary_limit_ends_by_itself_and_the_one_for_good_holds_again(where: Path) -> None:
    def limits() -> tuple[object, ...]:
        first = data("limit", "list")[0]
        return first["rate"], first["burst"], first["live"], first["until"] is not None

    up(where, policy=parse_policy(POLICY))
    with packets(where) as send:
        assert [send(ANYBODY) for _ in range(50)].count(Xdp.DROP) > 40
        told("limit", "set", "--burst", "2")
        begin = time.monotonic()
        said = told("limit", "set", "--rate", "5000/second", "--burst", "500", "--for", "4s")
        send(ANYBODY)  # conforms, and takes the place of the tat that the stricter limit has left
        time.sleep(0.1)
        assert {send(ANYBODY) for _ in range(50)} == {Xdp.PASS}
        end = rf"until {CLOCK} \(\ds left\), then 1/day burst 2"
        assert re.fullmatch(rf"default: 1/day burst 2 -> 5000/second burst 500 {end}\n", said)
        assert re.search(rf"5000/second +500 +0 +live {end}\n", told("limit", "list"))
        assert limits() == ("5000/second", 500, True, True)
        becomes(("1/day", 2, True, False), limits, begin, 4)
        time.sleep(0.05)  # the packet path's clock has steps
        assert [send(ANYBODY) for _ in range(50)].count(Xdp.DROP) > 40
    told("limit", "set", "--rate", "2/day", "--for", "1h")
    assert told("limit", "unset") == "default: 2/day burst 2 -> 1/day burst 1\n"
    assert limits() == ("1/day", 1, False, False)


def test_who_is_over_its_limit_is_told_by_the_limit_that_holds_after_a_temporary_one(
    where: Path,
) -> None:
    up(where, policy=parse_policy(POLICY.replace("burst = 1", "burst = 3")))
    begin = time.monotonic()
    told("limit", "set", "--burst", "9", "--for", "1s")
    becomes(3, lambda: data("limit", "list")[0]["burst"], begin, 1)
    time.sleep(0.05)  # the packet path's clock has steps
    with packets(where) as send, reading.open_running(where) as guard:
        assert [send(ANYBODY) for _ in range(4)].count(Xdp.PASS) >= 3
        assert guard.survey(Surveyor()).limited[Family.IPV4] == 1


def test_what_a_change_of_limit_does_not_name_is_as_it_was_for_good(where: Path) -> None:
    up(where, policy=parse_policy(POLICY))
    told("limit", "set", "--rate", "100/second", "--burst", "64", "--for", "1h")
    assert told("limit", "set", "--burst", "16") == (
        "default: 100/second burst 64 -> 1/day burst 16\n"
    )
    assert data("limit", "list")[0]["until"] is None


def test_the_wall_clock_decides_when_the_machine_was_booted_anew(where: Path) -> None:
    up(where, policy=parse_policy(POLICY))
    begin = time.monotonic()
    with packets(where) as send, running.writing(where) as descriptors:
        document = running.read_document(descriptors)
        wall = datetime.now(UTC) + timedelta(seconds=3)
        temporary.change(document, temporary.MODE, "off", Moment(1, wall, "another boot"))
        running.write(descriptors, effective_policy(document), document, prefixes=False)
        assert send(BANNED) == Xdp.PASS
        assert data("status")["mode"] == "off"
        becomes(Xdp.DROP, lambda: send(BANNED), begin, 3)
    assert data("status")["mode"] == "enforce"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("banned --rate 1/second", "banned: its action is block, a limit has no effect"),
        ("friends --burst 3 --for 1h", "friends: its action is exempt, a limit has no effect"),
        ("nobody --burst 3", "nobody: no such class: there are default, banned, friends"),
        ("--rate 60permin", 'must be a rate like "60/minute"'),
        ("--rate 1/second --burst 3 --for 1w", "--for: must be a time like 90s, 10m, 24h or 7d"),
    ],
)
def test_a_limit_that_cannot_be_is_refused_as_wrong_usage(
    where: Path, arguments: str, why: str
) -> None:
    up(where, policy=parse_policy(POLICY))
    assert why in refused("limit", "set", *arguments.split())
    assert not any(one["live"] for one in data("limit", "list"))


@pytest.mark.parametrize(
    "arguments",
    [
        "--rate 20000/second",
        "--rate 9000000/minute --burst 5",
        "--rate 10000/second",
        "--rate 500/second --burst 2",
        "--burst 0",
        "--burst 2000000",
        "--rate 1/second --burst 99999999",
        "--rate 1/day --burst 100000",
    ],
)
def test_a_limit_beyond_the_bounds_is_refused_with_one_that_is_accepted(
    where: Path, arguments: str
) -> None:
    up(where, policy=parse_policy(POLICY))
    output = refused("limit", "set", *arguments.split())
    assert "did you mean" not in output and output.count("\n") == 1
    options = dict(re.findall(r"(--\w+) (\S+)", arguments))
    options |= dict(re.findall(r"(--\w+) (\S+)", output.rpartition(": try ")[2]))
    told("limit", "set", *(word for option in options.items() for word in option))


def test_a_change_that_fails_leaves_the_temporary_one(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up(where, policy=parse_policy(POLICY))
    told("mode", "observe", "--for", "1h")

    def no_memory(*arguments: object) -> None:
        raise binding.BpfError("map policy: ENOMEM", 12)

    with monkeypatch.context() as broken:
        broken.setattr(libbpf, "map_update", no_memory)
        with pytest.raises(AssertionError, match="ENOMEM"):
            told("mode", "off")
    now = data("status")
    assert (now["mode"], now["mode_after"]) == ("observe", "enforce")
