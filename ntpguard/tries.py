"""The running policy's prefixes, read back from the tries: of many, its text has only the count."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace

from ntpguard import abi
from ntpguard.errors import NtpguardError
from ntpguard.kernel import libbpf
from ntpguard.policy.kinds import Network, network_of
from ntpguard.policy.model import Policy
from ntpguard.policy.prefixes import digest, order_of
from ntpguard.running import TRIES, Document, effective_policy, read_document, read_root


def whole_policy(descriptors: Mapping[str, int], document: Document | None = None) -> Policy:
    """The policy that runs, live changes included, with every prefix. Without a `document` it is
    read here, and again if a writer comes between.

    Raises NtpguardError if the tries do not hold what the document says.
    """
    while True:
        root = read_root(descriptors)
        policy = effective_policy(document or read_document(descriptors))
        if not any(one.kept for one in policy.classes):
            return policy
        found = _whole(descriptors, policy, document or read_document(descriptors), root)
        if read_root(descriptors) == root:
            break
    for one, kept in zip(found.classes, policy.classes, strict=True):
        if kept.kept and digest(one.prefixes) != kept.kept.sha256:
            raise NtpguardError(
                f"class {one.name}: the prefixes in the kernel are not those that were applied: "
                "apply the policy file again"
            )
    return found


def _whole(descriptors: Mapping[str, int], policy: Policy, document: Document, root: int) -> Policy:
    kept = document["kept"]
    stated = {one.name: set(kept[one.name]["upstreams"]) for one in policy.classes if one.kept}
    upstreams = set(policy.upstreams)
    found: list[list[Network]] = [[] for _ in policy.classes]
    for prefix, value in _prefixes(descriptors, abi.field(root, abi.ROOT_PREFIXES_SHIFT, 1)):
        index = abi.field(value, abi.PREFIX_CLASS_SHIFT, 8)
        # of an upstream the trie has the class that covers it
        if prefix not in upstreams or str(prefix) in stated.get(policy.classes[index].name, ()):
            found[index].append(prefix)
    classes = (
        replace(one, kept=None, prefixes=tuple(sorted(own, key=order_of))) if one.kept else one
        for one, own in zip(policy.classes, found, strict=True)
    )
    return replace(policy, classes=tuple(classes))


def _prefixes(descriptors: Mapping[str, int], copy: int) -> Iterator[tuple[Network, int]]:
    for _, name, size in TRIES:
        inner = libbpf.map_lookup(descriptors[name], copy.to_bytes(4, "little"), 4)
        if inner is None:
            continue
        fd = libbpf.map_by_id(int.from_bytes(inner, "little"))
        try:
            entries = libbpf.map_info(fd).max_entries
            for key, value in libbpf.map_items(fd, size, 4, entries):
                prefix = network_of(key[4:], int.from_bytes(key[:4], "little"))
                yield prefix, int.from_bytes(value, "little")
        finally:
            os.close(fd)
