"""The rate limit, the bounds that all sources share, and the source table: what the model remembers.

GCRA is that of ITU-T I.371: a theoretical arrival time (tat), here 48 bits of gcra units that wrap.
Each state knows its words, as bpf/ntpguard.h lays them out, so that they can be compared.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from ntpguard import abi
from ntpguard.keys import family_of_key, hash_key
from tests.model.policy import Bound, Limit

WRAP = 1 << 48
HOUR = 3600 * 10**9 >> abi.GCRA_UNIT_SHIFT
BITES = 1 << 20  # a second or so: how long a refusal is felt
LONGEST_TICK = 10 * 10**6 >> abi.GCRA_UNIT_SHIFT  # a refusal's clock may be ahead by so much
LOW, HIGH = abi.PRIORITY_LOW, abi.PRIORITY_HIGH


def ahead_of(tat: int, now: int) -> int:
    """How far tat lies ahead of now; negative: behind."""
    return (tat - now + WRAP // 2) % WRAP - WRAP // 2


@dataclass(slots=True)
class Gcra:
    """One word of the limit."""

    tat: int = 0

    def conforms(self, limit: Limit, now: int, *, own: bool = True) -> bool:
        """Takes one request if the limit has room. What an older limit left further ahead than this one
        can have put it counts as no more than there is room for, unless another limit that holds as well
        has put it there (not `own`).
        """
        ahead = ahead_of(self.tat, now)
        if own and ahead > limit.tolerance + limit.interval + LONGEST_TICK:
            ahead = limit.tolerance
        if ahead > limit.tolerance:
            return False
        self.tat = (now + max(ahead, 0) + limit.interval) % WRAP
        return True


@dataclass(slots=True)
class Shared:
    """A shared bound's word and the CPU's share of it. By priority: low, high."""

    tat: int = 0
    refused: list[int] = field(default_factory=lambda: [0, 0])
    tokens: list[int] = field(default_factory=lambda: [0, 0])

    def grants(self, bound: Bound, priority: int, now: int) -> bool:
        """Takes one request; a CPU takes a batch at once and asks once a tick when refused."""
        interval, tolerance = bound.limit.interval, bound.limit.tolerance
        if interval == 0:
            return True
        if self.tokens[priority]:
            self.tokens[priority] -= 1
            return True
        if self.refused[priority] == now:
            return False
        ahead = max(0, ahead_of(self.tat, now))
        share = 1 if priority == HIGH else 2  # low: half of the tolerance
        if ahead * share > tolerance:
            self.refused[priority] = now
            if ahead > tolerance + interval:
                self.tat = (now + tolerance + interval) % WRAP
            return False
        batch = bound.batch
        if (ahead + (batch - 1) * interval) * share > tolerance:
            batch = 1
        self.tat = (now + ahead + batch * interval) % WRAP
        self.tokens[priority] = batch - 1
        return True

    def bites(self, now: int) -> bool:
        """Whether it refused someone just now; or, as the program has it, whether it never did and the
        clock is about to wrap: for ten milliseconds in nine years.
        """
        now += LONGEST_TICK
        return any((now - refused) % WRAP < BITES + LONGEST_TICK for refused in self.refused)


@dataclass(slots=True)
class Slot:
    """A source."""

    key: int
    gcra: Gcra
    class_index: int
    generation: int
    mark: int
    excess: int = 0
    kod_time: int = 0
    after_kod: int = 0
    unheeded: int = 0
    established: bool = False
    steps: int = 0
    look: int = 0
    credit: bool = False
    requests: int = 0
    exceeded: int = 0

    def kept(self, now: int) -> bool:
        """Over its limit, or established and seen within the hour."""
        ahead = ahead_of(self.gcra.tat, now)
        return (ahead > 0 and self.excess > 0) or (self.established and ahead > -HOUR)

    def words(self, fingerprint: int) -> tuple[int, int, int, int]:
        """key, gcra, aux, stat."""
        aux = (
            self.class_index << abi.AUX_CLASS_SHIFT
            | self.generation << abi.AUX_GENERATION_SHIFT
            | self.excess << abi.AUX_EXCESS_SHIFT
            | self.kod_time << abi.AUX_KOD_TIME_SHIFT
            | self.after_kod << abi.AUX_AFTER_KOD_SHIFT
            | self.unheeded << abi.AUX_UNHEEDED_SHIFT
            | self.established << abi.AUX_ESTABLISHED_SHIFT
            | self.look << abi.AUX_LOOK_SHIFT
            | self.credit << abi.AUX_CREDIT_SHIFT
            | self.steps << abi.AUX_STEPS_SHIFT
            | self.mark << abi.AUX_MARK_SHIFT
        )
        gcra = self.gcra.tat << abi.GCRA_TAT_SHIFT | fingerprint << abi.GCRA_FINGERPRINT_SHIFT
        stat = self.requests << abi.STAT_REQUESTS_SHIFT | self.exceeded << abi.STAT_EXCESS_SHIFT
        return self.key, gcra, aux, stat


class Sources:
    """The source table: buckets of four ways, two to a set."""

    def __init__(self, buckets: int, seed: tuple[int, int]) -> None:
        self.buckets: list[list[Slot | None]] = [[None] * abi.WAYS for _ in range(buckets)]
        self.seed = seed
        self.inserted, self.replaced = [0, 0], [0, 0]
        self.full = self.gated = 0
        self.hashes: dict[int, int] = {}

    def hash(self, key: int) -> int:
        """The key's hash."""
        value = self.hashes.get(key)
        if value is None:
            value = self.hashes[key] = hash_key(key, self.seed)
        return value

    def places(self, key: int) -> list[list[Slot | None]]:
        """The source's home bucket, and the one beside it."""
        home = self.hash(key) % len(self.buckets)
        return [self.buckets[home], self.buckets[home ^ 1]]

    def find(self, key: int) -> Slot | None:
        """The source's slot, if it has one."""
        for ways in self.places(key):
            for slot in ways:
                if slot is not None and slot.key == key:
                    return slot
        return None

    def insert(self, slot: Slot, now: int) -> bool:
        """Puts a new source into one of its buckets: where a way is empty, at home first; else over
        the least useful source of both. False: all are kept.
        """
        candidates = [
            (old is not None, 0 if old is None else ahead_of(old.gcra.tat, now), away, way)
            for away, ways in enumerate(self.places(slot.key))
            for way, old in enumerate(ways)
            if old is None or not old.kept(now)
        ]
        if not candidates:
            self.full += 1
            return False
        _, _, away, way = min(candidates)
        ways = self.places(slot.key)[away]
        old = ways[way]
        if old is not None:
            self.replaced[family_of_key(old.key)] += 1
        self.inserted[family_of_key(slot.key)] += 1
        ways[way] = slot
        return True

    def words(self) -> Iterable[int]:
        """Every word of the table, bucket by bucket: four keys, four gcra, four aux, four stat."""
        empty = (0, 0, 0, 0)
        for ways in self.buckets:
            slots = [
                empty if slot is None else slot.words(self.hash(slot.key) >> 52) for slot in ways
            ]
            for word in range(4):
                for slot_words in slots:
                    yield slot_words[word]
