"""What if a request were charged to wider IPv6 prefixes too, as Knot's KRU does (xdp.md 1.2: the /64 once,
the /56 three times, the /48 four times its limit)? A prototype of that decision alone.
"""

import random
from dataclasses import dataclass, field

RATE, BURST, LEAK = 1.0, 32, 0.25
LEAK_SHARD = 39.0  # requests a second that one source's, or one prefix's, leak can pass
KNOT = {56: 3, 48: 4}
GENEROUS = {56: 16, 48: 64}


@dataclass
class Prefixes:
    """GCRA of the /64 and of each wider prefix, at so many times its limit: a request passes if it
    conforms to all, and is charged to all then.
    """

    multiples: dict[int, int]
    tats: dict[tuple[int, int], float] = field(default_factory=dict)
    chance: random.Random = field(default_factory=lambda: random.Random(1))

    def passes(self, now: float, subnet: int) -> bool:
        """One request of the /64 with that number (16 bits) in its /48."""
        levels = [(64, subnet, 1)] + [
            (length, subnet >> (64 - length), times) for length, times in self.multiples.items()
        ]
        for length, prefix, times in levels:
            if self.tats.get((length, prefix), 0.0) - now > (BURST - 1 / times) / RATE:
                return self.chance.random() <= LEAK and self._shard(now)
        for length, prefix, times in levels:
            tat = max(self.tats.get((length, prefix), 0.0), now)
            self.tats[length, prefix] = tat + 1 / (RATE * times)
        return True

    def _shard(self, now: float) -> bool:
        tat = self.tats.get((0, 0), 0.0)
        if tat - now > 0.2:
            return False
        self.tats[0, 0] = max(tat, now) + 1 / LEAK_SHARD
        return True


def hopper_passes(
    multiples: dict[int, int], per_second: float = 50_000, seconds: float = 60
) -> float:
    """Packets a second that one who sends from 65,536 /64s of one /48 in turn gets to the daemon, after
    the bursts are spent; without wider prefixes that is what 65,536 sources may.
    """
    if not multiples:
        return min(per_second, 65_536 * RATE)
    one, passed = Prefixes(multiples), 0
    for number in range(int(per_second * seconds)):
        now = 1000 + number / per_second
        passed += one.passes(now, number * 40503 & 0xFFFF) and now >= 1000 + seconds - 20
    return passed / 20


def honest_share(
    multiples: dict[int, int], clients: int, spoofed_per_second: float = 0.0, seconds: float = 2000
) -> float:
    """Of the requests of so many clients (a /64 each, in one /48, polling every 64 s) the share
    answered, in percent, while a forger sends so many packets a second from random other /64s of it.
    """
    chosen = random.Random(2)
    one = Prefixes(multiples)
    events = [
        (1000 + chosen.uniform(0, 64) + 64 * i, subnet)
        for subnet in chosen.sample(range(65_536), clients)
        for i in range(int(seconds / 64))
    ]
    forged = [(1000 + i / spoofed_per_second, -1) for i in range(int(spoofed_per_second * seconds))]
    asked = answered = 0
    for at, subnet in sorted(events + forged):
        if subnet < 0:
            one.passes(at, chosen.getrandbits(16))
            continue
        passed = one.passes(at, subnet)
        if at > 1200:
            asked, answered = asked + 1, answered + passed
    return 100 * answered / asked
