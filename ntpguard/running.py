"""The running policy: this is its only writer.

Each set has two copies. The idle one is filled, then one root word names it: no packet ever sees a
mixture, and a writer that dies half-way has changed nothing. After the commit, the writer waits
until no packet is left that may have read the old word: then the other copy may be filled again.
"""

import ctypes
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from ntpguard import abi, temporary
from ntpguard.errors import NotRunning, NtpguardError, PolicyError
from ntpguard.kernel import bpffs as pinned
from ntpguard.kernel import interfaces, libbpf, maps
from ntpguard.moments import Moment
from ntpguard.policy.check import parse_policy, read_policy, unchanged
from ntpguard.policy.compile import Compiled, compile_policy, set_ends
from ntpguard.policy.kinds import Address, Network
from ntpguard.policy.model import Kept, Policy, packed
from ntpguard.policy.prefixes import light
from ntpguard.policy.render import to_toml
from ntpguard.policy.settings import SOURCE_RATE
from ntpguard.words import Mode

Document = temporary.Document
PACKET_SECONDS = 0.1  # a thousand times what the program takes, interrupts included
# what a policy's prefixes make of its flags
PREFIX_FLAGS = (
    abi.POLICY_PREFIXES_IPV4
    | abi.POLICY_PREFIXES_IPV6
    | abi.POLICY_LONG_IPV4
    | abi.POLICY_LONG_IPV6
)
TRIES = (
    (4, "prefixes_ipv4", abi.size(abi.PrefixIpv4)),
    (6, "prefixes_ipv6", abi.size(abi.PrefixIpv6)),
)


def new_document(policy: Policy, file: str | None) -> Document:
    """What is kept of a policy beside its compiled form: its text, its files, live changes.

    Prefixes that are too many for the text are in the tries alone: "kept" describes them by class.
    """
    shortened = light(policy)
    return {
        "schema": 1,
        "file": file,
        "files": dict(policy.files),
        "text": to_toml(shortened),
        "kept": {
            one.name: {
                "count": one.kept.count,
                "sha256": one.kept.sha256,
                # of these, the tries do not tell whether the class states them too
                "upstreams": _stated(policy.upstreams, set(whole.packed)),
            }
            for one, whole in zip(shortened.classes, policy.classes, strict=True)
            if one.kept
        },
        "applied": _now(),
        "mode": None,
        "overrides": {},
        "temporary": {},
    }


def _stated(prefixes: Iterable[Network], among: set[bytes]) -> list[str]:
    return [str(one) for one in prefixes if packed(one) in among]


def effective_policy(document: Document) -> Policy:
    """The policy that runs: the text with the live changes, of mode and of limits by class.

    Prefixes that are not in the text are in `kept`: tries.whole_policy has them.
    """
    policy = parse_policy(document["text"], "running policy")
    kept = document.get("kept", {})
    classes = [
        replace(one, kept=Kept(kept[one.name]["count"], kept[one.name]["sha256"]))
        if one.name in kept
        else one
        for one in policy.classes
    ]
    return with_live(replace(policy, classes=tuple(classes)), document)


def with_live(policy: Policy, document: Document) -> Policy:
    """The policy with the document's live changes."""
    classes = []
    for one in policy.classes:
        own = dict(document["overrides"].get(one.name, {}))
        if "rate" in own:
            own["rate"] = SOURCE_RATE.read(own["rate"])
        classes.append(replace(one, **own) if own else one)
    mode = document["mode"] or policy.mode
    return replace(policy, classes=tuple(classes), mode=mode)


def differs_from_file(document: Document) -> bool | None:
    """Whether what runs is not what the policy's file says; None: there is no file. A file whose
    bytes are those applied is not parsed again.
    """
    live = bool(document["overrides"] or document["mode"])
    if not document["file"]:
        return live or None
    if unchanged(document.get("files", {})):
        untouched = {**document, "overrides": {}, "mode": None}
        return live and effective_policy(untouched) != effective_policy(document)
    try:
        return light(read_policy(Path(document["file"]))) != effective_policy(document)
    except PolicyError:
        return True


def policy_hash(document: Document) -> str:
    """Twelve hexadecimal digits of the applied policy, prefixes included."""
    kept = "".join(one["sha256"] for one in document.get("kept", {}).values())
    return hashlib.sha256((document["text"] + kept).encode()).hexdigest()[:12]


def write(
    descriptors: Mapping[str, int], policy: Policy, document: Document, *, prefixes: bool = True
) -> None:
    """Applies a policy whole. `prefixes` False: they have not changed and stay as they are.

    Raises NtpguardError, having changed nothing, if it cannot be applied.
    """
    assert not (prefixes and any(one.kept for one in policy.classes)), "prefixes are not at hand"
    compiled = compile_policy(policy)
    ends = {
        what: Moment.read(one["until"]).here_ns() for what, one in document["temporary"].items()
    }
    if ends:
        after = effective_policy(temporary.settled(document, everything=True))
        set_ends(compiled.policy, after, ends)
    stored = _stored(document, _raw_document(descriptors))

    def change(root: int) -> int:
        idle = {
            name: 1 - abi.field(root, shift, 1)
            for name, shift in (
                ("policy", abi.ROOT_POLICY_SHIFT),
                ("prefixes", abi.ROOT_PREFIXES_SHIFT),
                ("document", abi.ROOT_DOCUMENT_SHIFT),
            )
        }
        if prefixes:
            _fill_prefixes(descriptors, compiled, idle["prefixes"])
        else:
            compiled.policy.flags = (
                compiled.policy.flags & ~PREFIX_FLAGS
                | read_policy_map(descriptors, 1 - idle["policy"]).flags & PREFIX_FLAGS
            )
        _fill(descriptors["policy"], idle["policy"], bytes(compiled.policy))
        _fill_destinations(descriptors, compiled, idle["policy"])
        _fill(descriptors["document"], idle["document"], stored)
        mode = Mode.of(policy.mode)
        flip = 1 << abi.ROOT_POLICY_SHIFT | 1 << abi.ROOT_DOCUMENT_SHIFT
        if prefixes:
            flip |= 1 << abi.ROOT_PREFIXES_SHIFT
            root = _next(root, abi.ROOT_GENERATION_SHIFT, abi.ROOT_GENERATION_BITS)
        mask = (1 << abi.ROOT_MODE_BITS) - 1
        return (root ^ flip) & ~(mask << abi.ROOT_MODE_SHIFT) | mode << abi.ROOT_MODE_SHIFT

    _commit(descriptors, change)


@contextmanager
def writing(bpffs: Path, *, wait: bool = True) -> Iterator[dict[str, int]]:
    """The maps of the running guard, to be changed by one writer at a time.

    Raises NotRunning, PermissionNeeded; NtpguardError if it is another version's; Busy, unless it
    is to `wait` for another writer.
    """
    pinned.require(bpffs)
    with pinned.lock(bpffs, wait=wait):
        at = pinned.pins(bpffs)
        if not maps.live_links(at):
            raise NotRunning()
        with maps.opened(at) as descriptors:
            require_abi(read_table(descriptors["table"]))
            yield descriptors


def write_document(descriptors: Mapping[str, int], document: Document) -> None:
    """Writes what only people and the control plane read: the policy stays as it is."""
    stored = _stored(document, {})

    def change(root: int) -> int:
        _fill(descriptors["document"], 1 - abi.field(root, abi.ROOT_DOCUMENT_SHIFT, 1), stored)
        return root ^ 1 << abi.ROOT_DOCUMENT_SHIFT

    _commit(descriptors, change)


def set_root_bit(descriptors: Mapping[str, int], shift: int, on: bool) -> None:
    """Sets or clears one bit of the root word; nothing is written if it is so already."""
    if abi.field(read_root(descriptors), shift, 1) != on:
        _commit(descriptors, lambda root: root ^ 1 << shift)


def read_document(descriptors: Mapping[str, int]) -> Document:
    """The running policy's document; what is over in it has given way to what then holds."""
    document = find_document(descriptors)
    if document is None:
        raise NtpguardError("the running policy's text is gone: try ntpguard up again")
    return document


def find_document(descriptors: Mapping[str, int]) -> Document | None:
    """As read_document; None before the first policy."""
    document = _raw_document(descriptors)
    return temporary.settled(document) if document else None


def _raw_document(descriptors: Mapping[str, int]) -> Document:
    """As it was written; empty before the first policy."""
    copy = abi.field(read_root(descriptors), abi.ROOT_DOCUMENT_SHIFT, 1)
    raw = libbpf.map_lookup(
        descriptors["document"], copy.to_bytes(4, "little"), abi.size(abi.Document)
    )
    assert raw is not None, "an array has every key"
    document: Document = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")] or b"{}")
    return document


def read_policy_map(descriptors: Mapping[str, int], copy: int) -> abi.Policy:
    """One copy of the compiled policy."""
    raw = libbpf.map_lookup(descriptors["policy"], copy.to_bytes(4, "little"), abi.size(abi.Policy))
    assert raw is not None, "an array has every key"
    return abi.Policy.from_buffer_copy(raw)


def _stored(document: Document, before: Document) -> bytes:
    """The document as struct document. Notes on live entries, which outlive a policy, are those of
    `before` unless it has its own; of too many, the oldest are left out.
    """
    notes: Document = dict(document.get("notes") or before.get("notes") or {})
    while True:
        data = {**document, "notes": notes}
        # a file's name may be no UTF-8
        text = json.dumps(data, ensure_ascii=False).encode("utf-8", "surrogatepass")
        if len(text) <= abi.DOCUMENT_BYTES:
            return bytes(abi.Document(len(text), text))
        if not notes:
            raise NtpguardError(
                f"the policy's text: {len(text)} bytes, at most {abi.DOCUMENT_BYTES} fit: "
                "use shorter prefixes that cover several, in upstreams and destinations"
            )
        for prefix in list(notes)[: 1 + len(notes) // 16]:
            del notes[prefix]


def read_root(descriptors: Mapping[str, int]) -> int:
    """The root word."""
    raw = libbpf.map_lookup(descriptors["shared"], bytes(4), abi.size(abi.Shared))
    assert raw is not None, "an array has every key"
    return int(abi.Shared.from_buffer_copy(raw).root.word)


def read_table(fd: int) -> abi.Table:
    """What belongs to the source table, from its map."""
    raw = libbpf.map_lookup(fd, bytes(4), abi.size(abi.Table))
    assert raw is not None, "an array has every key"
    return abi.Table.from_buffer_copy(raw)


def require_abi(table: abi.Table) -> None:
    """Raises NtpguardError if these maps mean something else to this version."""
    if table.abi != abi.ABI:
        raise NtpguardError(
            f"the running table has ABI {table.abi}, this ntpguard {abi.ABI}: use the version that "
            "made it, or run ntpguard down first (sources are forgotten), then ntpguard up"
        )


def write_local_addresses(
    descriptors: Mapping[str, int], addresses: set[Address] | None = None
) -> None:
    """Tells the packet path its host's addresses, by default this host's: a KoD is sent from no
    other.
    """
    if addresses is None:
        addresses = interfaces.local_addresses()
    _flag_addresses(descriptors, addresses, abi.ADDRESS_LOCAL)


def _fill_destinations(descriptors: Mapping[str, int], compiled: Compiled, copy: int) -> None:
    _flag_addresses(descriptors, set(compiled.destinations), abi.ADDRESS_DESTINATION << copy)


def _flag_addresses(descriptors: Mapping[str, int], addresses: set[Address], flag: int) -> None:
    """Gives these addresses the flag and takes it from all others."""
    fd = descriptors["addresses"]
    wanted = {mapped(address) for address in addresses}
    for key in wanted.union(libbpf.map_keys(fd, abi.size(abi.Address))):
        before = int.from_bytes(libbpf.map_lookup(fd, key, 4) or bytes(4), "little")
        after = before | flag if key in wanted else before & ~flag
        if not after:
            libbpf.map_delete(fd, key)
        elif after != before:
            libbpf.map_update(fd, key, after.to_bytes(4, "little"))


def mapped(address: Address) -> bytes:
    """An address as struct address has it: IPv4 in ::ffff:0:0/96."""
    packed = address.packed
    return bytes(10) + b"\xff\xff" + packed if len(packed) == 4 else packed


def _commit(descriptors: Mapping[str, int], change: Callable[[int], int]) -> None:
    with ExitStack() as held:
        # first, for there may be no memory for them
        empty = {}
        for version, name, size in TRIES:
            empty[name] = _trie(version, size, [])
            held.callback(os.close, empty[name])
        new = change(read_root(descriptors))
        new = _next(new, abi.ROOT_REVISION_SHIFT, abi.ROOT_REVISION_BITS)
        memory = libbpf.map_mmap(descriptors["shared"], abi.size(abi.Shared), writable=True)
        try:
            root = ctypes.c_uint64.from_buffer(memory)
            root.value = new  # one aligned 8-byte store
            del root
        finally:
            memory.close()
        _wait_for_packets(descriptors, new, empty)


def _wait_for_packets(descriptors: Mapping[str, int], root: int, empty: Mapping[str, int]) -> None:
    """Returns when no packet is judged any more that began before: the kernel waits so after each
    change of a map of maps (bpf_map_update_elem, Linux 4.20). The old prefixes are freed.
    """
    idle = 1 - abi.field(root, abi.ROOT_PREFIXES_SHIFT, 1)
    try:
        for name, trie in empty.items():
            _fill(descriptors[name], idle, trie.to_bytes(4, "little"))
    except libbpf.BpfError:
        time.sleep(PACKET_SECONDS)  # the change is made: it is too late for an error


def _next(word: int, shift: int, bits: int) -> int:
    mask = (1 << bits) - 1
    return word & ~(mask << shift) | ((word >> shift) + 1 & mask) << shift


def _fill(fd: int, copy: int, value: bytes) -> None:
    libbpf.map_update(fd, copy.to_bytes(4, "little"), value)


def _fill_prefixes(descriptors: Mapping[str, int], compiled: Compiled, copy: int) -> None:
    for version, name, size in TRIES:
        pairs = [
            (trie_key(prefix), value.to_bytes(4, "little"))
            for prefix, value in compiled.prefixes.items()
            if prefix.version == version
        ]
        trie = _trie(version, size, pairs)
        try:
            _fill(descriptors[name], copy, trie.to_bytes(4, "little"))
        finally:
            os.close(trie)


def _trie(version: int, key_size: int, pairs: list[tuple[bytes, bytes]]) -> int:
    """A new prefix trie that holds `pairs`; the caller closes it."""
    trie = libbpf.map_create(
        libbpf.MAP_LPM_TRIE,
        f"prefixes_ipv{version}",
        key_size,
        4,
        max(1, len(pairs)),
        libbpf.F_NO_PREALLOC,
    )
    try:
        libbpf.map_update_all(trie, pairs)
    except BaseException:
        os.close(trie)
        raise
    return trie


def trie_key(prefix: Network) -> bytes:
    """A prefix as struct prefix_ipv4 or prefix_ipv6."""
    return prefix.prefixlen.to_bytes(4, "little") + prefix.network_address.packed


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
