"""How the guard stands: where it is attached, what runs, what its table holds, what is wrong."""

from datetime import datetime

from prometheus_client.core import Metric

from ntpguard.exporter.family import counter, gauge, one
from ntpguard.reading import Running
from ntpguard.words import Mode


def attachment(guard: Running) -> list[Metric]:
    """Interfaces and mode."""
    now = guard.mode()
    return [
        gauge(
            "ntpguard_attached",
            "Guarded interfaces.",
            ("interface", "xdp"),
            [((each.name, each.xdp), 1) for each in guard.interfaces()],
        ),
        gauge(
            "ntpguard_mode",
            "The mode that packets see is 1.",
            ("mode",),
            [((each.word,), now == each) for each in Mode],
        ),
    ]


def policy(guard: Running) -> list[Metric]:
    """What runs."""
    document, classes = guard.document(), guard.policy().classes
    applied = datetime.fromisoformat(document["applied"]).timestamp()
    return [
        gauge(
            "ntpguard_policy_info", "The applied policy.", ("hash",), [((guard.policy_hash(),), 1)]
        ),
        gauge(
            "ntpguard_policy_last_apply_successful",
            "Whether the policy file, when it was read last, could be applied.",
            samples=one(not document.get("refused")),
        ),
        gauge(
            "ntpguard_policy_last_apply_success_timestamp_seconds",
            "When the policy that runs was applied.",
            samples=one(applied),
        ),
        gauge(
            "ntpguard_limit_packets_per_second",
            "Rate of a class's limit.",
            ("class",),
            [((each.name,), float(each.rate.per_second)) for each in classes],
        ),
        gauge(
            "ntpguard_limit_burst_packets",
            "Burst of a class's limit.",
            ("class",),
            [((each.name,), each.burst) for each in classes],
        ),
    ]


def table(guard: Running) -> list[Metric]:
    """The source table's counters."""
    counters = guard.table_counters()
    return [
        gauge(
            "ntpguard_sources",
            "Sources held.",
            ("family",),
            [((family.word,), count) for family, count in guard.sources_held().items()],
        ),
        gauge(
            "ntpguard_sources_capacity",
            "Sources that the table is made for.",
            samples=one(guard.capacity),
        ),
        counter(
            "ntpguard_source_replacements",
            "Sources forgotten to make room for another.",
            samples=one(sum(counters["replaced"].values())),
        ),
        counter(
            "ntpguard_untracked_requests",
            "Requests whose source got no slot: too many new sources (gated), no room (full), or a "
            "race lost.",
            ("cause",),
            [((cause,), counters[cause]) for cause in ("gated", "full", "lost")],
        ),
    ]
