"""The survey: what it says of a table whose sources are known."""

import random
import tracemalloc

import pytest

from ntpguard import abi
from ntpguard.keys import trial_part
from ntpguard.survey import INTERVAL, LAST_SEEN, MOST_BUCKETS, Limits, Surveyor
from ntpguard.words import Family

SECOND = 1_000_000_000
UNIT = abi.GCRA_UNIT_SHIFT
NOW = 1_000_000 * SECOND
INTERVAL_UNITS = SECOND >> UNIT
# of one a second, with a burst of 9
SEED = (6, 7)
LIMITS = Limits([INTERVAL_UNITS] * abi.CLASSES, [8 * INTERVAL_UNITS] * abi.CLASSES, 4, SEED)
IPV6_KEY = 0x20010DB800000000


def table(buckets: int) -> "memoryview[int]":
    return memoryview(bytearray(buckets * abi.size(abi.Bucket))).cast("Q")


def put(
    words: "memoryview[int]", bucket: int, key: int, *, ahead: float, requests: int, way: int = 0
) -> None:
    """A source whose tat is `ahead` seconds after NOW; over its limit, it has just had excess."""
    tat = (NOW + int(ahead * SECOND)) >> UNIT
    at = bucket * 16 + way
    words[at] = key
    words[at + 4] = tat << abi.GCRA_TAT_SHIFT
    words[at + 8] = (ahead > 8) << abi.AUX_EXCESS_SHIFT
    words[at + 12] = requests << abi.STAT_REQUESTS_SHIFT


def test_when_sources_asked_last_and_which_are_over_their_limit() -> None:
    words = table(64)
    put(words, 0, abi.KEY_IPV4_TAG | 1, ahead=1, requests=1)  # just now
    put(words, 1, abi.KEY_IPV4_TAG | 2, ahead=-62, requests=1)  # 63 s ago
    put(words, 2, IPV6_KEY, ahead=8.5, requests=50)  # over its limit
    put(words, 3, abi.KEY_IPV4_TAG | 3, ahead=0, requests=1)
    words[3 * 16 + 4] |= abi.GCRA_BUSY  # being filled
    put(words, 4, IPV6_KEY, ahead=20, requests=50)  # was over an older policy's
    found = Surveyor().survey(words, LIMITS, NOW)
    assert found.looked_at == 4
    assert found.limited == {Family.IPV4: 0, Family.IPV6: 1}
    seen = dict(zip((*LAST_SEEN, float("inf")), found.last_seen.counts, strict=True))
    assert (seen[1.0], seen[64.0], sum(seen.values())) == (3, 1, 4)
    assert found.last_seen.sum == pytest.approx(63, abs=0.01)
    assert sum(found.interval.counts) == 0  # nothing to compare with yet


def test_who_is_deaf_but_no_one_who_is_never_kissed() -> None:
    keys = [abi.KEY_IPV4_TAG | n for n in range(500)]
    kissed = next(one for one in keys if trial_part(one, SEED) != abi.PART_CONTROL)
    control = next(one for one in keys if trial_part(one, SEED) == abi.PART_CONTROL)
    words = table(64)
    minute = (60 * SECOND) >> abi.KOD_UNIT_SHIFT
    lately = (NOW >> abi.KOD_UNIT_SHIFT & 0xFFFF) - minute
    for bucket, (key, unheeded, ago) in enumerate(
        [(kissed, 4, 1), (kissed, 9, 1), (control, 4, 1), (kissed, 3, 1), (kissed, 4, 20)]
    ):
        put(words, bucket, key, ahead=0, requests=9)
        kod = (lately - (ago - 1) * minute) & 0xFFFF
        words[16 * bucket + 8] = unheeded << abi.AUX_UNHEEDED_SHIFT | kod << abi.AUX_KOD_TIME_SHIFT
    assert Surveyor().survey(words, LIMITS, NOW).deaf == 2


def test_how_often_sources_ask_is_told_from_the_last_five_minutes() -> None:
    words, surveyor = table(64), Surveyor()
    for second in range(0, 601, 60):
        put(words, 0, abi.KEY_IPV4_TAG | 1, ahead=1, requests=10 * second)
        put(words, 1, abi.KEY_IPV4_TAG | 2, ahead=1, requests=second // 60)
        put(words, 2, IPV6_KEY, ahead=1, requests=7)  # asks no more
        if second == 540:
            put(words, 3, IPV6_KEY + 1, ahead=1, requests=1)  # new
        found = surveyor.survey(words, LIMITS, NOW + second * SECOND)
    asked = dict(zip((*INTERVAL, float("inf")), found.interval.counts, strict=True))
    assert (asked[0.1], asked[64.0], asked[float("inf")]) == (1, 1, 1)
    assert sum(asked.values()) == 3
    assert found.interval.sum == pytest.approx(60.1)


def test_what_is_remembered_of_a_full_table_is_little_and_stays_so() -> None:
    words, surveyor = table(1024), Surveyor()
    slots = [(bucket, way) for bucket in range(1024) for way in range(abi.WAYS)]
    for bucket, way in slots:
        put(words, bucket, abi.KEY_IPV4_TAG | bucket << 2 | way, ahead=1, requests=10**6, way=way)
    held = []
    tracemalloc.start()
    try:
        for second in range(0, 1801, 60):
            surveyor.survey(words, LIMITS, NOW + second * SECOND)
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    # snapshots of five minutes and the one before, 12 bytes a slot
    assert held[-1] < 7 * 16 * len(slots)
    assert held[-1] == pytest.approx(held[10], rel=0.05)


def test_another_table_is_not_compared_with_the_one_before() -> None:
    surveyor = Surveyor()
    surveyor.survey(table(64), LIMITS, NOW)
    words = table(128)
    put(words, 0, abi.KEY_IPV4_TAG | 1, ahead=1, requests=9)
    assert sum(surveyor.survey(words, LIMITS, NOW + 60 * SECOND).interval.counts) == 0


def test_of_a_large_table_a_sample_tells_as_much() -> None:
    chance = random.Random(1)
    buckets = MOST_BUCKETS * 8
    words = table(buckets)
    sources = 20_000
    for number in range(sources):
        over = number % 10 == 0
        put(
            words,
            chance.randrange(buckets),
            abi.KEY_IPV4_TAG | number + 1,
            ahead=9 if over else -100,
            requests=1,
            way=number % 4,
        )
    found = Surveyor().survey(words, LIMITS, NOW)
    # some were overwritten; the sample is an eighth: four standard deviations of it
    assert found.looked_at == pytest.approx(sources / 8, rel=0.1)
    assert found.limited[Family.IPV4] == pytest.approx(sources / 10, rel=0.05)
    assert sum(found.last_seen.counts) == pytest.approx(sources, rel=0.1)
