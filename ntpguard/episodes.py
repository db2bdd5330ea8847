"""Episodes of abuse: a source over its limit for long enough, from when it began until it is quiet.

What is written of one is for its network's abuse desk: times, rates, what became of its packets,
the header that it sends, which rule of RFC 4330, section 10, it broke. The address of a UDP packet
can be forged: an episode says what was seen, not who sent it.

The daemon's book (daemon/book.py) opens and ends them. On the disk they are JSON, a line for the
numbers and one for each episode, so that neither who writes them nor who wants the numbers only
holds them all as text.
"""

import ipaddress
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from ntpguard import state
from ntpguard.errors import NtpguardError, PermissionNeeded
from ntpguard.moments import rfc3339
from ntpguard.policy import shapes
from ntpguard.words import Verdict

SCHEMA = 2
NAME = "episodes.json"
LASTS_SECONDS = 60.0  # an episode does, unless it is very much at once
MOST_NUMBERS_BYTES = 4096
SHORTEST_POLL = 15.0  # seconds; RFC 4330, section 10, 1
Read = TypeVar("Read")


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
        return shapes.clients(bytes.fromhex(self.header), self.source_port)

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
