"""What if, inside one source's excess, packets of some shape were preferred? A prototype of the excess
decision alone, on the default policy's figures; the real program decides without it or with it by what
this shows (docs/explanation/attacks.md).

Every variant is prepaid: an excess packet can put a credit by instead of being dropped, and takes the
leak shard's token for it then. A preferred packet spends a credit and passes, else it has the same chance
as any other. So the sum of what leaks never exceeds leak_max, nor (1 + extra) times the leak.
"""

import random
from dataclasses import dataclass
from enum import StrEnum

RATE, BURST, LEAK = 1.0, 32, 0.25
SHARD_BURST_SECONDS = 0.25
TICK = 0.004  # of the coarse clock, seconds


class Preference(StrEnum):
    """Which of a source's excess packets are preferred."""

    NONE = "none"  # the leak alone
    # differs from the excess's majority (Boyer and Moore); without a counter: from the one before
    MINORITY = "minority"
    REMEMBERED = "remembered"  # looks like the source's requests did when it was polite


@dataclass(frozen=True)
class Variant:
    """One candidate. `extra`: share of the leak put by as credits, on top of it; with `divert`, out
    of it.
    """

    preference: Preference = Preference.NONE
    shape_bits: int = 8
    counter_bits: int = 2  # of the majority, or of the memory's confidence
    credit_bits: int = 2
    extra: float = 1 / 8
    divert: bool = False


class Source:
    """One source under a variant; the virtual clock is in seconds."""

    def __init__(self, variant: Variant, shard_rate: float, seed: int) -> None:
        self.variant = variant
        self.random = random.Random(seed)
        self.tat = self.shard_tat = 0.0
        self.shard_interval = 1 / shard_rate
        self.shard_tolerance = (int(shard_rate * SHARD_BURST_SECONDS) - 1) / shard_rate
        self.shape = self.counter = self.credit = 0
        self.excess = self.leaked = 0

    def remember(self, shape: int) -> None:
        """The source was polite for long, with requests of this shape."""
        self.shape, self.counter = self._hash(shape), (1 << self.variant.counter_bits) - 1

    def passes(self, now: float, shape: int) -> bool:
        """Judges one request."""
        now -= now % TICK
        if self.tat - now <= (BURST - 1) / RATE:
            if self.tat <= now and self.variant.preference == Preference.REMEMBERED:
                self._vote(self._hash(shape))
            self.tat = max(self.tat, now) + 1 / RATE
            return True
        self.excess += 1
        passed = self._excess_passes(now, shape)
        self.leaked += passed
        return passed

    def _excess_passes(self, now: float, shape: int) -> bool:
        chance = self.random.random()
        variant = self.variant
        if variant.preference == Preference.NONE:
            return chance <= LEAK and self._shard(now)
        if self._prefers(self._hash(shape)):
            if self.credit:
                self.credit -= 1
                return True
            return chance <= LEAK and self._shard(now)
        # the lowest chances put by (divert), or those just above the leak (extra)
        low, high = LEAK, LEAK * (1 + variant.extra)
        if variant.divert:
            low, high = 0.0, LEAK * variant.extra
        if low < chance <= high and self.credit < (1 << variant.credit_bits) - 1:
            self.credit += self._shard(now)
            return False
        return chance <= LEAK and self._shard(now)

    def _prefers(self, shape: int) -> bool:
        if self.variant.preference == Preference.REMEMBERED:
            return shape == self.shape
        was, counter = self.shape, self.counter
        self._vote(shape)
        return shape != was and (counter > 0 or not self.variant.counter_bits)

    def _vote(self, shape: int) -> None:
        if shape == self.shape:
            self.counter = min(self.counter + 1, (1 << self.variant.counter_bits) - 1)
        elif self.counter:
            self.counter -= 1
        else:
            self.shape = shape
            if self.variant.preference == Preference.MINORITY and self.variant.counter_bits:
                self.counter = 1

    def _shard(self, now: float) -> bool:
        if self.shard_tat - now > self.shard_tolerance:
            return False
        self.shard_tat = max(self.shard_tat, now) + self.shard_interval
        return True

    def _hash(self, shape: int) -> int:
        return shape & (1 << self.variant.shape_bits) - 1


class Forger(StrEnum):
    """What the forger knows of its victim's shape, and does with it."""

    UNKNOWING = "does not know it"
    KNOWING = "knows it"
    RANDOM = "random for each packet"
    DRAINING = "knows it, and sends others between"


def share_answered(
    variant: Variant,
    forger: Forger,
    per_second: float,
    *,
    shard_rate: float,
    polls: int,
    seed: int = 1,
    worlds: int = 1,
) -> float:
    """Of a victim's requests, while a forger sends `per_second` in its name. Shapes are hashes: in
    each world the victim's and the forger's are drawn anew.
    """
    chosen = random.Random(seed)
    every = poll_seconds(per_second)
    answered = asked = 0
    for _world in range(worlds):
        victim, other = chosen.getrandbits(16), chosen.getrandbits(16)
        one = Source(variant, shard_rate, chosen.getrandbits(32))
        if variant.preference == Preference.REMEMBERED:
            one.remember(victim)
        now, poll, sent = 1000.0, 1000.0 + 60, 0
        end = 1000.0 + 60 + every * polls / worlds
        while now < end:
            now += chosen.expovariate(per_second)
            while poll <= now:
                at = poll
                answered += one.passes(at, victim)
                asked += 1
                poll += every * chosen.uniform(0.9, 1.1)
            sent += 1
            shape = {
                Forger.UNKNOWING: other,
                Forger.KNOWING: victim,
                Forger.RANDOM: chosen.getrandbits(16),
                Forger.DRAINING: victim if sent % 2 else other,
            }[forger]
            one.passes(now, shape)
    return answered / asked


def poll_seconds(per_second: float) -> float:
    """How often the simulated victim polls: 64 s; more often where the forger sends so much that it
    makes no difference to either (the victim stays under 0.4 % of the packets).
    """
    return 64.0 if per_second < 10 else max(0.64, 64.0 * 4 / per_second)


def abuser_share(variant: Variant, shapes: int, per_second: float, shard_rate: float) -> float:
    """Of the excess of an abuser that sends so many shapes in turn (0: random ones) what leaks; the
    first of them is the one that the source is remembered by.
    """
    chosen = random.Random(2)
    one = Source(variant, shard_rate, 3)
    one.remember(0)
    now = 1000.0
    for sent in range(50_000):
        now += 1 / per_second
        one.passes(now, sent % shapes if shapes else chosen.getrandbits(16))
    return one.leaked / one.excess
