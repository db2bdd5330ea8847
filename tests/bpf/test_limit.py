"""The limit, the answers to excess and the source table, through the real program."""

import ctypes
import ipaddress
import itertools
import os
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ntpguard import abi, sources
from ntpguard.kernel import libbpf
from ntpguard.keys import fingerprint, hash_key, source_key, source_of_key
from ntpguard.words import Action, Family, Mode, Reason, Verdict
from tests import testrun
from tests.bpf.guard import (
    ALWAYS,
    SECOND,
    SEED,
    START,
    Guard,
    guard,
    hammer,
    kissed_at_once,
    rule,
    units,
)
from tests.bpf.packets import IPV4, IPV6, Frame, ntp

CLOCK_MONOTONIC_COARSE = 6  # linux/time.h


class ModelGcra:
    """GCRA as ITU-T I.371 has it, on Python integers."""

    def __init__(self, interval: int, tolerance: int) -> None:
        self.interval, self.tolerance, self.tat = interval, tolerance, 0

    def conforms(self, now: int) -> bool:
        if self.tat - now > self.tolerance:
            return False
        self.tat = max(self.tat, now) + self.interval
        return True


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rate=st.sampled_from([0.01, 1.0, 7.0, 1000.0, 10_000.0]),
    burst=st.integers(1, 200),
    gaps=st.lists(st.sampled_from([0.0, 1e-6, 1e-4, 0.004, 0.5, 1.0, 3.0, 200.0]), max_size=120),
)
def test_the_limit_is_exact_on_any_schedule(rate: float, burst: int, gaps: list[float]) -> None:
    with guard(16) as one:
        one.set_rules(rule(rate, burst))
        interval = units(SECOND / rate) >> abi.GCRA_TAT_SHIFT
        model = ModelGcra(interval, (burst - 1) * interval)
        for gap in gaps:
            one.advance(gap)
            now = one.inputs.clock_ns >> abi.GCRA_UNIT_SHIFT
            expected = model.conforms(now)
            assert (one.verdict(IPV4) == Verdict.PASS) == expected


@pytest.fixture
def one() -> Iterator[Guard]:
    with guard() as loaded:
        yield loaded


def exceed(one: Guard, frame: Frame = IPV4) -> None:
    """One request of burst 1: the source is at its limit."""
    assert one.verdict(frame) == Verdict.PASS


def test_a_source_that_slows_down_is_served_again_at_once(one: Guard) -> None:
    exceed(one)
    for _ in range(1000):
        assert one.verdict(IPV4) != Verdict.PASS
    one.advance(1.001)
    assert one.verdict(IPV4) == Verdict.PASS


def test_two_cpus_hammering_one_source_pass_no_more_than_the_bound_in_total() -> None:
    burst, rate = 20, 100
    with guard(16, virtual=False) as one:
        one.set_rules(rule(rate, burst, leak=0, flags=0))
        passed, elapsed = hammer(one, IPV4)
        tick = 0.010
        assert burst <= passed <= burst + rate * (elapsed + tick) + 1
        assert sum(1 for _ in one.slots()) == 1


def test_a_quarter_of_excess_leaks_by_chance_and_never_more_than_the_shards_budget(
    one: Guard,
) -> None:
    one.set_rules(rule(), leak_shard=abi.Limit(units(SECOND), 3 * units(SECOND)))
    exceed(one)
    one.inputs.chance = int(0.25 * 2**32) + 1
    assert one.verdict(IPV4) != Verdict.PASS
    one.inputs.chance = ALWAYS
    # half of the burst is for established sources: 1.5 intervals, less the shard's part of one
    key = source_key(ipaddress.ip_address(IPV4.source), 32, 64)
    shard = hash_key(key, SEED) >> 32 & abi.LEAK_SHARDS - 1
    assert [one.verdict(IPV4) for _ in range(4)].count(Verdict.PASS) == 1 + (shard <= 128)


def test_the_programs_own_chance_leaks_a_quarter_too_and_notes_few_offenders() -> None:
    requests = 20_000
    with guard(virtual=False) as one:
        one.set_rules(rule(per_second=0.001, flags=0))
        leaked = [one.verdict(IPV4) for _ in range(requests)].count(Verdict.PASS) - 1
        # six standard deviations
        assert abs(leaked / requests - 1 / 4) < 6 * (3 / 16 / requests) ** 0.5
        halves = [one.verdict(IPV4) for _ in range(requests)]
        pairs = sum(a == b == Verdict.PASS for a, b in itertools.pairwise(halves))
        assert abs(pairs / requests - 1 / 16) < 6 * (1 / 16 / requests) ** 0.5 * 2
        fd = one.object.map_fd("offenders")
        (key,) = libbpf.map_keys(fd, 8)
        raw = libbpf.map_lookup(fd, key, abi.size(abi.Offender))
        assert raw
        sampled = sum(abi.Offender.from_buffer_copy(raw).sampled)
        assert abs(sampled / (2 * requests) - 1 / 64) < 6 * (1 / 64 / 2 / requests) ** 0.5


def test_the_programs_own_clock_is_the_coarse_one() -> None:
    """Each packet's time is that of CLOCK_MONOTONIC_COARSE, or of the tick before."""
    tick = time.clock_getres(CLOCK_MONOTONIC_COARSE)
    with guard(virtual=False) as one:
        (cpu,) = os.sched_getaffinity(0)
        for _ in range(500):
            before = time.clock_gettime_ns(CLOCK_MONOTONIC_COARSE)
            one.run(IPV4)
            after = time.clock_gettime_ns(CLOCK_MONOTONIC_COARSE)
            read = one.local()[cpu].clock_ns
            assert before - tick * SECOND <= read <= after
            time.sleep(0.0007)


def test_a_source_is_kissed_once_an_interval(one: Guard) -> None:
    exceed(one)
    assert one.verdict(IPV4) == Verdict.KOD
    assert {one.verdict(IPV4) for _ in range(20)} == {Verdict.DROP}
    one.advance(17)
    exceed(one)
    assert one.verdict(IPV4) == Verdict.KOD


def test_a_flood_is_not_kissed(one: Guard) -> None:
    one.set_rules(rule(), kod_flood=3, kod_interval=1)
    exceed(one)
    one.inputs.chance = ALWAYS
    for _ in range(3):
        one.verdict(IPV4)  # leaks
    one.inputs.chance = 0xFFFFFFFF
    assert one.verdict(IPV4) == Verdict.DROP


def test_all_kods_together_are_bounded(one: Guard) -> None:
    one.set_rules(rule(), kod=abi.Bound(abi.Limit(units(SECOND), units(SECOND)), 1))
    verdicts = []
    hosts = kissed_at_once(f"203.0.113.{host + 1}" for host in range(50))
    for host in itertools.islice(hosts, 5):
        frame = IPV4.but(source=host)
        exceed(one, frame)
        verdicts.append(one.verdict(frame))
    assert verdicts == [Verdict.KOD] * 2 + [Verdict.DROP] * 3


def ignore_kods(one: Guard, times: int) -> None:
    """A source that goes on after each KoD."""
    exceed(one)
    for _ in range(times):
        assert one.verdict(IPV4) == Verdict.KOD
        one.advance(3)
        one.verdict(IPV4)
        for _ in range(2):
            one.verdict(IPV4)
        one.advance(14)
        exceed(one)


def test_who_ignores_four_kods_is_deaf_until_15_quiet_minutes_but_never_silenced(
    one: Guard,
) -> None:
    ignore_kods(one, 4)
    assert one.verdict(IPV4) == Verdict.DROP
    one.advance(100)
    exceed(one)  # what conforms passes
    assert one.verdict(IPV4) == Verdict.DROP
    one.inputs.chance = ALWAYS
    assert one.verdict(IPV4) == Verdict.PASS  # the leak goes on
    one.inputs.chance = 0xFFFFFFFF
    one.advance(15 * 60 + 1)
    exceed(one)
    assert one.verdict(IPV4) == Verdict.KOD


def test_observe_passes_everything_and_counts_what_would_have_happened(one: Guard) -> None:
    one.set_mode(Mode.OBSERVE)
    assert [one.verdict(IPV4) for _ in range(4)] == [Verdict.PASS] * 4
    v4 = Family.IPV4
    assert one.counted("observed") == {
        (v4, Verdict.PASS, Reason.CONFORM, 0): 1,
        (v4, Verdict.KOD, Reason.LIMIT, 0): 1,
        (v4, Verdict.DROP, Reason.LIMIT, 0): 2,
    }
    assert one.counted() == {
        (v4, Verdict.PASS, Reason.CONFORM, 0): 1,
        (v4, Verdict.PASS, Reason.OBSERVED, 0): 3,
    }


def test_off_judges_nothing(one: Guard) -> None:
    one.set_mode(Mode.OFF)
    assert one.verdict(IPV4.but(payload=ntp(mode=7))) == Verdict.PASS
    assert list(one.slots()) == []


def test_the_longest_prefix_gives_the_class(one: Guard) -> None:
    one.set_rules(
        rule(),
        rule(action=Action.BLOCK),
        rule(action=Action.EXEMPT),
        rule(burst=5),
        rule(flags=abi.CLASS_CONTROL),
    )
    one.set_prefixes(
        {
            "203.0.113.0/24": 1,
            "203.0.113.128/25": 2,
            "203.0.113.200/32": 3,
            "2001:db8:12::/48": 1,
            "2001:db8:12::/64": 2,
            "198.18.0.0/15": 4,
        }
    )
    assert one.verdict(IPV4) == Verdict.DROP
    assert {one.verdict(IPV4.but(source="203.0.113.130")) for _ in range(9)} == {Verdict.PASS}
    limited = [one.verdict(IPV4.but(source="203.0.113.200")) for _ in range(6)]
    assert limited == [Verdict.PASS] * 5 + [Verdict.KOD]
    assert {one.verdict(IPV6) for _ in range(9)} == {Verdict.PASS}
    assert one.verdict(IPV6.but(source="2001:db8:12:1::7")) == Verdict.DROP
    control = IPV4.but(source="198.18.0.1", payload=ntp(mode=6))
    assert one.verdict(control) == Verdict.PASS
    assert one.verdict(control.but(source="198.51.100.9")) == Verdict.DROP


def test_a_cached_class_is_forgotten_when_the_prefixes_change(one: Guard) -> None:
    one.set_rules(rule(burst=9), rule(action=Action.BLOCK))
    exceed(one)
    one.set_prefixes({"203.0.113.0/24": 1})
    assert one.verdict(IPV4) == Verdict.PASS  # same generation: cached
    one.set_mode(Mode.ENFORCE, generation=1)
    assert one.verdict(IPV4) == Verdict.DROP


def passes(one: Guard, count: int) -> int:
    return sum(one.verdict(IPV4) == Verdict.PASS for _ in range(count))


def test_who_was_silent_does_not_wait_for_a_limit_that_was_raised(one: Guard) -> None:
    one.set_rules(rule(per_second=0.01, burst=100))
    for _ in range(100):
        exceed(one)
    one.set_rules(rule(per_second=10, burst=4))
    assert passes(one, 20) == 1  # an older policy's tat: no fresh burst
    one.advance(0.201)
    assert passes(one, 20) == 2


def test_a_tat_that_another_clock_put_a_tick_ahead_is_the_limits_own(one: Guard) -> None:
    one.set_rules(rule(per_second=10, burst=4))
    assert passes(one, 20) == 4
    for behind in (0.004, 0.0099):
        one.advance(-behind)
        assert passes(one, 20) == 0
        one.advance(behind)


def test_an_ipv6_source_is_a_64(one: Guard) -> None:
    exceed(one, IPV6)
    assert one.verdict(IPV6.but(source="2001:db8:12::ffff:1")) != Verdict.PASS
    assert one.verdict(IPV6.but(source="2001:db8:12:1::7")) == Verdict.PASS


def test_destinations_limit_what_is_guarded(one: Guard) -> None:
    one.policy[0].flags |= abi.POLICY_DESTINATIONS
    assert {one.verdict(IPV4) for _ in range(5)} == {Verdict.PASS}
    one.add_address("198.51.100.1", abi.ADDRESS_LOCAL | abi.ADDRESS_DESTINATION)
    exceed(one)
    assert one.verdict(IPV4) == Verdict.KOD


def test_other_ports_can_be_guarded() -> None:
    with guard(16, ports=(123, 1123)) as one:
        frame = IPV4.but(destination_port=1123)
        exceed(one, frame)
        assert one.verdict(frame) == Verdict.KOD


def test_an_abuser_stays_limited_while_a_million_others_pass_by_and_none_inherits_its_state() -> (
    None
):
    with guard(64) as one:
        one.set_rules(rule(per_second=0.01, burst=1))
        exceed(one)
        one.verdict(IPV4)
        head, tail = bytes(IPV4)[:26], bytes(IPV4)[30:]  # around the source address
        for host in range(1_000_000):
            other = head + (0xC6120000 + host).to_bytes(4, "big") + tail
            assert testrun.run(one.fd, other)[0] == abi.Xdp.PASS, host
            if host % 1000 == 0:
                assert one.verdict(IPV4) == Verdict.DROP, host
        counters = one.table_counters()
        held = sum(1 for _ in one.slots())
        assert counters.inserted[0] - counters.replaced[0] == held <= 64 * abi.WAYS


def test_a_source_whose_two_buckets_are_full_of_abusers_is_charged_to_the_newcomers_limit() -> None:
    with guard(2) as one:
        one.set_rules(
            rule(per_second=0.01, burst=1),
            newcomers=abi.Bound(abi.Limit(units(SECOND), units(SECOND)), 1),
        )
        for host in range(1, 9):
            frame = IPV4.but(source=f"203.0.113.{host}")
            exceed(one, frame)
            one.verdict(frame)
        ninth = IPV4.but(source="203.0.113.9")
        verdicts = [one.verdict(ninth) for _ in range(4)]
        assert verdicts == [Verdict.PASS, Verdict.PASS, Verdict.DROP, Verdict.DROP]
        one.inputs.chance = ALWAYS
        assert one.verdict(ninth) == Verdict.PASS
        assert one.counted()[(Family.IPV4, Verdict.DROP, Reason.UNTRACKED, 0)] == 2


def test_a_source_whose_home_has_no_room_is_held_beside_it_and_limited_as_any() -> None:
    """Eight sources in a set of two buckets, whatever their homes are; none forgets another."""
    with guard(2) as one:
        one.set_rules(rule(per_second=0.01, burst=2))
        frames = [IPV4.but(source=f"203.0.113.{host}") for host in range(1, 9)]
        verdicts = [[one.verdict(frame) for frame in frames] for _ in range(3)]
        assert verdicts[:2] == [[Verdict.PASS] * 8] * 2
        assert Verdict.PASS not in verdicts[2]
        assert len({key for key, *_ in one.slots()}) == 8
        homes = [hash_key(key, SEED) & 1 for key, *_ in one.slots()]
        assert homes.count(0) != 4, "of these sources one bucket has more than four"
        counters = one.table_counters()
        assert (counters.inserted[0], counters.replaced[0], counters.full) == (8, 0, 0)


def test_two_cpus_inserting_the_same_sources_leave_one_slot_each_and_no_reader_sees_a_torn_one() -> (
    None
):
    with guard(8, virtual=False) as one:
        frames = [bytes(IPV4.but(source=f"203.0.113.{host}")) for host in range(1, 200)]
        keys = {
            source_key(ipaddress.ip_address(f"203.0.113.{host}"), 32, 64) for host in range(1, 200)
        }
        stop = threading.Event()

        def insert(cpu: int) -> None:
            os.sched_setaffinity(0, {cpu % (os.cpu_count() or 1)})
            while not stop.is_set():
                for frame in frames:
                    testrun.run(one.fd, frame)

        memory = libbpf.map_mmap(one.object.map_fd("sources"), abi.size(abi.Bucket) * 8)
        words = memoryview(memory)[: abi.size(abi.Bucket) * 8].cast("Q")
        threads = [threading.Thread(target=insert, args=(cpu,)) for cpu in (0, 1)]
        for thread in threads:
            thread.start()
        read = 0
        end = time.monotonic() + 2
        while time.monotonic() < end:
            for bucket in range(8):
                for way in range(abi.WAYS):
                    slot = sources.read_slot(words, bucket, way, SEED)
                    if slot:
                        read += 1
                        assert slot[0] in keys
                        assert hash_key(slot[0], SEED) & 7 in (bucket, bucket ^ 1)
        stop.set()
        for thread in threads:
            thread.join()
        held = [key for key, *_ in one.slots()]
        assert read > 1000
        assert len(held) == len(set(held))


def test_the_hash_of_user_space_is_the_programs(one: Guard) -> None:
    exceed(one)
    exceed(one, IPV6)
    for bucket_index, bucket in enumerate(one.sources):
        for way in range(abi.WAYS):
            key = bucket.key[way]
            if key:
                assert hash_key(key, SEED) & (one.buckets - 1) == bucket_index
                mark = abi.field(bucket.gcra[way], abi.GCRA_FINGERPRINT_SHIFT, 12)
                assert fingerprint(key, SEED) == mark
    assert {source_of_key(key, 64) for key, *_ in one.slots()} == {
        "203.0.113.7",
        "2001:db8:12::/64",
    }


def test_requests_and_excess_are_counted_per_source(one: Guard) -> None:
    for _ in range(5):
        one.verdict(IPV4)
    ((_, _, _, stat),) = one.slots()
    assert (stat >> abi.STAT_REQUESTS_SHIFT, stat & 0xFFFFFFFF) == (5, 4)


# packets of one host, seconds apart, that the default limit must never touch (design.md)
LEGITIMATE = {
    "iburst: 8 packets at 2 s, then every 64 s": [2.0] * 8 + [64.0] * 50,
    "nagios, RIPE Atlas: 4 back to back every minute": [0.0, 0.0, 0.0, 60.0] * 20,
    "OpenNTPD: 8 packets at 1 s, then every 30 s": [1.0] * 8 + [30.0] * 50,
    "five iburst hosts behind one NAT": [0.0] * 4 + ([2.0] + [0.0] * 4) * 5 + [64.0],
    "sixty 64-second pollers behind one NAT": [64.0 / 60] * 600,
}


@pytest.mark.parametrize("gaps", LEGITIMATE.values(), ids=LEGITIMATE.keys())
def test_the_default_limit_never_touches(one: Guard, gaps: list[float]) -> None:
    from ntpguard.policy.check import DEFAULT
    from ntpguard.policy.compile import compile_policy

    ctypes.memmove(
        ctypes.addressof(one.policy), bytes(compile_policy(DEFAULT).policy), abi.size(abi.Policy)
    )
    assert one.inputs.clock_ns == START
    for gap in gaps:
        assert one.verdict(IPV4) == Verdict.PASS
        one.advance(gap)
    assert {reason for _, _, reason, _ in one.counted()} == {Reason.CONFORM}
