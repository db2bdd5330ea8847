"""Times to come, on two clocks."""

from datetime import UTC, datetime, timedelta

import pytest

from ntpguard.moments import Moment, boot_id, monotonic_ns, span

SECOND = 10**9


def test_within_a_boot_the_monotonic_clock_decides_and_after_a_reboot_the_wall_clock() -> None:
    past, future = (datetime.now(UTC) + timedelta(minutes=minutes) for minutes in (-5, 5))
    # the machine was suspended, or its clock was set: the time of day was meant to be another
    here = Moment(monotonic_ns() + 60 * SECOND, past, boot_id())
    assert 50 < here.left_seconds() <= 60
    assert abs(datetime.fromisoformat(here.rfc3339()) - past - timedelta(minutes=6)).seconds < 20
    assert Moment(monotonic_ns() - 1, future, boot_id()).is_over()
    # what another boot's monotonic clock was to show says nothing
    there = Moment(1, future, "another")
    assert 290 < there.left_seconds() <= 300
    assert 290 * SECOND < there.here_ns() - monotonic_ns() <= 300 * SECOND
    assert Moment(monotonic_ns() + 60 * SECOND, past, "another").is_over()


def test_a_moment_is_read_as_it_was_written() -> None:
    moment = Moment.after(90)
    assert Moment.read(moment.data()) == moment
    assert moment.left() == "90s" and moment.rfc3339().endswith("Z")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0s"),
        (42.4, "42s"),
        (119, "119s"),
        (119.6, "2m"),
        (492, "8m"),
        (599.9, "10m"),
        (3600, "60m"),
        (7199.9, "2h"),
        (86399.9, "24h"),
        (604799.9, "7d"),
    ],
)
def test_a_time_is_told_in_one_unit(seconds: float, text: str) -> None:
    assert span(seconds) == text
