"""Episodes of abuse: a source over its limit for long enough, from when it began until it is quiet.

What is written of one is for its network's abuse desk: times, rates, what became of its packets,
the header that it sends, which rule of RFC 4330, section 10, it broke. The address of a UDP packet
can be forged: an episode says what was seen, not who sent it.

Everything is bounded, whatever the attack: sources watched, episodes open and kept. What finds no
room is counted. On the disk they are JSON, a line for the numbers and one for each episode, so that
neither who writes them nor who wants the numbers only holds them all as text.
"""

import ipaddress
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from heapq import nsmallest
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from ntpguard import state
from ntpguard.abi import HEADER_BYTES
from ntpguard.errors import NtpguardError, PermissionNeeded
from ntpguard.moments import rfc3339
from ntpguard.policy import shapes
from ntpguard.words import Verdict

SCHEMA = 2
NAME = "episodes.json"
# a source is an episode when it goes on for so long, with so much excess in all,
LASTS_SECONDS = 60.0
LEAST_EXCESS = 60
# or when it sends so much, in however short a time: FortiGate does in half a second
AT_ONCE = 10_000
QUIET_SECONDS = 300.0  # without excess: it is over
MOST_WATCHED, MOST_OPEN, MOST_ENDED = 2048, 1024, 1000
MOST_TTLS = 4
COUNTER = (1 << 32) - 1  # a slot's counts wrap
MOST_NUMBERS_BYTES = 4096
SHORTEST_POLL = 15.0  # seconds; RFC 4330, section 10, 1
Read = TypeVar("Read")


@dataclass(frozen=True, slots=True)
class Sight:
    """A source as it was seen: its slot's counts, and what was noted of its excess."""

    source: str
    requests: int
    excess: int
    unheeded: int
    deaf: bool
    sampled: tuple[int, int, int]  # verdicts of a sample of its excess
    source_port: int
    ttl: int
    header: str  # hex
    observed: bool = False  # in mode observe: what is over the limit passes


@dataclass(frozen=True, slots=True)
class Episode:
    """Of one source. Times are seconds since 1970, rates requests a second; how many seconds it has
    lasted is told by a clock that nobody sets.
    """

    source: str
    start: float
    last: float  # excess
    end: float | None = None
    seconds: float = 0.0
    requests: int = 0
    excess: int = 0
    peak_per_second: float = 0.0
    last_per_second: float = 0.0
    sampled: tuple[int, int, int] = (0, 0, 0)
    unheeded: int = 0
    deaf: bool = False
    source_port: int = 0
    ttls: tuple[int, ...] = ()
    header: str = ""
    observed: bool = False

    @property
    def clients(self) -> tuple[str, ...]:
        """Those that are known to send such a header; the likelier first."""
        header = bytes.fromhex(self.header)
        whole = len(header) == HEADER_BYTES
        return shapes.clients(header, self.source_port) if whole else ()

    @property
    def per_second(self) -> float:
        """Requests a second, over the whole of it."""
        return self.requests / max(1.0, self.seconds)

    def broken(self) -> list[str]:
        """The rules of RFC 4330, section 10, that what was seen breaks."""
        found = []
        if self.requests > 1 and self.seconds / self.requests < SHORTEST_POLL:
            found.append("1: it polled more often than every 15 seconds")
        refused = not self.observed and self.sampled[Verdict.DROP] > self.sampled[Verdict.PASS]
        if refused and self.seconds >= LASTS_SECONDS and self.last_per_second > self.per_second / 2:
            found.append("2: it did not back off when most of its requests were not answered")
        if self.unheeded:
            found.append("8: it did not stop when told to by a Kiss-o'-Death")
        return found


@dataclass(frozen=True)
class Numbers:
    """How many there are. `total`: of all times; `untold`: that found no room."""

    written: float
    total: int
    untold: int
    open: int
    ended: int


@dataclass(frozen=True)
class Kept:
    """What is on the disk. `total`, `untold`: as of Numbers."""

    written: float = 0.0
    total: int = 0
    untold: int = 0
    open: tuple[Episode, ...] = ()
    ended: tuple[Episode, ...] = ()  # the last one first

    def of(self, network: IPv4Network | IPv6Network) -> list[Episode]:
        """Of the sources in a prefix, or of the one that it lies in; what goes on comes first."""
        return [
            one
            for one in (*self.open, *self.ended)
            if ipaddress.ip_network(one.source).overlaps(network)
        ]


@dataclass(slots=True)
class _Watched:
    """A source with excess, before it is an episode and while it is one."""

    episode: Episode
    # as they were seen last; no requests: not since this process began
    requests: int
    excess: int
    sampled: tuple[int, int, int]
    # by the clock that nobody sets
    begun: float  # before, it had lasted `lasted` seconds
    seen: float
    last: float
    lasted: float = 0.0
    is_open: bool = False
    untold: bool = False


@dataclass
class Book:
    """Every source that is watched, and what was written of those before. `look` is told what is
    seen now.
    """

    kept: Kept = field(default_factory=Kept)
    _watched: dict[str, _Watched] = field(default_factory=dict)

    def go_on(self, steady: float) -> None:
        """With the episodes that were open when it was kept, from `steady` on."""
        for one in self.kept.open:
            self._watched[one.source] = _Watched(
                one, 0, 0, (0, 0, 0), steady, steady, steady, one.seconds, is_open=True
            )

    def sources(self) -> set[str]:
        """Those that are watched: to be looked at again."""
        return set(self._watched)

    def look(self, now: float, steady: float, sights: Iterable[Sight]) -> list[str]:
        """Takes note of what is seen; returns what is to be logged. `now`: seconds since 1970;
        `steady`: of a clock that nobody sets.
        """
        lines = []
        new = []
        opened = sum(one.is_open for one in self._watched.values())
        for sight in sights:
            one = self._watched.get(sight.source)
            if one is None:
                new.append(sight)
                continue
            self._grow(one, now, steady, sight)
            if not one.is_open and _is_long_enough(one.episode):
                if opened < MOST_OPEN:
                    opened += 1
                    lines.append(self._open(one))
                elif not one.untold:
                    one.untold = True
                    self.kept = replace(self.kept, untold=self.kept.untold + 1)
        self._begin(now, steady, new)
        for source, one in list(self._watched.items()):
            quiet = steady - one.last
            if one.is_open and quiet >= QUIET_SECONDS:
                lines.append(self._end(one))
                del self._watched[source]
            elif not one.is_open and quiet >= LASTS_SECONDS:
                del self._watched[source]
        going_on = (one.episode for one in self._watched.values() if one.is_open)
        self.kept = replace(self.kept, written=now, open=tuple(going_on))
        return lines

    def _begin(self, now: float, steady: float, new: list[Sight]) -> None:
        """Watches more sources; those that have done next to nothing make room: first those that
        were not seen again, as forged ones are not.
        """
        room = MOST_WATCHED - len(self._watched)
        if len(new) > room:
            idle = [
                (one.seen == steady, one.episode.excess, source)
                for source, one in self._watched.items()
                if not one.is_open and one.episode.excess < LEAST_EXCESS
            ]
            for _, _, source in nsmallest(len(new) - room, idle):
                del self._watched[source]
        for sight in new[: MOST_WATCHED - len(self._watched)]:
            episode = Episode(sight.source, now, now)
            self._watched[sight.source] = _Watched(
                episode, sight.requests, sight.excess, sight.sampled, steady, steady, steady
            )

    def _grow(self, one: _Watched, now: float, steady: float, sight: Sight) -> None:
        known, elapsed, sampled = one.requests, steady - one.seen, one.sampled
        requests = sight.requests - one.requests & COUNTER
        excess = sight.excess - one.excess & COUNTER
        one.requests, one.excess, one.sampled = sight.requests, sight.excess, sight.sampled
        one.seen = steady
        if not known:  # what it did before we looked is not known
            return
        if requests > COUNTER // 2 or excess > requests or not excess:  # another slot, or none
            return
        one.last = steady
        rate = requests / max(0.001, elapsed)
        old = one.episode
        ttls = old.ttls if sight.ttl in old.ttls else (*old.ttls, sight.ttl)[:MOST_TTLS]
        one.episode = replace(
            old,
            last=now,
            seconds=one.lasted + steady - one.begun,
            requests=old.requests + requests,
            excess=old.excess + excess,
            peak_per_second=max(old.peak_per_second, rate),
            last_per_second=rate,
            sampled=_added(old.sampled, sampled, sight.sampled),
            unheeded=max(old.unheeded, sight.unheeded),
            deaf=old.deaf or sight.deaf,
            source_port=sight.source_port,
            ttls=ttls,
            header=sight.header,
            observed=old.observed or sight.observed,
        )

    def _open(self, one: _Watched) -> str:
        one.is_open = True
        self.kept = replace(self.kept, total=self.kept.total + 1)
        return f"abuse begins: {_words(one.episode)}"

    def _end(self, one: _Watched) -> str:
        ended = replace(one.episode, end=one.episode.last)
        self.kept = replace(self.kept, ended=(ended, *self.kept.ended)[:MOST_ENDED])
        return f"abuse ends: {_words(ended)}, {ended.requests} requests"


def _is_long_enough(one: Episode) -> bool:
    lasts = one.seconds >= LASTS_SECONDS and one.excess >= LEAST_EXCESS
    return lasts or one.excess >= AT_ONCE


def _added(
    sums: tuple[int, int, int], before: tuple[int, int, int], after: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Samples since the look before; a note that was forgotten meanwhile begins at 0 again."""
    if any(new < old for new, old in zip(after, before, strict=True)):
        before = (0, 0, 0)
    passed, kissed, dropped = (
        noted + new - old for noted, new, old in zip(sums, after, before, strict=True)
    )
    return passed, kissed, dropped


def _words(one: Episode) -> str:
    client = f", like {one.clients[0]}" if one.clients else ""
    rate = one.peak_per_second
    words = f"{rate:.0f}" if rate >= 10 else f"{rate:.1f}"
    return f"{one.source} at up to {words} requests a second{client}"


def rfc(seconds: float) -> str:
    """A time for people and JSON."""
    return rfc3339(datetime.fromtimestamp(seconds, UTC))


def path() -> Path:
    """Where episodes are kept."""
    return state.directory() / NAME


def lines(kept: Kept) -> Iterator[str]:
    """What is written of them."""
    numbers = Numbers(kept.written, kept.total, kept.untold, len(kept.open), len(kept.ended))
    yield json.dumps({"schema": SCHEMA, **asdict(numbers)}) + "\n"
    for one in (*kept.open, *kept.ended):
        yield json.dumps(asdict(one)) + "\n"


def save(kept: Kept) -> None:
    """Writes them. Raises NtpguardError; then the file is as it was."""
    try:
        state.replace(path(), lines(kept))
    except OSError as error:
        raise NtpguardError(f"{path()}: cannot keep episodes: {error.strerror}") from None


class Damaged(NtpguardError):
    """The file is not one of this version's."""


def load() -> Kept | None:
    """What is kept; None: nothing yet. Raises Damaged, NtpguardError if it cannot be read."""
    return _read(_kept)


def load_numbers() -> Numbers | None:
    """How many are kept; raises as `load`."""
    return _read(lambda file: _numbers(file.readline(MOST_NUMBERS_BYTES)))


def _read(read: Callable[[BinaryIO], Read]) -> Read | None:
    try:
        with path().open("rb") as file:
            return read(file)
    except FileNotFoundError:
        return None
    except PermissionError:
        raise PermissionNeeded(
            f"{path()}: permission denied: CAP_DAC_OVERRIDE (root) is needed: try sudo"
        ) from None
    except OSError as error:
        raise NtpguardError(f"{path()}: {error.strerror}") from None
    # what Python says of these is for programmers
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise _damaged("not what ntpguard writes") from None


def _kept(file: BinaryIO) -> Kept:
    first, *rest = state.rest_of(file).splitlines()
    numbers = _numbers(first)
    if len(rest) != numbers.open + numbers.ended:
        raise _damaged(f"{len(rest)} episodes, not {numbers.open} and {numbers.ended}")
    found = tuple(_episode(_json(line, number)) for number, line in enumerate(rest, 2))
    ended = found[numbers.open :]
    return Kept(numbers.written, numbers.total, numbers.untold, found[: numbers.open], ended)


def _numbers(line: bytes) -> Numbers:
    data = _json(line, 1)
    if data.pop("schema") != SCHEMA:
        raise Damaged(f"{path()}: written by another version: move it away")
    one = Numbers(**data)
    if not _are_times(one.written) or not _are_counts(one.total, one.untold, one.open, one.ended):
        raise _damaged("a total or the time of writing is none")
    return one


def _json(line: bytes, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise _damaged(f"no JSON at line {number}, column {error.colno}") from None


def _damaged(what: str) -> Damaged:
    return Damaged(f"{path()}: damaged ({what}): move it away")


def _are_counts(*values: Any) -> bool:
    return all(isinstance(one, int) and 0 <= one < 1 << 63 for one in values)


def _are_times(*values: Any) -> bool:
    """Or rates."""
    return all(isinstance(one, int | float) and 0 <= one < 1e11 for one in values)


def _episode(data: Mapping[str, Any]) -> Episode:
    """Raises Damaged, or what Python raises, for what is none."""
    lists = {name: tuple(data[name]) for name in ("sampled", "ttls")}
    one = Episode(**{**data, **lists})
    ipaddress.ip_network(one.source)
    bytes.fromhex(one.header)
    numbers = (one.requests, one.excess, one.unheeded, one.source_port, *one.sampled, *one.ttls)
    times = (one.start, one.last, one.end or 0.0, one.seconds)
    rates = (one.peak_per_second, one.last_per_second)
    # ipaddress takes numbers too, and any text for a scope
    if not isinstance(one.source, str) or not one.source.isprintable():
        raise _damaged(f"{one.source!a}: the source is no text")
    if not _are_counts(*numbers) or len(one.sampled) != len(Verdict):
        raise _damaged(f"{one.source}: a count is none")
    if not _are_times(*times, *rates):
        raise _damaged(f"{one.source}: a time or rate is none")
    return one
