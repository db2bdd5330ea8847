"""Policies change under load: each packet is judged by one of them, whole."""

import itertools
import os
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from ntpguard import abi, running
from ntpguard.document import new_document
from ntpguard.kernel import maps
from ntpguard.policy.check import parse_policy
from ntpguard.policy.model import Policy
from tests import testrun
from tests.bpf.guard import Guard, guard
from tests.bpf.packets import IPV4, IPV6

SWITCHES = 1000


def policy(judged: str, trap: str, extra: str = "") -> Policy:
    """Puts the sources of the test into class `judged`. The other policy's class of that place in the
    list is exempt here: who reads one policy's prefixes and the other's classes lets them pass.
    """
    actions = {judged: 'action = "block"', trap: 'action = "exempt"'}
    limits = {judged: 'rate = "1/day"\nburst = 1\nleak = "1/1024"', trap: 'action = "exempt"'}
    text = 'mode = "enforce"\n' + extra
    for name in ("first", "second"):
        blocked = '"203.0.113.7/32", "2001:db8:12::/64"' if name == judged else '"198.18.0.0/24"'
        limited = '"203.0.113.8/32"' if name == judged else '"198.18.1.0/24"'
        text += f'[[class]]\nname = "blocked-{name}"\nprefixes = [{blocked}]\n{actions[name]}\n'
        text += f'[[class]]\nname = "limited-{name}"\nprefixes = [{limited}]\n{limits[name]}\n'
    return parse_policy(text)


FIRST, SECOND = policy("first", "second"), policy("second", "first")


@pytest.fixture
def one() -> Iterator[Guard]:
    with guard(16, virtual=False) as loaded:
        yield loaded


def descriptors(one: Guard) -> dict[str, int]:
    return {name: one.object.map_fd(name) for name in maps.SHARED_MAPS}


def write(one: Guard, new: Policy) -> None:
    running.write(descriptors(one), new, new_document(new, None))


@pytest.mark.timeout(300)
def test_no_packet_sees_a_mixture_of_two_policies_and_no_source_is_forgotten(one: Guard) -> None:
    write(one, FIRST)
    limited = bytes(IPV4.but(source="203.0.113.8"))
    assert testrun.run(one.fd, limited)[0] == abi.Xdp.PASS  # its burst
    stop = threading.Event()
    codes: Counter[tuple[str, int]] = Counter()

    def load(cpu: int) -> None:
        os.sched_setaffinity(0, {cpu % (os.cpu_count() or 1)})
        frames = {"limited": limited, "ipv4": bytes(IPV4), "ipv6": bytes(IPV6)}
        mine: Counter[tuple[str, int]] = Counter()
        while not stop.is_set():
            for name, frame in frames.items():
                mine[name, testrun.run(one.fd, frame)[0]] += 1
        codes.update(mine)

    threads = [threading.Thread(target=load, args=(cpu,)) for cpu in (0, 1)]
    for thread in threads:
        thread.start()
    try:
        for new, _ in zip(itertools.cycle([SECOND, FIRST]), range(SWITCHES), strict=False):
            write(one, new)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    passed = {name: codes[name, abi.Xdp.PASS] for name in ("ipv4", "ipv6")}
    assert passed == {"ipv4": 0, "ipv6": 0}
    # what passes of the limited source is the leak, 1 in 1,024 of its excess at most 39 a second
    total = sum(count for (name, _), count in codes.items() if name == "limited")
    assert total > 10_000
    assert codes["limited", abi.Xdp.PASS] < total / 256
    ((_, _, _, stat),) = one.slots()
    assert stat >> abi.STAT_REQUESTS_SHIFT == total + 1
    assert abi.field(one.shared.root.word, abi.ROOT_REVISION_SHIFT, 32) == SWITCHES + 1
