"""Whether KoDs help (ntpguard.trials)."""

from prometheus_client.core import Metric

from ntpguard.exporter.family import counter, gauge, one
from ntpguard.policy.shapes import SHAPES
from ntpguard.reading import Running
from ntpguard.trials import UNKNOWN, Change, Outcome
from ntpguard.words import Group

CLIENTS = (*dict.fromkeys(each.client for each in SHAPES), UNKNOWN)


def heeding(guard: Running) -> list[Metric]:
    """Of those that were sent."""
    found = guard.heeding()
    return [
        counter(
            "ntpguard_kods_heeded",
            "KoDs after which the next request, 2 seconds later or more, was within the limit.",
            samples=one(found.heeded[Group.KISSED]),
        ),
        counter(
            "ntpguard_kods_unheeded",
            "KoDs after which two requests, 2 seconds later or more, were excess.",
            samples=one(found.unheeded[Group.KISSED]),
        ),
    ]


def sources(guard: Running) -> list[Metric]:
    """What kissed sources did, and those that are never kissed; every series from the beginning."""
    counts = guard.trials()
    return [
        gauge(
            "ntpguard_kod_sources",
            "Sources by what they did after their first KoD, or, in the control group, when they "
            "would have got it.",
            ("group", "client", "change"),
            [
                ((group.word, client, change.word), counts[Outcome(client, group, change)])
                for group in Group
                for client in CLIENTS
                for change in Change
            ],
        )
    ]
