"""Live entries, written by user space and honoured by the packet path with no process running."""

import ipaddress
import time
from collections.abc import Callable, Iterator

import pytest

from ntpguard import abi, running
from ntpguard.entries import LiveEntry, clean_entries, clear_entry, read_entries, set_entry
from ntpguard.errors import UsageError
from ntpguard.kernel import libbpf, maps
from ntpguard.policy.check import parse_policy
from ntpguard.words import Action, Family, Verdict
from tests.bpf.guard import SECOND, Guard, guard
from tests.bpf.packets import IPV4, IPV6

CAMPUS = """mode = "enforce"
[[class]]
name = "campus"
prefixes = ["203.0.113.0/24", "2001:db8:12::/48"]
action = "exempt"
"""


@pytest.fixture
def one() -> Iterator[Guard]:
    with guard(16, virtual=False) as loaded:
        new = parse_policy(CAMPUS)
        running.write(descriptors(loaded), new, running.new_document(new, None))
        yield loaded


def descriptors(one: Guard) -> dict[str, int]:
    return {name: one.object.map_fd(name) for name in maps.SHARED_MAPS}


def put(one: Guard, prefix: str, action: Action, seconds: float | None) -> LiveEntry:
    return set_entry(descriptors(one), ipaddress.ip_network(prefix), action, seconds)


@pytest.mark.parametrize("frame", [IPV4, IPV6])
def test_a_two_second_block_over_a_class_and_a_shorter_prefix_is_over_after_two_seconds(
    one: Guard, frame: object
) -> None:
    shorter, longer = (
        ("203.0.112.0/20", "203.0.113.0/24")
        if frame is IPV4
        else ("2001:db8::/32", "2001:db8:12::/64")
    )
    assert one.verdict(frame) == Verdict.PASS
    put(one, shorter, Action.EXEMPT, None)
    begin = time.monotonic()
    put(one, longer, Action.BLOCK, 2)
    blocked_until = begin
    while one.verdict(frame) == Verdict.DROP and time.monotonic() < begin + 5:
        blocked_until = time.monotonic()
        time.sleep(0.002)
    assert 1.9 < blocked_until - begin < 2.2
    assert one.verdict(frame) == Verdict.PASS


def test_what_is_set_is_read_replaced_and_cleared(one: Guard) -> None:
    put(one, "203.0.113.0/24", Action.BLOCK, None)
    put(one, "203.0.113.0/24", Action.EXEMPT, 60)
    (entry,) = read_entries(descriptors(one))
    assert (str(entry.prefix), entry.action) == ("203.0.113.0/24", Action.EXEMPT)
    assert clear_entry(descriptors(one), entry.prefix) == entry
    assert clear_entry(descriptors(one), entry.prefix) is None
    assert read_entries(descriptors(one)) == []
    assert abi.field(one.shared.root.word, abi.ROOT_ENTRIES_SHIFT, 2) == 0


def test_clearing_an_entry_gives_back_what_it_lay_over(one: Guard) -> None:
    put(one, "203.0.113.0/24", Action.BLOCK, None)
    put(one, "203.0.113.7/32", Action.EXEMPT, 3600)
    assert one.verdict(IPV4) == Verdict.PASS
    clear_entry(descriptors(one), ipaddress.ip_network("203.0.113.7/32"))
    assert one.verdict(IPV4) == Verdict.DROP


def test_a_shorter_entry_set_later_holds_when_the_longer_one_is_over(one: Guard) -> None:
    put(one, "203.0.113.7/32", Action.EXEMPT, 1)
    put(one, "203.0.113.0/24", Action.BLOCK, None)
    assert one.verdict(IPV4) == Verdict.PASS
    time.sleep(1.05)
    assert one.verdict(IPV4) == Verdict.DROP


def test_expired_entries_are_cleaned_and_the_rest_stays(one: Guard) -> None:
    put(one, "203.0.113.7/32", Action.EXEMPT, 0.05)
    put(one, "203.0.113.0/24", Action.BLOCK, None)
    time.sleep(0.1)
    assert [str(e.prefix) for e in read_entries(descriptors(one))] == ["203.0.113.0/24"]
    clean_entries(descriptors(one), Family.IPV4)
    assert one.verdict(IPV4) == Verdict.DROP


def test_too_many_entries_over_one_another_are_refused_and_nothing_changes(one: Guard) -> None:
    for depth in range(abi.ENTRY_DEPTH):
        put(one, f"203.0.113.0/{31 - depth}", Action.BLOCK, 100 + depth)
    with pytest.raises(UsageError, match="live entries lie over"):
        put(one, "203.0.0.0/16", Action.BLOCK, None)
    assert len(read_entries(descriptors(one))) == abi.ENTRY_DEPTH
    put(one, "203.0.112.0/20", Action.BLOCK, 1)  # outlives none of them


class Killed(BaseException):
    """The writer ends here."""


@pytest.mark.parametrize("steps", range(5))
@pytest.mark.parametrize("seconds", [None, 1000, 10])
@pytest.mark.parametrize("before", [(), (("203.0.113.0/24", 50),), (("203.0.113.0/24", None),)])
@pytest.mark.parametrize("clear", [False, True])
def test_after_a_kill_at_any_step_the_longest_living_entry_holds(
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
    seconds: float | None,
    before: tuple[tuple[str, float | None], ...],
    clear: bool,
) -> None:
    with guard(16) as one:
        put(one, "203.0.0.0/16", Action.BLOCK, None)
        put(one, "203.0.112.0/20", Action.EXEMPT, 200)
        for prefix, lives in before:
            put(one, prefix, Action.BLOCK, lives)
        put(one, "203.0.113.0/30", Action.EXEMPT, 5000)
        put(one, "203.0.113.0/28", Action.BLOCK, 100)
        put(one, "203.0.113.7/32", Action.EXEMPT, 500)
        left = steps
        tries = {one.object.map_fd("entries_ipv4")}

        def counted(real: Callable[..., None]) -> Callable[..., None]:
            def step(fd: int, *rest: bytes) -> None:
                nonlocal left
                if fd in tries:
                    left -= 1
                    if left < 0:
                        raise Killed
                real(fd, *rest)

            return step

        monkeypatch.setattr(libbpf, "map_update", counted(libbpf.map_update))
        monkeypatch.setattr(libbpf, "map_delete", counted(libbpf.map_delete))
        try:
            if clear:
                clear_entry(descriptors(one), ipaddress.ip_network("203.0.113.0/24"))
            else:
                put(one, "203.0.113.0/24", Action.BLOCK, seconds)
        except Killed:
            pass
        stored = read_entries(descriptors(one))
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        for later in (0, 75, 150, 300, 700, 2000, 9000):
            one.inputs.clock_ns = now + later * SECOND
            for source in ("203.0.113.1", "203.0.113.7", "203.0.113.9", "203.0.113.99"):
                living = [
                    entry
                    for entry in stored
                    if ipaddress.ip_address(source) in entry.prefix
                    and (not entry.expires_ns or entry.expires_ns > one.inputs.clock_ns)
                ]
                longest = max(living, key=lambda entry: entry.prefix.prefixlen)
                wanted = Verdict.DROP if longest.action == Action.BLOCK else Verdict.PASS
                assert one.verdict(IPV4.but(source=source)) == wanted, (source, later)
