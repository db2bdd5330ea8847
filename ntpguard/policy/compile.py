"""A policy as the packet path wants it: abi values, no file descriptor."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from ntpguard import abi
from ntpguard.moments import NANOSECONDS
from ntpguard.policy.kinds import Address, Network, Rate
from ntpguard.policy.model import ClassPolicy, Policy, SignaturePolicy
from ntpguard.policy.prefixes import compile_prefixes
from ntpguard.temporary import MODE, limit_of
from ntpguard.words import Action, Mode

LARGEST_BATCH = 64
# a table's worth of new sources takes so long: who polls as often is not forgotten
GATE_SECONDS = 64
# of what the daemon is given, so much at once: its socket holds 50 to 250 packets
AT_ONCE = Fraction(1, 100)  # second
MARK_UNIT = 1 << abi.MARK_UNIT_SHIFT  # nanoseconds
ESTABLISHED_STEPS = 3
FRACTIONS = {
    None: abi.FRACTION_ANY,
    "microseconds": abi.FRACTION_MICROSECONDS,
    "nanoseconds": abi.FRACTION_NANOSECONDS,
}
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
    prefixes: dict[Network, int]  # values as the tries hold them
    signatures: tuple[str, ...]  # names, in the order of policy.signature
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
    """A limit that many sources share; a CPU takes at once what may arrive in 1 ms.

    Low priority has half of the burst tolerance: that must hold a batch, and leave one request for
    high priority however many of low priority there are. None: unlimited.
    """
    if per_second is None:
        return abi.Bound(abi.Limit(), 1)
    batch = min(max(1, int(per_second / 1000)), LARGEST_BATCH)
    burst = max(2 * batch + 1, int(per_second * seconds))
    # nothing but a tat is in its word: of an interval of one or two gcra units, the bits below tell
    interval = -(-(NANOSECONDS << abi.GCRA_TAT_SHIFT) // (per_second * (1 << abi.GCRA_UNIT_SHIFT)))
    tolerance = min((burst - 1) * interval, LONGEST_TOLERANCE << abi.GCRA_TAT_SHIFT)
    return abi.Bound(abi.Limit(interval, tolerance), batch)


def spacing(established_after: int) -> int:
    """Mark units between two well-spaced requests, of which the last is `established_after` seconds
    after the first.
    """
    return max(1, -(-established_after * NANOSECONDS // (ESTABLISHED_STEPS * MARK_UNIT)))


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


def signature(one: SignaturePolicy) -> abi.Signature:
    """A packet shape, compiled."""
    compiled = abi.Signature(fraction=FRACTIONS[one.fraction])
    if one.header:
        compiled.value[:] = one.header.value
        compiled.mask[:] = one.header.mask
    if one.source_port is not None:
        compiled.source_port = int.from_bytes(one.source_port.to_bytes(2, "big"), "little")
        compiled.flags |= abi.SIGNATURE_SOURCE_PORT
    if one.mode == "observe":
        compiled.flags |= abi.SIGNATURE_OBSERVE
    return compiled


def buckets_for(capacity: int) -> int:
    """Buckets for `capacity` sources: a power of two, at least the two of a set, at most half full.
    Of so many, 0.8 % find no slot (Poisson, mean 4 to a set of 8).
    """
    slots = capacity * 2
    return 1 << max(1, (-(-slots // abi.WAYS) - 1).bit_length())


def table_shape(policy: Policy) -> TableShape:
    """What the policy's source table is made for."""
    return TableShape(buckets_for(policy.capacity), policy.ipv4_prefix, policy.ipv6_prefix)


def compile_policy(policy: Policy) -> Compiled:
    """The abi values of a checked policy."""
    tenth = Fraction(1, 10)
    prefixes, flags = compile_prefixes(policy)
    shard = policy.leak_max.per_second / abi.LEAK_SHARDS
    always = [one for one in policy.signatures if one.when == "always"]
    signatures = [*always, *(one for one in policy.signatures if one.when != "always")]
    compiled = abi.Policy(
        bounds=(abi.Bound * abi.BOUNDS)(
            bound(policy.kod_max_rate.per_second, tenth),
            bound(policy.newcomers_rate.per_second, AT_ONCE),
            bound(Fraction(policy.capacity, GATE_SECONDS), Fraction(1)),
            bound(per_second(policy.ceiling_rate), AT_ONCE),
        ),
        leak_shard=total_limit(shard, Fraction(1, 4)),
        answers=total_limit(per_second(policy.answers_rate), tenth),
        odd=total_limit(per_second(policy.odd_rate), tenth),
        established_spacing=spacing(policy.established_after),
        flags=flags | (abi.POLICY_DESTINATIONS if policy.destinations else 0),
        kod_interval=-(-policy.kod_interval * NANOSECONDS >> abi.KOD_UNIT_SHIFT),
        kod_patience=policy.kod_patience,
        kod_flood=policy.kod_flood,
        signatures_always=len(always),
        signatures=len(signatures),
    )
    for index, one in enumerate(policy.classes):
        compiled.classes[index] = class_rule(one)
    for index, shape in enumerate(signatures):
        compiled.signature[index] = signature(shape)
    return Compiled(
        policy=compiled,
        prefixes=prefixes,
        signatures=tuple(one.name for one in signatures),
        table=table_shape(policy),
        ports=policy.ports,
        destinations=policy.destinations,
    )


def set_ends(compiled: abi.Policy, after: Policy, ends_ns: Mapping[str, int]) -> None:
    """Lets the packet path itself end what is temporary (CLOCK_MONOTONIC): then `after` holds."""
    compiled.mode_until_ns = ends_ns.get(MODE, 0)
    compiled.mode_after = Mode.of(after.mode)
    for index, one in enumerate(after.classes):
        compiled.classes[index].until_ns = ends_ns.get(limit_of(one.name), 0)
        compiled.classes_after[index] = class_rule(one)


def per_second(rate: Rate | None) -> Fraction | None:
    """Requests per second; None: unlimited."""
    return rate.per_second if rate else None


def memory_bytes(policy: Policy, cpus: int) -> dict[str, int]:
    """Kernel memory that the policy needs, by part, in bytes, for one interface. Prefixes are an
    estimate; live entries are not in it: each takes 128 bytes while it is there.
    """
    prefixes = {p for one in policy.classes for p in one.prefixes} | set(policy.upstreams)
    local = (
        abi.size(abi.Local)
        + abi.size(abi.TableCounters)
        + abi.SIGNATURES * abi.size(abi.SignatureCounters)
    )
    return {
        "sources": buckets_for(policy.capacity) * abi.size(abi.Bucket),
        "offenders": 16384 * (8 + abi.size(abi.Offender) + 64),
        "trials": 16384 * (8 + abi.size(abi.Trial) + 64),
        "counters": (abi.CLASSES * abi.size(abi.Counters) + local) * cpus,
        "policy": abi.COPIES * (abi.size(abi.Policy) + abi.size(abi.Document)),
        # a node of 64 bytes for a prefix, up to one more where two part; the copy before stays
        "prefixes": abi.COPIES * len(prefixes) * 2 * 64,
        "shared": abi.size(abi.Shared) + abi.LEAK_SHARDS * 8 + 1024 * 64,
    }


def too_large(policy: Policy, cpus: int) -> str:
    """What to tell when the kernel has no room for that."""
    needed = sum(memory_bytes(policy, cpus).values())
    return (
        f"sources.capacity {policy.capacity}: its maps need {needed / 2**20:.0f} MiB of kernel "
        "memory: there is less, or less is allowed: try a smaller capacity, or a larger MemoryMax="
    )
