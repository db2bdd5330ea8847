"""Times to come, kept so that they are right whatever the clocks do meanwhile.

The packet path goes by CLOCK_MONOTONIC, which stands still while the machine is suspended and
begins anew with each boot; people go by the wall clock. A moment has both: within its boot the
monotonic clock decides, and the time of day is worked out from it; after a reboot the wall clock
decides.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

NANOSECONDS = 1_000_000_000
CLOCK_TICK_NS = 10_000_000  # the longest step of CLOCK_MONOTONIC_COARSE: at HZ=100
# a unit is used from two of it on, so that rounding hides at most a quarter of the time
UNITS = (("d", 86400), ("h", 3600), ("m", 60))


def boot_id() -> str:
    """The kernel's name of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def monotonic_ns() -> int:
    """The packet path's clock, in nanoseconds: also in a time namespace the machine's own."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) - _offset_ns()


@cache
def _offset_ns() -> int:
    """How far this process's time namespace is ahead (time_namespaces(7)); 0 if there are none."""
    try:
        text = Path("/proc/self/timens_offsets").read_text(encoding="ascii")
    except OSError:
        return 0
    found = {name: (int(s), int(ns)) for name, s, ns in map(str.split, text.splitlines())}
    seconds, nanoseconds = found.get("monotonic", (0, 0))
    return seconds * NANOSECONDS + nanoseconds


@dataclass(frozen=True)
class Moment:
    """A time to come: on the packet path's clock of one boot, and on the wall clock."""

    at_ns: int
    wall: datetime
    boot: str

    @classmethod
    def at(cls, at_ns: int) -> "Moment":
        """The moment at which this boot's monotonic clock is `at_ns`."""
        left = timedelta(microseconds=(at_ns - monotonic_ns()) / 1000)
        return cls(at_ns, datetime.now(UTC) + left, boot_id())

    @classmethod
    def after(cls, seconds: float) -> "Moment":
        """The moment in so many seconds."""
        return cls.at(monotonic_ns() + int(seconds * NANOSECONDS))

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> "Moment":
        """The moment of which `data` was made."""
        return cls(data["monotonic_ns"], datetime.fromisoformat(data["wall"]), data["boot"])

    def data(self) -> dict[str, Any]:
        """For JSON."""
        return {"monotonic_ns": self.at_ns, "wall": self.wall.isoformat(), "boot": self.boot}

    def here_ns(self) -> int:
        """When it comes on the monotonic clock of this boot."""
        if self.boot == boot_id():
            return self.at_ns
        left = self.wall - datetime.now(UTC)
        return monotonic_ns() + int(left.total_seconds() * NANOSECONDS)

    def left_seconds(self) -> float:
        """Seconds until it comes; 0 or negative: it has come."""
        return (self.here_ns() - monotonic_ns()) / NANOSECONDS

    def is_over(self) -> bool:
        """Whether it has come."""
        return self.left_seconds() <= 0

    def rfc3339(self) -> str:
        """When it comes on the wall clock as that is set now."""
        return rfc3339(datetime.now(UTC) + timedelta(seconds=self.left_seconds()))

    def left(self) -> str:
        """The time until it comes: "42s", "8m", "24h"."""
        return span(self.left_seconds())

    def words(self) -> str:
        """For people, in local time: "until 14:32 (8m left)", with the date if that is another."""
        now = datetime.now().astimezone()
        then = now + timedelta(seconds=self.left_seconds())
        form = "%H:%M" if then.date() == now.date() else "%Y-%m-%d %H:%M"
        return f"until {then.strftime(form)} ({self.left()} left)"


def span(seconds: float) -> str:
    """A time in one unit, rounded."""
    for unit, size in UNITS:
        if round(seconds / size) >= 2 and seconds >= 2 * size - 0.5:
            return f"{round(seconds / size)}{unit}"
    return f"{max(0, round(seconds))}s"


def rfc3339(when: datetime) -> str:
    """A time with its zone, as all JSON has it: UTC, in whole seconds, with Z."""
    return when.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
