"""The trial of KoDs: who is never kissed, what is noted, and that what `kod` tells is true."""

import heapq
import ipaddress
import random
from collections import Counter
from collections.abc import Iterator

import pytest

from ntpguard import abi, trials
from ntpguard.kernel import libbpf
from ntpguard.keys import source_key
from ntpguard.trials import Change, Outcome
from ntpguard.words import Group, Mode, Verdict
from tests.bpf.guard import SECOND, START, Guard, guard, kissed_at_once, part, rule, units
from tests.bpf.packets import IPV4, ntp

ADDRESSES = [f"203.0.113.{host}" for host in range(1, 255)]
CONTROL = next(one for one in ADDRESSES if part(one) == abi.PART_CONTROL)
TRIED = next(one for one in ADDRESSES if part(one) == abi.PART_TRIED)
OTHER = next(kissed_at_once(ADDRESSES))
INTERVAL = 16 * SECOND


@pytest.fixture
def one() -> Iterator[Guard]:
    with guard() as loaded:
        loaded.set_rules(rule(per_second=1 / 8))
        yield loaded


def send(one: Guard, source: str, seconds: list[float]) -> list[Verdict]:
    """What its requests at these seconds from the start on meet."""
    verdicts = []
    for second in seconds:
        one.inputs.clock_ns = START + int(second * SECOND)
        verdicts.append(one.verdict(IPV4.but(source=source)))
    return verdicts


def trial(one: Guard, source: str) -> abi.Trial | None:
    raw = libbpf.map_lookup(one.object.map_fd("trials"), key_of(source), abi.size(abi.Trial))
    return abi.Trial.from_buffer_copy(raw) if raw else None


def seconds(found: abi.Trial | None) -> list[float | None]:
    """Of its beginning, its KoD and its end, from the start on."""
    assert found
    times = (found.begin_ns, found.kod_ns, found.end_ns)
    return [(one - START) / SECOND if one else None for one in times]


def key_of(source: str) -> bytes:
    return source_key(ipaddress.ip_address(source), 32, 64).to_bytes(8, "little")


def heeding(one: Guard) -> tuple[list[int], list[int]]:
    """(heeded, unheeded), each kissed and control."""
    heeded, unheeded = [0] * abi.GROUPS, [0] * abi.GROUPS
    fd = one.object.map_fd("kod_counters")
    for raw in libbpf.map_lookup_percpu(fd, bytes(4), abi.size(abi.KodCounters)):
        counters = abi.KodCounters.from_buffer_copy(raw)
        for group in Group:
            heeded[group] += counters.heeded[group]
            unheeded[group] += counters.unheeded[group]
    return heeded, unheeded


def aux(one: Guard, source: str) -> int:
    (word,) = [a for key, _, a, _ in one.slots() if key.to_bytes(8, "little") == key_of(source)]
    return word


def kod_memory(word: int) -> list[int]:
    return [
        abi.field(word, abi.AUX_UNHEEDED_SHIFT, abi.AUX_UNHEEDED_BITS),
        abi.field(word, abi.AUX_AFTER_KOD_SHIFT, abi.AUX_AFTER_KOD_BITS),
        abi.field(word, abi.AUX_KOD_TIME_SHIFT, abi.AUX_KOD_TIME_BITS),
    ]


def test_exactly_the_hashs_sixteenth_is_never_kissed_and_another_one_the_second_time() -> None:
    sources = [f"198.18.{n >> 8}.{n & 255}" for n in range(1600)]
    with guard(4096) as one:
        for source in sources:
            frame = IPV4.but(source=source)
            found = []
            for _ in range(2):
                one.run(frame)
                found.append(one.verdict(frame))
                one.advance(17)
            kissed = (part(source) > abi.PART_TRIED, part(source) >= abi.PART_TRIED)
            assert found == [Verdict.KOD if yes else Verdict.DROP for yes in kissed], source
    parts = Counter(map(part, sources))
    assert len(parts) == 16
    # of a fair hash: binomial, five standard deviations
    assert all(abs(parts[n] - 100) < 5 * (1600 * 15 / 256) ** 0.5 for n in (0, 1))


@pytest.mark.parametrize(("source", "group"), [(CONTROL, Group.CONTROL), (TRIED, Group.KISSED)])
def test_a_trial_notes_its_beginning_its_kod_and_its_end(
    one: Guard, source: str, group: Group
) -> None:
    send(one, source, [0, 1, 5, 18, 18.5])
    found = trial(one, source)
    assert found
    assert (found.group, found.source_port) == (group, 40000)
    assert bytes(found.header) == IPV4.payload
    assert seconds(found) == [1, 18.5, None]
    assert (found.begin_requests, found.kod_requests) == (1, 4)
    send(one, source, [50, 50.5])  # not yet two intervals
    assert seconds(trial(one, source)) == [1, 18.5, None]
    send(one, source, [67, 67.5])
    found = trial(one, source)
    assert seconds(found) == [1, 18.5, 67.5]
    assert found and found.end_requests == 8
    send(one, source, [90, 91])
    assert bytes(trial(one, source) or b"") == bytes(found)


def test_a_source_that_is_kissed_at_once_is_in_no_trial(one: Guard) -> None:
    assert send(one, OTHER, [0, 1]) == [Verdict.PASS, Verdict.KOD]
    assert trial(one, OTHER) is None


def test_both_groups_become_deaf_alike(one: Guard) -> None:
    """The same requests leave the same memory of KoDs in a slot, but the verdicts differ."""
    times = [n * 0.9 for n in range(160)]
    verdicts = {source: send(one, source, times) for source in (CONTROL, TRIED)}
    assert kod_memory(aux(one, CONTROL)) == kod_memory(aux(one, TRIED))
    assert kod_memory(aux(one, TRIED))[0] == 4  # deaf
    assert verdicts[CONTROL].count(Verdict.KOD) == 0
    assert verdicts[TRIED].count(Verdict.KOD) == 4
    assert verdicts[CONTROL] == [Verdict.DROP if v == Verdict.KOD else v for v in verdicts[TRIED]]
    heeded, unheeded = heeding(one)
    assert heeded[Group.KISSED] == heeded[Group.CONTROL]
    assert unheeded == [4, 4]


def test_a_kod_is_heeded_when_the_next_request_conforms(one: Guard) -> None:
    assert send(one, OTHER, [0, 1]) == [Verdict.PASS, Verdict.KOD]
    assert heeding(one) == ([0, 0], [0, 0])
    send(one, OTHER, [1000])  # however late
    assert heeding(one) == ([1, 0], [0, 0])
    send(one, OTHER, [1010, 1020])  # told once
    assert heeding(one) == ([1, 0], [0, 0])
    # one that falls back before its next KoD is counted on both sides
    send(one, OTHER, [1021, 1031, 1032, 1033])
    assert heeding(one) == ([2, 0], [1, 0])


def test_one_excess_request_after_a_kod_tells_that_it_is_not_heeded_at_once(one: Guard) -> None:
    send(one, OTHER, [0, 1, 4, 9])
    assert heeding(one) == ([0, 0], [0, 0])


def test_what_comes_within_two_seconds_tells_nothing(one: Guard) -> None:
    one.set_rules(rule(per_second=1))
    assert send(one, OTHER, [0, 0.5, 1.5]) == [Verdict.PASS, Verdict.KOD, Verdict.PASS]
    assert heeding(one) == ([0, 0], [0, 0])
    send(one, OTHER, [3])
    assert heeding(one) == ([1, 0], [0, 0])


@pytest.mark.parametrize("what", ["mode", "class"])
def test_where_only_observed_there_is_no_trial_and_nothing_is_heeded(what: str) -> None:
    with guard() as one:
        flags = abi.CLASS_KOD | (abi.CLASS_OBSERVE if what == "class" else 0)
        one.set_rules(rule(per_second=1 / 8, flags=flags))
        if what == "mode":
            one.set_mode(Mode.OBSERVE)
        for source in (CONTROL, TRIED, OTHER):
            send(one, source, [0, 1, 4, 5, 30, 31, 60])
            assert trial(one, source) is None
        assert heeding(one) == ([0, 0], [0, 0])
        kods = Counter(v for _, v, _, _ in one.counted("observed"))[Verdict.KOD]
        assert kods == 1  # a cell


def test_without_room_for_kods_no_trial_begins(one: Guard) -> None:
    one.set_rules(rule(), kod=abi.Bound(abi.Limit(units(SECOND), 0), 1))
    send(one, OTHER, [0, 0.1])
    send(one, CONTROL, [0.2, 0.3])
    assert trial(one, CONTROL) is None


# a population, through the real program

CHRONY = ntp()
FORTIGATE = (
    bytes.fromhex("e30004fa0001000000010000") + bytes(28) + bytes.fromhex("eaf1b2c3000010c6")
)
ANDROID = bytes.fromhex("1b") + bytes(39) + bytes.fromhex("eaf1b2c3d4e5f607")
LONGER = {"heeds": 10, "ignores": 1, "hurries": 1 / 3}


def population(kinds: dict[bytes, str], each: int) -> list[Outcome]:
    """What the program noted of `each` sources of both groups and every kind in two minutes. They
    ask every 2 seconds or so, and once they were kissed as their kind does: the seconds are so many
    times longer.
    """
    frames = []
    for index, (payload, kind) in enumerate(kinds.items()):
        sources = [f"198.18.{8 * index + (n >> 8)}.{n & 255}" for n in range(2048)]
        for group in (abi.PART_CONTROL, abi.PART_TRIED):
            members = [one for one in sources if part(one) == group][:each]
            assert len(members) == each
            frames += [(bytes(IPV4.but(source=s, payload=payload)), kind) for s in members]
    chance = random.Random(6)
    due = [(chance.uniform(0, 2), n, False) for n in range(len(frames))]
    heapq.heapify(due)
    with guard(4096) as one:
        one.set_rules(rule(per_second=1 / 8, burst=4))
        while due[0][0] < 130:
            at, number, told = due[0]
            frame, kind = frames[number]
            one.inputs.clock_ns = START + int(at * SECOND)
            one.inputs.chance = chance.getrandbits(32)
            told |= one.run(frame)[0] == abi.Xdp.TX
            pause = chance.uniform(1.5, 2.5) * (LONGER[kind] if told else 1)
            heapq.heapreplace(due, (at + pause, number, told))
        now = one.inputs.clock_ns
        found = {slot[0]: trials.seen(slot, one.policy[0].classes, now) for slot in one.slots()}
        items = libbpf.map_items(one.object.map_fd("trials"), 8, abi.size(abi.Trial), 16384)
        return trials.outcomes(items, found.get, now, INTERVAL)


def test_what_kod_tells_of_a_population_is_true() -> None:
    kinds = {CHRONY: "heeds", FORTIGATE: "ignores", ANDROID: "hurries"}
    found = trials.compare(population(kinds, each=25))
    assert found.keys() == {"chrony", "FortiGate", "Android"}
    for one in found.values():
        assert [one.sources(group) for group in Group] == [25, 25]
        assert one.counts[Group.CONTROL][Change.SAME] >= 23
    assert found["chrony"].counts[Group.KISSED][Change.SLOWED] == 25
    assert found["chrony"].finding().startswith("KoD helps: +")
    assert found["FortiGate"].counts[Group.KISSED][Change.SAME] >= 23
    assert found["FortiGate"].finding().startswith("no difference shown: ")
    assert found["Android"].counts[Group.KISSED][Change.FASTER] >= 23
    assert found["Android"].finding().startswith("KoD harms: ")
