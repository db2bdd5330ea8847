"""The real program beside the model: told the same, run on the same packets."""

import ctypes
import os
from contextlib import ExitStack

from ntpguard import abi
from ntpguard.kernel import binding, libbpf
from ntpguard.words import Family
from tests.bpf.guard import SEED, guard
from tests.bpf.packets import SERVER_MAC
from tests.model.memory import KEYED, STRUCTURES
from tests.model.model import Shape
from tests.model.policy import Belongs, Bound, Entry, Limit, Policy, Prefix, Root

TAT = abi.GCRA_TAT_SHIFT


def shape(
    buckets: int, ports: tuple[int, ...] = (123,), ipv4_prefix: int = 32, ipv6_prefix: int = 64
) -> Shape:
    """What is fixed at load time; seed and MAC are those of tests/bpf."""
    return Shape(buckets, ports, ipv4_prefix, ipv6_prefix, SERVER_MAC, SEED)


class Program:
    """The loaded program of one shape; `set_*` as the model has them. Pins itself to one CPU."""

    def __init__(self, shape: Shape, cpu: int) -> None:
        self.shape, self.cpu = shape, cpu
        self._stack = ExitStack()
        self.guard = self._stack.enter_context(
            guard(
                shape.buckets,
                ports=shape.ports,
                ipv4_prefix=shape.ipv4_prefix,
                ipv6_prefix=shape.ipv6_prefix,
            )
        )
        self.fds = {
            name: self.guard.object.map_fd(name)
            for name in [*STRUCTURES, "addresses", "entries_ipv4", "entries_ipv6"]
            if name != "bounds"
        }
        self.leak = memoryview(
            libbpf.map_mmap(self.fds["leak"], 8 * abi.LEAK_SHARDS, writable=True)
        )
        self.tries = {(f, c): self._inner_trie(f, c) for f in Family for c in range(abi.COPIES)}
        self._run = _Runner(self.guard.fd)

    def _inner_trie(self, family: Family, copy: int) -> int:
        size = (abi.size(abi.PrefixIpv4), abi.size(abi.PrefixIpv6))[family]
        trie = libbpf.map_create(
            libbpf.MAP_LPM_TRIE, "prefixes", size, 4, 1000, libbpf.F_NO_PREALLOC
        )
        self._stack.callback(os.close, trie)
        outer = self.guard.object.map_fd(f"prefixes_{family.word}")
        libbpf.map_update(outer, copy.to_bytes(4, "little"), trie.to_bytes(4, "little"))
        return trie

    def close(self) -> None:
        """Lets go of everything."""
        self._stack.close()

    def reset(self) -> None:
        """As freshly loaded: nothing known, nothing counted."""
        ctypes.memset(ctypes.addressof(self.guard.shared), 0, abi.size(abi.Shared))
        ctypes.memset(ctypes.addressof(self.guard.sources), 0, ctypes.sizeof(self.guard.sources))
        self.leak[: 8 * abi.LEAK_SHARDS] = bytes(8 * abi.LEAK_SHARDS)
        for name, count in (
            ("local", 1),
            ("table_counters", 1),
            ("kod_counters", 1),
            ("signature_counters", abi.SIGNATURES),
            ("counters", abi.CLASSES),
        ):
            zero = bytes(abi.size(STRUCTURES[name]) * libbpf.possible_cpus())
            for index in range(count):
                libbpf.map_update(self.fds[name], index.to_bytes(4, "little"), zero)
        for name in KEYED:
            for key in list(libbpf.map_keys(self.fds[name], 8)):
                libbpf.map_delete(self.fds[name], key)

    # what the control plane does

    def set_root(self, root: Root) -> None:
        """See Model."""
        self.guard.shared.root.word = (
            root.mode << abi.ROOT_MODE_SHIFT
            | root.policy << abi.ROOT_POLICY_SHIFT
            | root.prefixes << abi.ROOT_PREFIXES_SHIFT
            | root.entries[0] << abi.ROOT_ENTRIES_SHIFT
            | root.entries[1] << abi.ROOT_ENTRIES_SHIFT + 1
            | root.generation << abi.ROOT_GENERATION_SHIFT
        )

    def set_policy(self, copy: int, policy: Policy) -> None:
        """See Model."""
        self.set_policy_words(copy, bytes(policy_words(policy)))

    def set_policy_words(self, copy: int, words: bytes) -> None:
        """One copy of the policy, as ntpguard.policy.compile makes it."""
        address = ctypes.addressof(self.guard.policy) + copy * abi.size(abi.Policy)
        ctypes.memmove(address, words, len(words))

    def set_prefixes(self, copy: int, prefixes: dict[Prefix, Belongs]) -> None:
        """See Model."""
        for family in Family:
            pairs = {
                key_of(prefix): abi.pack_prefix_value(
                    value.class_index, prefix.length, value.upstream
                ).to_bytes(4, "little")
                for prefix, value in prefixes.items()
                if prefix.family == family
            }
            replace_all(self.tries[family, copy], (8, 20)[family], pairs)

    def set_entries(self, entries: dict[Prefix, Entry]) -> None:
        """See Model."""
        for family in Family:
            pairs = {
                key_of(prefix): bytes(
                    abi.Entry(
                        entry.expires_ns,
                        entry.action,
                        abi.ENTRY_NO_FALLBACK if entry.fallback is None else entry.fallback,
                    )
                )
                for prefix, entry in entries.items()
                if prefix.family == family
            }
            replace_all(self.fds[f"entries_{family.word}"], (8, 20)[family], pairs)

    def set_addresses(self, addresses: dict[int, int]) -> None:
        """See Model."""
        pairs = {a.to_bytes(16, "big"): f.to_bytes(4, "little") for a, f in addresses.items()}
        replace_all(self.fds["addresses"], 16, pairs)

    # the packet

    def judge(self, frame: bytes, clock_ns: int, chance: int) -> tuple[int, bytes]:
        """See Model."""
        inputs = self.guard.inputs
        inputs.clock_ns = clock_ns
        inputs.chance = chance
        return self._run(frame)

    # comparison

    def state(self) -> dict[str, bytes]:
        """Every map that packets change, as it is in memory."""
        shared = bytes(self.guard.shared)
        state = {
            "sources": bytes(self.guard.sources),
            "bounds": shared[abi.size(abi.Line) :],
            "leak": bytes(self.leak[: 8 * abi.LEAK_SHARDS]),
        }
        for name, count in (
            ("local", 1),
            ("table_counters", 1),
            ("kod_counters", 1),
            ("signature_counters", abi.SIGNATURES),
            ("counters", abi.CLASSES),
        ):
            size = abi.size(STRUCTURES[name])
            total = b""
            for index in range(count):
                raws = libbpf.map_lookup_percpu(self.fds[name], index.to_bytes(4, "little"), size)
                total += raws[self.cpu]
            state[name] = total
        for name in KEYED:
            fd, size = self.fds[name], abi.size(STRUCTURES[name])
            keys = sorted(libbpf.map_keys(fd, 8))
            state[name] = b"".join(key + (libbpf.map_lookup(fd, key, size) or b"") for key in keys)
        return state


class _Runner:
    """testrun.run with its buffers made once: half of the time is theirs."""

    def __init__(self, program: int) -> None:
        self.program = program
        self.run = binding.library().bpf_prog_test_run_opts
        self.source = ctypes.create_string_buffer(4096)
        self.out = ctypes.create_string_buffer(4096)
        self.view = memoryview(self.out)
        self.options = binding.TestRunOpts(
            sz=ctypes.sizeof(binding.TestRunOpts),
            data_in=ctypes.addressof(self.source),
            data_out=ctypes.addressof(self.out),
            repeat=1,
        )
        self.pointer = ctypes.byref(self.options)
        self.into = ctypes.addressof(self.source)

    def __call__(self, frame: bytes) -> tuple[int, bytes]:
        options = self.options
        ctypes.memmove(self.into, frame, len(frame))
        options.data_size_in = len(frame)
        options.data_size_out = 4096
        result = self.run(self.program, self.pointer)
        assert result == 0, f"test run of {len(frame)} bytes: {os.strerror(-result)}"
        return options.retval, self.view[: options.data_size_out].tobytes()


def key_of(prefix: Prefix) -> bytes:
    """A trie's key."""
    size = (4, 16)[prefix.family]
    return prefix.length.to_bytes(4, "little") + prefix.network.to_bytes(size, "big")


def replace_all(fd: int, key_size: int, pairs: dict[bytes, bytes]) -> None:
    """Makes a map hold exactly these pairs."""
    for key in list(libbpf.map_keys(fd, key_size)):
        if key not in pairs:
            libbpf.map_delete(fd, key)
    for key, value in pairs.items():
        libbpf.map_update(fd, key, value)


def limit_words(limit: Limit) -> abi.Limit:
    """A limit as the program reads it."""
    return abi.Limit(limit.interval << TAT, limit.tolerance << TAT)


def bound_words(bound: Bound) -> abi.Bound:
    """A bound as the program reads it."""
    return abi.Bound(limit_words(bound.limit), bound.batch)


def policy_words(policy: Policy) -> abi.Policy:
    """A policy as the program reads it."""
    words = abi.Policy(
        leak_shard=limit_words(policy.leak_shard),
        answers=limit_words(policy.answers),
        odd=limit_words(policy.odd),
        flags=policy.flags,
        kod_interval=policy.kod_interval,
        kod_patience=policy.kod_patience,
        kod_flood=policy.kod_flood,
        established_spacing=policy.established_spacing,
        signatures_always=policy.signatures_always,
        signatures=len(policy.signatures),
        mode_after=policy.mode_after,
        mode_until_ns=policy.mode_until_ns,
    )
    words.bounds[abi.BOUND_KOD] = bound_words(policy.kod)
    words.bounds[abi.BOUND_NEWCOMERS] = bound_words(policy.newcomers)
    words.bounds[abi.BOUND_GATE] = bound_words(policy.gate)
    words.bounds[abi.BOUND_CEILING] = bound_words(policy.ceiling)
    for array, rules in ((words.classes, policy.rules), (words.classes_after, policy.rules_after)):
        for index, one in enumerate(rules):
            array[index] = abi.ClassRule(
                limit=limit_words(one.limit),
                leak=one.leak,
                action=one.action,
                flags=one.flags,
                until_ns=one.until_ns,
            )
    for index, shape in enumerate(policy.signatures):
        words.signature[index] = abi.Signature(
            (ctypes.c_uint8 * abi.HEADER_BYTES)(*shape.value.to_bytes(abi.HEADER_BYTES, "big")),
            (ctypes.c_uint8 * abi.HEADER_BYTES)(*shape.mask.to_bytes(abi.HEADER_BYTES, "big")),
            int.from_bytes(shape.source_port.to_bytes(2, "big"), "little"),
            shape.flags,
            shape.fraction,
        )
    return words
