"""The book of episodes: who is watched, when an episode opens, and when it ends.

Everything is bounded, whatever the attack: sources watched, episodes open and kept. What finds no
room is counted.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from heapq import nsmallest

from ntpguard.episodes import LASTS_SECONDS, Episode, Kept

# a source is an episode when it goes on for LASTS_SECONDS, with so much excess in all,
LEAST_EXCESS = 60
# or when it sends so much, in however short a time: FortiGate does in half a second
AT_ONCE = 10_000
QUIET_SECONDS = 300.0  # without excess: it is over
MOST_WATCHED, MOST_OPEN, MOST_ENDED = 2048, 1024, 1000
MOST_TTLS = 4
COUNTER = (1 << 32) - 1  # a slot's counts wrap


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
