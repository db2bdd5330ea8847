"""One victim whose address a forger uses: what it gets, from the real program and from the peers."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from tests.attack.drive import ANSWERED, KISSED, Runner
from tests.attack.peers import Answer, Limiter

SPOOFED_PER_SECOND = (0.2, 2.0, 20.0, 200.0, 20_000.0)
Judge = Callable[[float], Answer]


@dataclass(frozen=True)
class Share:
    """Of a victim's requests, in percent."""

    answered: float
    kissed: float
    asked: int


def poll_seconds(per_second: float) -> float:
    """64 s; where the forger sends so much more that it makes no difference to either, the victim polls
    more often, so that there is something to count: it stays under 0.4 % of the packets.
    """
    return 64.0 if per_second < 10 else max(0.02, 64.0 * 4 / per_second)


def polls(per_second: float, count: int, chosen: random.Random) -> list[float]:
    """Steady polls, each a tenth early or late."""
    every = poll_seconds(per_second)
    return [60 + every * (i + chosen.uniform(-0.1, 0.1)) for i in range(count)]


def starts(count: int) -> list[float]:
    """iburst: eight requests, 2 s apart, every 512 s."""
    return [60 + 512 * i + 2 * j for i in range(count) for j in range(8)]


def share(judge: Judge, per_second: float, asked: list[float]) -> Share:
    """The forger's packets come evenly spaced at that rate from second 0 on: at random times they do
    less harm to a victim of ntpd or chrony.
    """
    fates: Counter[Answer] = Counter()
    sent = 0
    for at in asked:
        while sent / per_second < at:
            judge(sent / per_second)
            sent += 1
        fates[judge(at)] += 1
    total = len(asked)
    return Share(100 * fates["answered"] / total, 100 * fates["kissed"] / total, total)


def by_program(one: Runner, frame: bytes) -> Judge:
    """The real program's verdicts on that frame."""

    def judge(now: float) -> Answer:
        one.load(frame)
        code = one.send(now)
        return "answered" if code == ANSWERED else "kissed" if code == KISSED else "dropped"

    return judge


def by_peer(one: Limiter) -> Judge:
    """A peer's."""
    return lambda now: one.answer(now, 0)
