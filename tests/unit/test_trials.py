"""What a trial of KoDs tells: intervals as published, and what counts as slower, same, faster."""

import random
from collections import Counter

import pytest

from ntpguard import abi
from ntpguard.trials import Change, Comparison, Seen, change_of, newcombe, seen, together, wilson
from ntpguard.words import Group

SECOND = 10**9
INTERVAL = 16 * SECOND


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_a_share_has_wilsons_interval(count: int, of: int, low: float, high: float) -> None:
    """Newcombe, Statistics in Medicine 17 (1998), 857-872, table I, method 3."""
    assert wilson(count, of) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("count", "of", "less", "less_of", "low", "high"),
    [
        (56, 70, 48, 80, 0.0524, 0.3339),
        (9, 10, 3, 10, 0.1705, 0.8090),
        (6, 7, 2, 7, 0.0582, 0.8062),
        (5, 56, 0, 29, -0.0381, 0.1926),
        (0, 10, 0, 20, -0.1611, 0.2775),
        (0, 10, 0, 10, -0.2775, 0.2775),
        (10, 10, 0, 20, 0.6791, 1.0),
        (10, 10, 0, 10, 0.6075, 1.0),
    ],
)
def test_a_difference_has_newcombes_interval(
    count: int, of: int, less: int, less_of: int, low: float, high: float
) -> None:
    """Newcombe, Statistics in Medicine 17 (1998), 873-890, table II, method 10."""
    assert newcombe(count, of, less, less_of) == pytest.approx((low, high), abs=5e-5)


def comparison(kissed: tuple[int, int, int], control: tuple[int, int, int]) -> Comparison:
    counts = (Counter(dict(zip(Change, one, strict=True))) for one in (kissed, control))
    return Comparison("all", dict(zip(Group, counts, strict=True)))


def test_what_is_found_is_said_with_its_interval() -> None:
    """The first is Newcombe's case (a)."""
    assert (
        comparison((56, 14, 0), (48, 32, 0)).finding()
        == "KoD helps: +20 % slow down (95 %: +5 to +33)"
    )
    assert (
        comparison((14, 56, 0), (32, 48, 0)).finding()
        == "KoD harms: -20 % slow down (95 %: -33 to -5), +0 % speed up (95 %: -5 to +5)"
    )
    assert comparison((0, 40, 40), (0, 80, 0)).finding().startswith("KoD harms: +0 % slow down")
    both = comparison((60, 0, 30), (20, 70, 0)).finding()
    assert both.startswith("KoD helps: +44 % slow down") and "but +33 % speed up" in both
    assert comparison((20, 20, 0), (20, 20, 0)).finding().startswith("no difference shown: +0 %")


def test_ten_of_each_group_are_needed() -> None:
    few = comparison((10, 0, 0), (0, 9, 0))
    assert few.difference(Change.SLOWED) is None
    assert few.finding() == "too few yet: 10 kissed, 9 control, 10 of each are needed"
    assert comparison((10, 0, 0), (0, 10, 0)).difference(Change.SLOWED)


def test_two_clients_are_added_up() -> None:
    one = comparison((1, 2, 3), (4, 5, 6))
    total = together([one, one], "all")
    assert [total.counts[g][c] for g in Group for c in Change] == [2, 4, 6, 8, 10, 12]


def trial(end: tuple[int, int] = (0, 0), **changes: int) -> abi.Trial:
    """Sixteen requests in the sixteen seconds before."""
    values = {"begin_ns": SECOND, "kod_ns": 17 * SECOND, "begin_requests": 4, "kod_requests": 20}
    one = abi.Trial(end_ns=end[0] * SECOND, end_requests=end[1])
    for name, value in (values | changes).items():
        setattr(one, name, value)
    return one


@pytest.mark.parametrize(
    ("requests", "change"),
    [
        (20 + 49, Change.SLOWED),
        (20 + 50, Change.SAME),
        (20 + 150, Change.SAME),
        (20 + 151, Change.FASTER),
        (20, Change.SLOWED),
        (None, Change.SLOWED),
        (3, Change.SLOWED),  # another slot since
    ],
)
def test_a_source_is_told_by_its_rate_before_and_after(
    requests: int | None, change: Change
) -> None:
    own = None if requests is None else Seen(requests, 117 * SECOND)
    assert change_of(trial(), own, 117 * SECOND, INTERVAL) == change


def test_a_source_is_told_when_its_trial_is_over_or_a_minute_later() -> None:
    assert change_of(trial(kod_ns=0), Seen(99, 0), 500 * SECOND, INTERVAL) is None
    assert change_of(trial(), None, 80 * SECOND, INTERVAL) is None
    assert change_of(trial(), None, 81 * SECOND, INTERVAL) == Change.SLOWED
    assert change_of(trial(), None, 81 * SECOND, 60 * SECOND) is None
    # what it does afterwards changes nothing
    assert change_of(trial((49, 20 + 32)), None, 9999 * SECOND, INTERVAL) == Change.SAME
    assert change_of(trial((49, 20 + 64)), Seen(20, 0), 9999 * SECOND, INTERVAL) == Change.FASTER


def test_who_goes_away_long_after_its_trial_is_told_by_what_it_did_until_then() -> None:
    """Else, who came within its limit after a KoD would be told slower than who had an end."""
    assert change_of(trial(), Seen(20 + 60, 117 * SECOND), 9999 * SECOND, INTERVAL) == Change.SAME
    assert change_of(trial(), Seen(20 + 31, 48 * SECOND), 9999 * SECOND, INTERVAL) == Change.SLOWED


def test_when_a_source_asked_last_is_told_from_its_slot() -> None:
    rules = [abi.ClassRule() for _ in range(abi.CLASSES)]
    units = SECOND >> abi.GCRA_UNIT_SHIFT
    rules[3].limit.emission_interval = 8 * units << abi.GCRA_TAT_SHIFT
    for tat, last in ((58, 50), (70, 60)):
        slot = (1, tat * units << abi.GCRA_TAT_SHIFT, 3, 7 << abi.STAT_REQUESTS_SHIFT)
        found = seen(slot, rules, 60 * SECOND)
        assert found.requests == 7
        assert found.last_ns == pytest.approx(last * SECOND, abs=SECOND // 1000)


def test_where_a_kod_does_nothing_few_differences_are_shown() -> None:
    """Of 95 % intervals, one in 20 may miss: binomial, 400 tries, 4 sigma: at most 37."""
    chance = random.Random(6)
    shown = 0
    for _ in range(400):
        slowed = [sum(chance.random() < 0.3 for _ in range(60)) for _ in Group]
        low, high = newcombe(slowed[0], 60, slowed[1], 60)
        shown += low > 0 or high < 0
    assert shown <= 37
