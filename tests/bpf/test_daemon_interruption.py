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
from tests.bpf.interrupted import CALLS, runner
from tests.bpf.test_health import status
from tests.bpf.test_interruption import STRIDE, forget
from tests.bpf.test_lifecycle import NAMES, guarded, left, pytestmark, running_policy, up, where

__all__ = ["pytestmark", "where"]
# start and reload call bpf() 500 times; every one with NTPGUARD_ALL=1, 25 minutes
BPF_STRIDE = 1 if STRIDE == 1 else 61
MOST_CALLS = 800
CREDENTIALS = struct.Struct("3i")
RELOADED = POLICY.replace(f'"{NAMES[0]}"', f'"{NAMES[0]}", "{NAMES[1]}"') + (
    '[limit]\nrate = "7/minute"\n'
)


class Manager:
    """In systemd's place: when the daemon is ready it is told to reload, and then to stop."""

    def __init__(self, at: Path, file: Path) -> None:
        self.ready = 0
        self._file = file
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.socket.bind(str(at))
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                space = socket.CMSG_SPACE(CREDENTIALS.size)
                message, ((_, _, sender),), _, _ = self.socket.recvmsg(4096, space)
                if b"READY=1" in message.split():
                    self.ready += 1
                    self._file.write_text(RELOADED)
                    number = signal.SIGHUP if self.ready == 1 else signal.SIGTERM
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(CREDENTIALS.unpack(sender)[0], number)


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
                manager.ready = 0
                ended = one.run(call, when, *arguments)
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
                manager.ready = 0
                file.write_text(RELOADED)
                again = one.run(call, MOST_CALLS, *arguments)  # which it does not make
                assert (again.hit, again.status, manager.ready) == (False, 0, 2), (what, again)
                assert (set(guarded()), status()) == (set(NAMES), (0, [])), what
                assert left(where) == [bpffs.pins(where)], what
                assert str(running_policy(where).classes[0].rate) == "7/minute", what
                forget(where)
                when += stride
            forget(where)
    print(before, tried, "in reload:", reloading)
    assert tried["bpf"] > 5 and tried["fsync"] == 4 and reloading > 5
