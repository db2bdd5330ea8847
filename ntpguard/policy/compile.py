"""A policy as the packet path wants it: abi values, no file descriptor."""

from dataclasses import dataclass
from fractions import Fraction

from ntpguard import abi
from ntpguard.policy.kinds import Address, Network
from ntpguard.policy.model import ClassPolicy, Policy
from ntpguard.words import Action

NANOSECONDS = 1_000_000_000
LARGEST_BATCH = 64
GATE_SECONDS = (
    64  # a table's worth of new sources takes so long: who polls as often is not forgotten
)
MARK_UNIT = 1 << abi.MARK_UNIT_SHIFT  # nanoseconds
ESTABLISHED_STEPS = 3
LONGEST_TOLERANCE = 1 << 46  # gcra units; a signed difference of words must hold it


@dataclass(frozen=True)
class TableShape:
    """What the source table is made for; another shape is another table."""

    buckets: int
    ipv4_prefix: int
    ipv6_prefix: int


@dataclass(frozen=True)
class Compiled:
    """Everything that `up` and `running` write into maps."""

    policy: abi.Policy
    prefixes: dict[Network, int]
    table: TableShape
    ports: tuple[int, ...]
    destinations: tuple[Address, ...]


def emission_interval(per_second: Fraction) -> int:
    """Time between two requests at that rate, gcra units, rounded up: never more than the rate."""
    return max(1, -(-NANOSECONDS // (per_second * (1 << abi.GCRA_UNIT_SHIFT))))


def limit(per_second: Fraction, burst: int) -> abi.Limit:
    """GCRA's two parameters; burst >= 1."""
    interval = emission_interval(per_second)
    tolerance = min((burst - 1) * interval, LONGEST_TOLERANCE)
    return abi.Limit(interval << abi.GCRA_TAT_SHIFT, tolerance << abi.GCRA_TAT_SHIFT)


def total_limit(per_second: Fraction | None, seconds: Fraction) -> abi.Limit:
    """A limit that many sources share: its burst is what arrives in `seconds`. None: unlimited."""
    if per_second is None:
        return abi.Limit()
    return limit(per_second, max(1, int(per_second * seconds)))


def bound(per_second: Fraction | None, seconds: Fraction) -> abi.Bound:
    """A limit that many sources share; a CPU takes at once what may arrive in 1 ms."""
    batch = min(max(1, int(per_second / 1000)), LARGEST_BATCH) if per_second else 1
    return abi.Bound(total_limit(per_second, seconds), batch)


def class_rule(one: ClassPolicy) -> abi.ClassRule:
    """A class, compiled."""
    flags = (
        (abi.CLASS_KOD if one.kod else 0)
        | (abi.CLASS_CONTROL if one.control else 0)
        | (abi.CLASS_OBSERVE if one.mode == "observe" else 0)
    )
    return abi.ClassRule(
        limit=limit(one.rate.per_second, one.burst),
        leak=min(int(one.leak * 2**32), 2**32 - 1),
        action=Action.of(one.action),
        flags=flags,
    )


def buckets_for(capacity: int) -> int:
    """Buckets that hold `capacity` sources with 1 % loss: a power of two, at most half full."""
    slots = capacity * 2
    return 1 << max(0, (-(-slots // abi.WAYS) - 1).bit_length())


def compile_policy(policy: Policy) -> Compiled:
    """The abi values of a checked policy."""
    prefixes = {p: i for i, one in enumerate(policy.classes) for p in one.prefixes}
    bits = {4: policy.ipv4_prefix, 6: policy.ipv6_prefix}
    flags = abi.POLICY_DESTINATIONS if policy.destinations else 0
    for version, some, longer in (
        (4, abi.POLICY_PREFIXES_IPV4, abi.POLICY_LONG_IPV4),
        (6, abi.POLICY_PREFIXES_IPV6, abi.POLICY_LONG_IPV6),
    ):
        lengths = [p.prefixlen for p in prefixes if p.version == version]
        flags |= some if lengths else 0
        flags |= longer if lengths and max(lengths) > bits[version] else 0
    shard = policy.leak_max.per_second / abi.LEAK_SHARDS
    gate = Fraction(policy.capacity, GATE_SECONDS)
    compiled = abi.Policy(
        bounds=(abi.Bound * abi.BOUNDS)(
            bound(policy.kod_max_rate.per_second, Fraction(1, 10)),
            bound(policy.newcomers_rate.per_second, Fraction(1, 10)),
            bound(gate, Fraction(1)),
            bound(None, Fraction(1, 10)),
        ),
        leak_shard=total_limit(shard, Fraction(1, 4)),
        answers=total_limit(Fraction(1000), Fraction(1, 10)),
        odd=total_limit(Fraction(1000), Fraction(1, 10)),
        established_spacing=-(-300 * NANOSECONDS // (ESTABLISHED_STEPS * MARK_UNIT)),
        flags=flags,
        kod_interval=-(-policy.kod_interval * NANOSECONDS >> abi.KOD_UNIT_SHIFT),
        kod_patience=policy.kod_patience,
        kod_flood=policy.kod_flood,
    )
    for index, one in enumerate(policy.classes):
        compiled.classes[index] = class_rule(one)
    return Compiled(
        policy=compiled,
        prefixes=prefixes,
        table=TableShape(buckets_for(policy.capacity), policy.ipv4_prefix, policy.ipv6_prefix),
        ports=policy.ports,
        destinations=policy.destinations,
    )


def memory_bytes(policy: Policy, cpus: int) -> dict[str, int]:
    """Kernel memory that the policy needs, by part, in bytes; prefixes are an estimate."""
    compiled = compile_policy(policy)
    return {
        "sources": compiled.table.buckets * abi.size(abi.Bucket),
        "offenders": 16384 * (8 + abi.size(abi.Offender) + 64),
        "counters": abi.CLASSES * abi.size(abi.Counters) * cpus,
        "policy": abi.COPIES * (abi.size(abi.Policy) + abi.size(abi.Document)),
        "prefixes": len(compiled.prefixes) * 2 * 64,
    }
