"""The same traffic through a daemon's own limiter and through ntpguard with the policy that `ntpguard
migrate` makes of its configuration: writes the tables of docs/explanation/migration.md.

The daemons are the models of tests/attack/peers.py, ntpguard is that of tests/model: the whole decision,
with the bounds that all sources share.
"""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ntpguard import abi
from ntpguard.abi import Xdp
from ntpguard.migrate import migrated
from ntpguard.policy.check import parse_policy
from ntpguard.policy.compile import compile_policy
from ntpguard.words import Action, Mode
from tests.attack.peers import Answer, Chrony, Limiter, Ntpd, Ntpsec
from tests.bpf.packets import IPV4, SERVER_MAC
from tests.model.model import Model, Shape
from tests.model.policy import Bound, Limit, Policy, Root, Rule
from tests.model.world import OWN4
from tests.pages import filled, table

PAGE = Path(__file__).parents[2] / "docs/explanation/migration.md"
START_SECONDS = 1000.0
TICK_NS = 4_000_000  # the coarse clock's, at HZ=250
FATES: tuple[Answer, ...] = ("answered", "kissed", "dropped")
SLOWED_SECONDS = 64


@dataclass(frozen=True)
class Daemon:
    """One configuration, and a model of what the daemon makes of it."""

    name: str
    configuration: str
    kind: str
    limiter: Limiter


def daemons() -> dict[str, Daemon]:
    """By the name of their table; with fresh limiters."""
    chrony = "ratelimit interval 1 burst 16 kod 2"
    ntpd = "restrict default limited kod noquery"
    return {
        "chrony": Daemon("chrony", "ratelimit", "chrony", Chrony()),
        "chrony_kod": Daemon("chrony", chrony, "chrony", Chrony(1, 16, kod=2)),
        "ntpd": Daemon("ntpd", ntpd, "ntpd", Ntpd()),
        "ntpsec": Daemon("ntpsec", ntpd, "ntpsec", Ntpsec()),
    }


def every(seconds: float, count: int, start: float = 0.0) -> Iterator[float]:
    """Times of requests."""
    return (start + seconds * number for number in range(count))


@dataclass(frozen=True)
class Client:
    """When one source asks, in seconds; one that heeds asks each 64 s once it was kissed."""

    times: list[float]
    heeds: bool = False


def clients() -> dict[str, Client]:
    """By how they ask."""
    chance = random.Random(1)
    nat = [time for _ in range(60) for time in every(64, 56, chance.uniform(0, 64))]
    quick = [time for start in every(300, 12) for time in every(0.05, 4, start)]
    return {
        "every 64 s": Client([*every(64, 60)]),
        "8 at 2 s, then every 64 s": Client([*every(2, 8), *every(64, 30, 78)]),
        "4 back to back, each 5 minutes": Client(quick),
        "60 clients behind a NAT, every 64 s": Client(sorted(nat)),
        "every 4 s": Client([*every(4, 900)]),
        "every second": Client([*every(1, 900)]),
        "every second; after a KoD every 64 s": Client([*every(1, 900)], heeds=True),
        "20,000 in a second": Client([*every(0.00005, 20_000)]),
    }


def limit_of(words: abi.Limit) -> Limit:
    """A compiled limit as plain numbers."""
    shift = abi.GCRA_TAT_SHIFT
    return Limit(words.emission_interval >> shift, words.burst_tolerance >> shift)


def model_of(configuration: str, kind: str) -> Model:
    """ntpguard with the migrated policy, enforced."""
    words = compile_policy(parse_policy(migrated([("f", configuration)], kind).toml())).policy
    kod, newcomers, gate, ceiling = (Bound(limit_of(one.limit), one.batch) for one in words.bounds)
    model = Model(Shape(buckets=64, mac=SERVER_MAC, tries=False))
    model.set_addresses({0xFFFF << 32 | OWN4: abi.ADDRESS_LOCAL})
    model.set_policy(
        0,
        Policy(
            kod=kod,
            newcomers=newcomers,
            gate=gate,
            ceiling=ceiling,
            leak_shard=limit_of(words.leak_shard),
            answers=limit_of(words.answers),
            odd=limit_of(words.odd),
            flags=words.flags,
            kod_interval=words.kod_interval,
            kod_patience=words.kod_patience,
            kod_flood=words.kod_flood,
            established_spacing=words.established_spacing,
            signatures_always=0,
            signatures=(),
            rules=tuple(
                Rule(limit_of(one.limit), one.leak, Action(one.action), one.flags)
                for one in words.classes
            ),
        ),
    )
    model.set_root(Root(Mode.ENFORCE))
    return model


class Ntpguard:
    """The model as a limiter, for one source."""

    def __init__(self, configuration: str, kind: str) -> None:
        self.model = model_of(configuration, kind)
        self.random = random.Random(1)
        self.frame = bytes(IPV4)

    def answer(self, now_seconds: float, source: int) -> Answer:
        """A request's fate."""
        now_ns = int(now_seconds * 10**9) // TICK_NS * TICK_NS
        code, _ = self.model.judge(self.frame, now_ns, self.random.getrandbits(32))
        fates: dict[Xdp, Answer] = {Xdp.PASS: "answered", Xdp.TX: "kissed", Xdp.DROP: "dropped"}
        return fates[code]


def shares(limiter: Limiter, client: Client) -> list[float]:
    """Of a client's requests, the shares of each fate, in per cent."""
    found: Counter[Answer] = Counter()
    resumes = 0.0
    for time in client.times:
        if time < resumes:
            continue
        fate = limiter.answer(START_SECONDS + time, 1)
        found[fate] += 1
        if resumes or (client.heeds and fate == "kissed"):
            resumes = time + SLOWED_SECONDS
    return [100 * found[one] / found.total() for one in FATES]


def percent(value: float) -> str:
    """A few among many are not none."""
    if 0 < value < 0.1:
        return "< 0.1"
    return f"{value:.1f}" if 0 < value < 1 else f"{value:.0f}"


def tables() -> dict[str, str]:
    """By name, for tests.pages.filled."""
    found: dict[str, str] = {}
    for name in daemons():
        rows = []
        for client, one in clients().items():
            daemon = daemons()[name]
            both = (daemon.limiter, Ntpguard(daemon.configuration, daemon.kind))
            rows.append([client, *(percent(x) for each in both for x in shares(each, one))])
        heads = [f"{who}: {fate}" for who in (daemon.name, "ntpguard") for fate in FATES]
        found[name] = table(["a client asks", *heads], rows)
    return found


def page() -> str:
    """The page with its tables written anew."""
    return filled(PAGE.read_text(encoding="utf-8"), tables())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
