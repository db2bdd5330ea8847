"""One victim whose address a forger uses: what it gets, from the real program and from the peers."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from tests.attack.drive import ANSWERED, KISSED, Lane, guarded
from tests.attack.peers import Answer, Limiter
from tests.attack.scenes import VICTIMS, establish
from tests.bpf.packets import IPV4, Frame, ntp

SPOOFED_PER_SECOND = (0.2, 2.0, 20.0, 200.0, 20_000.0)
Judge = Callable[[float], Answer]


class Forger(StrEnum):
    """What the forger knows of its victim's packets, and does with it."""

    UNKNOWING = "does not know how its victim's packets look"
    KNOWING = "knows"
    RANDOM = "varies each packet"
    DRAINING = "knows, sends others between"


@dataclass(frozen=True)
class Share:
    """Of a victim's requests, in percent. `starts`: of its iburst starts those with any answer."""

    answered: float
    kissed: float
    asked: int
    starts: float | None = None


def poll_seconds(per_second: float) -> float:
    """64 s; where the forger sends so much more that it makes no difference to either, the victim polls
    more often, so that there is something to count: it stays under 0.5 % of the packets.
    """
    return 64.0 if per_second < 10 else max(0.64, 64.0 * 4 / per_second)


def calm_seconds(per_second: float) -> float:
    """Of forgery before anyone is counted: until the victim's burst is spent."""
    return 60.0 if per_second < 100 else 10.0 if per_second < 1000 else 1.5


def polls(per_second: float, count: int, chosen: random.Random) -> list[float]:
    """Steady polls, each a tenth early or late."""
    every, calm = poll_seconds(per_second), calm_seconds(per_second)
    return [calm + every * (i + chosen.uniform(0, 0.2)) for i in range(count)]


def starts(count: int, chosen: random.Random) -> list[float]:
    """iburst: eight requests, 2 s apart, every two minutes or so."""
    begins = [60 + 128 * i + chosen.uniform(0, 16) for i in range(count)]
    return [begin + 2 * j for begin in begins for j in range(8)]


def fates(victim: Judge, forger: Judge, per_second: float, asked: list[float]) -> list[Answer]:
    """Of the victim's requests at `asked`. The forger's come evenly spaced from second 0 on: at random
    times they do less harm to a victim of ntpd or chrony.
    """
    found: list[Answer] = []
    sent = 0
    for at in asked:
        while sent / per_second < at:
            forger(sent / per_second)
            sent += 1
        found.append(victim(at))
    return found


def summary(found: list[Answer], iburst: bool = False) -> Share:
    """Shares, in percent."""
    groups = [found[i : i + 8] for i in range(0, len(found), 8)]
    any_answer = 100 * sum("answered" in group for group in groups) / len(groups)
    return Share(
        round(100 * found.count("answered") / len(found), 1),
        round(100 * found.count("kissed") / len(found), 1),
        len(found),
        round(any_answer, 1) if iburst else None,
    )


def by_peer(one: Limiter, per_second: float, count: int, iburst: bool = False) -> Share:
    """What the victim of a peer gets; for peers all packets look the same."""
    chosen = random.Random(1)
    asked = starts(count // 8, chosen) if iburst else polls(per_second, count, chosen)
    judge: Judge = lambda now: one.answer(now, 0)  # noqa: E731
    return summary(fates(judge, judge, per_second, asked), iburst)


def frames(forger: Forger, chosen: random.Random) -> list[Frame]:
    """What that forger sends in the name of one who sends IPV4."""
    others = [
        IPV4.but(ttl=chosen.randrange(1, 57), payload=ntp(precision=chosen.randrange(128, 256)))
        for _ in range(64)
    ]
    return {
        Forger.UNKNOWING: others[:1],
        Forger.KNOWING: [IPV4],
        Forger.RANDOM: others,
        Forger.DRAINING: [IPV4, others[0]],
    }[forger]


def _judge(lanes: list[Lane], start: float, chosen: random.Random, alternate: bool) -> Judge:
    sent = 0

    def judge(now: float) -> Answer:
        nonlocal sent
        sent += 1
        lane = lanes[sent % len(lanes)] if alternate else chosen.choice(lanes)
        code = lane.send(start + now)
        return "answered" if code == ANSWERED else "kissed" if code == KISSED else "dropped"

    return judge


def by_program(
    forger: Forger,
    per_second: float,
    count: int,
    *,
    victims: int = 32,
    iburst: bool = False,
    leak_max: int | None = None,
) -> Share:
    """What established victims of the real program get, one after another: so many, because whether
    two shapes look alike to it is another matter for each source.
    """
    chosen = random.Random(1)
    found: list[Answer] = []
    with guarded(65_536, leak_max=leak_max) as one:
        establish(Lane(one, IPV4, chosen), [VICTIMS(n) for n in range(victims)])
        start = 1000.0
        for number in range(victims):
            source = VICTIMS(number)
            each = count // victims
            asked = starts(each // 8, chosen) if iburst else polls(per_second, each, chosen)
            sent = frames(forger, chosen)
            lanes = [Lane(one, frame, chosen, source) for frame in [IPV4, *sent]]
            alternate = forger == Forger.DRAINING
            victim = _judge(lanes[:1], start, chosen, alternate)
            forged = _judge(lanes[1:], start, chosen, alternate)
            found += fates(victim, forged, per_second, asked)
            start += asked[-1] + 1
    return summary(found, iburst)
