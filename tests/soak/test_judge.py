"""A soak fails when something grows, is not counted, or is served worse; it does not otherwise."""

from dataclasses import replace

import pytest

from tests.soak.judge import Client, Minute, complaints, slope_per_minute

GOOD = [
    Minute(
        minute=number,
        pid=6 + (number > 8),
        memory_bytes=50_000_000 + number % 3 * 4096,
        descriptors=20,
        threads=4,
        pins=25,
        state_bytes=900,
        programs=1,
        polite_sent=2400,
        polite_answered=2390,
        sent=9_950,
        refused=7,
        frames=10_000,
        counted=9_950,
        socket_lost=0,
    )
    for number in range(30)
]
WELL = Client("chronyd4", asked=450, answered=446, kissed=0, synchronised=True)
MIB = 2**20


def test_an_even_hour_is_well() -> None:
    assert complaints(GOOD, [WELL]) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        # of the last half, minutes 15 to 29, in one process
        (lambda n: {"memory_bytes": 50 * MIB + n * 40_000}, "memory grows by 2.29 MiB an hour"),
        (lambda n: {"memory_bytes": 50 * MIB + n * 15_000}, None),
        (lambda n: {"memory_bytes": 50 * MIB + min(n, 14) * MIB}, None),
        (lambda n: {"memory_bytes": (50 + n % 2 * 3) * MIB}, "growth cannot be judged"),
        (lambda n: {"memory_bytes": 50 * MIB - n * 40_000}, None),
        (lambda n: {"pid": 7 + (n > 15)}, "restarted in the last half"),
        (lambda n: {"pid": 7 + (n > 14)}, None),
        (lambda n: {"descriptors": 20 + n // 22}, "descriptors: 20, then 21"),
        (lambda n: {"descriptors": 20 + 19 * (n % 7 == 0)}, None),
        (lambda n: {"threads": 4 + (n > 21)}, "threads: 4, then 5"),
        (lambda n: {"threads": 4 + (n % 3 > 0)}, None),
        (lambda n: {"pins": 25 + n}, "pins: 40, then 47"),
        (lambda n: {"pins": 25 + (n == 27)}, None),
        (lambda n: {"programs": 1 + n % 4}, None),
        (lambda n: {"programs": 1 + (n > 21)}, "programs: 1, then 2"),
        (lambda n: {"state_bytes": 900 << n}, "state: "),
        (lambda n: {"state_bytes": 900 * n}, None),
        (lambda n: {"frames": 9_949 if n == 3 else 10_000}, "minute 3: 9949 frames, 9950 counted"),
        (lambda n: {"frames": 10_251 if n == 3 else 10_000}, "minute 3: 10251 frames, 9950"),
        (lambda n: {"frames": 10_250}, None),
        (lambda n: {"sent": 9_953 if n == 3 else 9_950}, "minute 3: 9953 sent, 9950 counted: 3"),
        (lambda n: {"sent": 9_947 if n == 3 else 9_950}, "minute 3: 9947 sent, 9950 counted: -3"),
        (lambda n: {"sent": 9_948 + n % 5}, None),
        (lambda n: {"sent": 10_050, "down_sent": 100}, None),
        (lambda n: {"sent": 10_053, "down_sent": 100}, "10053 sent, 9950 counted: 103 missing"),
        (lambda n: {"refused": 5_000}, None),
        (lambda n: {"polite_answered": 2300 if n == 9 else 2390}, "minute 9: 95.83 %"),
        (lambda n: {"polite_answered": 2370 if n == 9 else 2390}, None),
        (
            lambda n: {"polite_answered": 2300 if n == 9 else 2390, "socket_lost": 900},
            "minute: cannot be judged: 900 lost in the server's receive buffer",
        ),
        (lambda n: {"socket_lost": 900}, None),
        (lambda n: {"failures": ("status: 3",) if n == 2 else ()}, "minute 2: status: 3"),
    ],
)
def test_what_is_wrong_is_told(change, says: str | None) -> None:  # type: ignore[no-untyped-def]
    found = complaints([replace(one, **change(one.minute)) for one in GOOD])
    assert (found == []) if says is None else any(says in one for one in found)


@pytest.mark.parametrize(
    ("client", "says"),
    [
        (replace(WELL, kissed=1), "chronyd4: kissed 1 times"),
        (replace(WELL, synchronised=False), "chronyd4: not synchronised"),
        (replace(WELL, answered=443), "chronyd4: 443 of 450 requests answered"),
    ],
)
def test_a_real_client_that_is_served_worse_is_told(client: Client, says: str) -> None:
    assert complaints(GOOD, [client]) == [says]


def test_a_slope_is_that_of_the_line() -> None:
    assert slope_per_minute([3.0, 5.0, 7.0, 9.0]) == pytest.approx((2.0, 0.0))
    assert slope_per_minute([1.0]) == (0, 0)
    slope, error = slope_per_minute([3.0, 1.0, 4.0, 1.0, 5.0, 2.0])
    assert abs(slope) < 2 * error
