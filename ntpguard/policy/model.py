"""A checked policy: values that hold together."""

from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

from ntpguard.policy.header import Header
from ntpguard.policy.kinds import Address, Network, Rate

DEFAULT_CLASS = "default"


def packed(prefix: Network) -> bytes:
    """A prefix's address in network byte order, and its length."""
    return prefix.network_address.packed + bytes((prefix.prefixlen,))


@dataclass(frozen=True)
class Kept:
    """Prefixes that are not at hand: the running policy's tries hold them, its text does not."""

    count: int
    sha256: str  # prefixes.digest of them


@dataclass(frozen=True)
class ClassPolicy:
    """A named set of prefixes with its own limit or action. The first is the file's [limit]."""

    name: str
    rate: Rate
    burst: int
    leak: Fraction
    kod: bool
    prefixes: tuple[Network, ...] = ()
    action: str = "limit"
    control: bool = False
    mode: str = "enforce"
    kept: Kept | None = None

    @property
    def prefix_count(self) -> int:
        """How many prefixes it has, at hand or kept."""
        return self.kept.count if self.kept else len(self.prefixes)

    @cached_property
    def packed(self) -> tuple[bytes, ...]:
        """Its prefixes at hand, packed: they sort and compare faster so than as objects."""
        return tuple(map(packed, self.prefixes))


@dataclass(frozen=True)
class SignaturePolicy:
    """A packet shape that is blocked; what is None is not compared."""

    name: str
    header: Header | None
    source_port: int | None
    fraction: str | None
    when: str = "excess"
    action: str = "block"
    mode: str = "enforce"


@dataclass(frozen=True)
class Policy:
    """All of a policy file, defaults filled in; times in seconds; a rate None: unlimited.

    `files`: path and SHA-256 of the bytes of every file that it was read from.
    """

    mode: str
    ports: tuple[int, ...]
    destinations: tuple[Address, ...]
    upstreams: tuple[Network, ...]
    interfaces: tuple[str, ...]
    xdp: str
    on_exit: str
    capacity: int
    ipv4_prefix: int
    ipv6_prefix: int
    leak_max: Rate
    kod_interval: int
    kod_patience: int
    kod_flood: int
    kod_max_rate: Rate
    newcomers_rate: Rate
    established_after: int
    ceiling_rate: Rate | None
    answers_rate: Rate | None
    odd_rate: Rate | None
    classes: tuple[ClassPolicy, ...]
    signatures: tuple[SignaturePolicy, ...]
    warnings: tuple[str, ...] = field(default=(), compare=False)
    files: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    def class_named(self, name: str) -> ClassPolicy | None:
        """The class of that name, if there is one."""
        return next((one for one in self.classes if one.name == name), None)
