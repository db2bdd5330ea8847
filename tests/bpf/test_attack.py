"""What an attacker would walk through, on the virtual clock."""

import ipaddress
import random
from collections import Counter
from collections.abc import Iterator

import pytest

from ntpguard import abi
from ntpguard.keys import hash_key, source_key, source_of_key
from ntpguard.words import Action, Family, Reason, Verdict
from tests.bpf.guard import ALWAYS, SECOND, SEED, Guard, guard, hammer, limit, rule, units
from tests.bpf.packets import IPV4, IPV6, Frame, ntp

V4 = Family.IPV4
FRAGMENT = IPV4.but(fragment=0x2000)
ANSWER = IPV4.but(payload=ntp(mode=4))
KEY = source_key(ipaddress.ip_address(IPV4.source), 32, 64)
ONLY_PUT_BY = 2**30 + 2**26  # between a leak of 1/4 and an eighth more


def bound(per_second: float, burst: int, batch: int = 1) -> abi.Bound:
    return abi.Bound(limit(per_second, burst), batch)


@pytest.fixture
def one() -> Iterator[Guard]:
    with guard() as loaded:
        yield loaded


def host(number: int) -> Frame:
    return IPV4.but(source=f"198.18.{number >> 8}.{number & 255}")


def verdicts(one: Guard, frame: Frame, count: int) -> Counter[Verdict]:
    return Counter(one.verdict(frame) for _ in range(count))


@pytest.mark.parametrize("mode", [2, 4, 5])
def test_a_flood_of_answers_meets_a_budget_and_is_charged_to_no_source(
    one: Guard, mode: int
) -> None:
    one.set_rules(rule(), answers=limit(10, 5))
    flood = IPV4.but(payload=ntp(mode=mode))
    assert verdicts(one, flood, 100) == {Verdict.PASS: 5, Verdict.DROP: 95}
    one.advance(1)
    assert verdicts(one, flood, 100)[Verdict.PASS] == 5
    assert list(one.slots()) == []
    assert one.verdict(IPV4) == Verdict.PASS
    assert one.counted()[V4, Verdict.DROP, Reason.ANSWER, 0] == 190


def test_answers_of_an_upstream_pass_while_a_flood_of_others_is_dropped(one: Guard) -> None:
    one.set_rules(rule(), rule(), answers=limit(1, 1))
    one.set_prefixes({"203.0.113.7/32": 0, "2001:db8:12::/64": 1}, ("203.0.113.7/32",))
    assert verdicts(one, ANSWER.but(source="198.18.0.1"), 50) == {Verdict.PASS: 1, Verdict.DROP: 49}
    assert verdicts(one, ANSWER, 50) == {Verdict.PASS: 50}
    assert verdicts(one, IPV6.but(payload=ntp(mode=4)), 50) == {Verdict.DROP: 50}


def test_a_budget_that_is_lifted_is_lifted_at_once(one: Guard) -> None:
    one.set_rules(rule(), answers=limit(0.01, 1))
    assert verdicts(one, ANSWER, 2) == {Verdict.PASS: 1, Verdict.DROP: 1}
    one.set_rules(rule(), answers=abi.Limit())
    assert verdicts(one, ANSWER, 9) == {Verdict.PASS: 9}


def test_fragments_and_header_chains_share_a_small_budget(one: Guard) -> None:
    one.set_rules(rule(), odd=limit(10, 5))
    chain = IPV6.but(extensions=((60, bytes([0, 1, 4, 0, 0, 0, 0])),) * 9)
    assert verdicts(one, FRAGMENT, 3) == {Verdict.PASS: 3}
    assert verdicts(one, chain, 3) == {Verdict.PASS: 2, Verdict.DROP: 1}
    assert verdicts(one, FRAGMENT, 1000) == {Verdict.DROP: 1000}
    assert one.verdict(IPV4) == Verdict.PASS


def test_ip_options_are_no_way_around_the_limit(one: Guard) -> None:
    assert one.verdict(IPV4) == Verdict.PASS
    assert verdicts(one, IPV4.but(options=bytes(8)), 50) == {Verdict.DROP: 50}


def test_a_flood_of_new_sources_meets_the_gate_and_then_the_newcomers_bound(one: Guard) -> None:
    one.set_rules(rule(leak=0), gate=bound(10, 20), newcomers=bound(10, 30))
    counted = Counter(one.verdict(host(i)) for i in range(1000))
    assert counted == {Verdict.PASS: 50, Verdict.DROP: 950}
    assert len(list(one.slots())) == 20
    assert one.table_counters().gated == 980
    one.advance(1.001)
    assert Counter(one.verdict(host(i)) for i in range(1000, 2000))[Verdict.PASS] == 20


def test_untracked_sources_are_never_silenced(one: Guard) -> None:
    one.set_rules(rule(), gate=bound(0.001, 1), newcomers=bound(0.001, 1))
    for i in range(3):
        one.verdict(host(i))
    assert verdicts(one, host(3), 5) == {Verdict.DROP: 5}
    one.inputs.chance = ALWAYS
    assert verdicts(one, host(3), 5) == {Verdict.PASS: 5}


def establish(one: Guard, frame: Frame = IPV4, gaps: int = 3) -> None:
    """A first request and `gaps` well-spaced ones after it."""
    assert one.verdict(frame) == Verdict.PASS
    for _ in range(gaps):
        one.advance(110)
        assert one.verdict(frame) == Verdict.PASS


def established(one: Guard) -> list[int]:
    return [abi.field(aux, abi.AUX_ESTABLISHED_SHIFT, 1) for _, _, aux, _ in one.slots()]


def test_four_well_spaced_requests_make_a_source_established_and_excess_does_not_undo_it(
    one: Guard,
) -> None:
    establish(one, gaps=2)
    assert established(one) == [0]
    one.advance(110)
    one.verdict(IPV4)
    assert established(one) == [1]
    verdicts(one, IPV4, 1000)
    assert established(one) == [1]


def test_many_requests_close_together_establish_nobody(one: Guard) -> None:
    one.set_rules(rule(per_second=100, burst=100))
    for _ in range(500):
        one.advance(0.2)
        one.verdict(IPV4)
    assert established(one) == [0]


def test_nobody_becomes_established_while_the_gate_or_the_ceiling_bites(one: Guard) -> None:
    one.set_rules(rule(), gate=bound(0.001, 1))
    establish(one, gaps=2)
    one.advance(110)
    one.verdict(host(1))  # refused by the gate
    one.verdict(IPV4)
    assert established(one) == [0]
    one.advance(2)
    one.verdict(IPV4)
    assert established(one) == [1]


def test_established_and_limited_sources_keep_their_slots_in_a_flood_of_new_ones() -> None:
    with guard(2) as one:
        one.set_rules(rule(per_second=0.01, burst=1), established_spacing=90)
        establish(one)
        limited = host(60_000)
        one.verdict(limited)
        one.verdict(limited)
        for i in range(1000):
            one.verdict(host(i))
        kept = {source_of_key(key, 64) for key, *_ in one.slots()}
        assert {IPV4.source, limited.source} <= kept
        one.advance(3700)  # not seen for an hour
        for i in range(1000):
            one.verdict(host(i))
        assert IPV4.source not in {source_of_key(key, 64) for key, *_ in one.slots()}


def test_the_ceiling_serves_established_sources_first(one: Guard) -> None:
    one.set_rules(rule(per_second=100, burst=1000, leak=0))
    establish(one)
    one.set_rules(rule(per_second=100, burst=1000, leak=0), ceiling=bound(10, 21))
    newcomers = Counter(one.verdict(host(i)) for i in range(100))
    assert newcomers == {Verdict.PASS: 11, Verdict.DROP: 89}  # half of the tolerance, and one
    assert verdicts(one, IPV4, 100) == {Verdict.PASS: 10, Verdict.DROP: 90}
    assert one.counted()[V4, Verdict.DROP, Reason.CEILING, 0] == 179
    one.advance(0.501)
    assert verdicts(one, host(1), 10) == {Verdict.DROP: 10}  # above half still
    assert verdicts(one, IPV4, 10)[Verdict.PASS] == 5


def test_without_a_ceiling_nothing_is_refused_by_it(one: Guard) -> None:
    assert Counter(one.verdict(host(i)) for i in range(3000)) == {Verdict.PASS: 3000}


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_a_batch_changes_nothing_in_how_much_a_bound_grants(one: Guard, batch: int) -> None:
    one.set_rules(rule(leak=0), gate=bound(0.001, 1), newcomers=bound(100, 50, batch))
    one.verdict(host(0))
    granted = 0
    for _ in range(100):
        granted += sum(one.verdict(host(i)) == Verdict.PASS for i in range(1, 20))
        one.advance(0.1)
    assert 50 + 9.9 * 100 - batch <= granted <= 50 + 9.9 * 100 + batch


def test_two_cpus_share_a_bound() -> None:
    burst, rate, batch = 200, 1000, 16
    with guard(16, virtual=False) as one:
        one.set_rules(rule(leak=0), gate=bound(0.001, 1), newcomers=bound(rate, burst, batch))
        one.verdict(host(0))
        passed, elapsed = hammer(one, host(1))
        assert burst <= passed <= burst + rate * (elapsed + 0.010) + 2 * batch


def test_a_live_entry_blocks_and_expires_by_itself(one: Guard) -> None:
    one.add_entry("203.0.113.0/24", Action.BLOCK, one.inputs.clock_ns + 2 * SECOND)
    assert one.verdict(IPV4) == Verdict.DROP
    assert one.verdict(ANSWER) == Verdict.DROP
    assert one.verdict(host(1)) == Verdict.PASS
    one.advance(1.999)
    assert one.verdict(IPV4) == Verdict.DROP
    one.advance(0.001)
    assert one.verdict(IPV4) == Verdict.PASS
    assert one.counted()[V4, Verdict.DROP, Reason.ENTRY, 0] == 3


def test_an_expired_entry_gives_way_to_the_one_it_lay_over_and_then_to_the_class(
    one: Guard,
) -> None:
    one.set_rules(rule(), rule(action=Action.BLOCK))
    one.set_prefixes({"203.0.113.7/32": 1})
    now = one.inputs.clock_ns
    one.add_entry("203.0.0.0/16", Action.BLOCK, now + 2 * SECOND)  # hidden until it is over
    one.add_entry("203.0.112.0/20", Action.EXEMPT, now + 20 * SECOND)
    one.add_entry("203.0.113.0/24", Action.BLOCK, now + 10 * SECOND, fallback=20)
    assert one.verdict(IPV4) == Verdict.DROP
    one.advance(10)
    assert verdicts(one, IPV4, 9) == {Verdict.PASS: 9}
    one.advance(10)
    assert one.verdict(IPV4) == Verdict.DROP
    assert one.counted()[V4, Verdict.DROP, Reason.BLOCK, 1] == 1
    assert one.counted()[V4, Verdict.PASS, Reason.ENTRY, 1] == 9


def test_an_exempt_entry_is_no_permission_for_control_or_junk(one: Guard) -> None:
    one.add_entry("2001:db8::/32", Action.EXEMPT)
    assert verdicts(one, IPV6, 99) == {Verdict.PASS: 99}
    assert one.verdict(IPV6.but(payload=ntp(mode=6))) == Verdict.DROP
    assert one.verdict(IPV6.but(payload=ntp()[:47])) == Verdict.DROP


def test_destinations_belong_to_a_copy_of_the_policy(one: Guard) -> None:
    one.policy[0].flags |= abi.POLICY_DESTINATIONS
    one.add_address("198.51.100.1", abi.ADDRESS_LOCAL | abi.ADDRESS_DESTINATION << 1)
    assert verdicts(one, IPV4, 5) == {Verdict.PASS: 5}
    one.add_address("198.51.100.1", abi.ADDRESS_LOCAL | abi.ADDRESS_DESTINATION)
    assert verdicts(one, IPV4, 5)[Verdict.PASS] == 1


def test_forged_sources_leave_half_of_a_shard_to_an_established_one(one: Guard) -> None:
    one.set_rules(
        rule(per_second=0.01, burst=1),
        established_spacing=90,
        leak_shard=abi.Limit(units(100 * SECOND), 6 * units(100 * SECOND)),
    )
    establish(one)
    shard = hash_key(KEY, SEED) >> 32 & 255
    forged = [
        frame
        for frame in map(host, range(20_000))
        if hash_key(source_key(ipaddress.ip_address(frame.source), 32, 64), SEED) >> 32 & 255
        == shard
    ]
    for frame in forged:
        one.verdict(frame)
    one.inputs.chance = ALWAYS
    leaked = sum(one.verdict(frame) == Verdict.PASS for frame in forged for _ in range(2))
    # of 7 answers at once; a shard has its last one a part of an interval later than the first shard
    assert leaked == (4 if shard == 0 else 3)
    assert verdicts(one, IPV4, 10)[Verdict.PASS] == 3


def test_two_classes_in_one_source_give_each_other_no_fresh_burst(one: Guard) -> None:
    one.set_rules(rule(1, 32), rule(1, 1000))
    one.set_prefixes({f"{IPV6.source}/128": 1})
    neighbour = IPV6.but(source="2001:db8:12::8")
    assert verdicts(one, IPV6, 1500)[Verdict.PASS] == 1000
    for _ in range(5):
        assert one.verdict(neighbour) != Verdict.PASS
        assert verdicts(one, IPV6, 100)[Verdict.PASS] == 0
    # what an older policy has put too far ahead does not hold for its own class
    one.policy[0].classes[1] = rule(1, 1)
    assert verdicts(one, IPV6, 9)[Verdict.PASS] == 1


@pytest.mark.parametrize("years", [0.001, 4.7])  # after half a wrap, what is zero is ahead
def test_a_leak_that_was_all_but_off_is_back_with_the_next_policy(one: Guard, years: float) -> None:
    one.inputs.clock_ns = int(years * 365 * 86400) * SECOND
    one.inputs.chance = ALWAYS
    slow = rule(per_second=1 / 86400, burst=1)
    one.set_rules(slow, leak_shard=abi.Limit(units(256 * 86400 * SECOND), 0))
    assert Verdict.PASS in verdicts(one, IPV4, 5)
    one.set_rules(slow, leak_shard=abi.Limit(units(SECOND), 8 * units(SECOND)))
    passed = 0
    for _ in range(100):
        passed += one.verdict(IPV4) == Verdict.PASS
        one.advance(2)
    assert passed > 90


def test_a_packet_that_looks_different_gets_the_answer_put_by_and_only_one(one: Guard) -> None:
    one.set_rules(rule(burst=1, leak=1 / 4))
    victim = IPV4.but(ttl=50)
    one.verdict(IPV4)
    one.inputs.chance = ONLY_PUT_BY
    assert verdicts(one, IPV4, 100)[Verdict.PASS] == 0  # puts one by; none is answered
    assert [one.verdict(victim) for _ in range(3)] == [Verdict.PASS, Verdict.DROP, Verdict.DROP]
    assert one.counted()[V4, Verdict.PASS, Reason.LEAK, 0] == 1


def test_looks_in_turn_get_nothing_beyond_the_leak(one: Guard) -> None:
    one.set_rules(rule(per_second=0.001, burst=1, leak=1 / 4))
    looks = [IPV4.but(ttl=ttl) for ttl in range(30, 60)]
    one.verdict(IPV4)
    chances = random.Random(1)
    passed = 0
    for i in range(20_000):
        one.inputs.chance = chances.getrandbits(32)
        passed += one.verdict(looks[i % len(looks)]) == Verdict.PASS
    assert passed / 20_000 < 0.25 * 1.125 + 0.01


def test_the_leak_is_bounded_by_each_shard_whatever_the_flood(one: Guard) -> None:
    one.set_rules(rule(burst=1), leak_shard=abi.Limit(units(SECOND), 0), kod=bound(1, 1))
    one.inputs.chance = ALWAYS
    flooded, victim = IPV4, host(3)
    for frame in (flooded, victim):
        one.verdict(frame)
    assert verdicts(one, flooded, 1000)[Verdict.PASS] == 1
    # another shard is as full as ever
    hashes = [hash_key(key, SEED) for key, *_ in one.slots()]
    assert len({value >> 32 & 255 for value in hashes}) == 2
    assert verdicts(one, victim, 10)[Verdict.PASS] == 1
