"""The same traffic through a daemon's own limiter and through ntpguard with the policy that `ntpguard
migrate` makes of its configuration: writes the table of docs/explanation/migration.md.

The daemons are the models of tests/attack/peers.py, ntpguard is that of tests/model; its leak here is
of the share alone, without the bound that all sources have together. A daemon's KoD counts as no answer.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ntpguard.migrate import migrated
from ntpguard.policy.check import parse_policy
from ntpguard.policy.compile import emission_interval
from tests.attack.peers import Chrony, Limiter, Ntpd, Ntpsec
from tests.model.limits import Gcra
from tests.model.policy import Limit
from tests.pages import filled, table

PAGE = Path(__file__).parents[2] / "docs/explanation/migration.md"
UNIT_SECONDS = 1024e-9  # of gcra
START_SECONDS = 1000.0
TICK_SECONDS = 0.004


@dataclass(frozen=True)
class Daemon:
    """One configuration, and a model of what the daemon makes of it."""

    name: str
    configuration: str
    kind: str
    limiter: Limiter


def daemons() -> list[Daemon]:
    """With fresh limiters."""
    chrony = "ratelimit interval 1 burst 16 leak 2"
    ntpd = "restrict default limited kod noquery"
    return [
        Daemon("chrony `ratelimit`", "ratelimit", "chrony", Chrony()),
        Daemon(f"chrony `{chrony}`", chrony, "chrony", Chrony(1, 16, 2)),
        Daemon("ntpd `limited kod`", ntpd, "ntpd", Ntpd()),
        Daemon("ntpsec `limited kod`", ntpd, "ntpsec", Ntpsec()),
    ]


def every(seconds: float, count: int, start: float = 0.0) -> Iterator[float]:
    """Times of requests."""
    return (start + seconds * number for number in range(count))


def clients() -> dict[str, list[float]]:
    """Who asks when, in seconds; each is one source."""
    chance = random.Random(1)
    nat = [time for _ in range(60) for time in every(64, 56, chance.uniform(0, 64))]
    return {
        "every 64 s": [*every(64, 60)],
        "8 at 2 s, then every 64 s": [*every(2, 8), *every(64, 30, 78)],
        "4 back to back, each 5 minutes": [
            time for start in every(300, 12) for time in every(0.05, 4, start)
        ],
        "60 clients behind a NAT, every 64 s": sorted(nat),
        "every 4 s": [*every(4, 900)],
        "every second": [*every(1, 900)],
        "20,000 in a second": [*every(0.00005, 20_000)],
    }


@dataclass
class Ntpguard:
    """One source's limit, and the leak, under a migrated policy."""

    configuration: str
    kind: str

    def __post_init__(self) -> None:
        policy = parse_policy(migrated([("f", self.configuration)], self.kind).toml())
        default = policy.classes[0]
        interval = emission_interval(default.rate.per_second)
        self.limit = Limit(interval, (default.burst - 1) * interval)
        self.leak = default.leak
        self.states: dict[int, Gcra] = {}
        self.random = random.Random(1)

    def answer(self, now_seconds: float, source: int) -> str:
        """A request's fate."""
        now = int((now_seconds - now_seconds % TICK_SECONDS) / UNIT_SECONDS)
        state = self.states.setdefault(source, Gcra(now))
        if state.conforms(self.limit, now) or self.random.random() < self.leak:
            return "answered"
        return "dropped"


def share(limiter: Limiter | Ntpguard, times: list[float]) -> float:
    """Of a client's requests, the share that is answered, in per cent."""
    fates = [limiter.answer(START_SECONDS + time, 1) for time in times]
    return 100 * fates.count("answered") / len(fates)


def figures() -> dict[str, dict[str, tuple[float, float]]]:
    """Client, daemon: the daemon's share and ours."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for client, times in clients().items():
        found[client] = {
            one.name: (
                share(one.limiter, times),
                share(Ntpguard(one.configuration, one.kind), times),
            )
            for one in daemons()
        }
    return found


def tables() -> dict[str, str]:
    """By name, for tests.pages.filled."""
    rows = [
        [client, *(f"{theirs:.0f} / {ours:.0f}" for theirs, ours in row.values())]
        for client, row in figures().items()
    ]
    return {"migrated": table(["a client asks", *(one.name for one in daemons())], rows)}


def page() -> str:
    """The page with its table written anew."""
    return filled(PAGE.read_text(encoding="utf-8"), tables())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(tables()["migrated"])
