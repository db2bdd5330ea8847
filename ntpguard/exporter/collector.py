"""What Prometheus sees of the running guard (names: design.md, "Prometheus"; docs/metrics.md)."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from ntpguard import __version__, health
from ntpguard.errors import NotRunning
from ntpguard.exporter import abuse, around, kods, standing, traffic
from ntpguard.exporter.family import counter, gauge, one
from ntpguard.exporter.slow import Slow
from ntpguard.reading import Running, open_running

PARTS: dict[str, Callable[[Running], list[Metric]]] = {
    "attachment": standing.attachment,
    "packets": traffic.packets,
    "table": standing.table,
    "policy": standing.policy,
    "memory": around.memory,
    "driver": around.counters,
    "daemon": around.daemon,
    "program": around.program,
    "episodes": abuse.kept,
    "kods": kods.heeding,
}
GUARD, SLOW, HEALTH = "guard", "slow", "health"


class GuardCollector(Collector):
    """Reads the pinned maps of this network namespace at each scrape. One part that cannot be read
    takes no other with it: it is counted, and the rest is shown.
    """

    def __init__(self, bpffs: Path) -> None:
        self._bpffs = bpffs
        self._errors = Counter(dict.fromkeys((GUARD, *PARTS, HEALTH, SLOW), 0))
        self._slow = Slow(bpffs, lambda: self._failed(SLOW))
        self._untracked: int | None = None

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not need a running guard."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every metric; those of a guard that is not running are left out."""
        begin = time.monotonic()
        found: list[Metric] = []
        up = False
        try:
            with open_running(self._bpffs) as guard:
                up = True
                for name, part in {**PARTS, HEALTH: self._health, SLOW: self._slow.metrics}.items():
                    try:
                        found += part(guard)
                    except Exception:
                        self._failed(name)
        except NotRunning:
            pass
        except Exception:
            self._failed(GUARD)
        yield gauge(
            "ntpguard_build_info", "Version of ntpguard.", ("version",), [((__version__,), 1)]
        )
        yield gauge("ntpguard_up", "Whether the guard is attached anywhere.", samples=one(up))
        yield counter(
            "ntpguard_collector_errors",
            "Readings that failed, by what was to be read.",
            ("collector",),
            [((name,), count) for name, count in self._errors.items()],
        )
        yield gauge(
            "ntpguard_map_read_duration_seconds",
            "What reading for this scrape took.",
            samples=one(time.monotonic() - begin),
        )
        yield from found

    def _failed(self, part: str) -> None:
        self._errors[part] += 1

    def _health(self, guard: Running) -> list[Metric]:
        """As `ntpguard status` has it; requests without a slot: since the scrape before."""
        table = guard.table_counters()
        untracked = table["gated"] + table["full"] + table["lost"]
        grew = self._untracked is not None and untracked > self._untracked
        self._untracked = untracked
        degraded = grew or bool(health.standing(guard, self._bpffs))
        return [
            gauge(
                "ntpguard_degraded",
                "Whether something is wrong: ntpguard status says what.",
                samples=one(degraded),
            )
        ]
