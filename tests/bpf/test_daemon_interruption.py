"""A daemon that is killed at any of its state-changing system calls: the next one takes over."""

import contextlib
import os
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ntpguard.kernel import bpffs
from tests.bpf.daemon import POLICY
from tests.bpf.interrupted import CALLS, Ended, Runner, runner
from tests.bpf.test_health import status
from tests.bpf.test_interruption import STRIDE, forget
from tests.bpf.test_lifecycle import NAMES, guarded, left, pytestmark, running_policy, up, where

__all__ = ["pytestmark", "where"]
# start and reload call bpf() 500 times; every one with NTPGUARD_ALL=1, 25 minutes
BPF_STRIDE = 1 if STRIDE == 1 else 61
MOST_CALLS = 800
CREDENTIALS = struct.Struct("3i")
READ = b"READ=1"
RELOADED = POLICY.replace(f'"{NAMES[0]}"', f'"{NAMES[0]}", "{NAMES[1]}"') + (
    '[limit]\nrate = "7/minute"\n'
)


class Manager:
    """In systemd's place: each time that the daemon is ready it is sent the next of `tells`, as a
    rule to reload, and then to stop.
    """

    def __init__(self, at: Path, file: Path) -> None:
        self.ready = 0
        self.tells = [signal.SIGHUP, signal.SIGTERM]
        self._file = file
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.socket.bind(str(at))
        self._read = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                space = socket.CMSG_SPACE(CREDENTIALS.size)
                message, ((_, _, sender),), _, _ = self.socket.recvmsg(4096, space)
                if message == READ:
                    self._read.set()
                elif b"READY=1" in message.split():
                    number = self.tells[self.ready]
                    self.ready += 1
                    if number == signal.SIGHUP:
                        self._file.write_text(RELOADED)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(CREDENTIALS.unpack(sender)[0], number)

    def run(self, one: Runner, call: str, when: int, *arguments: str) -> Ended:
        """What `one` runs, and how often that was ready: what it said before its end is read."""
        self.ready = 0
        ended = one.run(call, when, *arguments)
        self._read.clear()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(READ, self.socket.getsockname())
        assert self._read.wait(60)
        return ended


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    one = Manager(tmp_path / "notify", tmp_path / "ntpguard.toml")
    yield one
    one.socket.close()


@pytest.mark.timeout(3000 if STRIDE == 1 else 400)
@pytest.mark.parametrize("before", ["nothing", "guarded"])
def test_what_is_killed_at_any_call_leaves_enforcement_and_is_taken_over(
    where: Path, tmp_path: Path, manager: Manager, before: str
) -> None:
    file = tmp_path / "ntpguard.toml"
    arguments = ("run", "--policy", str(file), "--listen", "none")
    tried = dict.fromkeys(CALLS, 0)
    reloading = 0
    with runner(signal.SIGKILL, MOST_CALLS) as one:
        for call in CALLS:
            stride = BPF_STRIDE if call == "bpf" else 1
            when = 1
            while True:
                if before == "guarded":
                    up(where, NAMES[0])
                file.write_text(POLICY)
                ended = manager.run(one, call, when, *arguments)
                what = f"{call} at {call} {when}: {ended}, ready {manager.ready}"
                if not ended.hit:
                    assert (ended.status, manager.ready) == (0, 2), what
                    break
                tried[call] += 1
                if before == "guarded" or manager.ready:
                    assert NAMES[0] in guarded(), what  # not one packet unguarded
                    rate = str(running_policy(where).classes[0].rate)
                    assert rate in ("60/minute", "7/minute"), what
                reloading += manager.ready == 1
                file.write_text(RELOADED)
                again = manager.run(one, call, MOST_CALLS, *arguments)  # which it does not make
                assert (again.hit, again.status, manager.ready) == (False, 0, 2), (what, again)
                assert (set(guarded()), status()) == (set(NAMES), (0, [])), what
                assert left(where) == [bpffs.pins(where)], what
                assert str(running_policy(where).classes[0].rate) == "7/minute", what
                forget(where)
                when += stride
            forget(where)
    print(before, tried, "in reload:", reloading)
    assert tried["bpf"] > 5 and tried["fsync"] == 4 and reloading > 5


DETACHING = f'on_exit = "detach"\n{RELOADED}'
BY_THE_CLOCK = 6  # calls of bpf() that it makes more or less each time
LAST = 3  # calls of each kind, of a daemon that is told to stop
END = ("bpf", "flock", "unlink", "unlinkat", "rmdir")  # what a daemon that detaches changes with


@pytest.mark.timeout(3000 if STRIDE == 1 else 600)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_what_is_interrupted_while_it_detaches_is_put_right_by_the_next_run_or_down(
    where: Path, tmp_path: Path, manager: Manager, number: signal.Signals
) -> None:
    file = tmp_path / "ntpguard.toml"
    file.write_text(DETACHING)
    arguments = ("run", "--policy", str(file), "--listen", "none")
    manager.tells = [signal.SIGINT if number == signal.SIGTERM else signal.SIGTERM]
    tried = dict.fromkeys(END, 0)
    partly = set()

    with runner(number, MOST_CALLS) as one:

        def run(call: str, when: int) -> Ended:
            return manager.run(one, call, when, *arguments)

        def made(call: str, when: int) -> bool:
            hit = run(call, when).hit
            forget(where)
            return hit

        for call in END if number == signal.SIGKILL or STRIDE == 1 else ("bpf", "unlinkat"):
            # the first call that it does not make; then back to the first after it was ready
            when = most = 1
            while made(call, most):
                when, most = most + 1, 2 * most
            while when < most:
                middle = (when + most) // 2
                if made(call, middle):
                    when = middle + 1
                else:
                    most = middle
            if call == "bpf":
                when += BY_THE_CLOCK
            stride = 3 if call == "unlinkat" and STRIDE != 1 else 1
            while when > stride:
                when -= stride
                ended = run(call, when)
                what = f"{call} {when}: {ended}, ready {manager.ready}"
                assert "Traceback" not in ended.stderr, what
                if not ended.hit:
                    assert (ended.status, guarded(), left(where)) == (0, [], []), what
                    continue
                # one that is told to stop while it starts becomes ready first
                if not manager.ready or (number != signal.SIGKILL and tried[call] == LAST):
                    forget(where)
                    break
                tried[call] += 1
                partly.add(len(guarded()))
                if number != signal.SIGKILL:
                    assert (ended.status, guarded(), left(where)) == (0, [], []), what
                elif tried[call] % 2:
                    again = run(call, MOST_CALLS)
                    assert (again.hit, again.status) == (False, 0), (what, again)
                forget(where)
                assert (guarded(), left(where)) == ([], []), what
    print(number.name, tried, partly)
    assert tried["bpf"] > 2 and tried["unlinkat"] > 2
    if number == signal.SIGKILL:
        assert partly == {0, 1, 2} and tried["unlink"] == 2 and tried["flock"] == 1
