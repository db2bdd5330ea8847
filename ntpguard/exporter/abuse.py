"""Episodes of abuse, as the daemon keeps them."""

from functools import lru_cache

from prometheus_client.core import Metric

from ntpguard import episodes
from ntpguard.exporter.family import counter, gauge, one
from ntpguard.reading import Running


@lru_cache(maxsize=1)
def _kept(_inode: int, _changed_ns: int) -> episodes.Kept:
    """Read again only when it is another file."""
    return episodes.load() or episodes.Kept()


def kept(_: Running) -> list[Metric]:
    """Their numbers, of all times."""
    try:
        file = episodes.path().stat()
        found = _kept(file.st_ino, file.st_mtime_ns)
    except FileNotFoundError:
        found = episodes.Kept()
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
        gauge("ntpguard_episodes_open", "Episodes that go on.", samples=one(len(found.open))),
    ]
