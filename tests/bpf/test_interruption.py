"""What is interrupted at any of its state-changing system calls is whole, or put right by the next."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ntpguard import lifecycle
from ntpguard.abi import Xdp
from ntpguard.errors import NotRunning
from ntpguard.kernel import bpffs
from tests.bpf.interrupted import CALLS, Runner, runner
from tests.bpf.live import data, packets, told
from tests.bpf.packets import IPV4
from tests.bpf.test_health import status
from tests.bpf.test_lifecycle import (
    NAMES,
    POLICY,
    guarded,
    left,
    pytestmark,
    running_policy,
    up,
    where,
)

__all__ = ["pytestmark", "where"]
# up calls bpf() 124 times: in CI each 13th is tried; every one with NTPGUARD_ALL=1, four minutes
STRIDE = 1 if "NTPGUARD_ALL" in os.environ else 13
ENFORCE = 'mode = "enforce"\n[sources]\ncapacity = 4096\n'
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGINT": signal.SIGINT}


@pytest.fixture(scope="module", params=SIGNALS.values(), ids=SIGNALS.keys())
def interrupting(request: pytest.FixtureRequest) -> Iterator[tuple[signal.Signals, Runner]]:
    with runner(request.param) as one:
        yield request.param, one


@pytest.mark.timeout(400)
@pytest.mark.parametrize("command", ["up", "second up", "down"])
def test_what_is_interrupted_at_any_call_is_put_right_by_the_next_up_or_down(
    where: Path,
    tmp_path: Path,
    interrupting: tuple[signal.Signals, Runner],
    command: str,
) -> None:
    number, one = interrupting
    policy = tmp_path / "ntpguard.toml"
    policy.write_text(ENFORCE + '[limit]\nrate = "7/minute"\n')
    arguments = ["down"] if command == "down" else ["up", *NAMES, "--policy", str(policy)]
    tried = dict.fromkeys(CALLS, 0)
    for call in CALLS:
        # the signals take turns in the gaps of the stride
        stride = STRIDE if call == "bpf" and command != "down" else 1
        when = 1 if number == signal.SIGKILL else 1 + stride // 2
        while True:
            if command != "up":
                up(where, NAMES[0])
            ended = one.run(call, when, *arguments)
            what = f"{command} at {call} {when}: {ended}"
            if not ended.hit:
                assert ended.status == 0, what
                break
            tried[call] += 1
            if number == signal.SIGINT:
                assert ended.status in (0, 130), what
                assert ended.stderr in ("", "ntpguard: interrupted\n"), what
                assert_whole(where, command, what)
            elif command == "second up":
                assert NAMES[0] in guarded(), what  # not one packet unguarded
            if tried[call] % 2:
                up(where, *NAMES)
                assert guarded() == list(NAMES), what
                assert status() == (0, []), what
                assert running_policy(where) == POLICY, what
            forget(where)
            assert (guarded(), left(where)) == ([], []), what
            when += stride
        forget(where)
    print(command, number.name, tried)
    assert tried["bpf"] > 3 and tried["flock"] == 1


CHANGES = {
    "block": ("block", "203.0.113.0/24", "--reason", "why"),
    "mode": ("mode", "observe", "--for", "1h"),
    "limit": ("limit", "set", "--rate", "7/minute", "--for", "1h"),
}
UNDONE = {
    "block": ("clear", "203.0.113.0/24"),
    "mode": ("mode", "enforce"),
    "limit": ("limit", "unset"),
}


def live_state() -> tuple[object, ...]:
    """What live changes have made of the running guard, which is healthy, as commands tell it."""
    (first, *_) = data("limit", "list")
    now = data("status")
    found = tuple((one["prefix"], one["action"], one["reason"]) for one in data("entries"))
    return found, now["mode"], now["mode_after"], first["rate"], first["until"] is not None


@pytest.mark.timeout(400)
@pytest.mark.parametrize("change", CHANGES)
def test_a_live_change_that_is_interrupted_at_any_call_is_made_whole_or_not_at_all(
    where: Path, interrupting: tuple[signal.Signals, Runner], change: str
) -> None:
    number, one = interrupting
    arguments = CHANGES[change]
    up(where, NAMES[0])
    before = live_state()
    told(*arguments)
    after = live_state()
    told(*UNDONE[change])
    assert (live_state(), after != before) == (before, True)
    told(*arguments)
    # an entry is there before what is noted of it: packets come first
    unnoted = ((("203.0.113.0/24", "block", None),), *before[1:]) if change == "block" else before
    dropped = {before: False, after: change == "block", unnoted: change == "block"}
    tried = dict.fromkeys(CALLS, 0)
    seen = set()
    for call in CALLS:
        stride = 3 if change != "block" and STRIDE > 1 else 1
        when = 1
        while True:
            told(*UNDONE[change])
            ended = one.run(call, when, *arguments)
            what = f"{change} at {call} {when}: {ended}"
            if not ended.hit:
                assert (ended.status, live_state()) == (0, after), what
                break
            tried[call] += 1
            state = live_state()
            seen.add(state)
            if number == signal.SIGINT:
                assert ended.status in (0, 130), what
                assert ended.stderr in ("", "ntpguard: interrupted\n"), what
                assert state in (before, after), what
            else:
                assert state in (before, unnoted, after), what
            with packets(where) as send:
                source = f"203.0.113.{when}"  # within its limit
                assert (send(IPV4.but(source=source)) == Xdp.DROP) == dropped[state], what
            told(*arguments)
            assert live_state() == after, what
            when += stride
    print(change, number.name, tried)
    assert seen >= {before, after}
    assert tried["bpf"] > 10 and tried["flock"] == 1


def forget(where: Path) -> None:
    with contextlib.suppress(NotRunning):
        lifecycle.down(None, bpffs=where)


def assert_whole(where: Path, command: str, what: str) -> None:
    """After SIGINT: as it was before, or as it was to become; nothing in between."""
    before = [] if command == "up" else [NAMES[0]]
    after = [] if command == "down" else list(NAMES)
    assert guarded() in (before, after), what
    assert left(where) == ([bpffs.pins(where)] if guarded() else []), what
    if guarded():
        assert status() == (0, []), what
        rate = str(running_policy(where).classes[0].rate)
        changed = command != "down" and guarded() == after
        assert rate == ("7/minute" if changed else "60/minute"), what
