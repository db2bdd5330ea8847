"""Mirror of bpf/ntpguard.h: the layout of everything the packet path and the control plane share.

A test compares these structures and constants with the BTF inside the object, field by field.
What each field means is said once, in the header.
"""

import ctypes
from ctypes import LittleEndianStructure, c_char, c_uint8, c_uint16, c_uint32, c_uint64
from enum import IntEnum

ABI = 5
WAYS = 4
CLASSES = 64
PORTS = 4
LEAK_SHARDS = 256
SIGNATURES = 16
ENTRIES = 65536
ENTRY_DEPTH = 8
COPIES = 2
DOCUMENT_BYTES = 524280
HEADER_BYTES = 48
FAMILIES = 2
VERDICTS = 3
REASONS = 15
REASON_ROOM = 16

ROOT_MODE_SHIFT, ROOT_MODE_BITS = 0, 2
ROOT_POLICY_SHIFT = 2
ROOT_PREFIXES_SHIFT = 3
ROOT_DOCUMENT_SHIFT = 4
ROOT_ENTRIES_SHIFT = 5
ROOT_GENERATION_SHIFT, ROOT_GENERATION_BITS = 8, 10
ROOT_REVISION_SHIFT, ROOT_REVISION_BITS = 32, 32

GCRA_UNIT_SHIFT = 10
GCRA_BUSY = 1
GCRA_FINGERPRINT_SHIFT, GCRA_FINGERPRINT_BITS = 4, 12
GCRA_TAT_SHIFT = 16

AUX_CLASS_SHIFT, AUX_CLASS_BITS = 0, 6
AUX_GENERATION_SHIFT, AUX_GENERATION_BITS = 6, 10
AUX_EXCESS_SHIFT, AUX_EXCESS_BITS = 16, 8
AUX_KOD_TIME_SHIFT, AUX_KOD_TIME_BITS = 24, 16
AUX_AFTER_KOD_SHIFT, AUX_AFTER_KOD_BITS = 40, 2
AUX_UNHEEDED_SHIFT, AUX_UNHEEDED_BITS = 42, 4
AUX_ESTABLISHED_SHIFT, AUX_ESTABLISHED_BITS = 46, 1
AUX_STEPS_SHIFT, AUX_STEPS_BITS = 47, 2
AUX_MARK_SHIFT, AUX_MARK_BITS = 49, 10
AUX_LOOK_SHIFT, AUX_LOOK_BITS = 59, 4
AUX_CREDIT_SHIFT, AUX_CREDIT_BITS = 63, 1
KOD_UNIT_SHIFT = 28
MARK_UNIT_SHIFT = 30

PART_CONTROL, PART_TRIED = 0, 1
PART_SHIFT, PART_BITS = 44, 4
TEST_INPUTS, TEST_NO_TRIAL = 1, 2
GROUPS = 2

STAT_EXCESS_SHIFT = 0
STAT_REQUESTS_SHIFT = 32

KEY_IPV4_TAG = 0xFF00000000000000
KEY_ZERO_TAG = 0xFF01000000000000
KEY_TAG_SHIFT = 48
KEY_IPV4_LENGTH_SHIFT = 32

PREFIX_CLASS_SHIFT = 0
PREFIX_LENGTH_SHIFT = 8
PREFIX_UPSTREAM_SHIFT = 16
ENTRY_NO_FALLBACK = 255

BOUND_KOD, BOUND_NEWCOMERS, BOUND_GATE, BOUND_CEILING, BOUNDS = range(5)
PRIORITY_LOW, PRIORITY_HIGH, PRIORITIES = range(3)
FRACTION_ANY, FRACTION_MICROSECONDS, FRACTION_NANOSECONDS, FRACTIONS = range(4)
SIGNATURE_OBSERVE, SIGNATURE_SOURCE_PORT = 1, 2
CLASS_KOD, CLASS_CONTROL, CLASS_OBSERVE = 1, 2, 4
POLICY_PREFIXES_IPV4, POLICY_PREFIXES_IPV6 = 1, 2
POLICY_LONG_IPV4, POLICY_LONG_IPV6 = 4, 8
POLICY_DESTINATIONS = 16
ADDRESS_LOCAL, ADDRESS_DESTINATION = 1, 2

U64 = (1 << 64) - 1


class Bucket(LittleEndianStructure):
    """Four sources."""

    _fields_ = [
        ("key", c_uint64 * WAYS),
        ("gcra", c_uint64 * WAYS),
        ("aux", c_uint64 * WAYS),
        ("stat", c_uint64 * WAYS),
    ]


class Limit(LittleEndianStructure):
    """A limit, compiled; both in gcra units << GCRA_TAT_SHIFT."""

    _fields_ = [("emission_interval", c_uint64), ("burst_tolerance", c_uint64)]


class Bound(LittleEndianStructure):
    """A bound that all sources share, compiled."""

    _fields_ = [("limit", Limit), ("batch", c_uint32), ("pad", c_uint32)]


class Share(LittleEndianStructure):
    """A CPU's share of a bound."""

    _fields_ = [("refused", c_uint64 * PRIORITIES), ("tokens", c_uint32 * PRIORITIES)]


class Local(LittleEndianStructure):
    """What each CPU keeps for itself."""

    _fields_ = [
        ("shares", Share * BOUNDS),
        ("answers_tat", c_uint64),
        ("odd_tat", c_uint64),
        ("clock_ns", c_uint64),
        ("jiffies", c_uint64),
        ("drawn", c_uint64),
        ("noted_ns", c_uint64),
        ("noted", c_uint64),
    ]


class ClassRule(LittleEndianStructure):
    """A class, compiled."""

    _fields_ = [
        ("limit", Limit),
        ("leak", c_uint32),
        ("action", c_uint8),
        ("flags", c_uint8),
        ("pad", c_uint16),
        ("until_ns", c_uint64),
    ]


class Signature(LittleEndianStructure):
    """A packet shape, compiled; source_port in network byte order."""

    _fields_ = [
        ("value", c_uint8 * HEADER_BYTES),
        ("mask", c_uint8 * HEADER_BYTES),
        ("source_port", c_uint16),
        ("flags", c_uint8),
        ("fraction", c_uint8),
        ("pad", c_uint32),
    ]


class SignatureCounters(LittleEndianStructure):
    """Of one signature, per CPU."""

    _fields_ = [("matched", c_uint64), ("blocked", c_uint64)]


class Policy(LittleEndianStructure):
    """One copy of the running policy but for its prefixes."""

    _fields_ = [
        ("bounds", Bound * BOUNDS),
        ("leak_shard", Limit),
        ("answers", Limit),
        ("odd", Limit),
        ("flags", c_uint32),
        ("kod_interval", c_uint16),
        ("kod_patience", c_uint8),
        ("kod_flood", c_uint8),
        ("established_spacing", c_uint16),
        ("signatures_always", c_uint8),
        ("signatures", c_uint8),
        ("mode_after", c_uint8),
        ("pad", c_uint8 * 3),
        ("mode_until_ns", c_uint64),
        ("classes", ClassRule * CLASSES),
        ("classes_after", ClassRule * CLASSES),
        ("signature", Signature * SIGNATURES),
    ]


class Document(LittleEndianStructure):
    """The running policy's text."""

    _fields_ = [("length", c_uint64), ("text", c_char * DOCUMENT_BYTES)]


class PrefixIpv4(LittleEndianStructure):
    """Key of the IPv4 prefix trie; the address in network byte order."""

    _fields_ = [("length", c_uint32), ("address", c_uint8 * 4)]


class PrefixIpv6(LittleEndianStructure):
    """Key of the IPv6 prefix trie; the address in network byte order."""

    _fields_ = [("length", c_uint32), ("address", c_uint8 * 16)]


class Address(LittleEndianStructure):
    """An address of this host, IPv4 mapped."""

    _fields_ = [("bytes", c_uint8 * 16)]


class Line(LittleEndianStructure):
    """A word on a cache line of its own."""

    _fields_ = [("word", c_uint64), ("pad", c_uint64 * 7)]


class Shared(LittleEndianStructure):
    """The words all CPUs share."""

    _fields_ = [("root", Line), ("bounds", Line * BOUNDS)]


class Entry(LittleEndianStructure):
    """A live entry; the value of its prefix."""

    _fields_ = [
        ("expires_ns", c_uint64),
        ("action", c_uint8),
        ("fallback", c_uint8),
        ("pad", c_uint8 * 6),
    ]


class Table(LittleEndianStructure):
    """What belongs to the source table and outlives every program that uses it."""

    _fields_ = [
        ("abi", c_uint32),
        ("buckets", c_uint32),
        ("seed", c_uint64 * 2),
        ("ipv4_prefix", c_uint8),
        ("ipv6_prefix", c_uint8),
        ("pad", c_uint8 * 6),
    ]


class Counters(LittleEndianStructure):
    """Of one interface and one class, per CPU."""

    _fields_ = [
        ("packets", c_uint64 * REASON_ROOM * VERDICTS * FAMILIES),
        ("observed", c_uint64 * REASON_ROOM * VERDICTS * FAMILIES),
        ("bytes", c_uint64 * VERDICTS * FAMILIES),
    ]


class TableCounters(LittleEndianStructure):
    """Of the source table, per CPU."""

    _fields_ = [
        ("inserted", c_uint64 * FAMILIES),
        ("replaced", c_uint64 * FAMILIES),
        ("full", c_uint64),
        ("lost", c_uint64),
        ("gated", c_uint64),
    ]


class Offender(LittleEndianStructure):
    """Details of a source that exceeds its limit."""

    _fields_ = [
        ("first_seen_ns", c_uint64),
        ("last_seen_ns", c_uint64),
        ("sampled", c_uint32 * VERDICTS),
        ("source_port", c_uint16),
        ("ttl", c_uint8),
        ("header_bytes", c_uint8),
        ("header", c_uint8 * HEADER_BYTES),
    ]


class KodCounters(LittleEndianStructure):
    """KoDs and would-be KoDs by words.Group, per CPU."""

    _fields_ = [("heeded", c_uint64 * GROUPS), ("unheeded", c_uint64 * GROUPS)]


class Trial(LittleEndianStructure):
    """What a source in the trial of KoDs sent before and after its first (would-be) one."""

    _fields_ = [
        ("begin_ns", c_uint64),
        ("kod_ns", c_uint64),
        ("end_ns", c_uint64),
        ("begin_requests", c_uint32),
        ("kod_requests", c_uint32),
        ("end_requests", c_uint32),
        ("source_port", c_uint16),
        ("group", c_uint8),
        ("pad", c_uint8),
        ("header", c_uint8 * HEADER_BYTES),
    ]


class Constants(LittleEndianStructure):
    """Load-time constants of one interface's program."""

    _fields_ = [
        ("seed", c_uint64 * 2),
        ("ipv6_mask", c_uint64),
        ("bucket_mask", c_uint32),
        ("ipv4_mask", c_uint32),
        ("ports", c_uint16 * PORTS),
        ("mac", c_uint8 * 6),
        ("ipv4_prefix", c_uint8),
        ("test", c_uint8),
    ]


class Inputs(LittleEndianStructure):
    """Time and chance as inputs, for tests."""

    _fields_ = [("clock_ns", c_uint64), ("chance", c_uint32), ("pad", c_uint32)]


def pack_prefix_value(class_index: int, length: int, upstream: bool = False) -> int:
    """Value of a prefix in a trie."""
    return (
        class_index << PREFIX_CLASS_SHIFT
        | length << PREFIX_LENGTH_SHIFT
        | upstream << PREFIX_UPSTREAM_SHIFT
    )


def field(word: int, shift: int, bits: int) -> int:
    """The bits of a packed word from `shift` on."""
    return word >> shift & ((1 << bits) - 1)


def size(structure: type[ctypes.Structure]) -> int:
    """Size of a structure in bytes."""
    return ctypes.sizeof(structure)


class Xdp(IntEnum):
    """Return codes of an XDP program (linux/bpf.h)."""

    ABORTED = 0
    DROP = 1
    PASS = 2
    TX = 3
