"""What became of packets."""

from collections import Counter

from prometheus_client.core import Metric

from ntpguard.counts import Cell
from ntpguard.exporter.family import counter
from ntpguard.reading import Running
from ntpguard.words import Family, Reason, Verdict

# series that exist from the beginning, at 0
PASS_REASONS = (
    Reason.CONFORM,
    Reason.EXEMPT,
    Reason.LEAK,
    Reason.UNTRACKED,
    Reason.ANSWER,
    Reason.CONTROL,
    Reason.ODD,
    Reason.OFF,
    Reason.OBSERVED,
    Reason.ENTRY,
)
DROP_REASONS = (
    Reason.LIMIT,
    Reason.UNTRACKED,
    Reason.BLOCK,
    Reason.ANSWER,
    Reason.CONTROL,
    Reason.MALFORMED,
    Reason.ODD,
    Reason.ENTRY,
    Reason.SIGNATURE,
    Reason.CEILING,
)
BY_VERDICT = ("interface", "family", "verdict")


def packets(guard: Running) -> list[Metric]:
    """All counters of the packet path."""
    counts = guard.counts()
    names = [one.name for one in guard.interfaces()]
    classes = [one.name for one in guard.policy().classes]
    return [
        _by_verdict(
            "ntpguard_packets", "NTP packets judged, by what happened.", counts.happened, names
        ),
        _by_verdict(
            "ntpguard_observed_packets",
            "NTP packets that mode observe let pass, by what would have happened.",
            counts.observed,
            names,
        ),
        counter(
            "ntpguard_bytes",
            "Bytes of frames judged, by what happened.",
            BY_VERDICT,
            [
                ((name, family.word, verdict.word), total)
                for (name, family, verdict), total in counts.frame_bytes.items()
            ],
        ),
        _by_reason(
            "ntpguard_passes",
            "Packets passed, by reason; leak: excess answered anyway.",
            counts.happened,
            Verdict.PASS,
            PASS_REASONS,
        ),
        _by_reason(
            "ntpguard_drops",
            "Packets dropped, by reason.",
            counts.happened,
            Verdict.DROP,
            DROP_REASONS,
        ),
        _by_class(counts.happened, classes),
    ]


def _by_verdict(name: str, text: str, cells: list[Cell], names: list[str]) -> Metric:
    totals = Counter({(n, f, v): 0 for n in names for f in Family for v in Verdict})
    for cell in cells:
        totals[cell.interface, cell.family, cell.verdict] += cell.packets
    samples = [((n, f.word, v.word), total) for (n, f, v), total in totals.items()]
    return counter(name, text, BY_VERDICT, samples)


def _by_reason(
    name: str, text: str, cells: list[Cell], verdict: Verdict, reasons: tuple[Reason, ...]
) -> Metric:
    totals = Counter(dict.fromkeys(reasons, 0))
    for cell in cells:
        if cell.verdict == verdict:
            totals[cell.reason] += cell.packets
    samples = [((reason.word,), total) for reason, total in totals.items()]
    return counter(name, text, ("reason",), samples)


def _by_class(cells: list[Cell], classes: list[str]) -> Metric:
    totals = Counter({(name, verdict): 0 for name in classes for verdict in Verdict})
    for cell in cells:
        # what was counted for a class that the policy has no more is in the other totals
        if cell.class_index < len(classes):
            totals[classes[cell.class_index], cell.verdict] += cell.packets
    samples = [((name, verdict.word), total) for (name, verdict), total in totals.items()]
    return counter(
        "ntpguard_class_packets",
        "NTP packets judged, by class and what happened.",
        ("class", "verdict"),
        samples,
    )
