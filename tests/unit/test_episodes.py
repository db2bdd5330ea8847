"""Episodes: when one begins and ends, what is said of it, and that nothing grows without bound."""

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntpguard import episodes
from ntpguard.daemon import lastgood
from ntpguard.daemon.book import (
    AT_ONCE,
    COUNTER,
    MOST_ENDED,
    MOST_OPEN,
    MOST_WATCHED,
    Book,
    Sight,
)
from ntpguard.episodes import Episode, Kept, Numbers
from ntpguard.errors import NtpguardError
from tests.fuzz.readers import PYTHONS

NOW = 1_800_000_000.0
LOOK = 10.0
ONE = Sight("203.0.113.7", 100, 50, 0, False, (0, 0, 0), 40000, 57, "23" + "00" * 47)
WHOLE = Episode("203.0.113.7", NOW, NOW + 60, requests=90, excess=60)


def text(kept: Kept) -> str:
    """A file of these."""
    return "".join(episodes.lines(kept))


def grown(one: Sight, requests: int, excess: int) -> Sight:
    """The same source a look later: most of its excess is dropped."""
    sampled = (one.sampled[0] + 1, one.sampled[1], one.sampled[2] + 3)
    return replace(
        one,
        requests=one.requests + requests & COUNTER,
        excess=one.excess + excess & COUNTER,
        sampled=sampled,
    )


def look(
    book: Book, sight: Sight, times: int, *, each: int, begin: float
) -> tuple[Sight, list[str]]:
    """So many looks at a source that sends `each` requests between two, all of them excess."""
    lines = []
    for number in range(times):
        lines += book.look(begin + LOOK * number, begin + LOOK * number, [sight])
        sight = grown(sight, each, each)
    return sight, lines


def test_a_source_that_goes_on_for_a_minute_is_an_episode_and_ends_when_it_is_quiet() -> None:
    book = Book()
    sight, lines = look(book, ONE, 6, each=20, begin=NOW)
    assert lines == [] and not book.kept.open
    sight, lines = look(book, sight, 2, each=20, begin=NOW + 60)
    assert lines == [
        "abuse begins: 203.0.113.7 at up to 2.0 requests a second, like MicroPython ntptime"
    ]
    (found,) = book.kept.open
    assert (found.start, found.last, found.end) == (NOW, NOW + 70, None)
    assert (found.requests, found.excess, found.peak_per_second) == (140, 140, 2)
    assert book.look(NOW + 369, NOW + 369, []) == []
    assert book.look(NOW + 370, NOW + 370, []) == [
        "abuse ends: 203.0.113.7 at up to 2.0 requests a second, like MicroPython ntptime, 140 requests"
    ]
    assert book.kept.open == () and book.kept.total == 1
    (ended,) = book.kept.ended
    assert ended.end == NOW + 70 and book.sources() == set()


def test_much_at_once_is_an_episode_however_short() -> None:
    book = Book()
    assert book.look(NOW, NOW, [ONE]) == []
    (line,) = book.look(NOW + LOOK, NOW + LOOK, [grown(ONE, AT_ONCE, AT_ONCE)])
    assert line.startswith("abuse begins: 203.0.113.7 at up to 1000 requests a second")


def test_a_little_excess_now_and_then_is_none() -> None:
    book, sight = Book(), ONE
    for number in range(100):
        sight = grown(sight, 8, 1 if number % 4 == 0 else 0)
        assert book.look(NOW + LOOK * number, NOW + LOOK * number, [sight]) == []
    assert book.kept.open == ()


def test_counters_that_wrap_count_on_and_another_slot_counts_nothing() -> None:
    book = Book()
    last = replace(ONE, requests=COUNTER - 5, excess=COUNTER - 9)
    book.look(NOW, NOW, [last])
    book.look(NOW + LOOK, NOW + LOOK, [grown(last, 20, 20)])
    book.look(NOW + 2 * LOOK, NOW + 2 * LOOK, [replace(last, requests=3, excess=1)])
    book.look(NOW + 3 * LOOK, NOW + 3 * LOOK, [replace(last, requests=20_003, excess=20_001)])
    (found,) = book.kept.open
    assert found.requests == 20 + 20_000


def test_another_sources_slot_with_more_excess_counts_nothing() -> None:
    book = Book()
    book.look(NOW, NOW, [replace(ONE, requests=1000, excess=100)])
    book.look(NOW + LOOK, NOW + LOOK, [replace(ONE, requests=200, excess=150)])
    assert book.kept.open == ()
    assert book.look(NOW + 70, NOW + 70, [replace(ONE, requests=210, excess=160)]) == []


def test_a_wall_clock_that_is_set_changes_no_rate_and_no_duration() -> None:
    book, sight = Book(), ONE
    for number in range(8):
        wall = NOW - 3600 if number > 3 else 100.0 if number < 2 else NOW
        book.look(wall, LOOK * number, [sight])
        sight = grown(sight, 20, 20)
    (found,) = book.kept.open
    assert (found.peak_per_second, found.seconds) == (2, 70)
    (line,) = book.look(0.0, 70 + 300, [])
    assert line.startswith("abuse ends")


def test_sources_that_are_seen_once_do_not_drive_out_one_that_goes_on() -> None:
    book, sight = Book(), ONE
    for number in range(8):
        forged = [replace(ONE, source=f"198.18.{n}.{number}") for n in range(250)] * 4
        forged += [replace(ONE, source=f"198.19.{n}.{number}") for n in range(250)]
        forged += [replace(ONE, source=f"198.20.{n}.{number}") for n in range(250)]
        forged += [replace(ONE, source=f"198.21.{n}.{number}") for n in range(250)]
        at = NOW + LOOK * number
        book.look(at, at, [*forged, sight])
        sight = grown(sight, 20, 20)
    assert [one.source for one in book.kept.open] == [ONE.source]


def test_in_mode_observe_nobody_is_said_to_be_refused() -> None:
    hasty = replace(
        WHOLE, seconds=3600, requests=3600, sampled=(10, 0, 30), last_per_second=1.0, observed=True
    )
    assert [rule[0] for rule in hasty.broken()] == ["1"]


def test_the_rules_that_it_broke_are_named() -> None:
    calm = Episode("203.0.113.7", NOW, NOW + 3600, seconds=3600, requests=60, excess=2)
    assert calm.broken() == []
    hasty = replace(calm, requests=3600, sampled=(10, 1, 30), last_per_second=1.0, unheeded=2)
    assert [rule[0] for rule in hasty.broken()] == ["1", "2", "8"]
    assert [rule[0] for rule in replace(hasty, last_per_second=0.1).broken()] == ["1", "8"]


def test_ten_thousand_attackers_at_once_stay_within_the_bounds() -> None:
    book = Book()
    chance = random.Random(1)
    sources = [replace(ONE, source=f"198.18.{n >> 8}.{n & 255}") for n in range(10_000)]
    logged = 0
    for number in range(20):
        sources = [grown(one, 2000, 2000) for one in sources]
        chance.shuffle(sources)
        logged += len(book.look(NOW + LOOK * number, NOW + LOOK * number, sources))
    kept = book.kept
    assert len(book.sources()) <= MOST_WATCHED and len(kept.open) == MOST_OPEN
    assert kept.total == MOST_OPEN and kept.untold == MOST_WATCHED - MOST_OPEN
    assert logged == MOST_OPEN
    for number in range(20, 60):
        book.look(NOW + LOOK * number, NOW + LOOK * number, [])
    assert book.kept.open == () and len(book.kept.ended) == MOST_ENDED
    assert book.sources() == set()


def test_what_is_kept_is_read_again_and_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    assert episodes.load() is None
    full = Episode("2001:db8:ffff:ffff::/64", NOW, NOW + 1e5, None, 1e5 / 3, 10**9, 10**9, 1e6 / 3)
    full = replace(
        full, sampled=(10**7,) * 3, ttls=(64,) * 4, header="ff" * 48, deaf=True, observed=True
    )
    going_on = tuple(replace(full, source=f"2001:db8:{n:x}::/64") for n in range(MOST_OPEN))
    kept = Kept(NOW, 5000, 17, going_on, (replace(full, end=NOW),) * MOST_ENDED)
    episodes.save(kept)
    assert episodes.load() == kept
    assert episodes.load_numbers() == Numbers(NOW, 5000, 17, MOST_OPEN, MOST_ENDED)
    assert episodes.path().stat().st_size < 2 << 20
    assert episodes.path().stat().st_mode & 0o777 == 0o600
    book = Book(kept)
    book.go_on(NOW)
    assert book.look(NOW, NOW, []) == []
    assert len(book.look(NOW + 300, NOW + 300, [])) == MOST_OPEN  # they ended meanwhile


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "{",
        "[]",
        '{"schema": 1}',
        '{"schema": 2}',
        '{"schema": 2, "open": 3}',
        "\x00",
        "[" * 100_000,
        *(
            text(Kept(open=(replace(WHOLE, **wrong),)))
            for wrong in (
                {"last": "x"},
                {"last": None},
                {"start": 1e300},
                {"sampled": (1,)},
                {"source": "zz"},
                {"header": "x"},
                {"header": None},
                {"requests": 1.5},
                {"source": 5},
                {"source": "fe80::1%\x1b[31m"},
                {"requests": 10**4000},
                {"excess": -1},
                {"peak_per_second": -1.0},
            )
        ),
        f'{{"schema": {"9" * 5000}}}',
        text(Kept(total=10**30)),
        text(Kept(written="x")),  # type: ignore[arg-type]
        text(Kept(open=(WHOLE,))).replace("ttls", "unknown"),
        text(Kept(open=(WHOLE,))).partition("\n")[0],
        text(Kept(ended=(WHOLE,))) * 2,
        text(Kept(open=(WHOLE,))) + "3",
        "\ufeff{",
        "\0" * 100,
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    episodes.path().write_text(damaged)
    with pytest.raises(NtpguardError, match=r"episodes\.json: .*move it away") as told:
        episodes.load()
    assert not any(one in str(told.value) for one in PYTHONS)


def test_a_file_that_does_not_end_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    for path in (episodes.path(), lastgood.path()):
        path.symlink_to("/dev/zero")
    with pytest.raises(NtpguardError, match="larger than 64 MiB"):
        episodes.load()
    assert lastgood.read() is None


def test_a_full_disk_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    episodes.save(Kept(total=7))

    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NtpguardError, match="cannot keep episodes: No space left on device"):
        episodes.save(Kept(total=8))
    found = episodes.load()
    assert found and found.total == 7 and len(os.listdir(tmp_path)) == 1


sights = st.builds(
    Sight,
    source=st.sampled_from([f"203.0.113.{n}" for n in range(5)]),
    requests=st.integers(0, COUNTER),
    excess=st.integers(0, COUNTER),
    unheeded=st.integers(0, 15),
    deaf=st.booleans(),
    sampled=st.tuples(*[st.integers(0, 1 << 31)] * 3),
    source_port=st.integers(0, 65535),
    ttl=st.integers(0, 255),
    header=st.just("23"),
)


@given(st.lists(st.tuples(st.floats(-50, 500), st.lists(sights, max_size=4)), max_size=30))
def test_whatever_is_seen_counts_stay_possible(steps: list[tuple[float, list[Sight]]]) -> None:
    book, now = Book(), NOW
    steady = 0.0
    for seconds, seen in steps:  # the wall clock may be set back
        now += seconds
        steady += abs(seconds)
        book.look(now, steady, seen)
        for one in (*book.kept.open, *book.kept.ended):
            assert 0 <= one.excess <= one.requests and one.seconds >= 0
            assert one.peak_per_second >= 0 and len(one.ttls) <= 4
            assert isinstance(one.broken(), list)
