"""The running policy's prefixes, read back from the tries: of many, its text has only the count."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace

from ntpguard import abi
from ntpguard.document import effective_policy
from ntpguard.errors import NtpguardError
from ntpguard.kernel import libbpf
from ntpguard.policy.kinds import PrefixKind, network_of
from ntpguard.policy.model import Policy, packed
from ntpguard.policy.prefixes import digest
from ntpguard.running import TRIES, read_document, read_root
from ntpguard.temporary import Document

PREFIX = PrefixKind()
Held = dict[str, list[bytes]]
"""By class whose prefixes are kept: its prefixes, packed, in digest's order."""


def whole_policy(descriptors: Mapping[str, int], document: Document | None = None) -> Policy:
    """The policy that runs, live changes included, with every prefix. Without a `document`, which
    a writer has, it is read here, and again if a writer comes between.

    Raises NtpguardError if the tries do not hold what the document says.
    """
    while True:
        root = read_root(descriptors)
        read = document or read_document(descriptors)
        policy = effective_policy(read)
        held = held_prefixes(descriptors, policy, read)
        if read_root(descriptors) == root:
            break
    for one in policy.classes:
        if one.kept and digest(held[one.name]) != one.kept.sha256:
            raise NtpguardError(
                f"class {one.name}: the prefixes in the kernel are not those that were applied: "
                "run ntpguard down, then ntpguard up (sources are forgotten)"
            )
    classes = (
        replace(one, kept=None, prefixes=tuple(network_of(p[:-1], p[-1]) for p in held[one.name]))
        if one.kept
        else one
        for one in policy.classes
    )
    return replace(policy, classes=tuple(classes))


def held_prefixes(descriptors: Mapping[str, int], policy: Policy, document: Document) -> Held:
    """The prefixes of the running `policy`'s classes that keep them."""
    names = [one.name for one in policy.classes]
    held: Held = {one.name: [] for one in policy.classes if one.kept}
    if not held:
        return held
    # of an upstream the trie has the class that covers it
    unstated = {packed(one) for one in policy.upstreams}
    for name in held:
        unstated -= {packed(PREFIX.read(one)) for one in document["kept"][name]["upstreams"]}
    copy = abi.field(read_root(descriptors), abi.ROOT_PREFIXES_SHIFT, 1)
    for prefix, value in _prefixes(descriptors, copy):
        name = names[abi.field(value, abi.PREFIX_CLASS_SHIFT, 8)]
        if name in held and prefix not in unstated:
            held[name].append(prefix)
    for own in held.values():
        own.sort(key=lambda one: (len(one), one))
    return held


def _prefixes(descriptors: Mapping[str, int], copy: int) -> Iterator[tuple[bytes, int]]:
    """Every prefix, packed, and its value."""
    for _, name, size in TRIES:
        inner = libbpf.map_lookup(descriptors[name], copy.to_bytes(4, "little"), 4)
        if inner is None:
            continue
        fd = libbpf.map_by_id(int.from_bytes(inner, "little"))
        try:
            entries = libbpf.map_info(fd).max_entries
            for key, value in libbpf.map_items(fd, size, 4, entries):
                yield key[4:] + key[:1], int.from_bytes(value, "little")
        finally:
            os.close(fd)
