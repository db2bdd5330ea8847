"""What takes too long to be read at each scrape: read again when it is 15 seconds old, beside the
scrape, which shows what was found last.
"""

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from prometheus_client.core import Metric

from ntpguard.exporter import kods
from ntpguard.exporter.family import gauge, histogram, one
from ntpguard.moments import monotonic_ns
from ntpguard.reading import Running, open_running
from ntpguard.survey import Survey, Surveyor
from ntpguard.words import Action

OLD_SECONDS = 15.0
TOO_OLD_SECONDS = 300.0  # nobody has scraped for long: the scrape waits


class Slow:
    """The metrics of one reading, and when they were read."""

    def __init__(self, bpffs: Path, failed: Callable[[], None]) -> None:
        """`failed` is told of each reading that failed."""
        self._bpffs = bpffs
        self._failed = failed
        self._surveyor = Surveyor()
        self._found: list[Metric] = []
        self._survey: Survey | None = None
        self._lock = threading.Lock()
        self._reader: threading.Thread | None = None  # beside the scrapes

    def metrics(self, guard: Running) -> list[Metric]:
        """What was found last; the first time, and after a long pause, what there is. To be asked
        by one thread at a time.
        """
        with self._lock:
            age = self._age()
        due = age >= OLD_SECONDS and not (self._reader and self._reader.is_alive())
        if due and age >= TOO_OLD_SECONDS:
            self._read(guard)
        elif due:
            self._reader = threading.Thread(target=self._read_again, daemon=True)
            self._reader.start()
        with self._lock:
            if self._survey is None:
                return []
            age = max(0.0, self._age())
            return [
                *self._found,
                gauge("ntpguard_survey_age_seconds", "Since the survey.", samples=one(age)),
            ]

    def _age(self) -> float:
        if self._survey is None:
            return float("inf")
        return monotonic_ns() / 1e9 - self._survey.monotonic_seconds

    def _read_again(self) -> None:
        try:
            with open_running(self._bpffs) as guard:
                self._read(guard)
        except Exception:
            self._failed()

    def _read(self, guard: Running) -> None:
        survey = guard.survey(self._surveyor)
        found = [
            *_surveyed(survey),
            *_entries(guard),
            *_difference(guard),
            *kods.sources(guard),
        ]
        with self._lock:
            self._survey, self._found = survey, found


def _surveyed(survey: Survey) -> list[Metric]:
    return [
        gauge(
            "ntpguard_sources_limited",
            "Sources over their limit at the time of the survey.",
            ("family",),
            [((family.word,), count) for family, count in survey.limited.items()],
        ),
        gauge(
            "ntpguard_sources_deaf",
            "Sources that get no more KoDs since they heeded none, of a sample of the table.",
            samples=one(survey.deaf),
        ),
        histogram(
            "ntpguard_source_last_seen_seconds",
            "Sources by the time since their last request within the limit.",
            survey.last_seen,
        ),
        histogram(
            "ntpguard_source_interval_seconds",
            "Sources by the mean interval of their requests in the last five minutes.",
            survey.interval,
        ),
        gauge(
            "ntpguard_survey_duration_seconds",
            "What the last survey took.",
            samples=one(survey.took_seconds),
        ),
        gauge(
            "ntpguard_survey_sources",
            "Sources that the last survey looked at.",
            samples=one(survey.looked_at),
        ),
    ]


def _entries(guard: Running) -> list[Metric]:
    actions = Counter(entry.action for entry, _ in guard.live_entries())
    return [
        gauge(
            "ntpguard_entries",
            "Live entries that have not expired.",
            ("action",),
            [((action.word,), actions[action]) for action in (Action.EXEMPT, Action.BLOCK)],
        )
    ]


def _difference(guard: Running) -> list[Metric]:
    return [
        gauge(
            "ntpguard_policy_differs_from_file",
            "Whether what runs is not what the policy file says.",
            samples=one(bool(guard.differs_from_file())),
        )
    ]
