"""What the model is told: the running policy and its tries, as plain values.

Times are in gcra units (2^10 ns) unless a name says otherwise; what each field means is said in
bpf/ntpguard.h.
"""

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ntpguard import abi
from ntpguard.words import Action, Family, Mode

BITS = (32, 128)  # of an address, by family
TRUNCATED = int(0.999 * 2**32)

T = TypeVar("T")


def is_over(until_ns: int, clock_ns: int) -> bool:
    """Whether that time has come; 0: never."""
    return until_ns != 0 and clock_ns >= until_ns


@dataclass(frozen=True, slots=True)
class Limit:
    """GCRA's two parameters."""

    interval: int = 0
    tolerance: int = 0


@dataclass(frozen=True, slots=True)
class Bound:
    """A limit that all sources share."""

    limit: Limit = Limit()
    batch: int = 1


@dataclass(frozen=True, slots=True)
class Rule:
    """A class."""

    limit: Limit = Limit()
    leak: int = 0  # in 2^-32
    action: Action = Action.LIMIT
    flags: int = 0
    until_ns: int = 0  # from then on, the rule of the same index in Policy.rules_after; 0: for ever


@dataclass(frozen=True, slots=True)
class Signature:
    """A packet shape; value and mask are 48 bytes as one integer in network byte order."""

    value: int
    mask: int
    source_port: int = 0
    flags: int = 0
    fraction: int = 0

    def matches(self, header: int, source_port: int) -> bool:
        """Whether a request has this shape; header as one integer in network byte order."""
        if header & self.mask != self.value:
            return False
        if self.flags & abi.SIGNATURE_SOURCE_PORT and source_port != self.source_port:
            return False
        fraction = header & 0xFFFFFFFF  # of the transmit timestamp
        if self.fraction == abi.FRACTION_MICROSECONDS:
            return fraction * 1_000_000 % 2**32 >= TRUNCATED
        if self.fraction == abi.FRACTION_NANOSECONDS:
            return fraction < 10**9
        return True


@dataclass(frozen=True, slots=True)
class Policy:
    """One copy of the policy."""

    kod: Bound
    newcomers: Bound
    gate: Bound
    ceiling: Bound
    leak_shard: Limit
    answers: Limit
    odd: Limit
    flags: int
    kod_interval: int
    kod_patience: int
    kod_flood: int
    established_spacing: int
    signatures_always: int
    signatures: tuple[Signature, ...]
    rules: tuple[Rule, ...]
    rules_after: tuple[Rule, ...] = (Rule(),) * abi.CLASSES
    mode_after: Mode = Mode.OFF
    mode_until_ns: int = 0  # from then on, mode_after, whatever the root word says; 0: for ever

    def mode_at(self, clock_ns: int, mode: Mode) -> Mode:
        """The mode that holds, of this one in the root word and the one after."""
        return self.mode_after if is_over(self.mode_until_ns, clock_ns) else mode

    def rule_at(self, clock_ns: int, index: int) -> Rule:
        """The rule of a class that holds."""
        rule = self.rules[index]
        return self.rules_after[index] if is_over(rule.until_ns, clock_ns) else rule


@dataclass(frozen=True, slots=True)
class Root:
    """The root word."""

    mode: Mode = Mode.OFF
    policy: int = 0
    prefixes: int = 0
    entries: tuple[bool, bool] = (False, False)
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Prefix:
    """The first `length` bits of an address: `network` is the whole address."""

    family: Family
    length: int
    network: int


@dataclass(frozen=True, slots=True)
class Belongs:
    """What a prefix of the policy says."""

    class_index: int
    upstream: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """A live entry; fallback None: nothing holds after it."""

    action: Action
    expires_ns: int = 0
    fallback: int | None = None


@dataclass
class Tries(Generic[T]):
    """Longest-prefix match in both families."""

    values: dict[Prefix, T] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lengths: tuple[list[int], list[int]] = ([], [])
        self.found: dict[tuple[Family, int, int], T] = {}
        for prefix, value in self.values.items():
            bits = prefix.network >> BITS[prefix.family] - prefix.length
            self.found[prefix.family, prefix.length, bits] = value
        for family in Family:
            used = {p.length for p in self.values if p.family == family}
            self.lengths[family].extend(sorted(used, reverse=True))

    def longest(self, family: Family, address: int, most: int = 128) -> T | None:
        """The value of the longest prefix, of at most `most` bits, that has this address."""
        for length in self.lengths[family]:
            if length <= most:
                value = self.found.get((family, length, address >> BITS[family] - length))
                if value is not None:
                    return value
        return None
