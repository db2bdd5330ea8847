"""What a soak has to have shown: nothing grows, nothing is uncounted, nobody is served worse."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

GROWTH_BYTES_PER_HOUR = 2**20
# neighbour discovery, ARP and ICMP are frames that the guard passes without counting
OTHER_FRAMES_PER_MINUTE = 300
SERVICE_POINTS = 1.0


@dataclass(frozen=True)
class Minute:
    """One minute: what the daemon holds at its end, and what was sent, counted and answered in it."""

    minute: int
    pid: int
    memory_bytes: int  # resident
    descriptors: int
    threads: int
    pins: int
    state_bytes: int
    programs: int  # of ours that the kernel holds
    polite_sent: int
    polite_answered: int
    frames: int  # that the driver gave to the program
    counted: int  # by the guard
    socket_lost: int  # in the daemon's receive buffer
    failures: tuple[str, ...] = ()

    @property
    def service(self) -> float:
        """Share of polite requests that were answered, per cent."""
        return 100 * self.polite_answered / (self.polite_sent or 1)

    def figures(self) -> dict[str, Any]:
        """For the result file."""
        return {**asdict(self), "service_percent": round(self.service, 2)}


def slope_per_minute(values: Sequence[float]) -> tuple[float, float]:
    """Of the line through equally spaced values with the least squares, and its standard error."""
    count = len(values)
    middle, mean = (count - 1) / 2, sum(values) / count
    spread = sum((index - middle) ** 2 for index in range(count)) or 1
    slope = sum((index - middle) * (one - mean) for index, one in enumerate(values)) / spread
    rests = (one - mean - slope * (index - middle) for index, one in enumerate(values))
    return slope, math.sqrt(sum(one**2 for one in rests) / max(1, count - 2) / spread)


def complaints(minutes: Sequence[Minute]) -> list[str]:
    """What is wrong, a sentence each. Growth is judged over the last third, of one process that has
    run for a while: until then it fills what it keeps, a quarter of an hour of samples and up to 1,024
    episodes. Resident memory grows if the slope of the line through it is beyond the limit by two
    standard errors; of the others, a leak raises the least in the second half of that (for a moment, a
    command holds some).
    """
    found = [f"minute {one.minute}: {text}" for one in minutes for text in one.failures]
    for one in minutes:
        other = one.frames - one.counted
        if not 0 <= other <= OTHER_FRAMES_PER_MINUTE:
            found.append(
                f"minute {one.minute}: {one.frames} frames, {one.counted} counted: {other} others"
            )
        if one.service < minutes[0].service - SERVICE_POINTS:
            found.append(
                f"minute {one.minute}: {one.service:.2f} % of polite requests answered, "
                f"{minutes[0].service:.2f} % in the first minute"
            )
    last = minutes[-(len(minutes) // 3) :]
    if len({one.pid for one in last}) != 1:
        found.append("the daemon was restarted in the last third: its growth cannot be judged")
    if len(last) < 4:
        return found
    slope, error = slope_per_minute([one.memory_bytes for one in last])
    if 60 * (slope - 2 * error) > GROWTH_BYTES_PER_HOUR:
        found.append(f"resident memory grows by {60 * slope / 2**20:.1f} MiB an hour")
    for name in ("descriptors", "threads", "pins", "programs", "state_bytes"):
        early, late = last[: len(last) // 2], last[len(last) // 2 :]
        before, after = (min(getattr(one, name) for one in part) for part in (early, late))
        if after > before and name != "state_bytes":
            found.append(f"{name}: {before}, then {after}")
        if name == "state_bytes" and after > 2 * before + 65536:
            found.append(f"state: {before} bytes, then {after}")
    return found
