"""Watches the sources that are over their limit, and keeps the episodes of those that go on."""

import heapq
import ipaddress
import time
from array import array
from collections.abc import Iterator
from pathlib import Path

from ntpguard import episodes
from ntpguard.daemon.book import Book, Sight
from ntpguard.daemon.guarding import Log
from ntpguard.episodes import Damaged, Kept
from ntpguard.errors import NotRunning, NtpguardError
from ntpguard.reading import Running, open_running
from ntpguard.words import Mode, Verdict

MOST_LOOKED_AT = 1024  # at a time, besides those that are watched: the ones with the most excess
LINES_A_MINUTE = 20
SAVE_SECONDS = 60.0  # what only grows is written so often


class Watching:
    """What is watched, and what was noted of whom at the last look."""

    def __init__(self, bpffs: Path, log: Log) -> None:
        self._bpffs = bpffs
        self._log = log
        self._writes = True
        self._book = Book(self._kept())
        self._book.go_on(time.monotonic())
        self._noted: dict[int, int] = {}  # samples of a source's excess, by its key
        self._keys: dict[str, int] = {}  # of the sources that are watched
        self._lines: list[float] = []  # when they were logged
        self._unlogged = 0
        self._saved = 0.0
        self._unsaved = False
        self._failed = ""

    def _kept(self) -> Kept:
        try:
            return episodes.load() or Kept()
        except Damaged as error:
            aside = episodes.path().with_suffix(".damaged")
            try:
                episodes.path().rename(aside)
            except OSError:
                aside = episodes.path()
            self._log.warn(f"{error}: episodes begin anew, it is {aside} now")
        except NtpguardError as error:
            self._writes = False  # over what may be whole
            self._log.warn(f"{error}: episodes are logged, and not kept")
        return Kept()

    def look(self) -> None:
        """Takes note of who is over its limit now. What goes wrong is logged, once."""
        try:
            with open_running(self._bpffs) as guard:
                lines = self._book.look(time.time(), time.monotonic(), self._sights(guard))
            for line in lines:
                self._tell(line)
            due = self._unsaved or bool(lines)
            if self._book.kept.open and time.monotonic() - self._saved > SAVE_SECONDS:
                due = True
            if due and self._writes:
                self._unsaved, self._saved = True, time.monotonic()
                episodes.save(self._book.kept)
                self._unsaved = False
            self._failed = ""
        except NotRunning:
            return
        except Exception as error:  # what goes wrong with the book stops no guard
            if str(error) != self._failed:
                self._failed = str(error)
                self._log.warn(self._failed)

    def _sights(self, guard: Running) -> Iterator[Sight]:
        observed = guard.mode() == Mode.OBSERVE
        busiest = heapq.nlargest(MOST_LOOKED_AT, self._grown(guard))
        watched = self._book.sources()
        self._keys = {
            name: self._keys.get(name) or guard.key(ipaddress.ip_network(name).network_address)
            for name in watched
        }
        keys = {*(key for _, key in busiest), *self._keys.values()}
        for source in guard.sources_of(keys):
            one = guard.offender(source.key)
            if one is None:  # another source has its place
                continue
            yield Sight(
                source=source.source,
                requests=source.requests,
                excess=source.excess,
                unheeded=source.unheeded,
                deaf=source.deaf,
                sampled=(
                    int(one.sampled[Verdict.PASS]),
                    int(one.sampled[Verdict.KOD]),
                    int(one.sampled[Verdict.DROP]),
                ),
                source_port=int(one.source_port),
                ttl=int(one.ttl),
                header=bytes(one.header[: one.header_bytes]).hex(),
                observed=observed,
            )

    def _grown(self, guard: Running) -> Iterator[tuple[int, int]]:
        """By how many samples a source's excess has grown since the last look, and its key."""
        keys = array("Q")
        for key, one in guard.offenders():
            keys.append(key)
            count = sum(one.sampled)
            before = self._noted.get(key, 0)
            if count != before:
                self._noted[key] = count
                # fewer: it was forgotten meanwhile
                yield count - before if count > before else count, key
        if len(self._noted) > 2 * len(keys):
            for key in self._noted.keys() - set(keys):  # others have their place
                del self._noted[key]

    def _tell(self, line: str) -> None:
        """Logs a line, or counts it if there were many in the last minute."""
        now = time.monotonic()
        self._lines = [at for at in self._lines if now - at < 60]
        if len(self._lines) >= LINES_A_MINUTE:
            self._unlogged += 1
            return
        if self._unlogged:
            line += f"; {self._unlogged} more lines were left out: ntpguard episodes has them"
            self._unlogged = 0
        self._lines.append(now)
        self._log.info(line)
