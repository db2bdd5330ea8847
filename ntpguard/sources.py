"""The source table as user space maps it: what a slot says, and which slots say the most.

Works on whole columns: of a table with a million sources, each step is one pass in C or one short
loop, a fraction of a second. Knows no file descriptor.
"""

import heapq
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress, islice
from typing import TypeAlias

from ntpguard import abi
from ntpguard.keys import fingerprint, source_of_key, trial_part
from ntpguard.moments import CLOCK_TICK_NS

WORDS_PER_BUCKET = abi.size(abi.Bucket) // 8
KEY, GCRA, AUX, STAT = (abi.WAYS * i for i in range(4))
DEAF_SECONDS = 15 * 60
LONGEST_TICK = CLOCK_TICK_NS >> abi.GCRA_UNIT_SHIFT
IPV4_TAG = abi.KEY_IPV4_TAG >> abi.KEY_TAG_SHIFT
PREFIX_LENGTHS = (24, 48)  # of IPv4 and IPv6: what sources are put together to
# of a key's first octet: all ones for the tag of IPv4, which no unicast IPv6 address begins with
KEEP_IPV4 = bytes(255) + b"\xff"

Words: TypeAlias = "memoryview[int]"
Sums = defaultdict[int, int]
Slot = tuple[int, int, int, int]  # key, gcra, aux, stat


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
    kod_seconds_ago: float | None  # of the last KoD; if deaf, of the last excess. None: not lately
    control: bool = False  # never kissed
    held: bool = False  # that KoD was held back: the source's trial began


@dataclass(frozen=True)
class Group:
    """Sources put together: of a prefix (by the key of its first), or of a class."""

    key: int
    sources: int
    requests: int
    excess: int


def counted_ahead(ahead: int, interval: int, tolerance: int) -> int:
    """As how far ahead a tat counts, in gcra units, by the rule of `gcra` in bpf/gcra.h: further
    than its limit can have put it, an older policy has, and a request conforms.
    """
    return tolerance if ahead > tolerance + interval + LONGEST_TICK else ahead


def read_slot(words: Words, index: int, way: int, seed: tuple[int, int]) -> Slot | None:
    """The words of a slot, or None if it is empty, being filled, or torn."""
    base = index * WORDS_PER_BUCKET + way
    gcra = words[base + GCRA]
    key, aux, stat = words[base + KEY], words[base + AUX], words[base + STAT]
    if not key or gcra & abi.GCRA_BUSY or words[base + GCRA] != gcra:
        return None
    mark = abi.field(gcra, abi.GCRA_FINGERPRINT_SHIFT, abi.GCRA_FINGERPRINT_BITS)
    if fingerprint(key, seed) != mark:
        return None
    return key, gcra, aux, stat


def read_source(
    slot: Slot,
    now_ns: int,
    *,
    ipv6_prefix: int,
    generation: int,
    patience: int,
    seed: tuple[int, int],
) -> Source:
    """What a slot says at a time of CLOCK_MONOTONIC, in the running prefixes' generation. Of one in
    the control group, the KoDs that its slot counts were never sent.
    """
    key, gcra, aux, stat = slot
    ahead = (gcra >> abi.GCRA_TAT_SHIFT) - (now_ns >> abi.GCRA_UNIT_SHIFT)
    ago = _kod_seconds_ago(aux, now_ns)
    part = trial_part(key, seed)
    control = part == abi.PART_CONTROL
    unheeded = 0 if control else _unheeded(aux, now_ns)
    known = abi.field(aux, abi.AUX_GENERATION_SHIFT, abi.AUX_GENERATION_BITS) == generation
    return Source(
        source=source_of_key(key, ipv6_prefix),
        key=key,
        requests=stat >> abi.STAT_REQUESTS_SHIFT,
        excess=abi.field(stat, abi.STAT_EXCESS_SHIFT, 32),
        class_index=abi.field(aux, abi.AUX_CLASS_SHIFT, abi.AUX_CLASS_BITS) if known else None,
        tat_ahead_seconds=(ahead << abi.GCRA_UNIT_SHIFT) / 1e9,
        excess_since_pass=abi.field(aux, abi.AUX_EXCESS_SHIFT, abi.AUX_EXCESS_BITS),
        unheeded=unheeded,
        deaf=is_deaf(key, aux, now_ns, patience, seed),
        established=bool(abi.field(aux, abi.AUX_ESTABLISHED_SHIFT, abi.AUX_ESTABLISHED_BITS)),
        kod_seconds_ago=ago,
        control=control,
        held=part == abi.PART_TRIED and ago is not None and not unheeded and _is_settled(aux),
    )


def is_deaf(key: int, aux: int, now_ns: int, patience: int, seed: tuple[int, int]) -> bool:
    """Whether a source gets no KoD any more, since it did not heed those it got."""
    deaf = _unheeded(aux, now_ns) >= patience
    return deaf and trial_part(key, seed) != abi.PART_CONTROL


def _is_settled(aux: int) -> bool:
    """Whether there is nothing of the last KoD to be heeded any more."""
    return abi.field(aux, abi.AUX_AFTER_KOD_SHIFT, abi.AUX_AFTER_KOD_BITS) == 2


def _kod_seconds_ago(aux: int, now_ns: int) -> float | None:
    """Since the KoD that a slot remembers; None: there is none, or the packet path is past it."""
    kod_time = abi.field(aux, abi.AUX_KOD_TIME_SHIFT, abi.AUX_KOD_TIME_BITS)
    since = ((now_ns >> abi.KOD_UNIT_SHIFT) - kod_time) & 0xFFFF
    seconds = (since << abi.KOD_UNIT_SHIFT) / 1e9
    return seconds if kod_time and seconds <= DEAF_SECONDS else None


def _unheeded(aux: int, now_ns: int) -> int:
    """KoDs not heeded, as the next excess request will find them."""
    count = abi.field(aux, abi.AUX_UNHEEDED_SHIFT, abi.AUX_UNHEEDED_BITS)
    return count if count and _kod_seconds_ago(aux, now_ns) is not None else 0


def busiest(words: Words, count: int, sort: str, now_ns: int = 0) -> list[tuple[int, int]]:
    """(bucket, way) of the slots with the most requests, excess, or KoDs not heeded ("kod"), the
    most first.
    """
    best: list[tuple[int, int, int]] = []
    for way in range(abi.WAYS):
        values = _column(words, way, sort, now_ns)
        ranked = heapq.nlargest(count, range(len(values)), key=values.__getitem__)
        best += [(values[bucket], bucket, way) for bucket in ranked if values[bucket]]
    return [(bucket, way) for _, bucket, way in heapq.nlargest(count, best)]


def _column(words: Words, way: int, sort: str, now_ns: int) -> Sequence[int]:
    if sort == "kod":
        mask = ((1 << abi.AUX_UNHEEDED_BITS) - 1) << abi.AUX_UNHEEDED_SHIFT
        column = words[AUX + way :: WORDS_PER_BUCKET].tolist()
        return [_unheeded(aux, now_ns) if aux & mask else 0 for aux in column]
    with _halves(words) as halves:
        requests, excess = _counts(halves, way)
    return requests if sort == "requests" else excess


@contextmanager
def _halves(words: Words) -> Iterator[Words]:
    """The same memory in words of 32 bits."""
    with words.cast("B") as octets, octets.cast("I") as halves:
        yield halves


def _counts(halves: Words, way: int) -> tuple["array[int]", "array[int]"]:
    """Requests and excess of every slot in a way."""
    excess = 2 * (STAT + way)
    step = 2 * WORDS_PER_BUCKET
    # arrays: a list has an object for each, which leave memory in pieces to who asks for months
    requests, over = (array("I", halves[first::step].tobytes()) for first in (excess + 1, excess))
    return requests, over


def by_class(words: Words) -> list[Group]:
    """Every class and generation of prefixes that some source is of; the key is the class's index
    with the generation, as in the lower bits of aux.
    """
    sources: Counter[int] = Counter()
    requests: Sums = defaultdict(int)
    excess: Sums = defaultdict(int)
    bits = abi.AUX_CLASS_BITS + abi.AUX_GENERATION_BITS
    for way in range(abi.WAYS):
        keys = words[KEY + way :: WORDS_PER_BUCKET].tolist()
        with words.cast("B") as octets, octets.cast("H") as quarters:
            assert bits == 16, "class and generation are the lower 16 bits of aux"
            classes = quarters[4 * (AUX + way) :: 4 * WORDS_PER_BUCKET].tolist()
        with _halves(words) as halves:
            asked, over = _counts(halves, way)
        sources.update(compress(classes, keys))
        _add(requests, compress(zip(classes, asked, strict=True), keys))
        _add(excess, compress(zip(classes, over, strict=True), keys))
    return [Group(key, count, requests[key], excess[key]) for key, count in sources.items()]


def by_prefix(words: Words, count: int, sort: str) -> list[Group]:
    """The prefixes (IPv4 /24, IPv6 /48) with the most requests or excess, the most first."""
    columns = [_prefix_keys(words, way) for way in range(abi.WAYS)]
    totals: Sums = defaultdict(int)
    for way, keys in enumerate(columns):
        values = _column(words, way, sort, 0)
        for key, value in zip(compress(keys, values), filter(None, values), strict=True):
            totals[key] += value
    totals.pop(0, None)  # slots that are empty but not zero
    # a flood of forged sources makes a million prefixes: no call for each of them
    least = min(heapq.nlargest(count, totals.values()), default=0)
    best = sorted(((value, key) for key, value in totals.items() if value > least), reverse=True)
    ties = (key for key, value in totals.items() if value == least)
    chosen = [*(key for _, key in best), *islice(ties, count - len(best))]
    found = {key: [0, 0, 0] for key in chosen}
    for way, keys in enumerate(columns):
        with _halves(words) as halves:
            requests, excess = _counts(halves, way)
        rows = zip(keys, requests, excess, strict=True)
        for key, asked, over in compress(rows, map(found.__contains__, keys)):
            sums = found[key]
            sums[0] += 1
            sums[1] += asked
            sums[2] += over
    return [Group(key, *found[key]) for key in chosen]


def _add(sums: Sums, pairs: Iterable[tuple[int, int]]) -> None:
    for key, value in pairs:
        sums[key] += value


def _prefix_keys(words: Words, way: int) -> Words:
    """Every key in a way without its last octets: one of IPv4, two of IPv6."""
    raw = bytearray(words[KEY + way :: WORDS_PER_BUCKET].tobytes())
    length = len(raw) // 8
    raw[0::8] = bytes(length)
    # the second one is kept where the first one says IPv4, of all keys at once
    kept = int.from_bytes(raw[7::8].translate(KEEP_IPV4), "little")
    second = int.from_bytes(raw[1::8], "little") & kept
    raw[1::8] = second.to_bytes(length, "little")
    return memoryview(raw).cast("Q")


def prefix_text(key: int, ipv4_prefix: int, ipv6_prefix: int) -> str:
    """The prefix of a by_prefix key, as people write it: no longer than a source."""
    ipv4, ipv6 = min(PREFIX_LENGTHS[0], ipv4_prefix), min(PREFIX_LENGTHS[1], ipv6_prefix)
    if key >> abi.KEY_TAG_SHIFT != IPV4_TAG:
        return source_of_key(key, ipv6)
    length = (1 << abi.KEY_TAG_SHIFT - abi.KEY_IPV4_LENGTH_SHIFT) - 1 << abi.KEY_IPV4_LENGTH_SHIFT
    return source_of_key(key & ~length | ipv4 << abi.KEY_IPV4_LENGTH_SHIFT, ipv6)
