"""What a soak has to have shown: nothing grows, nothing is uncounted, nobody is served worse."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

# half a MiB each quarter of an hour: of what malloc keeps, no more than that can be told apart
GROWTH_BYTES_PER_HOUR = 2 * 2**20
LEAST_JUDGED = 4  # minutes: of fewer, growth is not judged
# neighbour discovery, ARP and ICMP are frames that the guard passes without counting
OTHER_FRAMES_PER_MINUTE = 300
# requests of the real clients while the counters are read, one after the other
EDGE_PACKETS = 2
SERVICE_POINTS = 1.0


@dataclass(frozen=True)
class Minute:
    """One minute: what the daemon holds, and what was sent, counted and answered in it.

    Of memory, descriptors and threads: the least of what was seen each second, for a command or a
    scrape holds some for a moment. What the sender's kernel refused was not sent.
    """

    minute: int
    pid: int
    memory_bytes: int  # resident
    descriptors: int
    threads: int
    pins: int
    state_bytes: int
    programs: int  # of this soak's guard that the kernel holds
    polite_sent: int  # but for those while the interface was down
    polite_answered: int
    sent: int  # NTP packets, of everybody
    refused: int  # by the sender's kernel: a full ring, no carrier
    frames: int  # that the driver gave to the program
    counted: int  # by the guard
    socket_lost: int  # in the server's receive buffer: it got no time to read
    down_sent: int = 0  # while the interface was going down, down or coming up
    episodes_open: int = 0
    episodes_ended: int = 0  # those that are kept
    failures: tuple[str, ...] = ()

    @property
    def service(self) -> float:
        """Share of polite requests that were answered, per cent."""
        return 100 * self.polite_answered / (self.polite_sent or 1)

    def figures(self) -> dict[str, Any]:
        """For the result file."""
        return {**asdict(self), "service_percent": round(self.service, 2)}


@dataclass(frozen=True)
class Client:
    """A real, honest client, at the end."""

    name: str
    asked: int
    answered: int
    kissed: int
    synchronised: bool

    def complaints(self) -> list[str]:
        """What is wrong. A link that goes down takes some answers with it, one in a hundred."""
        found = []
        if self.kissed:
            found.append(f"{self.name}: kissed {self.kissed} times")
        if not self.synchronised:
            found.append(f"{self.name}: not synchronised")
        if self.asked - self.answered > 2 + self.asked // 100:
            found.append(f"{self.name}: {self.answered} of {self.asked} requests answered")
        return found


def slope_per_minute(values: Sequence[float]) -> tuple[float, float]:
    """Of the line through equally spaced values with the least squares, and its standard error."""
    count = len(values)
    middle, mean = (count - 1) / 2, sum(values) / count
    spread = sum((index - middle) ** 2 for index in range(count)) or 1
    slope = sum((index - middle) * (one - mean) for index, one in enumerate(values)) / spread
    rests = (one - mean - slope * (index - middle) for index, one in enumerate(values))
    return slope, math.sqrt(sum(one**2 for one in rests) / max(1, count - 2) / spread)


def complaints(minutes: Sequence[Minute], clients: Sequence[Client] = ()) -> list[str]:
    """What is wrong, a sentence each."""
    found = [f"minute {one.minute}: {text}" for one in minutes for text in one.failures]
    for one in minutes:
        found += [
            f"minute {one.minute}: {text}" for text in (*_uncounted(one), *_served(one, minutes[0]))
        ]
    for client in clients:
        found += client.complaints()
    return found + _growth(minutes[len(minutes) // 2 :])


def _uncounted(one: Minute) -> list[str]:
    """Every packet sent is counted, and nothing else; what was sent while the interface was down is
    lost, as far as the sender's kernel had not yet seen that it is down.
    """
    found = []
    other, missing = one.frames - one.counted, one.sent - one.counted
    if not 0 <= other <= OTHER_FRAMES_PER_MINUTE:
        found.append(f"{one.frames} frames, {one.counted} counted: {other} others")
    if not -EDGE_PACKETS <= missing <= EDGE_PACKETS + one.down_sent:
        found.append(f"{one.sent} sent, {one.counted} counted: {missing} missing")
    return found


def _served(one: Minute, first: Minute) -> list[str]:
    """Who is served worse. What the server had no time to read is not the guard's doing, and no proof
    of its doing well either.
    """
    if one.service >= first.service - SERVICE_POINTS:
        return []
    text = f"{one.service:.2f} % of polite requests answered, {first.service:.2f} % in the first minute"
    if one.socket_lost:
        text += f": cannot be judged: {one.socket_lost} lost in the server's receive buffer"
    return [text]


def _growth(last: Sequence[Minute]) -> list[str]:
    """What grows in the last half, in which one process holds all that it keeps: six minutes of
    surveys, a quarter of an hour of samples, 1,000 episodes that have ended. Resident memory grows by
    the slope of the line through it. Of the others, a leak raises the least in the second half of the
    half.
    """
    if len(last) < LEAST_JUDGED:
        return []
    found = []
    if len({one.pid for one in last}) != 1:
        found.append("the daemon was restarted in the last half: its growth cannot be judged")
    slope, error = (60 * one for one in slope_per_minute([each.memory_bytes for each in last]))
    words = f"{slope / 2**20:.2f} MiB an hour, standard error {error / 2**20:.2f}"
    if error > GROWTH_BYTES_PER_HOUR:
        found.append(f"resident memory: growth cannot be judged: {words}")
    elif slope > GROWTH_BYTES_PER_HOUR:
        found.append(f"resident memory grows by {words}")
    for name in ("descriptors", "threads", "pins", "programs", "state_bytes"):
        early, late = last[: len(last) // 2], last[len(last) // 2 :]
        before, after = (min(getattr(one, name) for one in part) for part in (early, late))
        if after > before and name != "state_bytes":
            found.append(f"{name}: {before}, then {after}")
        if name == "state_bytes" and after > 2 * before + 65536:
            found.append(f"state: {before} bytes, then {after}")
    return found
