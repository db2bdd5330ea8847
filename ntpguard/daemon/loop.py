"""The daemon's loop: signals, netlink and the clock, one thing at a time, and nothing waits."""

import contextlib
import gc
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from wsgiref.simple_server import WSGIServer

from ntpguard.daemon import links, privileges
from ntpguard.daemon.guarding import Guarding, Log
from ntpguard.daemon.notify import notify, reloading, watchdog_seconds
from ntpguard.daemon.watching import Watching
from ntpguard.errors import Busy, NtpguardError, UsageError

LOOK_SECONDS = 5.0  # pins that go send no event
SETTLE_SECONDS = 0.1  # one change comes as several events
AGAIN_SECONDS = 0.2  # when another writer was at work
CLEAN_SECONDS = 60.0
WATCH_SECONDS = 10.0  # for those who are over their limit for long
NO_LISTEN = "none"


class Signals:
    """SIGTERM and SIGINT stop, SIGHUP reloads: noted when they come, done by the loop."""

    stop = False
    reload = False

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Within the block they do nothing else."""

        def note(number: int, _frame: FrameType | None) -> None:
            if number == signal.SIGHUP:
                self.reload = True
            else:
                self.stop = True

        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = [signal.signal(number, note) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)


class Loop:
    """What is to be done, and when."""

    def __init__(self, guarding: Guarding, watching: Watching, signals: Signals, log: Log) -> None:
        self._guarding = guarding
        self._watching = watching
        self._signals = signals
        self._log = log
        now = time.monotonic()
        self._look_at = now + LOOK_SECONDS
        self._clean_at = now + CLEAN_SECONDS
        self._watch_at = now
        self._watchdog = watchdog_seconds()
        self._ping_at = now
        self._status = ""
        self._reloading = False  # and another writer was at work
        self._untold: list[str] = []

    def patiently(self, do: Callable[[], None], *, stopping: bool = False) -> bool:
        """Does it as soon as no other writer is at work; False if a signal to stop came first."""
        told = False
        while stopping or not self._signals.stop:
            try:
                do()
                return True
            except Busy as busy:
                if not told:
                    self._log.info(f"waiting: {busy}")
                told = True
                time.sleep(AGAIN_SECONDS)
        return False

    def run(self, events: socket.socket) -> None:
        """Until a signal to stop."""
        waking, woken = socket.socketpair()
        with waking, woken, selectors.DefaultSelector() as selector:
            for one in (waking, woken):
                one.setblocking(False)
            signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
            selector.register(waking, selectors.EVENT_READ)
            selector.register(events, selectors.EVENT_READ)
            try:
                while not self._signals.stop:
                    self._turn()
                    for key, _ in selector.select(self._seconds()):
                        if key.fileobj is events:
                            links.drain(events)
                            self._look_at = min(self._look_at, time.monotonic() + SETTLE_SECONDS)
                        else:
                            with contextlib.suppress(BlockingIOError):
                                waking.recv(4096)
            finally:
                signal.set_wakeup_fd(-1)

    def _seconds(self) -> float:
        """Until something is due; a signal that came meanwhile has made `waking` readable."""
        due = [self._look_at, self._clean_at, self._watch_at]
        if self._reloading:
            due.append(time.monotonic() + AGAIN_SECONDS)
        if self._watchdog is not None:
            due.append(self._ping_at)
        return max(0.0, min(due) - time.monotonic())

    def _turn(self) -> None:
        now = time.monotonic()
        if self._signals.reload:
            self._reload()
        if now >= self._look_at:
            self._look_at = now + self._tried(self._guarding.look, LOOK_SECONDS)
        if now >= self._clean_at:
            self._clean_at = now + self._tried(self._guarding.clean, CLEAN_SECONDS)
        if now >= self._watch_at:
            self._watch_at = now + WATCH_SECONDS
            self._watching.look()
        self._tell()
        if self._watchdog is not None and now >= self._ping_at:
            self._ping_at = now + self._watchdog
            if self._guarding.trouble is None:
                notify("WATCHDOG=1")

    def _reload(self) -> None:
        self._signals.reload = False
        if not self._reloading:
            reloading()
        self._reloading = True
        try:
            self._guarding.reload()
        except Busy:
            self._signals.reload = True
            return
        self._reloading = False
        self._tell("READY=1")

    def _tried(self, do: Callable[[], None], seconds: float) -> float:
        """Does it; returns in how many seconds it is due again."""
        try:
            do()
        except Busy:
            return AGAIN_SECONDS
        return seconds

    def _tell(self, *assignments: str) -> None:
        """Tells systemd how things stand, if that has changed or there is more to tell."""
        status = " ".join(self._guarding.summary().split())
        self._untold += assignments
        due = self._untold or status != self._status
        if due and notify(*self._untold, f"STATUS={status}"):
            self._untold, self._status = [], status

    def ready(self) -> None:
        """Tells that it has begun."""
        self._tell("READY=1")
        self._log.info(f"ready: {self._guarding.summary()}")
        # what is there by now stays: if Python does not count it, it looks for garbage in cycles,
        # as pyroute2 leaves, before that is a quarter of all
        gc.collect()
        gc.freeze()


def run(file: Path, listen: str, bpffs: Path, log: Log) -> None:
    """The daemon, until SIGTERM or SIGINT. `listen`: HOST:PORT of the exporter, or "none".

    Raises NtpguardError if it cannot begin; then nothing has changed.
    """
    signals = Signals()
    with signals.noted(), links.events() as events:
        server = _exporter(listen, bpffs, log)
        guarding = Guarding(file, bpffs, log)
        loop = Loop(guarding, Watching(bpffs, log), signals, log)
        if loop.patiently(guarding.start):
            _drop(log)
            if server:
                threading.Thread(target=server.serve_forever, daemon=True).start()
            loop.ready()
            loop.run(events)
            notify("STOPPING=1")
            loop.patiently(guarding.stop, stopping=True)


def _exporter(listen: str, bpffs: Path, log: Log) -> WSGIServer | None:
    """The exporter, with its port; the guard does without if that is taken."""
    if listen == NO_LISTEN:
        return None
    # imported when needed: `--listen none` does without prometheus-client
    from ntpguard.exporter.server import listening, url

    try:
        server = listening(listen, bpffs)
    except UsageError:
        raise
    except NtpguardError as error:
        log.warn(f"no metrics: {error}, or --listen {NO_LISTEN}")
        return None
    log.info(f"metrics on {url(server)}")
    return server


def _drop(log: Log) -> None:
    try:
        kept = privileges.drop()
    except OSError as error:
        log.warn(f"capabilities: cannot be given away: {error.strerror}")
    else:
        log.info(f"capabilities: {', '.join(kept)}")


def levelled(echo: Callable[[str], None], *, quiet: bool) -> Log:
    """Lines for people; for the journal with their level, as sd-daemon(3) has it."""
    journal = "JOURNAL_STREAM" in os.environ and not sys.stderr.isatty()

    def line(level: int, word: str) -> Callable[[str], None]:
        prefix = f"<{level}>" if journal else f"ntpguard: {word}"

        def write(text: str) -> None:
            with contextlib.suppress(OSError):  # a log that is gone stops no guard
                echo(prefix + text)

        return write

    info = (lambda _text: None) if quiet else line(6, "")
    return Log(info, line(4, "warning: "), line(3, "error: "))
