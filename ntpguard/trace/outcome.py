"""What became of the requests that a trace has seen, as people read it."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ntpguard.kernel.sockets import Socket

SUM: Final = "{:>10}  {:15}  {:20}  {}"
FULL: Final = ("SOCKET_RCVBUFF", "SOCKET_RCVBUF", "UDP_RCVBUF")
BAR: Final = 40


@dataclass(frozen=True)
class Cause:
    """Where and why; reason is Linux's name, None where the kernel gives none."""

    interface: str
    reason: str | None
    function: str


@dataclass(frozen=True)
class Sockets:
    """The daemon's sockets: what they say themselves that they dropped meanwhile, and the smallest
    of their receive buffers; 0: there are none.
    """

    dropped: int
    buffer_bytes: int

    @classmethod
    def between(cls, before: list[Socket], after: list[Socket]) -> "Sockets":
        """Of two looks. A daemon that was started meanwhile begins at 0."""
        was, now = (sum(one.dropped for one in look) for look in (before, after))
        smallest = min((one.buffer_bytes for one in after), default=0)
        return cls(now - was if now >= was else now, smallest)


@dataclass(frozen=True)
class Outcome:
    """Numbers of requests; read: by the daemon, None if it cannot be told. delays: answers by the
    logarithm of their microseconds: the n-th are from 2^(n-1) to 2^n (the first: less than 1).
    """

    causes: Counter[Cause]
    read: int | None
    answered: int
    delays: tuple[int, ...]
    knows_reasons: bool = True

    def buffer_full(self) -> int | None:
        """Requests that found the daemon's receive buffer full, as the kernel names it. None: this
        kernel gives no reasons.
        """
        if not self.knows_reasons:
            return None
        return sum(count for cause, count in self.causes.items() if cause.reason in FULL)

    def quantile(self, share: float) -> float | None:
        """Microseconds within which that share of the answers was on its way, rounded up to a
        power of two. None: there were none.
        """
        total: int = sum(self.delays)
        below = 0
        for bits, count in enumerate(self.delays):
            below += count
            if total and below >= share * total:
                return float(1 << bits)
        return None


def lines(found: Outcome, sockets: Sockets | None, shown: int, of_all: bool) -> Iterator[str]:
    """The sum of a trace, for people; `of_all`: of all sources, as the sockets count."""
    yield SUM.format("DROPPED", "INTERFACE", "REASON", "WHERE")
    for cause, count in found.causes.most_common():
        yield SUM.format(count, cause.interface, cause.reason or "-", cause.function)
    yield f"{found.causes.total():>10}  in total, {shown} of them shown above"
    yield ""
    yield f"{'unknown' if found.read is None else found.read:>10}  read by the daemon"
    yield f"{found.answered:>10}  answered"
    if found.answered:
        middle, last = found.quantile(0.5), found.quantile(0.99)
        yield f"            half of them within {middle:.0f} us, 99 % within {last:.0f} us"
        most = max(found.delays)
        seen = [bits for bits, count in enumerate(found.delays) if count]
        for bits in range(min(seen), max(seen) + 1):
            count = found.delays[bits]
            bar = "#" * -(-count * BAR // most)
            yield f"{count:>10}  {f'up to {1 << bits} us':>16}  {bar}".rstrip()
    if sockets and (found.buffer_full() or sockets.dropped):
        yield ""
        full = found.buffer_full()
        yield (
            f"{'unknown' if full is None else full:>10}  found the daemon's receive buffer full "
            f"({sockets.buffer_bytes} bytes); its sockets count {sockets.dropped}"
            + ("" if of_all else ", of all sources")
        )
        yield "            try: sysctl -w net.core.rmem_default=4194304, and restart the daemon"
