"""Reading the source table from a mapping: whole columns, and never a torn slot."""

import ipaddress
import time

import pytest

from ntpguard import abi
from ntpguard.counts import total
from ntpguard.keys import fingerprint, hash_key, source_key
from ntpguard.sources import busiest, by_prefix, prefix_text, read_slot

SEED = (1, 2)


def words_of(buckets: int) -> "memoryview[int]":
    return memoryview(bytearray(buckets * abi.size(abi.Bucket))).cast("Q")


def put(words: "memoryview[int]", host: int, requests: int, excess: int) -> tuple[int, int]:
    """A source in its bucket's first way; (bucket, key)."""
    buckets = len(words) // 16
    address = ipaddress.IPv4Address("198.18.0.0") + host
    key = source_key(address, 32, 64)
    bucket = hash_key(key, SEED) & (buckets - 1)
    words[bucket * 16] = key
    mark = fingerprint(key, SEED) << abi.GCRA_FINGERPRINT_SHIFT
    words[bucket * 16 + 4] = 77 << abi.GCRA_TAT_SHIFT | mark
    words[bucket * 16 + 12] = requests << abi.STAT_REQUESTS_SHIFT | excess
    return bucket, key


def test_a_whole_slot_is_read() -> None:
    words = words_of(16)
    bucket, key = put(words, 1, 9, 3)
    slot = read_slot(words, bucket, 0, SEED)
    assert slot is not None
    assert slot[0] == key
    assert slot[3] == 9 << 32 | 3


@pytest.mark.parametrize(
    ("word", "value"),
    [(0, 0), (0, 0xFF00002012345678), (4, abi.GCRA_BUSY), (4, 0)],
    ids=["empty", "another key", "busy", "another fingerprint"],
)
def test_a_slot_that_is_being_filled_is_not(word: int, value: int) -> None:
    words = words_of(16)
    bucket, _ = put(words, 1, 9, 3)
    words[bucket * 16 + word] = value
    assert read_slot(words, bucket, 0, SEED) is None


def test_the_busiest_come_first_by_either_count() -> None:
    words = words_of(1024)
    many, much = put(words, 1, 100, 1)[0], put(words, 2, 50, 40)[0]
    assert busiest(words, 1, "requests") == [(many, 0)]
    assert busiest(words, 2, "excess") == [(much, 0), (many, 0)]


def test_the_top_of_a_table_for_a_million_sources_takes_well_under_a_second() -> None:
    words = words_of(1 << 19)
    for way in range(abi.WAYS):
        for bucket in range(0, 1 << 19, 2):
            words[bucket * 16 + 12 + way] = (bucket * 7919 & 0xFFFF) << 32 | bucket & 0xFFF
    begin = time.monotonic()
    assert len(busiest(words, 20, "excess")) == 20
    elapsed = time.monotonic() - begin
    assert elapsed < 5 * 1.0
    print(f"{elapsed:.2f} s")


class Changing:
    """A table whose slot gets another owner just after the reader has read one of its words."""

    def __init__(self, words: "memoryview[int]", after: int) -> None:
        self._words = words
        self._left = after

    def __getitem__(self, index: int) -> int:
        value = self._words[index]
        self._left -= 1
        if self._left == 0:
            put(self._words, 2, 99, 99)
            self._words[4] += 1 << abi.GCRA_TAT_SHIFT
        return value


@pytest.mark.parametrize("after", range(1, 6))
def test_a_slot_that_changes_hands_while_it_is_read_is_never_torn(after: int) -> None:
    words = words_of(1)
    _, key = put(words, 1, 9, 3)
    slot = read_slot(Changing(words, after), 0, 0, SEED)  # type: ignore[arg-type]
    if slot is not None:  # the writer came after the last look
        assert after == 5
        assert (slot[0], slot[3]) == (key, 9 << 32 | 3)


def test_counters_are_summed_over_the_cpus() -> None:
    cpus = [bytes(16), (3).to_bytes(8, "little") + bytes(8), (4).to_bytes(8, "little") * 2]
    assert memoryview(total(cpus)).cast("Q").tolist() == [7, 4]
    assert total([bytes(16)] * 2) == bytes(16)


def fill(words: "memoryview[int]", sources: list[tuple[str, int, int, int]], excess: int) -> None:
    """A slot for each source (address, IPv4 prefix length, requests, excess), and one that is empty
    but not zero.
    """
    for index, (address, length, requests, over) in enumerate(sources):
        key = source_key(ipaddress.ip_address(address), length, 64)
        base = index // 4 * 16 + index % 4
        words[base] = key
        words[base + 12] = requests << abi.STAT_REQUESTS_SHIFT | over
    words[len(words) - 1] = excess << abi.STAT_REQUESTS_SHIFT | excess


def test_prefixes_have_the_sums_of_all_their_sources_and_no_empty_slot() -> None:
    words = words_of(8)
    large = 0xFFFFFFFF
    sources = [
        ("198.18.0.1", 32, 6, 4),
        ("198.18.0.255", 32, 7, 0),  # without excess, and still of the prefix
        ("198.18.1.1", 32, 1, 1),
        ("2001:db8:1::1", 32, large, large),
        ("2001:db8:1:ff01::1", 32, large, large),  # more than a word holds
        ("2001:db8:1:2::1", 32, 9, 0),
        ("2001:db8:2::1", 32, 3, 3),
        ("::1", 32, 2, 2),
    ]
    fill(words, sources, 77)
    found = by_prefix(words, 10, "excess")
    assert [
        (prefix_text(one.key, 32, 64), one.sources, one.requests, one.excess) for one in found
    ] == [
        ("2001:db8:1::/48", 3, 2 * large + 9, 2 * large),
        ("198.18.0.0/24", 2, 13, 4),
        ("2001:db8:2::/48", 1, 3, 3),
        ("::/48", 1, 2, 2),
        ("198.18.1.0/24", 1, 1, 1),
    ]
    assert [prefix_text(one.key, 32, 64) for one in by_prefix(words, 2, "requests")] == [
        "2001:db8:1::/48",
        "198.18.0.0/24",
    ]


def test_a_source_that_is_a_short_prefix_already_is_its_own_prefix() -> None:
    words = words_of(8)
    fill(words, [("198.18.16.1", 20, 5, 2), ("198.18.32.1", 20, 5, 1)], 0)
    found = by_prefix(words, 10, "excess")
    assert [prefix_text(one.key, 20, 40) for one in found] == ["198.18.16.0/20", "198.18.32.0/20"]
