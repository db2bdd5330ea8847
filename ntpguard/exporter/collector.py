"""What Prometheus sees of the running guard (names: design.md, "Prometheus")."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ntpguard import __version__
from ntpguard.errors import NotRunning
from ntpguard.reading import Cell, Running, open_running
from ntpguard.words import Action, Family, Mode, Reason, Verdict

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


class GuardCollector(Collector):
    """Reads the pinned maps of this network namespace at each scrape."""

    def __init__(self, bpffs: Path) -> None:
        self._bpffs = bpffs
        self._errors = 0

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not need a running guard."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every metric; those of a guard that is not running are left out."""
        build = GaugeMetricFamily("ntpguard_build_info", "Version of ntpguard.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        up = GaugeMetricFamily("ntpguard_up", "Whether the guard is attached anywhere.")
        families: list[Metric] = []
        try:
            with open_running(self._bpffs) as guard:
                for part in (_attachment, _packets, _table, _policy):
                    families += part(guard)
            up.add_metric([], 1)
        except NotRunning:
            up.add_metric([], 0)
        except Exception:
            # one failing read must not take the endpoint down: it is counted, and the rest is shown
            self._errors += 1
            up.add_metric([], 0)
        yield up
        errors = CounterMetricFamily(
            "ntpguard_collector_errors", "Scrapes in which reading the maps failed."
        )
        errors.add_metric([], self._errors)
        yield errors
        yield from families


def _attachment(guard: Running) -> list[Metric]:
    attached = GaugeMetricFamily(
        "ntpguard_attached", "Guarded interfaces.", labels=["interface", "xdp"]
    )
    for one in guard.interfaces():
        attached.add_metric([one.name, one.xdp], 1)
    mode = GaugeMetricFamily("ntpguard_mode", "The mode that packets see is 1.", labels=["mode"])
    now = guard.mode()
    for each in Mode:
        mode.add_metric([each.word], now == each)
    return [attached, mode]


def _by_verdict(name: str, text: str, cells: list[Cell], names: list[str]) -> Metric:
    family = CounterMetricFamily(name, text, labels=["interface", "family", "verdict"])
    totals = {(n, f, v): 0 for n in names for f in Family for v in Verdict}
    for cell in cells:
        key = (cell.interface, cell.family, cell.verdict)
        totals[key] = totals.get(key, 0) + cell.packets
    for (interface, address_family, verdict), total in totals.items():
        family.add_metric([interface, address_family.word, verdict.word], total)
    return family


def _packets(guard: Running) -> list[Metric]:
    counts = guard.counts()
    names = [one.name for one in guard.interfaces()]
    frame_bytes = CounterMetricFamily(
        "ntpguard_bytes",
        "Bytes of frames judged, by what happened.",
        labels=["interface", "family", "verdict"],
    )
    for (name, family, verdict), total in counts.frame_bytes.items():
        frame_bytes.add_metric([name, family.word, verdict.word], total)
    drops = CounterMetricFamily("ntpguard_drops", "Packets dropped, by reason.", labels=["reason"])
    totals = dict.fromkeys(DROP_REASONS, 0)
    for cell in counts.happened:
        if cell.verdict == Verdict.DROP:
            totals[cell.reason] = totals.get(cell.reason, 0) + cell.packets
    for reason, total in totals.items():
        drops.add_metric([reason.word], total)
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
        frame_bytes,
        drops,
    ]


def _table(guard: Running) -> list[Metric]:
    table = guard.table_counters()
    held = GaugeMetricFamily("ntpguard_sources", "Sources held.", labels=["family"])
    for family, count in guard.sources_held().items():
        held.add_metric([family.word], count)
    capacity = GaugeMetricFamily("ntpguard_sources_capacity", "Sources that the table is made for.")
    capacity.add_metric([], guard.capacity)
    replacements = CounterMetricFamily(
        "ntpguard_source_replacements", "Sources forgotten to make room for another."
    )
    replacements.add_metric([], sum(table["replaced"].values()))
    untracked = CounterMetricFamily(
        "ntpguard_untracked_requests",
        "Requests whose source got no slot: too many new sources, its bucket full, or a race lost.",
        labels=["cause"],
    )
    untracked.add_metric(["gated"], table["gated"])
    untracked.add_metric(["full"], table["full"])
    untracked.add_metric(["lost"], table["lost"])
    return [held, capacity, replacements, untracked]


def _policy(guard: Running) -> list[Metric]:
    info = GaugeMetricFamily("ntpguard_policy_info", "The applied policy.", labels=["hash"])
    info.add_metric([guard.policy_hash()], 1)
    rate = GaugeMetricFamily(
        "ntpguard_limit_packets_per_second", "Rate of a class's limit.", labels=["class"]
    )
    burst = GaugeMetricFamily(
        "ntpguard_limit_burst_packets", "Burst of a class's limit.", labels=["class"]
    )
    for one in guard.policy().classes:
        rate.add_metric([one.name], float(one.rate.per_second))
        burst.add_metric([one.name], one.burst)
    entries = GaugeMetricFamily(
        "ntpguard_entries", "Live entries that have not expired.", labels=["action"]
    )
    actions = Counter(entry.action for entry, _ in guard.live_entries())
    for action in (Action.EXEMPT, Action.BLOCK):
        entries.add_metric([action.word], actions[action])
    return [info, rate, burst, entries]
