"""Snapshots of the running guard. Takes no lock, writes nothing."""

import heapq
import ipaddress
import os
import time
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ntpguard import abi, entries, running, temporary, tries
from ntpguard.errors import NotRunning, PermissionNeeded
from ntpguard.kernel import bpffs as pinned
from ntpguard.kernel import interfaces, libbpf, maps
from ntpguard.moments import Moment, monotonic_ns
from ntpguard.policy.compile import class_rule
from ntpguard.policy.model import ClassPolicy, Policy
from ntpguard.words import Action, Family, Mode, Reason, Verdict

WORDS_PER_BUCKET = abi.size(abi.Bucket) // 8
KEY, GCRA, AUX, STAT = (abi.WAYS * i for i in range(4))
HALF = (1 << 32) - 1
DEAF_SECONDS = 15 * 60
SPARE = 64  # slots to look at besides those asked for: some are torn, or empty but not zero


@dataclass(frozen=True)
class AttachedInterface:
    """A guarded interface, and how its program is attached."""

    name: str
    ifindex: int
    xdp: str


@dataclass(frozen=True)
class Ending:
    """When something temporary is over, and the policy that then holds."""

    until: Moment
    after: Policy


@dataclass(frozen=True)
class Source:
    """One source as its slot has it; both counts wrap at 2^32."""

    source: str
    key: int
    requests: int
    excess: int
    class_index: int | None  # None: found in older prefixes, looked up again by the next request
    tat_ahead_seconds: float  # negative: idle for so long
    excess_since_pass: int
    unheeded: int
    deaf: bool
    established: bool


@dataclass(frozen=True)
class Cell:
    """One counter."""

    interface: str
    class_index: int
    family: Family
    verdict: Verdict
    reason: Reason
    packets: int


@dataclass(frozen=True)
class Counts:
    """All counters, summed over the CPUs; cells of 0 are left out."""

    happened: list[Cell] = field(default_factory=list)
    observed: list[Cell] = field(default_factory=list)
    frame_bytes: dict[tuple[str, Family, Verdict], int] = field(default_factory=dict)

    def verdicts(self) -> dict[Verdict, int]:
        """Packets by verdict."""
        totals = dict.fromkeys(Verdict, 0)
        for cell in self.happened:
            totals[cell.verdict] += cell.packets
        return totals


def read_slot(
    words: "memoryview[int]", index: int, way: int, seed: tuple[int, int]
) -> tuple[int, int, int, int] | None:
    """(key, gcra, aux, stat) of a slot, or None if it is empty, being filled, or torn."""
    base = index * WORDS_PER_BUCKET + way
    gcra = words[base + GCRA]
    key, aux, stat = words[base + KEY], words[base + AUX], words[base + STAT]
    if not key or gcra & abi.GCRA_BUSY or words[base + GCRA] != gcra:
        return None
    mark = abi.field(gcra, abi.GCRA_FINGERPRINT_SHIFT, abi.GCRA_FINGERPRINT_BITS)
    if abi.fingerprint(key, seed) != mark:
        return None
    return key, gcra, aux, stat


def busiest(words: "memoryview[int]", count: int, sort: str) -> list[tuple[int, int]]:
    """(bucket, way) of the slots with the most requests or excess, the most first.

    Works on whole columns: a table with a million sources takes a fraction of a second.
    """
    best: list[tuple[int, int, int]] = []
    for way in range(abi.WAYS):
        column = words[STAT + way :: WORDS_PER_BUCKET].tolist()
        values = column if sort == "requests" else [value & HALF for value in column]
        ranked = heapq.nlargest(count, range(len(values)), key=values.__getitem__)
        best += [(values[bucket], bucket, way) for bucket in ranked if values[bucket]]
    return [(bucket, way) for _, bucket, way in heapq.nlargest(count, best)]


class Running:
    """An open view of the guard in this network namespace."""

    def __init__(self, at: Path, descriptors: dict[str, int], links: dict[int, Path]) -> None:
        self._maps = descriptors
        self._links = links
        self._at = at
        self.table = running.read_table(descriptors["table"])
        self.seed = (int(self.table.seed[0]), int(self.table.seed[1]))

    def interfaces(self) -> list[AttachedInterface]:
        """Guarded interfaces that exist."""
        return [
            AttachedInterface(one.name, one.ifindex, one.xdp)
            for one in interfaces.interfaces()
            if one.ifindex in self._links
        ]

    def root(self) -> int:
        """The root word."""
        return running.read_root(self._maps)

    def mode(self) -> Mode:
        """The mode that packets see now, as the packet path decides it."""
        root = self.root()
        copy = abi.field(root, abi.ROOT_POLICY_SHIFT, 1).to_bytes(4, "little")
        raw = libbpf.map_lookup(self._maps["policy"], copy, abi.size(abi.Policy))
        assert raw is not None, "an array has every key"
        policy = abi.Policy.from_buffer_copy(raw)
        if policy.mode_until_ns and monotonic_ns() >= policy.mode_until_ns:
            return Mode(policy.mode_after)
        return Mode(abi.field(root, abi.ROOT_MODE_SHIFT, abi.ROOT_MODE_BITS))

    def ending(self, what: str) -> Ending | None:
        """When a temporary change ends, and the policy that then holds; `what` as
        temporary names it. None: what holds, holds for good.
        """
        document = self.document()
        until = temporary.until(document, what)
        if until is None:
            return None
        after = temporary.settled(document, everything=True)
        return Ending(until, running.effective_policy(after))

    def revision(self) -> int:
        """How many times the policy was changed."""
        return abi.field(self.root(), abi.ROOT_REVISION_SHIFT, abi.ROOT_REVISION_BITS)

    def document(self) -> running.Document:
        """The running policy's text and the live changes that hold now."""
        return running.read_document(self._maps)

    def policy(self) -> Policy:
        """The policy that runs, live changes included; many prefixes are counted only."""
        return running.effective_policy(self.document())

    def whole_policy(self) -> Policy:
        """The policy that runs, live changes included, with every prefix. Needs CAP_SYS_ADMIN if
        they are many.
        """
        return tries.whole_policy(self._maps)

    def differs_from_file(self) -> bool | None:
        """Whether what runs is not what the policy's file says; None: there is no file."""
        return running.differs_from_file(self.document())

    def policy_hash(self) -> str:
        """Twelve hexadecimal digits that tell applied policies apart."""
        return running.policy_hash(self.document())

    def counts(self) -> Counts:
        """Every counter."""
        counts = Counts()
        names = {one.ifindex: one.name for one in self.interfaces()}
        for ifindex, own in self._links.items():
            name = names.get(ifindex, f"if{ifindex}")
            with maps.descriptor(own / "counters", read_only=True) as fd:
                add_counters(counts, name, fd)
        return counts

    def table_counters(self) -> dict[str, Any]:
        """inserted and replaced by family, full, lost, gated; summed over the CPUs."""
        raws = libbpf.map_lookup_percpu(
            self._maps["table_counters"], bytes(4), abi.size(abi.TableCounters)
        )
        words = memoryview(total(raws)).cast("Q")
        return {
            "inserted": dict(zip(Family, words[0:2], strict=True)),
            "replaced": dict(zip(Family, words[2:4], strict=True)),
            "full": words[4],
            "lost": words[5],
            "gated": words[6],
        }

    def sources_held(self) -> dict[Family, int]:
        """Slots in use, by family."""
        table = self.table_counters()
        return {one: table["inserted"][one] - table["replaced"][one] for one in Family}

    @property
    def capacity(self) -> int:
        """Sources that the table was made for: half of its slots."""
        return int(self.table.buckets) * abi.WAYS // 2

    @contextmanager
    def _words(self) -> Iterator["memoryview[int]"]:
        length = self.table.buckets * abi.size(abi.Bucket)
        memory = libbpf.map_mmap(self._maps["sources"], length)
        view = memoryview(memory)
        words = view[:length].cast("Q")
        try:
            yield words
        finally:
            words.release()
            view.release()
            memory.close()

    def top(self, count: int, sort: str) -> list[Source]:
        """The sources with the most requests or excess."""
        patience = self.policy().kod_patience  # a long policy takes a tenth of a second to parse
        with self._words() as words:
            found: list[Source] = []
            for bucket, way in busiest(words, count + SPARE, sort):
                slot = read_slot(words, bucket, way, self.seed)
                if slot and len(found) < count:
                    found.append(self._source(*slot, patience))
            return found

    def find(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> Source | None:
        """The source that an address belongs to, if it has a slot."""
        key = abi.source_key(address, self.table.ipv4_prefix, self.table.ipv6_prefix)
        bucket = abi.hash_key(key, self.seed) & (self.table.buckets - 1)
        with self._words() as words:
            for way in range(abi.WAYS):
                slot = read_slot(words, bucket, way, self.seed)
                if slot and slot[0] == key:
                    return self._source(*slot, self.policy().kod_patience)
        return None

    def _source(self, key: int, gcra: int, aux: int, stat: int, patience: int) -> Source:
        now_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        ahead = (gcra >> abi.GCRA_TAT_SHIFT) - (now_ns >> abi.GCRA_UNIT_SHIFT)
        kod_time = abi.field(aux, abi.AUX_KOD_TIME_SHIFT, abi.AUX_KOD_TIME_BITS)
        since = ((now_ns >> abi.KOD_UNIT_SHIFT) - kod_time) & 0xFFFF
        unheeded = abi.field(aux, abi.AUX_UNHEEDED_SHIFT, abi.AUX_UNHEEDED_BITS)
        known = abi.field(aux, abi.AUX_GENERATION_SHIFT, abi.AUX_GENERATION_BITS) == abi.field(
            self.root(), abi.ROOT_GENERATION_SHIFT, abi.ROOT_GENERATION_BITS
        )
        fresh = kod_time and (since << abi.KOD_UNIT_SHIFT) / 1e9 <= DEAF_SECONDS
        return Source(
            source=abi.source_of_key(key, self.table.ipv6_prefix),
            key=key,
            requests=stat >> abi.STAT_REQUESTS_SHIFT,
            excess=stat & HALF,
            class_index=abi.field(aux, abi.AUX_CLASS_SHIFT, abi.AUX_CLASS_BITS) if known else None,
            tat_ahead_seconds=(ahead << abi.GCRA_UNIT_SHIFT) / 1e9,
            excess_since_pass=abi.field(aux, abi.AUX_EXCESS_SHIFT, abi.AUX_EXCESS_BITS),
            unheeded=unheeded if fresh else 0,
            deaf=bool(fresh and unheeded >= patience),
            established=bool(abi.field(aux, abi.AUX_ESTABLISHED_SHIFT, abi.AUX_ESTABLISHED_BITS)),
        )

    def match(
        self, address: ipaddress.IPv4Address | ipaddress.IPv6Address
    ) -> tuple[int, str | None]:
        """The class of an address in the running prefixes, and the prefix that matched."""
        version = address.version
        outer = self._maps[f"prefixes_ipv{version}"]
        copy = abi.field(self.root(), abi.ROOT_PREFIXES_SHIFT, 1)
        inner = libbpf.map_lookup(outer, copy.to_bytes(4, "little"), 4)
        if inner is None:
            return 0, None
        fd = libbpf.map_by_id(int.from_bytes(inner, "little"))
        try:
            value = libbpf.map_lookup(fd, running.trie_key(ipaddress.ip_network(address)), 4)
        finally:
            os.close(fd)
        if value is None:
            return 0, None
        packed = int.from_bytes(value, "little")
        length = abi.field(packed, abi.PREFIX_LENGTH_SHIFT, 8)
        prefix = ipaddress.ip_network((address, length), strict=False)
        return packed & (abi.CLASSES - 1), str(prefix)

    def entry(
        self, address: ipaddress.IPv4Address | ipaddress.IPv6Address
    ) -> entries.LiveEntry | None:
        """The live entry that holds for an address: the longest that has not expired."""
        found = [one for one in entries.read_entries(self._maps) if address in one.prefix]
        return max(found, key=lambda one: one.prefix.prefixlen, default=None)

    def live_entries(self) -> list[tuple[entries.LiveEntry, entries.Note]]:
        """Every live entry that has not expired, by prefix, and what is noted of it."""
        document = self.document()
        found = sorted(
            entries.read_entries(self._maps),
            key=lambda one: (
                one.prefix.version,
                one.prefix.network_address.packed,
                one.prefix.prefixlen,
            ),
        )
        return [(one, entries.note_of(document, one)) for one in found]

    def next_request(
        self, one: Source | None, class_index: int, entry: entries.LiveEntry | None = None
    ) -> str:
        """What a plain request of this source would meet now, in words."""
        policy = self.policy()
        own = policy.classes[class_index]
        if self.mode() == Mode.OFF:
            return "passes: mode is off"
        what = _next(own, one, entry)
        canary = own.mode == "observe" and not (entry and entry.action == Action.BLOCK)
        if what.startswith("passes") or not (self.mode() == Mode.OBSERVE or canary):
            return what
        return f"passes: mode is observe; else {what}"


def _next(own: ClassPolicy, one: Source | None, entry: entries.LiveEntry | None) -> str:
    if entry:
        verb = "dropped" if entry.action == Action.BLOCK else "passes"
        return f"{verb}: live entry {entry.prefix} is {entry.action.word}"
    if own.action == "block":
        return f"dropped: class {own.name} is blocked"
    if own.action == "exempt":
        return f"passes: class {own.name} is exempt"
    units = class_rule(own).limit.burst_tolerance >> abi.GCRA_TAT_SHIFT
    wait = one.tat_ahead_seconds - (units << abi.GCRA_UNIT_SHIFT) / 1e9 if one else 0
    if wait <= 0:
        return f"passes: within {own.rate} burst {own.burst}"
    rest = "is dropped: deaf" if one and one.deaf else "is kissed or dropped"
    return f"excess for {wait:.1f} s more: 1 in {1 / float(own.leak):.0f} passes, the rest {rest}"


def total(cpus: Iterable[bytes]) -> bytes:
    """The sum of words counted per CPU; most are 0, and all-zero CPUs cost nothing."""
    raws = list(cpus)
    counted = [memoryview(raw).cast("Q") for raw in raws if any(raw)]
    if not counted:
        return bytes(len(raws[0]))
    return array("Q", (sum(words) for words in zip(*counted, strict=True))).tobytes()


def add_counters(counts: Counts, name: str, fd: int) -> None:
    """Adds what an interface's map of counters holds, also of classes that the policy has no more:
    a total never goes back.
    """
    for index in range(abi.CLASSES):
        raws = libbpf.map_lookup_percpu(fd, index.to_bytes(4, "little"), abi.size(abi.Counters))
        _add(counts, name, index, [abi.Counters.from_buffer_copy(total(raws))])


def _add(counts: Counts, name: str, index: int, cpus: list[abi.Counters]) -> None:
    for table, cells in (("packets", counts.happened), ("observed", counts.observed)):
        for family in Family:
            for verdict in Verdict:
                for reason in Reason:
                    packets = sum(getattr(c, table)[family][verdict][reason] for c in cpus)
                    if packets:
                        cells.append(Cell(name, index, family, verdict, reason, packets))
    for family in Family:
        for verdict in Verdict:
            key = (name, family, verdict)
            total = sum(int(c.bytes[family][verdict]) for c in cpus)
            counts.frame_bytes[key] = counts.frame_bytes.get(key, 0) + total


@contextmanager
def open_running(bpffs: Path) -> Iterator[Running]:
    """The guard of this network namespace.

    Raises NotRunning, PermissionNeeded if the pins may not be read, NtpguardError if they are
    another version's.
    """
    not_running = NotRunning("not running: nothing is attached: try ntpguard up INTERFACE")
    at = pinned.pins(bpffs)
    try:
        if not at.is_dir():
            raise not_running
    except PermissionError:
        raise PermissionNeeded(
            f"{at}: permission denied: CAP_DAC_OVERRIDE (root) is needed: try sudo"
        ) from None
    links = maps.live_links(at)
    if not links:
        raise not_running
    with maps.opened(at) as descriptors:
        yield Running(at, descriptors, links)
