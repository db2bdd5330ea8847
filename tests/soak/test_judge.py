"""A soak fails when something grows, is not counted, or is served worse; it does not otherwise."""

from dataclasses import replace

import pytest

from tests.soak.judge import Minute, complaints, slope_per_minute

GOOD = [
    Minute(
        minute=number,
        pid=7,
        memory_bytes=50_000_000 + number % 3 * 4096,
        descriptors=20,
        threads=4,
        pins=25,
        state_bytes=900,
        programs=2,
        polite_sent=2400,
        polite_answered=2390,
        frames=10_000,
        counted=9_950,
        socket_lost=0,
    )
    for number in range(30)
]


def test_an_even_hour_is_well() -> None:
    assert complaints(GOOD) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda n: {"memory_bytes": 50_000_000 + n * 40_000}, "resident memory grows by 2.3 MiB"),
        (lambda n: {"descriptors": 20 + n // 25}, "descriptors: 20, then 21"),
        (lambda n: {"descriptors": 20 + 19 * (n % 7 == 0)}, None),
        (lambda n: {"pins": 25 + n}, "pins: 45, then 50"),
        (lambda n: {"threads": 4 + (n > 24)}, "threads: 4, then 5"),
        (lambda n: {"programs": 2 + n // 20}, None),
        (lambda n: {"counted": 10_001 if n == 3 else 9_990}, "minute 3: 10000 frames, 10001"),
        (lambda n: {"counted": 9_000 if n == 3 else 9_990}, "minute 3: 10000 frames, 9000"),
        (lambda n: {"polite_answered": 2300 if n == 9 else 2390}, "minute 9: 95.83 %"),
        (lambda n: {"failures": ("status: 3",) if n == 2 else ()}, "minute 2: status: 3"),
        (lambda n: {"pid": 7 + n // 25}, "restarted in the last third"),
        (lambda n: {"state_bytes": 900 << n % 30}, "state: "),
    ],
)
def test_what_is_wrong_is_told(change, says: str | None) -> None:  # type: ignore[no-untyped-def]
    found = complaints([replace(one, **change(one.minute)) for one in GOOD])
    assert (
        (found == []) if says is None else any(one.startswith(says) or says in one for one in found)
    )


def test_a_slope_is_that_of_the_line() -> None:
    assert slope_per_minute([3.0, 5.0, 7.0, 9.0]) == pytest.approx((2.0, 0.0))
    assert slope_per_minute([1.0]) == (0, 0)
    slope, error = slope_per_minute([3.0, 1.0, 4.0, 1.0, 5.0, 2.0])
    assert abs(slope) < 2 * error
