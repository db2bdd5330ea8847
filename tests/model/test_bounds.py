"""Every bound holds over every stretch of time, in the real program, on random schedules."""

from collections import defaultdict
from dataclasses import replace
from random import Random

from ntpguard import abi
from ntpguard.abi import Xdp
from ntpguard.keys import hash_key
from ntpguard.policy.check import DEFAULT
from ntpguard.policy.compile import compile_policy
from ntpguard.words import Action, Mode
from tests.bpf.packets import IPV4
from tests.model.compare import Programs
from tests.model.policy import Bound, Limit, Policy, Root, Rule
from tests.model.program import shape
from tests.model.seeds import for_seeds
from tests.model.world import OWN4, OWN6

PACKETS = 2000
UNITS = 1 << abi.GCRA_UNIT_SHIFT  # nanoseconds
NEVER = 0xFFFFFFFF
DAY = 86400 * 10**9 // UNITS


class Bounded:
    """Counts what a bound grants and asserts that it holds over every stretch of time."""

    def __init__(self, limit: Limit, prepaid: int = 0) -> None:
        self.limit, self.prepaid = limit, prepaid
        self.count, self.least = 0, 0.0

    def grant(self, clock_ns: int) -> None:
        """One more; at most burst + rate * elapsed (+ what a CPU had taken before) in any stretch."""
        at = (clock_ns // UNITS) / self.limit.interval
        self.least = min(self.least, self.count - at) if self.count else -at
        self.count += 1
        burst = 1 + self.limit.tolerance / self.limit.interval
        assert self.count - at - self.least <= burst + self.prepaid + 1e-6


def random_limit(random: Random, slowest_ms: int = 1000) -> Limit:
    """A limit of up to 20 at once and one each 10 microseconds to `slowest_ms`."""
    interval = random.randrange(10, slowest_ms * 1000)
    return Limit(interval, random.randrange(20) * interval)


def quiet_policy(rule: Rule) -> Policy:
    """One class; every bound unlimited, no signatures."""
    free = Bound(Limit(), 1)
    fast = Limit(1, 100)
    return Policy(free, free, free, free, fast, fast, fast, 0, 1, 15, 254, 1, 0, (), (rule,))


class Crowd:
    """Sources that send at random on the virtual clock of a program in enforce mode."""

    def __init__(self, programs: Programs, random: Random, policy: Policy, buckets: int) -> None:
        self.random = random
        self.program = programs.of(shape(buckets))
        self.program.reset()
        self.program.set_addresses({0xFFFF << 32 | OWN4: 1, OWN6: 1})
        self.program.set_entries({})
        self.program.set_policy(0, policy)
        self.program.set_root(Root(Mode.ENFORCE))
        self.clock_ns = 10**12
        wire = bytes(IPV4)
        self.head, self.tail = wire[:26], wire[30:]
        self.steps: tuple[int, ...] = random.choice(
            ((0,), (0, 0, 10**4), (0, 10**6, 10**7), (0, 0, 0, 10**9))
        )

    def send(self, host: int, chance: int = NEVER) -> Xdp:
        """One request."""
        self.clock_ns += self.random.choice(self.steps)
        frame = self.head + (0xCB000000 + host).to_bytes(4, "big") + self.tail
        code, _ = self.program.judge(frame, self.clock_ns, chance)
        return Xdp(code)


SLOW = Rule(Limit(DAY, 0), 0, Action.LIMIT, abi.CLASS_KOD)  # one request a day
FREE = Rule(Limit(1, 1 << 40), 0, Action.LIMIT, 0)


def test_a_source_passes_no_more_than_its_limit(programs: Programs) -> None:
    def judge(seed: int) -> None:
        random = Random(seed)
        rule = Rule(random_limit(random), 0, Action.LIMIT, abi.CLASS_KOD)
        crowd = Crowd(programs, random, quiet_policy(rule), 64)
        passes: dict[int, Bounded] = defaultdict(lambda: Bounded(rule.limit))
        for _ in range(PACKETS):
            host = random.randrange(5)
            if crowd.send(host) == Xdp.PASS:
                passes[host].grant(crowd.clock_ns)
        assert passes

    for_seeds(20, judge)


def test_kods_are_bounded_in_total_and_per_source(programs: Programs) -> None:
    sent = 0  # with some seed: the few that are granted may all be a control source's

    def judge(seed: int) -> None:
        nonlocal sent
        random = Random(seed)
        total = Bound(random_limit(random), random.choice((1, 4, 64)))
        policy = replace(quiet_policy(SLOW), kod=total, kod_interval=random.choice((1, 10)))
        crowd = Crowd(programs, random, policy, 64)
        kods = Bounded(total.limit, total.batch - 1)
        unit = Limit((policy.kod_interval << abi.KOD_UNIT_SHIFT) // UNITS, 0)
        # two times a kod interval apart by the clock's units are up to one unit nearer
        per_source: dict[int, Bounded] = defaultdict(lambda: Bounded(unit, 1))
        for _ in range(PACKETS):
            host = random.randrange(100)
            if crowd.send(host) == Xdp.TX:
                kods.grant(crowd.clock_ns)
                per_source[host].grant(crowd.clock_ns)
        sent += kods.count

    for_seeds(20, judge)
    assert sent


def test_sources_without_a_slot_pass_no_more_than_the_newcomers_bound(programs: Programs) -> None:
    def judge(seed: int) -> None:
        random = Random(seed)
        total = Bound(random_limit(random), random.choice((1, 4, 64)))
        crowd = Crowd(programs, random, replace(quiet_policy(SLOW), newcomers=total), 2)
        crowd.steps = (0,)
        for host in [*range(8)] * 2:  # both buckets are full of abusers
            crowd.send(host)
        crowd.steps = random.choice(((0,), (0, 10**6, 10**7), (0, 0, 0, 10**9)))
        passes = Bounded(total.limit, total.batch - 1)
        for _ in range(PACKETS):
            if crowd.send(random.randrange(8, 1000)) == Xdp.PASS:
                passes.grant(crowd.clock_ns)
        assert passes.count

    for_seeds(20, judge)


def test_new_sources_get_no_more_slots_than_the_gate_lets_in(programs: Programs) -> None:
    def judge(seed: int) -> None:
        random = Random(seed)
        gate = Bound(random_limit(random), random.choice((1, 4, 64)))
        none = Bound(Limit(DAY, 0), 1)  # of the untracked, one passes
        policy = replace(quiet_policy(FREE), gate=gate, newcomers=none)
        crowd = Crowd(programs, random, policy, 64)
        slots = Bounded(gate.limit, gate.batch - 1)
        passed = 0
        for host in range(PACKETS):
            passed += crowd.send(host) == Xdp.PASS
            if crowd.program.guard.table_counters().inserted[0] > slots.count:
                slots.grant(crowd.clock_ns)
        assert 0 < slots.count <= passed <= slots.count + 1

    for_seeds(10, judge)


def test_the_daemon_gets_no_more_than_the_ceiling(programs: Programs) -> None:
    def judge(seed: int) -> None:
        random = Random(seed)
        ceiling = Bound(random_limit(random), random.choice((1, 4, 64)))
        policy = replace(quiet_policy(FREE), ceiling=ceiling)
        crowd = Crowd(programs, random, policy, 64)
        passes = Bounded(ceiling.limit, 2 * (ceiling.batch - 1))  # of each priority
        for _ in range(PACKETS):
            if crowd.send(random.randrange(20), random.getrandbits(32)) == Xdp.PASS:
                passes.grant(crowd.clock_ns)
        assert passes.count

    for_seeds(20, judge)


def test_the_leak_is_bounded_in_each_shard_and_so_in_total(programs: Programs) -> None:
    def judge(seed: int) -> None:
        random = Random(seed)
        shard = random_limit(random)
        rule = replace(SLOW, leak=2**32 - 1)
        crowd = Crowd(programs, random, replace(quiet_policy(rule), leak_shard=shard), 64)
        steps, crowd.steps = crowd.steps, (0,)
        hosts = range(40)
        for host in hosts:
            crowd.send(host)
        crowd.steps = steps
        key = abi.KEY_IPV4_TAG | 32 << abi.KEY_IPV4_LENGTH_SHIFT | 0xCB000000
        shards = [hash_key(key + h, crowd.program.shape.seed) >> 32 & 255 for h in hosts]
        leaks: dict[int, Bounded] = defaultdict(lambda: Bounded(shard))
        for _ in range(PACKETS):
            host = random.choice(hosts)
            if crowd.send(host, random.getrandbits(32)) == Xdp.PASS:
                leaks[shards[host]].grant(crowd.clock_ns)
        assert leaks

    for_seeds(20, judge)


def test_the_default_policys_bounds_hold_under_a_flood(programs: Programs) -> None:
    compiled = compile_policy(DEFAULT).policy
    default, kod = compiled.classes[0].limit, compiled.bounds[abi.BOUND_KOD]

    def judge(seed: int) -> None:
        random = Random(seed)
        crowd = Crowd(programs, random, quiet_policy(FREE), 64)
        crowd.program.set_policy_words(0, bytes(compiled))
        crowd.steps = (0, 0, 0, 10**6, random.choice((10**4, 4 * 10**6)))
        kods = Bounded(limit_of(kod.limit), kod.batch - 1)
        passes: dict[int, Bounded] = defaultdict(lambda: Bounded(limit_of(default)))
        for _ in range(10 * PACKETS):
            host = random.randrange(50)
            code = crowd.send(host)
            if code == Xdp.PASS:
                passes[host].grant(crowd.clock_ns)
            if code == Xdp.TX:
                kods.grant(crowd.clock_ns)
        assert passes and kods.count

    for_seeds(10, judge)


def limit_of(words: abi.Limit) -> Limit:
    """A compiled limit as plain numbers, of gcra units."""
    unit = 1 << abi.GCRA_TAT_SHIFT
    return Limit(words.emission_interval / unit, words.burst_tolerance / unit)
