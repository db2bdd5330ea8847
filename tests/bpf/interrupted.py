"""Runs the command line, interrupted at its Nth call of one system call, many times a minute.

strace counts the calls of each system call and of each process by itself, but its N is fixed when it
starts. So one strace follows a server that has everything imported; the server forks a child for
each run, and the child makes calls that do nothing until the Nth of the command will be strace's.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ntpguard.cli import main
from ntpguard.errors import NtpguardError
from ntpguard.kernel import libbpf

MOST_CALLS = 300  # of one name: more than any command makes, but for the daemon
NO_DESCRIPTOR = 1 << 20
# each makes one system call of that name, which fails
CALLS: dict[str, Callable[[], object]] = {
    "bpf": lambda: libbpf.link_detach(-1),
    "flock": lambda: fcntl.flock(NO_DESCRIPTOR, fcntl.LOCK_EX),
    "fsync": lambda: os.fsync(NO_DESCRIPTOR),
    "mkdir": lambda: os.mkdir(""),
    "rename": lambda: os.rename("", ""),
    "unlink": lambda: os.unlink(""),
    "unlinkat": lambda: os.unlink("", dir_fd=NO_DESCRIPTOR),
    "rmdir": lambda: os.rmdir(""),
}


@dataclass(frozen=True)
class Ended:
    """A run: `hit` tells if it got as far as its Nth call; `status` is negative for a signal."""

    hit: bool
    status: int
    stderr: str


class Runner:
    """The server, and strace around it. It interrupts a process at its `most`-th call."""

    def __init__(self, number: signal.Signals, most: int) -> None:
        self._most = most
        names = ",".join(CALLS)
        # not --seccomp-bpf: strace 6.1 injects nothing then
        strace = ["strace", "-f", "-qqq", "-o", "/dev/null", "-e", f"trace={names}"]
        inject = f"inject={names}:signal={number.value}:when={most}"
        server = [sys.executable, "-m", "tests.bpf.interrupted"]
        self._process = subprocess.Popen(
            [*strace, "-e", inject, *server, str(number.value), str(most)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    def run(self, call: str, when: int, *arguments: str) -> Ended:
        """Runs `ntpguard arguments`, interrupted at its `when`-th call of `call`."""
        assert self._process.stdin and self._process.stdout and when <= self._most
        print(json.dumps([call, when, arguments]), file=self._process.stdin, flush=True)
        return Ended(*json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """Ends the server, and strace with it."""
        self._process.communicate(timeout=20)


@contextlib.contextmanager
def runner(number: signal.Signals, most: int = MOST_CALLS) -> Iterator[Runner]:
    """A runner that interrupts with that signal what makes no more than `most` calls of one name."""
    one = Runner(number, most)
    try:
        yield one
    finally:
        one.close()


def _child(
    call: str, before: int, arguments: list[str], interruption: int, hits: int, errors: int
) -> None:
    """The command, after so many calls that do nothing."""
    put = signal.signal

    def noting(number: int, handler: Any) -> Any:
        """signal.signal, of a handler that tells us when it is the interruption."""

        def interrupted(number: int, frame: FrameType | None) -> None:
            os.write(hits, b"x")
            handler(number, frame)

        noted = callable(handler) and number == interruption
        return put(number, interrupted if noted else handler)

    signal.signal = noting
    noting(signal.SIGINT, signal.default_int_handler)
    os.dup2(errors, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for _ in range(before):
        with contextlib.suppress(OSError, NtpguardError):
            CALLS[call]()
    status = 70
    try:
        main(arguments, prog_name="ntpguard")
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException as error:  # as the interpreter would
        print(f"Traceback: {error!r}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(status)


def _serve(interruption: int, most: int) -> None:
    libbpf.possible_cpus()  # loads the library
    for line in sys.stdin:
        call, when, arguments = json.loads(line)
        reading, writing = os.pipe()
        with tempfile.TemporaryFile() as errors:
            child = os.fork()
            if not child:
                _child(call, most - when, arguments, interruption, writing, errors.fileno())
            os.close(writing)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            hit = status == -signal.SIGKILL or os.read(reading, 1) != b""
            os.close(reading)
            errors.seek(0)
            print(json.dumps([hit, status, errors.read().decode()]), flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
