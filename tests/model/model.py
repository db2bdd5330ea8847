"""The whole decision, as a reference: what the guard must do with a packet, step by step.

Written from design.md and protocol.md and from nothing of the program but the layout of its words.
One CPU; time and chance are inputs; every number is a plain integer.
"""

from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction

from ntpguard import abi
from ntpguard.abi import Xdp
from ntpguard.words import Action, Family, Mode, Reason, Verdict
from tests.model.frame import Kind, Packet, kissable, kod, parse
from tests.model.limits import HIGH, LOW, WRAP, Gcra, Shared, Slot, Sources, ahead_of
from tests.model.policy import Belongs, Entry, Limit, Policy, Prefix, Root, Rule, Tries, is_over

REQUESTS, CONTROL = (0, 1, 3), (6, 7)
SAMPLE = 64  # one excess packet in so many is looked at closely,
NOTES = 32  # but no more of them before the clock moves
ESTABLISHED_STEPS = 3
QUIET = 15 * 60 * 10**9 >> abi.KOD_UNIT_SHIFT  # kod units after which a KoD is forgotten
ANSWERED = 8  # kod units in which a source can still have sent before it saw the KoD: 2 s
UNTOLD, TOLD = 0, 3  # of a KoD: nothing came yet; it was heeded, or is forgotten
TRIED = 2  # intervals that a trial lasts after the KoD
UNHEEDING = 2  # excess packets later than that make a KoD unheeded
COUNTER_SATURATES = 255
PUT_BY = 8  # so much of the leak is put by
NEWCOMERS = 2  # who is not established gets so little of a shard's burst: half
FLAGS = (
    (abi.POLICY_PREFIXES_IPV4, abi.POLICY_LONG_IPV4),
    (abi.POLICY_PREFIXES_IPV6, abi.POLICY_LONG_IPV6),
)

Decision = tuple[Verdict, Reason]


@dataclass(frozen=True)
class Shape:
    """What is fixed when the program is loaded."""

    buckets: int
    ports: tuple[int, ...] = (123,)
    ipv4_prefix: int = 32
    ipv6_prefix: int = 64
    mac: bytes = bytes(6)
    seed: tuple[int, int] = (0, 0)
    tries: bool = True  # KoDs; else every source is kissed at once


@dataclass(slots=True)
class Offender:
    """Details of a source that exceeds its limit."""

    first_seen_ns: int
    last_seen_ns: int = 0
    sampled: list[int] = field(default_factory=lambda: [0] * len(Verdict))
    source_port: int = 0
    ttl: int = 0
    header: bytes = b""


@dataclass(slots=True)
class Trial:
    """Before and after the first KoD: (time, requests) each; (0, 0) is not yet."""

    begin: tuple[int, int]
    source_port: int
    header: bytes
    kod: tuple[int, int] = (0, 0)
    end: tuple[int, int] = (0, 0)


class Model:
    """A guard. `set_*` are what the control plane does, `judge` is what a packet does."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.root = Root()
        self.policies: dict[int, Policy] = {}
        self.prefixes: list[Tries[Belongs]] = [Tries(), Tries()]
        self.entries: Tries[Entry] = Tries()
        self.addresses: dict[int, int] = {}
        self.local: set[int] = set()

        self.sources = Sources(shape.buckets, shape.seed)
        self.kod, self.newcomers, self.gate, self.ceiling = (Shared() for _ in range(abi.BOUNDS))
        self.leak = [Gcra() for _ in range(abi.LEAK_SHARDS)]
        self.answers, self.odd = Gcra(), Gcra()
        self.packets: Counter[tuple[int, Family, Verdict, Reason]] = Counter()
        self.observed: Counter[tuple[int, Family, Verdict, Reason]] = Counter()
        self.bytes: Counter[tuple[int, Family, Verdict]] = Counter()
        self.matched, self.blocked = [0] * abi.SIGNATURES, [0] * abi.SIGNATURES
        self.offenders: dict[int, Offender] = {}
        self.noted_ns = self.noted = 0
        self.trials: dict[int, Trial] = {}
        self.heeding: Counter[tuple[bool, bool]] = Counter()  # (heeded, control)

    def set_root(self, root: Root) -> None:
        """The one commit that makes prepared copies the running ones."""
        self.root = root

    def set_policy(self, copy: int, policy: Policy) -> None:
        """One copy of the policy."""
        self.policies[copy] = policy

    def set_prefixes(self, copy: int, prefixes: dict[Prefix, Belongs]) -> None:
        """One copy of the policy's prefixes."""
        self.prefixes[copy] = Tries(prefixes)

    def set_entries(self, entries: dict[Prefix, Entry]) -> None:
        """All live entries."""
        self.entries = Tries(entries)

    def set_addresses(self, addresses: dict[int, int]) -> None:
        """Flags of this host's addresses, IPv4-mapped."""
        self.addresses = addresses
        self.local = {one for one, flags in addresses.items() if flags & abi.ADDRESS_LOCAL}

    # the packet

    def judge(self, frame: bytes, clock_ns: int, chance: int) -> tuple[Xdp, bytes]:
        """The return code, and the packet afterwards."""
        packet = parse(frame, self.shape.mac, self.shape.ports)
        policy = self.policies[self.root.policy]
        if packet.kind == Kind.OTHER or not self.guarded(packet, policy):
            return Xdp.PASS, frame
        self.policy, self.clock_ns, self.chance = policy, clock_ns, chance
        self.now = (clock_ns >> abi.GCRA_UNIT_SHIFT) % WRAP
        self.mark_clock = (clock_ns >> abi.MARK_UNIT_SHIFT) % (1 << abi.AUX_MARK_BITS)
        self.kod_clock = (clock_ns >> abi.KOD_UNIT_SHIFT) % (1 << abi.AUX_KOD_TIME_BITS) or 1

        self.mode = policy.mode_at(clock_ns, self.root.mode)
        self.class_index, self.flags = 0, 0
        verdict, reason = self.decide(packet)
        if self.mode == Mode.OBSERVE or self.flags & abi.CLASS_OBSERVE:
            self.observed[self.class_index, packet.family, verdict, reason] += 1
            if verdict != Verdict.PASS:
                verdict, reason = Verdict.PASS, Reason.OBSERVED
        self.packets[self.class_index, packet.family, verdict, reason] += 1
        self.bytes[self.class_index, packet.family, verdict] += len(frame)
        if verdict == Verdict.KOD:
            return Xdp.TX, kod(packet)
        return (Xdp.PASS if verdict == Verdict.PASS else Xdp.DROP), frame

    def guarded(self, packet: Packet, policy: Policy) -> bool:
        """Whether the packet's destination is one that the policy guards."""
        if not policy.flags & abi.POLICY_DESTINATIONS:
            return True
        flag = abi.ADDRESS_DESTINATION << self.root.policy
        return bool(self.addresses.get(packet.to, 0) & flag)

    def decide(self, packet: Packet) -> Decision:
        """The verdict and why; the class it counts in is left in class_index and flags."""
        if self.mode == Mode.OFF:
            return Verdict.PASS, Reason.OFF
        if packet.kind == Kind.ODD:
            return self.budget(self.odd, self.policy.odd), Reason.ODD
        if packet.kind == Kind.MALFORMED:
            return Verdict.DROP, Reason.MALFORMED

        entry = self.live_entry(packet)
        if entry == Action.BLOCK:
            return Verdict.DROP, Reason.ENTRY
        key = self.source_key(packet)
        slot = self.sources.find(key) if packet.mode in REQUESTS else None
        rule = self.classify(packet, slot)

        if rule.action == Action.BLOCK and entry != Action.EXEMPT:
            return Verdict.DROP, Reason.BLOCK
        if packet.mode in CONTROL:
            allowed = rule.flags & abi.CLASS_CONTROL
            return (Verdict.PASS if allowed else Verdict.DROP), Reason.CONTROL
        if packet.mode not in REQUESTS:
            upstream = self.belongs(packet).upstream
            passes = Verdict.PASS if upstream else self.budget(self.answers, self.policy.answers)
            return passes, Reason.ANSWER
        if not packet.whole:
            return Verdict.DROP, Reason.MALFORMED
        if entry == Action.EXEMPT:
            return Verdict.PASS, Reason.ENTRY
        if rule.action == Action.EXEMPT:
            return Verdict.PASS, Reason.EXEMPT
        if self.signature_blocks(packet, 0, self.policy.signatures_always):
            return Verdict.DROP, Reason.SIGNATURE
        if slot is None:
            slot = self.newcomer(key, rule)
            if slot is None:
                return self.under_ceiling(self.untracked(key, rule), LOW)
            return self.conforming(slot)
        own = self.owns_tat(packet, slot)
        if slot.gcra.conforms(rule.limit, self.now, own=own):
            return self.conforming(slot)
        if own:
            slot.class_index, slot.generation = self.class_index, self.root.generation
        return self.exceeding(packet, slot, rule)

    def owns_tat(self, packet: Packet, slot: Slot) -> bool:
        """Whether no other class of this policy can have put the source's tat where it is."""
        _, long = FLAGS[packet.family]
        others = slot.generation == self.root.generation and slot.class_index != self.class_index
        return not (self.policy.flags & long and others)

    def budget(self, gcra: Gcra, limit: Limit) -> Verdict:
        """What a CPU's own budget says."""
        passes = limit.interval == 0 or gcra.conforms(limit, self.now)
        return Verdict.PASS if passes else Verdict.DROP

    # classify

    def live_entry(self, packet: Packet) -> Action | None:
        """The action of the longest live entry that has not expired."""
        most: int | None = 128
        if not self.root.entries[packet.family]:
            return None
        for _ in range(abi.ENTRY_DEPTH):
            entry = (
                None if most is None else self.entries.longest(packet.family, packet.source, most)
            )
            if entry is None:
                return None
            if not is_over(entry.expires_ns, self.clock_ns):
                return entry.action
            most = entry.fallback
        return None

    def source_key(self, packet: Packet) -> int:
        """The key of the packet's source in the source table."""
        if packet.family == Family.IPV4:
            length = self.shape.ipv4_prefix
            address = packet.source >> 32 - length << 32 - length
            return abi.KEY_IPV4_TAG | length << abi.KEY_IPV4_LENGTH_SHIFT | address
        unused = 64 - self.shape.ipv6_prefix
        return (packet.source >> 64 >> unused << unused) or abi.KEY_ZERO_TAG

    def belongs(self, packet: Packet) -> Belongs:
        """What the longest prefix of the running copy says of the packet's source."""
        some, _ = FLAGS[packet.family]
        found = None
        if self.policy.flags & some:
            found = self.prefixes[self.root.prefixes].longest(packet.family, packet.source)
        return found or Belongs(0)

    def classify(self, packet: Packet, slot: Slot | None) -> Rule:
        """The class of the packet's source: cached in its slot, or by longest prefix."""
        _, long = FLAGS[packet.family]
        cached = slot is not None and slot.generation == self.root.generation
        if slot is not None and cached and not self.policy.flags & long:
            self.class_index = slot.class_index
        else:
            self.class_index = self.belongs(packet).class_index
        rule = self.policy.rule_at(self.clock_ns, self.class_index)
        self.flags = rule.flags
        return rule

    def signature_blocks(self, packet: Packet, begin: int, end: int) -> bool:
        """Whether one of these signatures blocks the request; counts what matches."""
        if begin >= end:
            return False
        header = int.from_bytes(packet.header, "big")
        for index in range(begin, end):
            signature = self.policy.signatures[index]
            if signature.matches(header, packet.source_port):
                self.matched[index] += 1
                if not signature.flags & abi.SIGNATURE_OBSERVE:
                    self.blocked[index] += 1
                    return True
        return False

    # the limit

    def newcomer(self, key: int, rule: Rule) -> Slot | None:
        """A slot for a source that had none; None: untracked."""
        if not self.gate.grants(self.policy.gate, HIGH, self.now):
            self.sources.gated += 1
            return None
        tat = (self.now + rule.limit.interval) % WRAP
        slot = Slot(key, Gcra(tat), self.class_index, self.root.generation, self.mark_clock)
        return slot if self.sources.insert(slot, self.now) else None

    def untracked(self, key: int, rule: Rule) -> Decision:
        """A request of a source that has no slot: never unlimited, never silenced."""
        if self.newcomers.grants(self.policy.newcomers, HIGH, self.now):
            return Verdict.PASS, Reason.UNTRACKED
        if self.chance <= rule.leak and self.shard_grants(key, established=False):
            return Verdict.PASS, Reason.LEAK
        return Verdict.DROP, Reason.UNTRACKED

    def conforming(self, slot: Slot) -> Decision:
        """A request within its source's limit."""
        slot.requests += 1
        slot.class_index, slot.generation = self.class_index, self.root.generation
        slot.excess = 0
        elapsed = (self.kod_clock - slot.kod_time) % (1 << abi.AUX_KOD_TIME_BITS)
        if slot.kod_time and slot.after_kod == UNTOLD and elapsed >= ANSWERED:
            slot.after_kod = TOLD
            self.count_heeding(slot, heeded=True)
        priority = HIGH if slot.established else LOW
        decision = self.under_ceiling((Verdict.PASS, Reason.CONFORM), priority)
        if not self.gate.bites(self.now) and not self.ceiling.bites(self.now):
            self.step_towards_established(slot)
        return decision

    def step_towards_established(self, slot: Slot) -> None:
        """Four well-spaced requests make a source an established one."""
        spacing = (self.mark_clock - slot.mark) % (1 << abi.AUX_MARK_BITS)
        if not slot.established and spacing >= self.policy.established_spacing:
            slot.steps += 1
            slot.mark = self.mark_clock
            slot.established = slot.steps == ESTABLISHED_STEPS

    def exceeding(self, packet: Packet, slot: Slot, rule: Rule) -> Decision:
        """A request beyond its source's limit: blocked by its shape, leaked, kissed or dropped."""
        slot.requests += 1
        slot.exceeded += 1
        due = self.remember_excess(slot)
        if self.signature_blocks(
            packet, self.policy.signatures_always, len(self.policy.signatures)
        ):
            decision = Verdict.DROP, Reason.SIGNATURE
        elif self.leaks(packet, slot, rule):
            decision = Verdict.PASS, Reason.LEAK
        elif (
            due
            and rule.flags & abi.CLASS_KOD
            and kissable(packet, slot.key, self.local)
            and self.kod.grants(self.policy.kod, HIGH, self.now)
        ):
            decision = (Verdict.KOD if self.sends(packet, slot) else Verdict.DROP), Reason.LIMIT
        else:
            decision = Verdict.DROP, Reason.LIMIT
        decision = self.under_ceiling(decision, HIGH if slot.established else LOW)
        if slot.excess == 1 or self.chance < 2**32 // SAMPLE:
            self.remember_offender(packet, slot.key, decision[0])
        return decision

    def part(self, slot: Slot) -> int:
        """Of 16 parts of all sources, by hash: 0 is never kissed, 1 the first time too late."""
        return self.sources.hash(slot.key) >> 44 & 15 if self.shape.tries else 15

    def observing(self) -> bool:
        """Whether nobody is kissed."""
        return self.mode == Mode.OBSERVE or bool(self.flags & abi.CLASS_OBSERVE)

    def count_heeding(self, slot: Slot, *, heeded: bool) -> None:
        """Counts a KoD, or what would have been one."""
        if not self.observing():
            self.heeding[heeded, self.part(slot) == 0] += 1

    def sends(self, packet: Packet, slot: Slot) -> bool:
        """Whether a KoD that is due and granted is sent; what the trial notes of it."""
        part, first, now = self.part(slot), slot.kod_time == 0, (self.clock_ns, slot.requests - 1)
        slot.kod_time, slot.after_kod = self.kod_clock, 0
        if part > 1 or self.observing():
            return part != 0
        trial = self.trials.get(slot.key)
        if first:
            slot.after_kod = UNHEEDING
            if trial is None or trial.kod == (0, 0):
                self.trials[slot.key] = Trial(now, packet.source_port, packet.header)
        elif trial is not None and trial.kod == (0, 0):
            trial.kod = now
        elif trial is not None and trial.end == (0, 0):
            watched = TRIED * self.policy.kod_interval << abi.KOD_UNIT_SHIFT
            if self.clock_ns - trial.kod[0] >= max(watched, 1):
                trial.end = now
        return part == 1 and not first

    def under_ceiling(self, decision: Decision, priority: int) -> Decision:
        """The decision, unless it passes a request of which the daemon has enough."""
        if decision[0] == Verdict.PASS and not self.ceiling.grants(
            self.policy.ceiling, priority, self.now
        ):
            return Verdict.DROP, Reason.CEILING
        return decision

    def leaks(self, packet: Packet, slot: Slot, rule: Rule) -> bool:
        """Whether excess is answered anyway: by chance, or because it looks different from the excess
        before it and an answer was put by for that.
        """
        look = look_of(packet, self.sources.hash(slot.key), self.sources.seed)
        other, slot.look = look != slot.look, look
        if other and slot.credit:
            slot.credit = False
            return True
        if self.chance <= rule.leak:
            return self.shard_grants(slot.key, slot.established)
        more = min(rule.leak + rule.leak // PUT_BY, 2**32 - 1)
        if not other and not slot.credit and self.chance <= more:
            slot.credit = self.shard_grants(slot.key, slot.established)
        return False

    def shard_grants(self, key: int, established: bool) -> bool:
        """Takes one answer from the source's shard, whose last half is for established sources."""
        number = self.sources.hash(key) >> 32 & abi.LEAK_SHARDS - 1
        shard, limit = self.leak[number], self.policy.leak_shard
        ahead = ahead_of(shard.tat, self.now)
        full = Fraction(limit.tolerance)
        # each has its next answer a little later than the one before it
        most = (full if established else full / NEWCOMERS) - Fraction(
            limit.interval * number, abi.LEAK_SHARDS
        )
        if max(most, 0) < ahead <= limit.tolerance + limit.interval:
            return False  # further ahead, an older limit's tat is brought back
        return shard.conforms(limit, self.now)

    def remember_excess(self, slot: Slot) -> bool:
        """What the source did since its last KoD; whether another one is due."""
        policy = self.policy
        slot.excess = min(slot.excess + 1, COUNTER_SATURATES)
        elapsed = (self.kod_clock - slot.kod_time) % (1 << abi.AUX_KOD_TIME_BITS)
        if slot.kod_time:
            if elapsed > QUIET:
                slot.unheeded, slot.after_kod = 0, TOLD
            elif slot.unheeded >= policy.kod_patience:  # deaf
                slot.kod_time = self.kod_clock
                return False
            elif elapsed >= ANSWERED and slot.after_kod != UNHEEDING:
                slot.after_kod = 1 if slot.after_kod == TOLD else slot.after_kod + 1
                if slot.after_kod == UNHEEDING:
                    slot.unheeded += 1
                    self.count_heeding(slot, heeded=False)
        waited = not slot.kod_time or elapsed >= policy.kod_interval
        return slot.excess <= policy.kod_flood and slot.unheeded < policy.kod_patience and waited

    def remember_offender(self, packet: Packet, key: int, verdict: Verdict) -> None:
        """Details for the operator."""
        if self.noted_ns != self.clock_ns:
            self.noted_ns, self.noted = self.clock_ns, 0
        if self.noted == NOTES:
            return
        self.noted += 1
        offender = self.offenders.setdefault(key, Offender(self.clock_ns))
        offender.last_seen_ns = self.clock_ns
        offender.sampled[verdict] += 1
        offender.source_port = packet.source_port
        offender.ttl = packet.ttl
        offender.header = packet.header


def look_of(packet: Packet, source_hash: int, seed: tuple[int, int]) -> int:
    """Four bits of how a request looks, keyed, and other ones for each source."""
    header = packet.header
    port = packet.source_port
    kind = 0 if port == 123 else 1 if port < 1024 else 2 if port < 32768 else 3
    make = packet.ttl | header[0] << 8 | header[3] << 16 | header[1] << 24 | kind << 32
    # root delay, root dispersion, reference id; reference, origin, receive timestamp
    fields = (header[4:8], header[8:12], header[12:16], header[16:24], header[24:32], header[32:40])
    for bit, one in enumerate(fields, 34):
        make |= any(one) << bit
    make |= (packet.payload_bytes > 48) << 40 | (not packet.plain) << 41
    return ((make ^ source_hash) * (seed[1] | 1) & abi.U64) >> 60
