"""What the sources do: when they asked last, how often they ask, how many are over their limit.

Read from a sample of the table's buckets, so that it takes as long with a million sources as with
some ten thousand; a smaller table is read whole. A source's bucket is chosen by a hash, hence the
sample is a random one: a share p of n sources looked at is right to sqrt(p (1 - p) / n) (one
standard deviation), 0.3 points at most with 32,768. Sources over their limit are counted in the
whole table.
"""

import re
import time
from array import array
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, repeat

from ntpguard import abi
from ntpguard.sources import (
    AUX,
    GCRA,
    IPV4_TAG,
    KEY,
    STAT,
    WORDS_PER_BUCKET,
    Words,
    counted_ahead,
    is_deaf,
)
from ntpguard.words import Family

MOST_BUCKETS = 1 << 14
MOST_LIMITED = 1 << 14
MARKED = re.compile(rb"[^\0]")
# how often sources ask is told from what they did since a survey some minutes ago
SNAPSHOT_SECONDS = 60.0
BASELINE_SECONDS = 300.0
UNITS_PER_SECOND = 1e9 / (1 << abi.GCRA_UNIT_SHIFT)
LAST_SEEN = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 86400.0)  # seconds
INTERVAL = (0.01, 0.1, 0.5, 1.0, 2.0, 8.0, 16.0, 32.0, 64.0, 128.0)  # seconds
REQUESTS = (1 << 32) - 1
CLASS = abi.CLASSES - 1
UNHEEDED = ((1 << abi.AUX_UNHEEDED_BITS) - 1) << abi.AUX_UNHEEDED_SHIFT


@dataclass(frozen=True)
class Limits:
    """Emission interval and burst tolerance of every class, gcra units; KoDs not heeded before a
    source is deaf, and the hash's seed, by which some sources are never kissed.
    """

    interval: Sequence[int]
    tolerance: Sequence[int]
    patience: int
    seed: tuple[int, int]


@dataclass(frozen=True)
class Histogram:
    """How many sources are at most at each bound, not cumulated; the last count is of the rest. The
    sum is of what is known.
    """

    bounds: tuple[float, ...]
    counts: tuple[float, ...]
    sum: float


@dataclass(frozen=True)
class Survey:
    """Numbers of sources, of the whole table. monotonic_seconds: when, on the packet path's clock.

    last_seen: seconds since the last request within the limit (of who is over it: 0). interval:
    mean seconds between requests over the last five minutes, of the sources held all that time;
    those that asked once or never are in the rest.
    """

    monotonic_seconds: float
    took_seconds: float
    looked_at: int  # sources
    limited: dict[Family, float]
    deaf: float
    last_seen: Histogram
    interval: Histogram


@dataclass(frozen=True)
class _Snapshot:
    monotonic_seconds: float
    # by way
    keys: list["array[int]"]
    requests: list["array[int]"]


class Surveyor:
    """Takes surveys, and remembers what the sources had asked at earlier ones."""

    def __init__(self) -> None:
        self._snapshots: deque[_Snapshot] = deque()

    def survey(self, words: Words, limits: Limits, now_ns: int) -> Survey:
        """Looks at the table. `now_ns`: CLOCK_MONOTONIC."""
        begin = time.monotonic()
        buckets = len(words) // WORDS_PER_BUCKET
        step = max(1, buckets // MOST_BUCKETS)
        now = now_ns >> abi.GCRA_UNIT_SHIFT
        seconds = now_ns / 1e9
        most_unheeded = limits.patience << abi.AUX_UNHEEDED_SHIFT
        # columns and values as arrays: lists of numbers leave memory in pieces to a process that
        # surveys for months
        ages = array("d")
        deaf = 0
        keys, requests = [], []
        for way in range(abi.WAYS):
            key, gcra, aux, stat = (
                array("Q", words[word + way :: WORDS_PER_BUCKET * step].tobytes())
                for word in (KEY, GCRA, AUX, STAT)
            )
            keys.append(key)
            requests.append(array("I", (one >> abi.STAT_REQUESTS_SHIFT for one in stat)))
            for source, word, more in zip(key, gcra, aux, strict=True):
                if not source or word & abi.GCRA_BUSY:
                    continue
                of = more & CLASS
                ahead = (word >> abi.GCRA_TAT_SHIFT) - now
                ages.append(max(0, limits.interval[of] - ahead) / UNITS_PER_SECOND)
                if more & UNHEEDED >= most_unheeded:
                    deaf += is_deaf(source, more, now_ns, limits.patience, limits.seed)
        snapshot = _Snapshot(seconds, keys, requests)
        interval = self._intervals(snapshot, step)
        self._remember(snapshot)
        limited = _limited(words, limits, now)
        return Survey(
            monotonic_seconds=seconds,
            took_seconds=time.monotonic() - begin,
            looked_at=len(ages),
            limited=limited,
            deaf=float(deaf * step),
            last_seen=_histogram(LAST_SEEN, ages, 0, step),
            interval=interval,
        )

    def _intervals(self, now: _Snapshot, step: int) -> Histogram:
        before = self._snapshots[0] if self._snapshots else None
        if before is None or len(before.keys[0]) != len(now.keys[0]):
            return _histogram(INTERVAL, (), 0, step)
        elapsed = now.monotonic_seconds - before.monotonic_seconds
        known = array("d")
        rest = 0
        for way in range(abi.WAYS):
            rows = zip(
                now.keys[way],
                before.keys[way],
                now.requests[way],
                before.requests[way],
                strict=True,
            )
            for key, then, asked, had in rows:
                if key and key == then:
                    more = asked - had & REQUESTS
                    if more > 1:
                        known.append(elapsed / more)
                    else:
                        rest += 1
        return _histogram(INTERVAL, known, rest, step)

    def _remember(self, now: _Snapshot) -> None:
        kept = self._snapshots
        if kept and len(kept[0].keys[0]) != len(now.keys[0]):
            kept.clear()  # another table
        if not kept or now.monotonic_seconds - kept[-1].monotonic_seconds >= SNAPSHOT_SECONDS:
            kept.append(now)
        while (
            len(kept) > 1 and now.monotonic_seconds - kept[1].monotonic_seconds >= BASELINE_SECONDS
        ):
            kept.popleft()


def _limited(words: Words, limits: Limits, now: int) -> dict[Family, float]:
    """Sources over their limit: of all, unless they are many. A source's excess since it last
    conformed is an octet of its own: those of a way are looked through at once.
    """
    found: Counter[Family] = Counter()
    with words.cast("B") as octets:
        excess = [
            octets[8 * (AUX + way) + abi.AUX_EXCESS_SHIFT // 8 :: 8 * WORDS_PER_BUCKET].tobytes()
            for way in range(abi.WAYS)
        ]
    marked = sum(len(one) - one.count(0) for one in excess)
    step = max(1, -(-marked // MOST_LIMITED))
    slots = (
        (match.start(), way) for way, one in enumerate(excess) for match in MARKED.finditer(one)
    )
    for bucket, way in islice(slots, 0, None, step):
        at = bucket * WORDS_PER_BUCKET + way
        source, word, of = words[at + KEY], words[at + GCRA], words[at + AUX] & CLASS
        ahead = (word >> abi.GCRA_TAT_SHIFT) - now
        tolerance = limits.tolerance[of]
        ahead = counted_ahead(ahead, limits.interval[of], tolerance)
        if source and not word & abi.GCRA_BUSY and ahead > tolerance:
            found[_family(source)] += step
    return {family: float(found[family]) for family in Family}


def _family(key: int) -> Family:
    return Family.IPV4 if key >> abi.KEY_TAG_SHIFT == IPV4_TAG else Family.IPV6


def _histogram(
    bounds: tuple[float, ...], values: Sequence[float], rest: int, scale: int
) -> Histogram:
    found = Counter(map(bisect_left, repeat(bounds), values))
    found[len(bounds)] += rest
    counts = tuple(float(found[i] * scale) for i in range(len(bounds) + 1))
    return Histogram(bounds, counts, sum(values) * scale)
