"""The top of the source table, by source, prefix or class, and how fast it grows between looks."""

import heapq
import time
from dataclasses import dataclass

from ntpguard.errors import UsageError
from ntpguard.moments import Moment
from ntpguard.reading import Running
from ntpguard.sources import Group, Source, prefix_text

BY = ("source", "prefix", "class")
SORTS = ("excess", "requests", "last", "kod")
OF_GROUPS = SORTS[:2]


@dataclass(frozen=True)
class Ranked:
    """A source, or several put together. Rates are of the time since the last look that had it;
    None: there was none. `name` None: sources whose class was found in older prefixes.
    """

    name: str | None
    requests: int
    excess: int
    requests_per_second: float | None
    excess_per_second: float | None
    sources: int = 1
    source: Source | None = None  # if it is one
    class_name: str | None = None  # of that source
    last_seen: Moment | None = None  # when that source's excess was noted last


class Ranking:
    """Looks at the running guard as often as it is asked; remembers the counts, for rates."""

    def __init__(self, by: str, sort: str, count: int) -> None:
        """Raises UsageError for an order that only single sources have."""
        if by != "source" and sort not in OF_GROUPS:
            raise UsageError(
                f"--sort {sort}: an order of single sources: with --by {by}, use --sort "
                f"{' or '.join(OF_GROUPS)}"
            )
        self._by, self._sort, self._count = by, sort, count
        self._before: dict[object, tuple[int, int]] = {}
        self._looked: float | None = None

    def look(self, guard: Running) -> list[Ranked]:
        """The top now."""
        now = time.monotonic()
        elapsed = now - self._looked if self._looked is not None else None
        found = {
            "source": self._of_sources,
            "prefix": self._of_prefixes,
            "class": self._of_classes,
        }[self._by](guard, elapsed)
        self._before = {one.name: (one.requests, one.excess) for one in found}
        self._looked = now
        return found

    def _rates(
        self, name: str | None, requests: int, excess: int, elapsed: float | None
    ) -> tuple[float | None, float | None]:
        before = self._before.get(name)
        # fewer than before: forgotten meanwhile, or begun anew
        if not before or not elapsed or requests < before[0] or excess < before[1]:
            return None, None
        return (requests - before[0]) / elapsed, (excess - before[1]) / elapsed

    def _of_sources(self, guard: Running, elapsed: float | None) -> list[Ranked]:
        found = guard.top(self._count, self._sort)
        names = [one.name for one in guard.policy().classes] if found else []
        ranked = []
        for one in found:
            noted = guard.offender(one.key)
            ranked.append(
                Ranked(
                    one.source,
                    one.requests,
                    one.excess,
                    *self._rates(one.source, one.requests, one.excess, elapsed),
                    source=one,
                    class_name=_class_name(names, one.class_index),
                    last_seen=Moment.at(int(noted.last_seen_ns)) if noted else None,
                )
            )
        return ranked

    def _of_prefixes(self, guard: Running, elapsed: float | None) -> list[Ranked]:
        lengths = guard.table.ipv4_prefix, guard.table.ipv6_prefix
        return [
            self._group(prefix_text(one.key, *lengths), one, elapsed)
            for one in guard.top_prefixes(self._count, self._sort)
        ]

    def _of_classes(self, guard: Running, elapsed: float | None) -> list[Ranked]:
        names = [one.name for one in guard.policy().classes]
        found = [
            self._group(_class_name(names, index), one, elapsed)
            for index, one in guard.top_classes()
        ]
        wanted = {"excess": lambda one: one.excess, "requests": lambda one: one.requests}
        return heapq.nlargest(self._count, found, key=wanted[self._sort])

    def _group(self, name: str | None, one: Group, elapsed: float | None) -> Ranked:
        rates = self._rates(name, one.requests, one.excess, elapsed)
        return Ranked(name, one.requests, one.excess, *rates, sources=one.sources)


def _class_name(names: list[str], index: int | None) -> str | None:
    """None: found in older prefixes, or by another policy than the one that was read."""
    return names[index] if index is not None and index < len(names) else None
