"""The keys of sources: how an address becomes one, and their hash, as bpf/ computes them."""

import ipaddress

from ntpguard import abi


def hash_key(key: int, seed: tuple[int, int]) -> int:
    """Keyed hash of a source key, as `keyed_hash` in bpf/inputs.h computes it.

    Bits 52-63 are the fingerprint, the low bits choose the bucket.
    """
    value = ((key ^ seed[0]) * 0x9E3779B97F4A7C15) & abi.U64
    value ^= value >> 32
    value = (value * (seed[1] | 1)) & abi.U64
    value ^= value >> 29
    value = (value * 0xBF58476D1CE4E5B9) & abi.U64
    return value ^ value >> 32


def trial_part(key: int, seed: tuple[int, int]) -> int:
    """Which part of the trial of KoDs a source is in: abi.PART_CONTROL, abi.PART_TRIED, or none."""
    return abi.field(hash_key(key, seed), abi.PART_SHIFT, abi.PART_BITS)


def fingerprint(key: int, seed: tuple[int, int]) -> int:
    """The 12 bits of a key's hash that its gcra word carries."""
    return hash_key(key, seed) >> (64 - abi.GCRA_FINGERPRINT_BITS)


def source_key(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, ipv4_prefix: int, ipv6_prefix: int
) -> int:
    """Key in the source table of the source that `address` belongs to.

    ipv4_prefix and ipv6_prefix are in bits, at most 32 and 64.
    """
    if isinstance(address, ipaddress.IPv4Address):
        mask = (0xFFFFFFFF << (32 - ipv4_prefix)) & 0xFFFFFFFF
        return abi.KEY_IPV4_TAG | ipv4_prefix << abi.KEY_IPV4_LENGTH_SHIFT | (int(address) & mask)
    mask = (abi.U64 << (64 - ipv6_prefix)) & abi.U64
    return (int(address) >> 64) & mask or abi.KEY_ZERO_TAG


def source_of_key(key: int, ipv6_prefix: int) -> str:
    """The source of a key as people write it: "203.0.113.7", "2001:db8:12::/64"."""
    if key >> abi.KEY_TAG_SHIFT == abi.KEY_IPV4_TAG >> abi.KEY_TAG_SHIFT:
        address = ipaddress.IPv4Address(key & 0xFFFFFFFF)
        length = key >> abi.KEY_IPV4_LENGTH_SHIFT & 0xFF
        return str(address) if length == 32 else f"{address}/{length}"
    if key == abi.KEY_ZERO_TAG:
        key = 0
    return f"{ipaddress.IPv6Address(key << 64)}/{ipv6_prefix}"


def family_of_key(key: int) -> int:
    """words.Family of a key, as a plain integer."""
    return int(key >> abi.KEY_TAG_SHIFT != abi.KEY_IPV4_TAG >> abi.KEY_TAG_SHIFT)
