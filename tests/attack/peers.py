"""The rate limiters of other servers, as protocol.md section 3 describes them: one source's state each
(their tables are large enough here), the clock in seconds.
"""

import math
import random
from typing import Literal, Protocol

Answer = Literal["answered", "kissed", "dropped"]


class Limiter(Protocol):
    """What a server does with a request."""

    def answer(self, now_seconds: float, source: int) -> Answer:
        """`source` is any number that stands for the address."""


class Chrony:
    """chrony `ratelimit interval 3 burst 8 leak 2 kod K` (protocol.md section 3; clientlog.c of
    mlichvar/chrony): a token bucket on ticks of 1/16 s. Without a token 1 in 2^leak is answered, which
    empties the bucket; if requests come more than twice as fast after drops than after answers, the
    leak is inverted: most are answered. 1 in 2^kod of the drops is a KoD.
    """

    TICKS, RATE_SCALE, SLOWEST = 16, 4, 14

    def __init__(
        self, interval: int = 3, burst: int = 8, leak: int = 2, kod: int = 0, *, seed: int = 1
    ) -> None:
        self.cost = self.TICKS << interval
        self.most = self.cost * burst
        self.leak, self.kod = leak, kod
        self.random = random.Random(seed)
        self.sources: dict[int, dict[str, int | None]] = {}

    def answer(self, now_seconds: float, source: int) -> Answer:
        """A request's fate."""
        now = int(now_seconds * self.TICKS)
        one = self.sources.get(source)
        if one is None:
            one = {
                "tokens": self.most,
                "last": now,
                "dropped": 0,
                "rate": None,
                "timeout_rate": None,
            }
            self.sources[source] = one
        else:
            elapsed = now - (one["last"] or 0)
            one["last"] = now
            one["tokens"] = min((one["tokens"] or 0) + elapsed, self.most)
            which = "timeout_rate" if one["dropped"] else "rate"
            one[which] = self._average(one[which], elapsed)
        one["dropped"] = 0
        tokens = one["tokens"] or 0
        if tokens >= self.cost:
            one["tokens"] = tokens - self.cost
            return "answered"
        drop = self.random.getrandbits(self.leak) != 0
        rate, timeout_rate = one["rate"], one["timeout_rate"]
        if rate is None:
            rate = -128
        if timeout_rate is not None and timeout_rate > rate + self.RATE_SCALE:
            drop = not drop
        if not drop:
            one["tokens"] = 0
            return "answered"
        if self.kod and not self.random.getrandbits(self.kod):
            return "kissed"
        one["dropped"] = 1
        return "dropped"

    def _average(self, rate: int | None, elapsed: int) -> int:
        """A rough moving average of log2 of the rate, in quarters."""
        scale = self.RATE_SCALE
        log = -scale * 5  # of the interval; no tick passed
        if elapsed:
            log = -scale * 4
            elapsed += elapsed >> 1
            while elapsed > 1 and log < self.SLOWEST * scale:
                elapsed >>= 1
                log += scale
        if rate is None:
            return -log
        if rate < -log:
            return rate + 1
        if rate > -log:
            fast = scale * 5 // 2 - log
            return fast if rate > fast else (rate - log - 1) // 2
        return rate


class Ntpsec:
    """NTPsec's built-in `limited`, with `kod`; `limit average 1.0 burst 20 kod 0.5` (protocol.md
    section 3): a score that each request raises by 1/20 and time lets fall by e^(-t/20). From 1.0 on
    nothing is answered; up to 1.5 there is a KoD instead.
    """

    AVERAGE, BURST, KOD = 1.0, 20.0, 0.5

    def __init__(self) -> None:
        self.sources: dict[int, tuple[float, float]] = {}

    def answer(self, now_seconds: float, source: int) -> Answer:
        """A request's fate."""
        score, last = self.sources.get(source, (0.0, now_seconds))
        score = score * math.exp((last - now_seconds) / self.BURST) + 1 / self.BURST
        self.sources[source] = score, now_seconds
        if score < self.AVERAGE:
            return "answered"
        return "kissed" if score <= self.AVERAGE + self.KOD else "dropped"


class Ntpd:
    """ntpd 4.2.8 `restrict limited kod` with `discard average 3 minimum 2` (protocol.md section 3;
    ntp_monitor.c): a counter that each answered request raises by 8 - 2 and each second lowers by one.
    A request that would reach 64, or comes within a second of the one before, trips it: it is set to
    72, so packets less than 8 s apart keep it up. Only a trip is kissed.
    """

    HEADWAY, MINIMUM, SHIFT, GRACE = 8, 2, 8, 2

    def __init__(self) -> None:
        self.sources: dict[int, tuple[int, float]] = {}

    def answer(self, now_seconds: float, source: int) -> Answer:
        """A request's fate."""
        if source not in self.sources:
            self.sources[source] = 0, now_seconds
            return "answered"
        counter, last = self.sources[source]
        interval = math.floor(now_seconds - last + 0.5)
        counter = max(0, counter - interval)
        limit = self.SHIFT * self.HEADWAY
        fate: Answer = "dropped"
        if interval + 1 >= self.MINIMUM and counter + self.HEADWAY < limit:
            counter += self.HEADWAY - self.GRACE
            fate = "answered"
        elif counter < limit:
            counter = limit + self.HEADWAY
            fate = "kissed"
        self.sources[source] = counter, now_seconds
        return fate


def peers() -> dict[str, Limiter]:
    """Each server's limiter by the name that the tables use."""
    return {
        "chrony ratelimit": Chrony(),
        "chrony ratelimit kod 2": Chrony(kod=2),
        "ntpsec limited kod": Ntpsec(),
        "ntpd limited kod": Ntpd(),
    }
