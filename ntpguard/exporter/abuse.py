"""Episodes of abuse, as the daemon keeps them."""

from prometheus_client.core import Metric

from ntpguard import episodes
from ntpguard.exporter.family import counter, gauge, one
from ntpguard.reading import Running


def kept(_: Running) -> list[Metric]:
    """Their numbers, of all times."""
    found = episodes.load_numbers() or episodes.Numbers(0.0, 0, 0, 0, 0)
    return [
        counter(
            "ntpguard_episodes",
            "Episodes of abuse: sources that were over their limit for long.",
            samples=one(found.total),
        ),
        counter(
            "ntpguard_episodes_untold",
            "Episodes that found no room, beside 1,024 at a time; at least so many.",
            samples=one(found.untold),
        ),
        gauge("ntpguard_episodes_open", "Episodes that go on.", samples=one(found.open)),
    ]
