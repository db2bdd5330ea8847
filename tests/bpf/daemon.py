"""A daemon, `ntpguard run`, of the test's own: its log, what it tells systemd, its end."""

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import NTPGUARD
from tests.bpf.test_lifecycle import NAMES

POLICY = f'interfaces = ["{NAMES[0]}"]\nmode = "enforce"\n[sources]\ncapacity = 4096\n'
SECONDS = 60.0  # others may be using the processors
# one that looks, and cleans, many times a second
OFTEN = (
    sys.executable,
    "-c",
    "from ntpguard.daemon import loop; loop.LOOK_SECONDS = loop.CLEAN_SECONDS = 0.1\n"
    "from ntpguard.cli import main; main()",
)


def wait_for(done: Callable[[], bool], what: str) -> None:
    """Returns when it is so."""
    end = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < end, what
        time.sleep(0.05)


class Daemon:
    """The process; its policy file and its state directory lie in `directory`."""

    def __init__(self, directory: Path, *arguments: str, command: tuple[str, ...] = ()) -> None:
        self.directory = directory
        self.file = directory / "ntpguard.toml"
        self._log = directory / "log"
        self._log.touch()
        self._begin = self._log.stat().st_size
        (directory / "notify").unlink(missing_ok=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(directory / "notify"))
        self._messages: queue.Queue[list[str]] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        environment = {
            **os.environ,
            "STATE_DIRECTORY": str(directory / "state"),
            "NOTIFY_SOCKET": str(directory / "notify"),
            "WATCHDOG_USEC": "600000",
        }
        environment.pop("JOURNAL_STREAM", None)
        run = command or (NTPGUARD,)
        with self._log.open("a") as log:
            self.process = subprocess.Popen(
                [*run, "run", "--policy", str(self.file), *(arguments or ("--listen", "none"))],
                stderr=log,
                env=environment,
                cwd=Path(__file__).parents[2],
            )

    def log(self) -> str:
        """What it has logged."""
        return self._log.read_bytes()[self._begin :].decode()

    def logs(self, text: str, times: int = 1) -> None:
        """Returns when it has logged this so many times."""
        wait_for(lambda: self.log().count(text) >= times, f"{text!r} in {self.log()}")

    def _listen(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while message := self.socket.recv(65536):
                self._messages.put(message.decode().splitlines())

    def told(self, *wanted: str, seconds: float = SECONDS) -> dict[str, str]:
        """The next message to systemd that has these assignments, or these names assigned to.

        Raises queue.Empty if there is no message for so long.
        """
        while True:
            lines = self._messages.get(timeout=seconds)
            message = dict(line.split("=", 1) for line in lines)
            if all(one in lines or one in message for one in wanted):
                return message

    def told_status(self, text: str) -> str:
        """The next status with this text in it."""
        while text not in (status := self.told("STATUS")["STATUS"]):
            pass
        return status

    def silent(self, seconds: float) -> bool:
        """Whether it tells nothing for so long, what was sent before aside."""
        while not self._messages.empty():
            self._messages.get()
        try:
            self._messages.get(timeout=seconds)
        except queue.Empty:
            return True
        return False

    def ready(self) -> str:
        """Returns when it is ready: its status."""
        return self.told("READY=1", "STATUS")["STATUS"]

    def reload(self, text: str) -> None:
        """Writes the policy file, and tells."""
        self.file.write_text(text)
        self.process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        """As a crash does."""
        self.process.kill()
        self.process.wait()
        self.socket.close()

    def stop(self) -> None:
        """Stops it as systemd does."""
        self.process.terminate()
        assert self.process.wait(SECONDS) == 0, self.log()
        assert "Traceback" not in self.log()
        self.socket.close()


@contextmanager
def running(
    directory: Path, *arguments: str, policy: str | None = POLICY, command: tuple[str, ...] = ()
) -> Iterator[Daemon]:
    """A daemon that is ready, and stopped in the end."""
    if policy is not None:
        (directory / "ntpguard.toml").write_text(policy)
    one = Daemon(directory, *arguments, command=command)
    try:
        one.ready()
        yield one
        if one.process.poll() is None:
            one.stop()
    finally:
        one.kill()
