"""Does a KoD help here? What sources sent before and after their first one, beside a control group.

By the keyed hash, which no client knows, one source in 16 is never kissed, and another one has its
first KoD held back for kod.interval, while what it sends is counted (bpf/trial.h). Whatever slows
a source down besides (its burst ends, it is switched off) does so in both groups alike: the
difference between them is the KoD's doing.

Shares have Wilson's score interval (E. B. Wilson, JASA 22, 1927, 209-212); their difference has
Newcombe's, method 10 (R. G. Newcombe, Statistics in Medicine 17, 1998, 873-890): both 95 %.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt

from ntpguard import abi
from ntpguard.moments import NANOSECONDS
from ntpguard.policy.shapes import clients
from ntpguard.sources import Slot
from ntpguard.words import Group, Word

Z = 1.959964  # 95 %, two-sided
LEAST = 10  # sources of each group; with fewer, the interval says nothing
WATCHED_SECONDS = 64  # and two intervals of KoDs, after which one that is not yet told is
SLOWED_BELOW, FASTER_ABOVE = 0.5, 1.5  # of the rate before
UNKNOWN = "unknown"  # client


class Change(Word):
    """What a source did after its first (would-be) KoD: under half of its rate before (or nothing
    at all), over one and a half of it, or about the same.
    """

    SLOWED = 0
    SAME = 1
    FASTER = 2


@dataclass(frozen=True)
class Outcome:
    """Of a source. change None: not known yet."""

    client: str
    group: Group
    change: Change | None


@dataclass(frozen=True)
class Seen:
    """What a source's slot says: requests, and when the last within the limit was (up to a burst's
    time too late).
    """

    requests: int
    last_ns: int


@dataclass(frozen=True)
class Difference:
    """A share in the kissed group less that in the control group, with its interval."""

    share: float
    low: float
    high: float

    def words(self, what: str) -> str:
        """How many more do `what`, for people, in points of a hundred."""
        share, low, high = (f"{round(100 * one):+d}" for one in (self.share, self.low, self.high))
        return f"{share} % {what} (95 %: {low} to {high})"


@dataclass(frozen=True)
class Comparison:
    """The two groups, of one client or of all."""

    client: str
    counts: dict[Group, Counter[Change]] = field(
        default_factory=lambda: {group: Counter() for group in Group}
    )

    def sources(self, group: Group) -> int:
        """How many are told."""
        return self.counts[group].total()

    def difference(self, change: Change) -> Difference | None:
        """How many more did so because of the KoD; None: too few yet."""
        if min(map(self.sources, Group)) < LEAST:
            return None
        kissed, control = (self.counts[group] for group in (Group.KISSED, Group.CONTROL))
        share = kissed[change] / kissed.total() - control[change] / control.total()
        return Difference(
            share, *newcombe(kissed[change], kissed.total(), control[change], control.total())
        )

    def finding(self) -> str:
        """What can be said, in one line."""
        slowed, faster = self.difference(Change.SLOWED), self.difference(Change.FASTER)
        if slowed is None or faster is None:
            return (
                f"too few yet: {self.sources(Group.KISSED)} kissed, "
                f"{self.sources(Group.CONTROL)} control, {LEAST} of each are needed"
            )
        slow, fast = slowed.words("slow down"), faster.words("speed up")
        if slowed.high < 0 or (faster.low > 0 and slowed.low <= 0):
            return f"KoD harms: {slow}, {fast}"
        if slowed.low > 0:
            return f"KoD helps: {slow}" + (f", but {fast}" if faster.low > 0 else "")
        return f"no difference shown: {slow}"


def wilson(count: int, of: int) -> tuple[float, float]:
    """The interval of a share."""
    share, square = count / of, Z * Z
    middle, half = 2 * count + square, Z * sqrt(square + 4 * count * (1 - share))
    return (middle - half) / (2 * (of + square)), (middle + half) / (2 * (of + square))


def newcombe(count: int, of: int, less: int, less_of: int) -> tuple[float, float]:
    """The interval of count/of - less/less_of, of two independent groups."""
    first, second = count / of, less / less_of
    low1, high1 = wilson(count, of)
    low2, high2 = wilson(less, less_of)
    return (
        first - second - sqrt((first - low1) ** 2 + (high2 - second) ** 2),
        first - second + sqrt((high1 - first) ** 2 + (second - low2) ** 2),
    )


def change_of(trial: abi.Trial, seen: Seen | None, now_ns: int, interval_ns: int) -> Change | None:
    """What the source did; None: it has not been told yet, or was watched for too short a time.

    `seen`: None if it has no slot. A source loses its slot, or has got another one and its count
    begins anew, only after it was idle: it slowed down. One that stopped asking when its trial was
    long over is told by what it did until then: in the control group, an end was noted.
    """
    if not trial.kod_ns or trial.kod_ns <= trial.begin_ns:
        return None
    if trial.end_ns:
        end_ns, count = int(trial.end_ns), int(trial.end_requests)
    elif now_ns - trial.kod_ns < max(WATCHED_SECONDS * NANOSECONDS, 2 * interval_ns):
        return None
    elif seen is None:
        return Change.SLOWED
    else:
        stayed = seen.last_ns - trial.kod_ns >= 2 * interval_ns
        end_ns, count = seen.last_ns if stayed else now_ns, seen.requests
    if count <= trial.kod_requests:
        return Change.SLOWED
    before = (trial.kod_requests - trial.begin_requests) / (trial.kod_ns - trial.begin_ns)
    after = (count - trial.kod_requests) / (end_ns - trial.kod_ns)
    if after < before * SLOWED_BELOW:
        return Change.SLOWED
    return Change.FASTER if after > before * FASTER_ABOVE else Change.SAME


def client_of(trial: abi.Trial) -> str:
    """The likeliest client that sends such a header: a guess."""
    found = clients(bytes(trial.header), int(trial.source_port))
    return found[0] if found else UNKNOWN


def seen(slot: Slot, rules: Sequence[abi.ClassRule], now_ns: int) -> Seen:
    """What a slot says of the source's requests. `rules`: of the classes, as they hold now."""
    _, gcra, aux, stat = slot
    own = rules[abi.field(aux, abi.AUX_CLASS_SHIFT, abi.AUX_CLASS_BITS)]
    interval = own.limit.emission_interval >> abi.GCRA_TAT_SHIFT
    last = (gcra >> abi.GCRA_TAT_SHIFT) - interval << abi.GCRA_UNIT_SHIFT
    return Seen(stat >> abi.STAT_REQUESTS_SHIFT, min(last, now_ns))


def outcomes(
    items: Iterable[tuple[bytes, bytes]],
    seen_of: Callable[[int], Seen | None],
    now_ns: int,
    interval_ns: int,
) -> Counter[Outcome]:
    """How many sources of what the map of trials holds had which; `seen_of` says what the source of
    a key did since.
    """
    found: Counter[Outcome] = Counter()
    for key, raw in items:
        trial = abi.Trial.from_buffer_copy(raw)
        ended = trial.end_ns or not trial.kod_ns
        own = None if ended else seen_of(int.from_bytes(key, "little"))
        change = change_of(trial, own, now_ns, interval_ns)
        found[Outcome(client_of(trial), Group(trial.group), change)] += 1
    return found


def compare(outcomes: Mapping[Outcome, int]) -> dict[str, Comparison]:
    """By client, of those whose outcome is known."""
    found: dict[str, Comparison] = {}
    for one, count in outcomes.items():
        if one.change is not None:
            own = found.setdefault(one.client, Comparison(one.client))
            own.counts[one.group][one.change] += count
    return found


def together(comparisons: Iterable[Comparison], client: str) -> Comparison:
    """Of all clients."""
    total = Comparison(client)
    for one in comparisons:
        for group in Group:
            total.counts[group].update(one.counts[group])
    return total
