"""All that is known of one source: which rule applies and why, how it stands, what comes next."""

import ipaddress
import shlex
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ntpguard import abi
from ntpguard.entries import LiveEntry, Note
from ntpguard.keys import source_of_key
from ntpguard.moments import NANOSECONDS, Moment, monotonic_ns
from ntpguard.outlook import Outlook, Standing, outlook
from ntpguard.policy.kinds import Address, Network, Rate
from ntpguard.policy.model import ClassPolicy, Policy
from ntpguard.policy.settings import SOURCE_RATE
from ntpguard.policy.shapes import clients
from ntpguard.policy.tables import burst_bounds
from ntpguard.reading import Ending, Match, Running
from ntpguard.sources import DEAF_SECONDS, Source
from ntpguard.temporary import MODE, limit_of
from ntpguard.words import Action, Mode, Verdict


@dataclass(frozen=True)
class Inside:
    """A prefix of some hosts of one source, who are treated otherwise: by a class or an entry."""

    prefix: Network
    class_name: str | None
    action: str


@dataclass(frozen=True)
class Header:
    """What an NTP header begins with (RFC 5905, 7.3); poll and precision in log2 seconds."""

    leap: int
    version: int
    mode: int
    stratum: int
    poll: int
    precision: int

    @classmethod
    def of(cls, header: bytes) -> "Header":
        """Decodes it."""
        first, stratum, poll, precision = struct.unpack("!BBbb", header[:4])
        return cls(first >> 6, first >> 3 & 7, first & 7, stratum, poll, precision)


@dataclass(frozen=True)
class Noted:
    """What is noted of a source that was over its limit: from a sample of its excess."""

    first_seen: Moment
    last_seen: Moment
    sampled: dict[Verdict, int]
    source_port: int
    ttl: int
    header: bytes
    signatures: tuple[str, ...]  # of the running policy, that fit this header
    clients: tuple[str, ...]  # that are known to send such a header


@dataclass(frozen=True)
class Command:
    """What the operator can do next, to be pasted."""

    command: str
    effect: str


@dataclass(frozen=True)
class Explanation:
    """One source, explained. `name` is what `top` calls it."""

    address: Address
    name: str
    own: ClassPolicy
    prefix: Network | None  # of the class
    upstream: Network | None  # whose answers pass
    inside: list[Inside]
    live: bool  # the class's limit was changed since the policy was applied
    limit_ending: Ending | None
    mode_ending: Ending | None
    standing: Standing
    noted: Noted | None
    last_kod: Moment | None
    deaf_until: Moment | None
    note: Note
    outlook: Outlook
    commands: list[Command]

    @property
    def source(self) -> Source | None:
        """As its slot has it; None: not in the source table."""
        return self.standing.source

    @property
    def entry(self) -> LiveEntry | None:
        """The live entry that holds for the address."""
        return self.standing.entry


def explain(guard: Running, address: Address) -> Explanation:
    """Everything about the source that an address belongs to, and what holds for the address."""
    while True:  # until no other policy was applied between what belongs together
        revision = guard.revision()
        policy, document, match = guard.policy(), guard.document(), guard.match(address)
        if guard.revision() == revision:
            break
    key = guard.key(address)
    name = source_of_key(key, guard.table.ipv6_prefix)
    own = policy.classes[match.class_index]
    entries = guard.live_entries()
    covering = [(one, note) for one, note in entries if address in one.prefix]
    entry, note = max(covering, key=lambda two: two[0].prefix.prefixlen, default=(None, Note()))
    raw = guard.offender(key)
    header = bytes(raw.header) if raw and raw.header_bytes == abi.HEADER_BYTES else None
    source = guard.find(address)
    standing = Standing(
        policy,
        guard.mode(),
        own,
        source,
        entry,
        header,
        raw.source_port if raw else 0,
    )
    last_kod, deaf_until = _kods(source)
    live = own.name in document["overrides"]
    return Explanation(
        address=address,
        name=name,
        own=own,
        prefix=_class_prefix(own, match, address),
        upstream=match.prefix if match.upstream else None,
        inside=[*_inside(policy, name, own), *_entries_inside([e for e, _ in entries], name)],
        live=live,
        limit_ending=guard.ending(limit_of(own.name)),
        mode_ending=guard.ending(MODE),
        standing=standing,
        noted=_noted(raw, standing) if raw else None,
        last_kod=last_kod,
        deaf_until=deaf_until,
        note=note,
        outlook=outlook(standing),
        commands=list(_commands(name, standing, live)),
    )


def _class_prefix(own: ClassPolicy, match: Match, address: Address) -> Network | None:
    """The prefix that put an address in its class; an upstream's prefix is of no class itself."""
    if not match.upstream or match.prefix in own.prefixes:
        return match.prefix
    holding = (one for one in own.prefixes if address in one)
    return max(holding, key=lambda one: one.prefixlen, default=None)


def _within(prefix: Network, source: Network) -> bool:
    return (
        prefix.version == source.version
        and prefix.prefixlen > source.prefixlen
        and prefix.network_address in source
    )


def _inside(policy: Policy, name: str, own: ClassPolicy) -> Iterator[Inside]:
    source = ipaddress.ip_network(name)
    for one in policy.classes:
        for prefix in one.prefixes if one is not own else ():
            if _within(prefix, source):
                yield Inside(prefix, one.name, one.action)


def _entries_inside(entries: list[LiveEntry], name: str) -> Iterator[Inside]:
    source = ipaddress.ip_network(name)
    for one in entries:
        if _within(one.prefix, source):
            yield Inside(one.prefix, None, one.action.word)


def _noted(raw: abi.Offender, standing: Standing) -> Noted:
    header, port = bytes(raw.header), int(raw.source_port)
    return Noted(
        first_seen=Moment.at(int(raw.first_seen_ns)),
        last_seen=Moment.at(int(raw.last_seen_ns)),
        sampled={verdict: int(raw.sampled[verdict]) for verdict in Verdict},
        source_port=port,
        ttl=int(raw.ttl),
        header=header,
        signatures=tuple(one for one, _, _ in standing.signatures()),
        clients=clients(header, port),
    )


def _kods(source: Source | None) -> tuple[Moment | None, Moment | None]:
    """When the last KoD was sent, and until when the source is deaf without more excess. Of a deaf
    one, the first is not known any more.
    """
    if source is None or source.kod_seconds_ago is None or source.control or source.held:
        return None, None
    last_ns = monotonic_ns() - int(source.kod_seconds_ago * NANOSECONDS)
    if source.deaf:
        return None, Moment.at(last_ns + DEAF_SECONDS * NANOSECONDS)
    return Moment.at(last_ns), None


def _commands(name: str, standing: Standing, live: bool) -> Iterator[Command]:
    entry, own = standing.entry, standing.own
    action = entry.action.word if entry else own.action
    if entry:
        yield Command(f"ntpguard clear {entry.prefix}", f"end its entry: {own.name} holds again")
    if action != Action.BLOCK.word:
        yield Command(f"ntpguard block {name} --for 24h", "drop all NTP from it for a day")
    if action != Action.EXEMPT.word:
        yield Command(f"ntpguard exempt {name} --for 24h", "pass every request of it for a day")
    if action == Action.LIMIT.word:
        yield from _limits(own, live)
    if standing.mode != Mode.ENFORCE:
        yield Command("ntpguard mode enforce", "let verdicts count, for every source")


def _limits(own: ClassPolicy, live: bool) -> Iterator[Command]:
    name = shlex.quote(own.name)
    if live:
        yield Command(f"ntpguard limit unset {name}", "back to the limit of the applied policy")
    rate = Rate(own.rate.count * 2, own.rate.unit)
    if rate.per_second <= SOURCE_RATE.most:
        least, most = burst_bounds(rate)
        burst = max(least, min(own.burst * 2, most))
        yield Command(
            f"ntpguard limit set {name} --rate {rate} --burst {burst} --for 1h",
            f"twice the limit for class {own.name}, for an hour",
        )
