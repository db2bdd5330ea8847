"""Live entries, written by user space and honoured by the packet path with no process running."""

import ipaddress
import time
from collections.abc import Iterator

import pytest

from ntpguard import abi, running
from ntpguard.entries import LiveEntry, clean_entries, clear_entry, read_entries, set_entry
from ntpguard.errors import UsageError
from ntpguard.kernel import maps
from ntpguard.policy.check import parse_policy
from ntpguard.words import Action, Family, Verdict
from tests.bpf.guard import Guard, guard
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
    put(one, "203.0.113.7/32", Action.EXEMPT, 0.2)
    put(one, "203.0.113.0/24", Action.BLOCK, None)
    assert one.verdict(IPV4) == Verdict.PASS
    time.sleep(0.25)
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
