"""The real program under one policy, attached to nothing and pinned nowhere, and who met what."""

import ctypes
import dataclasses
import heapq
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from random import Random

from ntpguard import abi, running
from ntpguard.counts import Counts, add_counters
from ntpguard.document import new_document
from ntpguard.kernel import libbpf, maps
from ntpguard.kernel.testrun import Runner
from ntpguard.keys import hash_key, source_of_key
from ntpguard.policy.compile import FRACTIONS, compile_policy
from ntpguard.policy.kinds import Address
from ntpguard.policy.model import Policy, SignaturePolicy
from ntpguard.program import constants, load
from ntpguard.replay.frame import STATION, Datagram
from ntpguard.sources import KEY, STAT, WORDS_PER_BUCKET

ANSWER_MODES = (2, 4, 5)
MOST_FRAME_BYTES = 2048  # of a frame, what may tell its verdict; a test run takes 3520 at most
MOST_SOURCES = 1 << 19  # of whom details are kept: a flood of forged ones must not fill the memory
INTERFACE = "capture"


class Source:
    """One source's requests and what became of them."""

    __slots__ = (
        "dropped",
        "excess",
        "first_ns",
        "header",
        "key",
        "kissed",
        "last_ns",
        "leaked",
        "passed",
        "port",
        "slot",
    )

    def __init__(self, key: int, first_ns: int) -> None:
        self.key = key
        self.passed = self.kissed = self.dropped = 0
        self.leaked = 0  # of those passed
        self.first_ns = self.last_ns = first_ns
        self.header = b""  # of the last request that was refused, with its source port
        self.port = 0
        self.slot = -1  # index of its key in the source table's words
        self.excess = 0  # what its slot said last

    @property
    def requests(self) -> int:
        """All of them."""
        return self.passed + self.kissed + self.dropped

    @property
    def over(self) -> int:
        """Requests that were not simply passed: leaked, kissed or dropped."""
        return self.leaked + self.kissed + self.dropped

    @property
    def rate(self) -> float | None:
        """Requests per second from its first to its last; None: at one moment."""
        seconds = (self.last_ns - self.first_ns) / 1e9
        return (self.requests - 1) / seconds if seconds > 0 else None


class Judge:
    """The program and what it has judged so far. Not for several threads, or on several CPUs."""

    def __init__(
        self, policy: Policy, program: libbpf.Object, seed: tuple[int, int], held: ExitStack
    ) -> None:
        compiled = compile_policy(policy)
        self.policy = policy
        self.sources: dict[int, Source] = {}
        self.forgotten = 0  # sources of few requests, so that there was room for others
        self.judged = 0
        self.uncharged = 0
        self._ports = frozenset(policy.ports)
        self._destinations = frozenset(one.packed for one in policy.destinations)
        self._counters = program.map_fd("counters")
        self._seed = seed
        self._buckets = compiled.table.buckets
        self._table = _words(program, "sources", self._buckets * abi.size(abi.Bucket), "Q", held)
        self._clock = _words(program, ".bss", abi.size(abi.Inputs), "Q", held)
        self._chance = _words(program, ".bss", abi.size(abi.Inputs), "I", held)
        self._runner = Runner(program.program_fd(maps.PROGRAM), MOST_FRAME_BYTES)
        self._ipv4_tag = abi.KEY_IPV4_TAG | policy.ipv4_prefix << abi.KEY_IPV4_LENGTH_SHIFT
        self._ipv4_mask = (0xFFFFFFFF << (32 - policy.ipv4_prefix)) & 0xFFFFFFFF
        self._ipv6_mask = (abi.U64 << (64 - policy.ipv6_prefix)) & abi.U64

    def judge(self, one: Datagram, frame: bytes, clock_ns: int, chance: int) -> bool:
        """The packet's turn, at this time; False: the policy does not guard where it goes."""
        at = one.payload_at
        if at and one.port not in self._ports:
            return False
        if self._destinations and one.destination not in self._destinations:
            return False
        source = None
        # of no source: answers, and what hides its ports
        if at and not (len(frame) > at and frame[at] & 7 in ANSWER_MODES):
            source = self._source(self._key(one.source), clock_ns)
        self._clock[0] = clock_ns
        self._chance[2] = chance
        runner = self._runner
        size = min(len(frame), MOST_FRAME_BYTES)
        ctypes.memmove(runner.address, frame, size)
        ctypes.memmove(runner.address, STATION, len(STATION))
        code = runner.run(size)
        self.judged += 1
        if source is None:
            self.uncharged += 1
            return True
        source.last_ns = clock_ns
        before, after = source.excess, self._excess(source)
        if code == abi.Xdp.PASS:
            source.passed += 1
            # the slot counts each excess request: one that passed is a leak
            source.leaked += after > before
        else:
            if code == abi.Xdp.TX:
                source.kissed += 1
            else:
                source.dropped += 1
            source.header = frame[at : at + abi.HEADER_BYTES]
            source.port = one.source_port
        source.excess = after
        return True

    def _source(self, key: int, clock_ns: int) -> Source:
        source = self.sources.get(key)
        if source is None:
            if len(self.sources) >= MOST_SOURCES:
                self._forget()
            source = self.sources[key] = Source(key, clock_ns)
            if self.forgotten:  # this one perhaps
                source.excess = self._excess(source)
        return source

    def _key(self, address: bytes) -> int:
        if len(address) == 4:
            return self._ipv4_tag | int.from_bytes(address, "big") & self._ipv4_mask
        return int.from_bytes(address[:8], "big") & self._ipv6_mask or abi.KEY_ZERO_TAG

    def _excess(self, source: Source) -> int:
        """Excess requests that the source's slot has counted; 0: it has none."""
        at = source.slot
        if at < 0 or self._table[at] != source.key:
            home = hash_key(source.key, self._seed) & (self._buckets - 1)
            for bucket, way in product((home, home ^ 1), range(abi.WAYS)):
                at = bucket * WORDS_PER_BUCKET + KEY + way
                if self._table[at] == source.key:
                    source.slot = at
                    break
            else:
                source.slot = -1
                return 0
        excess: int = self._table[at + STAT - KEY] & 0xFFFFFFFF
        return excess

    def _forget(self) -> None:
        kept = heapq.nlargest(
            MOST_SOURCES // 2, self.sources.values(), key=lambda one: (one.over, one.requests)
        )
        self.forgotten += len(self.sources) - len(kept)
        self.sources = {one.key: one for one in kept}

    def counts(self) -> Counts:
        """What the program's own counters say."""
        counts = Counts()
        add_counters(counts, INTERFACE, self._counters)
        return counts

    def top(self, count: int) -> list[Source]:
        """The sources with the most requests that were not simply passed, the most first."""
        found = (one for one in self.sources.values() if one.over)
        return heapq.nlargest(count, found, key=lambda one: (one.over, one.requests))

    def name_of(self, key: int) -> str:
        """A source as people write it."""
        return source_of_key(key, self.policy.ipv6_prefix)

    def signature_of(self, source: Source) -> str | None:
        """Name of the first signature that the source's last refused request has, if any."""
        # as the program tests them
        for one in sorted(self.policy.signatures, key=lambda one: one.when != "always"):
            if has_shape(one, source.header, source.port):
                return one.name
        return None


def has_shape(one: SignaturePolicy, header: bytes, source_port: int) -> bool:
    """Whether a request is of a signature's shape, as has_shape in bpf/policy.h finds."""
    if len(header) < abi.HEADER_BYTES or one.source_port not in (None, source_port):
        return False
    if one.header:
        pairs = zip(header, one.header.mask, one.header.value, strict=True)
        if any(byte & mask != value for byte, mask, value in pairs):
            return False
    fraction = int.from_bytes(header[44:48], "big")
    wanted = FRACTIONS[one.fraction]
    if wanted == abi.FRACTION_MICROSECONDS:  # truncated: just below the next one
        return fraction * 1_000_000 & 0xFFFFFFFF >= (999 << 32) // 1000
    return wanted != abi.FRACTION_NANOSECONDS or fraction < 1_000_000_000


def enforced(policy: Policy) -> Policy:
    """The policy as if it and each of its classes were in mode enforce."""
    classes = tuple(dataclasses.replace(one, mode="enforce") for one in policy.classes)
    return dataclasses.replace(policy, mode="enforce", classes=classes)


@contextmanager
def judging(policy: Policy, servers: Iterable[Address], seed: int) -> Iterator[Judge]:
    """A freshly loaded program over an empty table, of a host that has the addresses `servers`.

    Raises PermissionNeeded, NtpguardError.
    """
    policy = enforced(policy)
    compiled = compile_policy(policy)
    random = Random(seed)
    table = abi.Table(
        buckets=compiled.table.buckets,
        seed=(ctypes.c_uint64 * 2)(random.getrandbits(64), random.getrandbits(64)),
        ipv4_prefix=compiled.table.ipv4_prefix,
        ipv6_prefix=compiled.table.ipv6_prefix,
    )
    with _on_one_cpu(), libbpf.Object(maps.object_path()) as program, ExitStack() as held:
        program.set_constants(bytes(constants(table, compiled, STATION, inputs=True)))
        program.set_max_entries("sources", table.buckets)
        load(program)
        descriptors = {name: program.map_fd(name) for name in maps.SHARED_MAPS}
        running.write_local_addresses(descriptors, set(servers))
        running.write(descriptors, policy, new_document(policy, None))
        yield Judge(policy, program, (table.seed[0], table.seed[1]), held)


@contextmanager
def _on_one_cpu() -> Iterator[None]:
    """Some budgets are each CPU's own: on several, a result would depend on the scheduler."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _words(
    program: libbpf.Object, name: str, size: int, layout: str, held: ExitStack
) -> "memoryview[int]":
    """A memory-mapped array as words, until `held` ends."""
    memory = held.enter_context(libbpf.map_mmap(program.map_fd(name), size, writable=True))
    view = held.enter_context(memoryview(memory))
    part = held.enter_context(view[:size])
    return held.enter_context(part.cast(layout))  # type: ignore[call-overload]
