"""Episodes of abuse, as the daemon keeps them."""

from prometheus_client.core import Metric

from ntpguard import episodes
from ntpguard.exporter.family import counter, gauge, one
from ntpguard.reading import Running


def kept(_: Running) -> list[Metric]:
    """Their numbers, of all times."""
    found = episodes.load() or episodes.Kept()
    return [
        counter(
            "ntpguard_episodes",
            "Episodes of abuse: sources that were over their limit for long.",
            samples=one(found.total),
        ),
        counter(
            "ntpguard_episodes_untold",
            "Episodes that found no room, of more than 1,024 at a time.",
            samples=one(found.untold),
        ),
        gauge("ntpguard_episodes_open", "Episodes that go on.", samples=one(len(found.open))),
    ]
