"""A random policy, as one seed makes it: small numbers and few sources, so that rules meet."""

import dataclasses
import ipaddress
from random import Random
from typing import Any

from ntpguard import abi
from ntpguard.words import Action, Family, Mode
from tests.bpf.packets import SERVER4, SERVER6
from tests.model.frame import MAPPED
from tests.model.model import FLAGS, Shape
from tests.model.policy import (
    BITS,
    Belongs,
    Bound,
    Entry,
    Limit,
    Policy,
    Prefix,
    Root,
    Rule,
    Signature,
)
from tests.model.program import shape

SECOND = 10**9 >> abi.GCRA_UNIT_SHIFT
INTERVALS = (1, 100, SECOND // 250, SECOND // 10, SECOND, 60 * SECOND, 86400 * SECOND)
NO_LEAK, WHOLE_LEAK = 0, 2**32 - 1
SHAPES = (
    shape(2),
    shape(2, ports=(123, 1123)),
    shape(4),
    shape(16, ipv4_prefix=24, ipv6_prefix=48),
    shape(64, ports=(123, 4123, 5123, 6123)),
)
OWN4, OWN6 = int(ipaddress.ip_address(SERVER4)), int(ipaddress.ip_address(SERVER6))
ODD4 = (
    "127.0.0.1",
    "0.0.0.0",
    "0.1.2.3",
    "223.255.0.1",
    "224.0.1.1",
    "255.255.255.255",
    "240.0.0.1",
    SERVER4,
)
ODD6 = ("::", "::1", "::ffff:203.0.113.7", "0:0:1::7", "0:1::7", "ff02::1", "fe80::7", SERVER6)

Sources = tuple[list[int], list[int]]  # addresses, by family


def some_limit(random: Random, *, tight: float = 0.5) -> Limit:
    """A limit of a small burst; with a chance of 1 - tight a fast one."""
    interval = random.choice(INTERVALS) if random.random() < tight else random.choice((1, 100))
    return Limit(interval, random.choice((0, 0, 1, 2, 3, 7, 31)) * interval)


def some_budget(random: Random) -> Limit:
    """A limit that every CPU has for itself."""
    return Limit() if random.random() < 0.2 else some_limit(random)


def some_bound(random: Random, unlimited: float) -> Bound:
    """A shared bound."""
    if random.random() < unlimited:
        return Bound(Limit(), random.choice((1, 4)))
    interval = random.choice(INTERVALS[:-1])
    burst = random.choice((0, 1, 2, 5, 12, 50))
    return Bound(Limit(interval, burst * interval), random.choice((1, 1, 2, 3, 8, 64)))


def some_rule(random: Random, first: bool) -> Rule:
    """A class; the first is the default, which limits more often."""
    actions = [Action.LIMIT] * (12 if first else 4) + [Action.EXEMPT, Action.BLOCK]
    flags = 0
    for flag, share in ((abi.CLASS_KOD, 0.8), (abi.CLASS_CONTROL, 0.3), (abi.CLASS_OBSERVE, 0.15)):
        flags |= flag if random.random() < share else 0
    leak = random.choice((NO_LEAK, 2**30, 2**30, 2**31, WHOLE_LEAK))
    return Rule(some_limit(random, tight=0.9), leak, random.choice(actions), flags)


def some_signatures(random: Random, headers: list[bytes]) -> tuple[Signature, ...]:
    """Shapes cut out of headers that will come."""
    shapes = []
    for _ in range(random.choice((0, 0, 1, 2, 4, abi.SIGNATURES))):
        header = random.choice(headers)
        mask = bytearray(abi.HEADER_BYTES)
        for at in random.sample(range(abi.HEADER_BYTES), random.choice((0, 1, 4, 24))):
            mask[at] = random.choice((0xFF, 0xFF, random.randrange(256)))
        number = int.from_bytes(mask, "big")
        flags = abi.SIGNATURE_OBSERVE if random.random() < 0.4 else 0
        flags |= abi.SIGNATURE_SOURCE_PORT if random.random() < 0.5 else 0
        shapes.append(
            Signature(
                int.from_bytes(header, "big") & number,
                number,
                random.choice((123, 1337, 40000)),
                flags,
                random.choice((*[abi.FRACTION_ANY] * 2, *range(abi.FRACTIONS))),
            )
        )
    return tuple(shapes)


def some_totals(random: Random) -> dict[str, Any]:
    """What a policy bounds beside each source: its fields by name."""
    return {
        "kod": some_bound(random, 0.4),
        "newcomers": some_bound(random, 0.2),
        "gate": some_bound(random, 0.6),
        "ceiling": some_bound(random, 0.6),
        "leak_shard": some_limit(random),
        "answers": some_budget(random),
        "odd": some_budget(random),
    }


def some_policy(random: Random, headers: list[bytes]) -> Policy:
    """A policy that has no prefixes."""
    signatures = some_signatures(random, headers)
    return Policy(
        **some_totals(random),
        flags=abi.POLICY_DESTINATIONS if random.random() < 0.15 else 0,
        kod_interval=random.choice((1, 2, 4, 12, 60, 3400)),
        kod_patience=random.choice((1, 1, 2, 4, 15)),
        kod_flood=random.choice((1, 2, 8, 64, 254, 254)),
        established_spacing=random.choice((1, 1, 2, 5, 94)),
        signatures_always=random.randint(0, len(signatures)),
        signatures=signatures,
        rules=tuple(some_rule(random, index == 0) for index in range(abi.CLASSES)),
    )


def tuned(random: Random, policy: Policy) -> Policy:
    """The policy with other limits and all else as it was."""
    rules = (
        dataclasses.replace(rule, limit=some_limit(random, tight=0.9)) for rule in policy.rules
    )
    return dataclasses.replace(
        policy,
        **some_totals(random),
        rules=tuple(rules),
    )


def temporary(random: Random, policy: Policy, clock_ns: int) -> Policy:
    """The policy, of which some things hold for a while only."""

    def until() -> int:
        return clock_ns + random.choice((-1, 0, 1, 2, 10, 100)) * 10**9

    if random.random() < 0.15:
        mode = random.choice((Mode.OFF, Mode.OBSERVE, Mode.ENFORCE, Mode.ENFORCE))
        policy = dataclasses.replace(policy, mode_after=mode, mode_until_ns=until())
    if random.random() < 0.15:
        end = until()
        rules = tuple(
            dataclasses.replace(rule, until_ns=random.choice((0, end))) for rule in policy.rules
        )
        after = tuple(some_rule(random, index == 0) for index in range(abi.CLASSES))
        policy = dataclasses.replace(policy, rules=rules, rules_after=after)
    return policy


def with_flags(policy: Policy, prefixes: dict[Prefix, Belongs], shape: Shape) -> Policy:
    """The policy, whose flags say what the prefixes are like."""
    flags = policy.flags & abi.POLICY_DESTINATIONS
    for family, bits in ((Family.IPV4, shape.ipv4_prefix), (Family.IPV6, shape.ipv6_prefix)):
        lengths = [p.length for p in prefixes if p.family == family]
        some, long = FLAGS[family]
        flags |= some if lengths else 0
        flags |= long if lengths and max(lengths) > bits else 0
    return dataclasses.replace(policy, flags=flags)


def some_prefix(random: Random, sources: Sources) -> Prefix:
    """A prefix around one of the sources."""
    family = Family(random.randrange(2))
    usual = ((0, 8, 24, 30, 31, 32), (0, 32, 48, 56, 60, 64, 65, 96, 128))[family]
    length = random.choice(usual)
    unused = BITS[family] - length
    return Prefix(family, length, random.choice(sources[family]) >> unused << unused)


def some_prefixes(random: Random, sources: Sources) -> dict[Prefix, Belongs]:
    """The prefixes of the classes and of the upstreams."""
    classes = [0, *random.sample(range(1, abi.CLASSES), 5)]
    return {
        some_prefix(random, sources): Belongs(random.choice(classes), random.random() < 0.2)
        for _ in range(random.choice((0, 0, 3, 8, 20)))
    }


def some_entries(random: Random, sources: Sources, clock_ns: int) -> dict[Prefix, Entry]:
    """Live entries, nested and expiring."""
    entries = {}
    for _ in range(random.choice((1, 3, 10, 30))):
        prefix = some_prefix(random, sources)
        entries[prefix] = Entry(
            random.choice((Action.EXEMPT, Action.BLOCK)),
            random.choice((0, 1, clock_ns + random.choice((0, 1, 2, 10, 100)) * 10**9)),
            random.choice((None, prefix.length - 1 if prefix.length else None, 0)),
        )
    if random.random() < 0.2:  # deeper than is looked
        address = random.choice(sources[0])
        for length in range(20, 32):
            network = address >> 32 - length << 32 - length
            entries[Prefix(Family.IPV4, length, network)] = Entry(
                Action.BLOCK, 1 if length > random.choice((20, 24)) else 0, length - 1
            )
    return entries


def some_sources(random: Random) -> Sources:
    """Who sends: few hosts, neighbours among them, and some that cannot exist."""
    few = random.choice((2, 5, 12, 40, 300))
    base4 = int(ipaddress.ip_address("203.0.113.0"))
    base6 = int(ipaddress.ip_address("2001:db8:12::7"))
    ipv4 = [base4 + random.randrange(max(few, 8)) for _ in range(few)]
    ipv6 = [
        base6 + (random.randrange(few) << random.choice((64, 64, 72, 80))) + random.randrange(2)
        for _ in range(few)
    ]
    for address in random.sample(ODD4, 2):
        ipv4.append(int(ipaddress.ip_address(address)))
    for address in random.sample(ODD6, 2):
        ipv6.append(int(ipaddress.ip_address(address)))
    random.shuffle(ipv4)
    random.shuffle(ipv6)
    return ipv4, ipv6


def some_addresses(random: Random) -> dict[int, int]:
    """This host's addresses and their flags."""
    flags = (abi.ADDRESS_LOCAL, abi.ADDRESS_LOCAL | 2, abi.ADDRESS_LOCAL | 4, abi.ADDRESS_LOCAL | 6)
    found = {MAPPED | OWN4: random.choice(flags), OWN6: random.choice(flags)}
    found[MAPPED | OWN4 + 1] = random.choice((2, 4, 6))  # guarded, not on this host
    return found


def some_root(random: Random, previous: Root, entries: bool) -> Root:
    """Another commit: mode, copies, generation."""
    modes = [Mode.ENFORCE] * 8 + [Mode.OBSERVE, Mode.OFF]
    return Root(
        random.choice(modes),
        random.randrange(2),
        random.randrange(2),
        (entries and random.random() < 0.9, entries and random.random() < 0.9),
        random.choice((previous.generation, previous.generation, random.randrange(1024))),
    )
