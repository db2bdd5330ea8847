"""What came of a replay: values, and how they are said in JSON."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ntpguard.policy.kinds import Address
from ntpguard.words import Reason, Verdict


@dataclass
class Traffic:
    """What a capture holds: `packets` = judged or cut or sent or other. Times in ns since 1970."""

    servers: tuple[Address, ...] = ()
    packets: int = 0
    first_ns: int | None = None
    last_ns: int | None = None
    sent: int = 0  # by a server itself
    cut: int = 0  # before the end of the NTP header: not judged
    other: int = 0  # not NTP, or not to a server
    untimed: int = 0  # judged at the time of the packet before
    backwards: int = 0  # earlier than a packet before: judged at that one's time
    damage: str | None = None  # where and why the capture could not be read further

    @property
    def seconds(self) -> float:
        """From the first packet to the last."""
        if self.first_ns is None or self.last_ns is None:
            return 0.0
        return (self.last_ns - self.first_ns) / 1e9


@dataclass(frozen=True)
class Met:
    """A source, and how its requests were met; excess: leaked, kissed or dropped."""

    source: str
    requests: int = 0
    excess: int = 0
    passed: int = 0
    kissed: int = 0
    dropped: int = 0
    rate_per_second: float | None = None
    signature: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What one policy would have done."""

    judged: int
    requests: int  # of those; the rest are answers, and what hides its ports
    verdicts: dict[tuple[Verdict, Reason], int]
    classes: dict[str, dict[Verdict, int]]
    sources: list[Met]  # those with the most excess
    sources_seen: int
    sources_forgotten: int  # of few requests, so that memory sufficed for the others


@dataclass(frozen=True)
class SourceChange:
    """A source that two policies treat differently."""

    before: Met
    after: Met


@dataclass(frozen=True)
class Result:
    """A replay. With a second policy: its outcome, and the sources that change most."""

    traffic: Traffic
    outcome: Outcome
    other: Outcome | None = None
    changes: tuple[SourceChange, ...] = ()


def verdicts_of(outcome: Outcome) -> dict[Verdict, int]:
    """Packets by verdict."""
    totals = dict.fromkeys(Verdict, 0)
    for (verdict, _), count in outcome.verdicts.items():
        totals[verdict] += count
    return totals


def as_data(outcome: Outcome, seconds: float) -> dict[str, Any]:
    """An outcome for JSON; `seconds`: the capture's time."""
    return {
        "judged": outcome.judged,
        "requests": outcome.requests,
        "requests_per_second": outcome.requests / seconds if seconds else None,
        "verdicts": {one.word: count for one, count in verdicts_of(outcome).items()},
        "reasons": [
            {"verdict": verdict.word, "reason": reason.word, "packets": count}
            for (verdict, reason), count in outcome.verdicts.items()
        ],
        "classes": [
            {"class": name, **{one.word: count for one, count in counts.items()}}
            for name, counts in outcome.classes.items()
        ],
        "sources_seen": outcome.sources_seen,
        "sources_forgotten": outcome.sources_forgotten,
        "sources": [dataclasses.asdict(one) for one in outcome.sources],
    }


def differences(first: Outcome, second: Outcome) -> Iterator[tuple[str, Verdict, int, int]]:
    """Class, verdict and both policies' packets, wherever one has some. A class that only one of
    them has counts none in the other.
    """
    for name in {**first.classes, **second.classes}:
        for verdict in Verdict:
            before, after = (one.classes.get(name, {}).get(verdict, 0) for one in (first, second))
            if before or after:
                yield name, verdict, before, after


def differences_data(first: Outcome, second: Outcome) -> list[dict[str, Any]]:
    """The same for JSON."""
    return [
        {"class": name, "verdict": verdict.word, "before": a, "after": b, "difference": b - a}
        for name, verdict, a, b in differences(first, second)
    ]
