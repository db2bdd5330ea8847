"""What is interrupted at any of its state-changing system calls is whole, or put right by the next."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
# up calls bpf() 158 times: in CI each 17th is tried; every one with NTPGUARD_ALL=1, ten minutes
STRIDE = 1 if "NTPGUARD_ALL" in os.environ else 17
ENFORCE = 'mode = "enforce"\n[sources]\ncapacity = 4096\n'
# what is guarded before and after a command
BEFORE = {"up": [], "second up": [NAMES[0]], "down": [NAMES[0]], "down of one": list(NAMES)}
AFTER = {"up": list(NAMES), "second up": list(NAMES), "down": [], "down of one": [NAMES[1]]}
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGINT": signal.SIGINT}


@pytest.fixture(scope="module", params=SIGNALS.values(), ids=SIGNALS.keys())
def interrupting(request: pytest.FixtureRequest) -> Iterator[tuple[signal.Signals, Runner]]:
    with runner(request.param) as one:
        yield request.param, one


@pytest.mark.timeout(2000 if STRIDE == 1 else 400)
@pytest.mark.parametrize("command", BEFORE)
def test_what_is_interrupted_at_any_call_is_put_right_by_the_next_up_or_down(
    where: Path,
    tmp_path: Path,
    interrupting: tuple[signal.Signals, Runner],
    command: str,
) -> None:
    number, one = interrupting
    policy = tmp_path / "ntpguard.toml"
    policy.write_text(ENFORCE + '[limit]\nrate = "7/minute"\n')
    arguments = ["down"] if command == "down" else ["down", NAMES[0]]
    if not command.startswith("down"):
        arguments = ["up", *NAMES, "--policy", str(policy)]
    tried = dict.fromkeys(CALLS, 0)
    for call in CALLS:
        # the signals take turns in the gaps of the stride
        stride = STRIDE if call == "bpf" and not command.startswith("down") else 1
        stride = min(3, STRIDE) if call == "unlinkat" else stride
        when = 1 if number == signal.SIGKILL else 1 + stride // 2
        while True:
            if BEFORE[command]:
                up(where, *BEFORE[command])
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
            else:  # not one packet unguarded
                assert set(BEFORE[command]) & set(AFTER[command]) <= set(guarded()), what
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


PREFIX = "203.0.113.0/24"
BLOCK = ("block", PREFIX, "--reason", "why")
LIMIT = ("limit", "set", "--rate", "7/minute", "--for", "1h")
# a change, and its contrary
CHANGES = {
    "block": (BLOCK, ("clear", PREFIX)),
    "exempt": (("exempt", PREFIX, "--for", "1h"), ("clear", PREFIX)),
    "clear": (("clear", PREFIX), BLOCK),
    "mode": (("mode", "observe", "--for", "1h"), ("mode", "enforce")),
    "limit set": (LIMIT, ("limit", "unset")),
    "limit unset": (("limit", "unset"), LIMIT),
}


def live_state() -> tuple[Any, ...]:
    """What live changes have made of the running guard, which is healthy, as commands tell it."""
    (first, *_) = data("limit", "list")
    now = data("status")
    found = tuple((one["prefix"], one["action"], one["reason"]) for one in data("entries"))
    return found, now["mode"], now["mode_after"], first["rate"], first["until"] is not None


@pytest.mark.timeout(2000 if STRIDE == 1 else 400)
@pytest.mark.parametrize("change", CHANGES)
def test_a_live_change_that_is_interrupted_at_any_call_is_made_whole_or_not_at_all(
    where: Path, interrupting: tuple[signal.Signals, Runner], change: str
) -> None:
    number, one = interrupting
    arguments, contrary = CHANGES[change]
    up(where, NAMES[0])
    if change in ("clear", "limit unset"):
        told(*contrary)
    before = live_state()
    told(*arguments)
    after = live_state()
    told(*contrary)
    assert (live_state(), after != before) == (before, True)
    told(*arguments)
    # an entry is there before what is noted of it: packets come first
    unnoted = (tuple((*entry[:2], None) for entry in after[0]), *before[1:])
    dropped = {
        one: any(entry[1] == "block" for entry in one[0]) for one in (before, after, unnoted)
    }
    tried = dict.fromkeys(CALLS, 0)
    seen = set()
    for call in CALLS:
        stride = 1 if STRIDE == 1 or call != "bpf" else 3 if change == "block" else 7
        when = 1 if number == signal.SIGKILL else 1 + stride // 2
        while True:
            told(*contrary)
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
            if state != after:
                told(*arguments)
            assert live_state() == after, what
            when += stride
    print(change, number.name, tried)
    # few calls come after the commit
    assert seen >= ({before, after} if STRIDE == 1 else {before})
    assert tried["bpf"] > 5 and tried["mkdir"] == 1


def forget(where: Path) -> None:
    with contextlib.suppress(NotRunning):
        lifecycle.down(None, bpffs=where)


def assert_whole(where: Path, command: str, what: str) -> None:
    """After SIGINT: as it was before, or as it was to become; nothing in between."""
    before, after = BEFORE[command], AFTER[command]
    assert guarded() in (before, after), what
    assert left(where) == ([bpffs.pins(where)] if guarded() else []), what
    if guarded():
        assert status() == (0, []), what
        rate = str(running_policy(where).classes[0].rate)
        changed = not command.startswith("down") and guarded() == after
        assert rate == ("7/minute" if changed else "60/minute"), what
