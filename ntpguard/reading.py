"""Snapshots of the running guard. Takes no lock, writes nothing."""

import ipaddress
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

from ntpguard import abi, entries, running, sources, temporary, trials, tries
from ntpguard.counts import Counts, add_counters, total
from ntpguard.document import differs_from_file, effective_policy, policy_hash
from ntpguard.errors import NotRunning, NtpguardError, PermissionNeeded
from ntpguard.kernel import bpffs as pinned
from ntpguard.kernel import interfaces, libbpf, maps
from ntpguard.keys import hash_key, source_key
from ntpguard.moments import Moment, monotonic_ns
from ntpguard.policy.kinds import Address, Network
from ntpguard.policy.model import Policy
from ntpguard.sources import Group, Source
from ntpguard.survey import Limits, Survey, Surveyor
from ntpguard.temporary import Document
from ntpguard.words import Family, Mode

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
class Match:
    """What the running prefixes say of an address, and the longest of them that holds it."""

    class_index: int
    prefix: Network | None
    upstream: bool


class Running:
    """An open view of the guard in this network namespace."""

    def __init__(self, at: Path, descriptors: dict[str, int], links: dict[int, Path]) -> None:
        self._maps = descriptors
        self._links = links
        self._at = at
        self.table = running.read_table(descriptors["table"])
        running.require_abi(self.table)
        self.seed = (int(self.table.seed[0]), int(self.table.seed[1]))

    def interfaces(self) -> list[AttachedInterface]:
        """Guarded interfaces that exist."""
        return [
            AttachedInterface(one.name, one.ifindex, one.xdp)
            for one in interfaces.interfaces_of(self._links)
        ]

    def root(self) -> int:
        """The root word."""
        return running.read_root(self._maps)

    def mode(self) -> Mode:
        """The mode that packets see now, as the packet path decides it."""
        root = self.root()
        policy = self._compiled(root)
        if policy.mode_until_ns and monotonic_ns() >= policy.mode_until_ns:
            return Mode(policy.mode_after)
        return Mode(abi.field(root, abi.ROOT_MODE_SHIFT, abi.ROOT_MODE_BITS))

    def _compiled(self, root: int) -> abi.Policy:
        return running.read_policy_map(self._maps, abi.field(root, abi.ROOT_POLICY_SHIFT, 1))

    def ending(self, what: str) -> Ending | None:
        """When a temporary change ends, and the policy that then holds; `what` as
        temporary names it. None: what holds, holds for good.
        """
        document = self.document()
        until = temporary.until(document, what)
        if until is None:
            return None
        after = temporary.settled(document, everything=True)
        return Ending(until, effective_policy(after))

    def revision(self) -> int:
        """How many times the policy was changed."""
        return abi.field(self.root(), abi.ROOT_REVISION_SHIFT, abi.ROOT_REVISION_BITS)

    def document(self) -> Document:
        """The running policy's text and the live changes that hold now."""
        return running.read_document(self._maps)

    def policy(self) -> Policy:
        """The policy that runs, live changes included; many prefixes are counted only."""
        return effective_policy(self.document())

    def whole_policy(self) -> Policy:
        """The policy that runs, live changes included, with every prefix. Needs CAP_SYS_ADMIN if
        they are many.
        """
        return tries.whole_policy(self._maps)

    def differs_from_file(self) -> bool | None:
        """Whether what runs is not what the policy's file says; None: there is no file."""
        return differs_from_file(self.document())

    def policy_hash(self) -> str:
        """Twelve hexadecimal digits that tell applied policies apart."""
        return policy_hash(self.document())

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

    def survey(self, surveyor: Surveyor) -> Survey:
        """What the sources do, by a sample of the table."""
        policy, now_ns = self._compiled(self.root()), monotonic_ns()
        rules = _rules_at(policy, now_ns)
        limits = Limits(
            [one.limit.emission_interval >> abi.GCRA_TAT_SHIFT for one in rules],
            [one.limit.burst_tolerance >> abi.GCRA_TAT_SHIFT for one in rules],
            policy.kod_patience,
            self.seed,
        )
        with self._words() as words:
            return surveyor.survey(words, limits, now_ns)

    def memory_bytes(self) -> dict[str, int]:
        """Kernel memory of each map (of an interface's counters: of all interfaces)."""
        found = {name: libbpf.map_memory(fd) for name, fd in self._maps.items()}
        found["counters"] = 0
        for own in self._links.values():
            with maps.descriptor(own / "counters", read_only=True) as fd:
                found["counters"] += libbpf.map_memory(fd)
        return found

    def runs(self) -> dict[str, tuple[int, int]]:
        """Times that each interface's program ran, and nanoseconds it took: counted while
        kernel.bpf_stats_enabled is set.
        """
        found = {}
        for one in self.interfaces():
            with maps.descriptor(self._links[one.ifindex] / "program", read_only=True) as fd:
                info = libbpf.prog_info(fd)
                found[one.name] = (int(info.run_cnt), int(info.run_time_ns))
        return found

    def top(self, count: int, sort: str) -> list[Source]:
        """The sources with the most requests, excess, or KoDs not heeded ("kod"); or those whose
        excess was noted last ("last").
        """
        if sort == "last":
            return self._last(count)
        read = self._reader()
        more = SPARE + (count // 4 if sort == "kod" else 0)  # one in 16 was never sent any
        with self._words() as words:
            found = (
                sources.read_slot(words, bucket, way, self.seed)
                for bucket, way in sources.busiest(words, count + more, sort, monotonic_ns())
            )
            told = (one for one in map(read, filter(None, found)) if sort != "kod" or one.unheeded)
            return list(islice(told, count))

    def top_prefixes(self, count: int, sort: str) -> list[Group]:
        """The prefixes (sources.PREFIX_LENGTHS) whose sources have the most requests or excess."""
        with self._words() as words:
            return sources.by_prefix(words, count, sort)

    def top_classes(self) -> list[tuple[int | None, Group]]:
        """The sources of each class, by its index. None: found in older prefixes."""
        root = self.root()
        now = abi.field(root, abi.ROOT_GENERATION_SHIFT, abi.ROOT_GENERATION_BITS)
        known: list[tuple[int | None, Group]] = []
        older: list[Group] = []
        with self._words() as words:
            found = sources.by_class(words)
        for one in found:
            if one.key >> abi.AUX_CLASS_BITS == now:
                known.append((one.key & (abi.CLASSES - 1), one))
            else:
                older.append(one)
        if older:
            totals = (sum(one.sources for one in older), sum(one.requests for one in older))
            known.append((None, Group(-1, *totals, sum(one.excess for one in older))))
        return known

    def _last(self, count: int) -> list[Source]:
        """The noted sources that still have a slot, the one noted last first."""
        seen = sorted(((noted.last_seen_ns, key) for key, noted in self.offenders()), reverse=True)
        read = self._reader()
        with self._words() as words:
            found = (self._slot(words, key) for _, key in seen)
            return [read(slot) for slot in islice(filter(None, found), count)]

    def offender(self, key: int) -> abi.Offender | None:
        """What is noted of a source, by its key, if it ever was over its limit. A reader that
        races the packet path may see parts of two packets.
        """
        raw = libbpf.map_lookup(
            self._maps["offenders"], key.to_bytes(8, "little"), abi.size(abi.Offender)
        )
        return abi.Offender.from_buffer_copy(raw) if raw else None

    def offenders(self) -> Iterator[tuple[int, abi.Offender]]:
        """Every source that something is noted of, by its key: 16,384 at most."""
        info = libbpf.map_info(self._maps["offenders"])
        found = libbpf.map_items(self._maps["offenders"], 8, info.value_size, info.max_entries)
        for key, raw in found:
            yield int.from_bytes(key, "little"), abi.Offender.from_buffer_copy(raw)

    def sources_of(self, keys: Iterable[int]) -> Iterator[Source]:
        """Those of the sources with these keys that have a slot."""
        read = self._reader()
        with self._words() as words:
            yield from map(read, filter(None, (self._slot(words, key) for key in keys)))

    def trials(self) -> Counter[trials.Outcome]:
        """What the sources in the trial of KoDs did, and how many."""
        info = libbpf.map_info(self._maps["trials"])
        found = libbpf.map_items(self._maps["trials"], 8, info.value_size, info.max_entries)
        policy, now_ns = self._compiled(self.root()), monotonic_ns()
        rules = _rules_at(policy, now_ns)
        with self._words() as words:

            def seen(key: int) -> trials.Seen | None:
                slot = self._slot(words, key)
                return trials.seen(slot, rules, now_ns) if slot else None

            interval = policy.kod_interval << abi.KOD_UNIT_SHIFT
            return trials.outcomes(found, seen, now_ns, interval)

    def heeding(self) -> abi.KodCounters:
        """KoDs heeded and not, summed over the CPUs."""
        raws = libbpf.map_lookup_percpu(
            self._maps["kod_counters"], bytes(4), abi.size(abi.KodCounters)
        )
        return abi.KodCounters.from_buffer_copy(total(raws))

    def key(self, address: Address) -> int:
        """The key of the source that an address belongs to."""
        return source_key(address, self.table.ipv4_prefix, self.table.ipv6_prefix)

    def find(self, address: Address) -> Source | None:
        """The source that an address belongs to, if it has a slot."""
        with self._words() as words:
            slot = self._slot(words, self.key(address))
        return self._reader()(slot) if slot else None

    def _slot(self, words: "memoryview[int]", key: int) -> sources.Slot | None:
        home = hash_key(key, self.seed) & (self.table.buckets - 1)
        for bucket, way in product((home, home ^ 1), range(abi.WAYS)):
            slot = sources.read_slot(words, bucket, way, self.seed)
            if slot and slot[0] == key:
                return slot
        return None

    def _reader(self) -> Callable[[sources.Slot], Source]:
        """Makes a Source of a slot, as the running policy has it now."""
        root = self.root()
        return partial(
            sources.read_source,
            now_ns=monotonic_ns(),
            ipv6_prefix=self.table.ipv6_prefix,
            generation=abi.field(root, abi.ROOT_GENERATION_SHIFT, abi.ROOT_GENERATION_BITS),
            # not from the policy's text: a long one takes a tenth of a second to parse
            patience=self._compiled(root).kod_patience,
            seed=self.seed,
        )

    def match(self, address: Address) -> Match:
        """What the running prefixes say of an address: the packet path's own answer."""
        version = address.version
        outer = self._maps[f"prefixes_ipv{version}"]
        copy = abi.field(self.root(), abi.ROOT_PREFIXES_SHIFT, 1)
        inner = libbpf.map_lookup(outer, copy.to_bytes(4, "little"), 4)
        if inner is None:
            return Match(0, None, False)
        fd = libbpf.map_by_id(int.from_bytes(inner, "little"))
        try:
            value = libbpf.map_lookup(fd, running.trie_key(ipaddress.ip_network(address)), 4)
        finally:
            os.close(fd)
        if value is None:
            return Match(0, None, False)
        packed = int.from_bytes(value, "little")
        length = abi.field(packed, abi.PREFIX_LENGTH_SHIFT, 8)
        prefix = ipaddress.ip_network((address, length), strict=False)
        upstream = bool(packed >> abi.PREFIX_UPSTREAM_SHIFT & 1)
        return Match(packed & (abi.CLASSES - 1), prefix, upstream)

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


def _rules_at(policy: abi.Policy, now_ns: int) -> list[abi.ClassRule]:
    """Each class as the packet path has it at a time: as rule_at in bpf/policy.h."""
    return [
        after if rule.until_ns and now_ns >= rule.until_ns else rule
        for rule, after in zip(policy.classes, policy.classes_after, strict=True)
    ]


@contextmanager
def open_running(bpffs: Path) -> Iterator[Running]:
    """The guard of this network namespace.

    Raises NotRunning, PermissionNeeded if the pins may not be read, NtpguardError if they are
    another version's.
    """
    at = pinned.pins(bpffs)
    try:
        if not at.is_dir():
            raise NotRunning
    except PermissionError:
        raise PermissionNeeded(
            f"{at}: permission denied: CAP_DAC_OVERRIDE (root) is needed: try sudo"
        ) from None
    with ExitStack() as held:
        try:
            links = maps.live_links(at)
            if not links:
                raise NotRunning
            descriptors = held.enter_context(maps.opened(at))
        except NtpguardError:
            if at.exists():
                raise
            raise NotRunning from None  # it has been taken down meanwhile
        yield Running(at, descriptors, links)
