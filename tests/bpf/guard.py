"""The real program, loaded but attached to nothing, on a clock and a chance that the test holds."""

import ctypes
import ipaddress
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ntpguard import abi
from ntpguard.kernel import binding, libbpf
from ntpguard.keys import source_key, trial_part
from ntpguard.words import Action, Family, Mode, Reason, Verdict
from tests import testrun
from tests.bpf.packets import SERVER4, SERVER6, SERVER_MAC, Frame

OBJECT = Path(
    os.environ.get("NTPGUARD_OBJECT", Path(__file__).parents[2] / "ntpguard" / "ntpguard.bpf.o")
)
# by it, CLIENT4 and CLIENT6 are kissed at once
SEED = (0x0123456789ABCE08, 0xFEDCBA9876543210)
NEVER, ALWAYS = 0xFFFFFFFF, 0
SECOND = 1_000_000_000
START = 1_000 * SECOND
BPF_LOG_STATS, BPF_LOG_BYTES = 4, 1 << 20


def units(nanoseconds: float) -> int:
    """gcra units in the place where a gcra word has them."""
    return -(-int(nanoseconds) >> abi.GCRA_UNIT_SHIFT) << abi.GCRA_TAT_SHIFT


def limit(per_second: float, burst: int) -> abi.Limit:
    """A limit, compiled by other code than ntpguard's."""
    interval = units(SECOND / per_second)
    return abi.Limit(interval, (burst - 1) * interval)


def rule(
    per_second: float = 1,
    burst: int = 1,
    leak: float = 0.25,
    action: Action = Action.LIMIT,
    flags: int = abi.CLASS_KOD,
) -> abi.ClassRule:
    """A class, compiled."""
    return abi.ClassRule(
        limit=limit(per_second, burst),
        leak=min(int(leak * 2**32), 2**32 - 1),
        action=action,
        flags=flags,
    )


def part(source: str, seed: tuple[int, int] = SEED) -> int:
    """The part of the trial of KoDs that an address is in, as sources of /32 and /64."""
    return trial_part(source_key(ipaddress.ip_address(source), 32, 64), seed)


def kissed_at_once(sources: Iterable[str], seed: tuple[int, int] = SEED) -> Iterator[str]:
    """Those that no trial keeps a KoD from."""
    return (one for one in sources if part(one, seed) > abi.PART_TRIED)


class Guard:
    """The loaded program and its maps, memory-mapped."""

    def __init__(self, program: libbpf.Object, buckets: int) -> None:
        self.object = program
        self.buckets = buckets
        self.fd = program.program_fd("ntpguard")
        self._maps = [
            libbpf.map_mmap(program.map_fd(name), size, writable=True)
            for name, size in (
                (".bss", abi.size(abi.Inputs)),
                ("shared", abi.size(abi.Shared)),
                ("policy", abi.size(abi.Policy) * abi.COPIES),
                ("sources", abi.size(abi.Bucket) * buckets),
            )
        ]
        bss, shared, policy, sources = self._maps
        self.inputs = abi.Inputs.from_buffer(bss)
        self.shared = abi.Shared.from_buffer(shared)
        self.policy = (abi.Policy * abi.COPIES).from_buffer(policy)
        self.sources = (abi.Bucket * buckets).from_buffer(sources)
        self.inputs.clock_ns = START
        self.inputs.chance = NEVER
        self.set_mode(Mode.ENFORCE)
        self.set_rules(rule())
        for address in (SERVER4, SERVER6):
            self.add_address(address)

    def set_mode(self, mode: Mode, generation: int = 0, entries: int = 0) -> None:
        """Writes the root word; copy 0 of everything runs. `entries`: bit by family."""
        self.shared.root.word = (
            mode | generation << abi.ROOT_GENERATION_SHIFT | entries << abi.ROOT_ENTRIES_SHIFT
        )

    def set_rules(self, *rules: abi.ClassRule, **settings: object) -> None:
        """The running policy: class 0 is the default. `settings` are fields of abi.Policy, and the
        bounds by name (kod, newcomers, gate, ceiling).
        """
        bounds = {
            "kod": abi.Bound(limit(1000, 1000), 1),
            "newcomers": abi.Bound(limit(20000, 2000), 1),
            "gate": abi.Bound(abi.Limit(), 1),
            "ceiling": abi.Bound(abi.Limit(), 1),
        }
        bounds |= {name: settings.pop(name) for name in [*settings] if name in bounds}
        policy = abi.Policy(
            bounds=(abi.Bound * abi.BOUNDS)(*bounds.values()),
            leak_shard=limit(1e6, 1000),
            answers=limit(1000, 100),
            odd=limit(1000, 100),
            established_spacing=100,
            kod_interval=-(-16 * SECOND >> abi.KOD_UNIT_SHIFT),
            kod_patience=4,
            kod_flood=64,
        )
        for name, value in settings.items():
            setattr(policy, name, value)
        for index, one in enumerate(rules):
            policy.classes[index] = one
        ctypes.memmove(ctypes.addressof(self.policy), bytes(policy), ctypes.sizeof(policy))

    def add_address(self, text: str, flags: int = abi.ADDRESS_LOCAL) -> None:
        """An address of this host."""
        address = ipaddress.ip_address(text)
        packed = address.packed
        if address.version == 4:
            packed = bytes(10) + b"\xff\xff" + packed
        libbpf.map_update(self.object.map_fd("addresses"), packed, flags.to_bytes(4, "little"))

    def set_prefixes(self, prefixes: dict[str, int], upstreams: tuple[str, ...] = ()) -> None:
        """Prefix -> class index; sets the policy's flags. `upstreams` are some of the prefixes."""
        networks = {ipaddress.ip_network(p): c for p, c in prefixes.items()}
        for version, name, flag, long, bits in (
            (4, "prefixes_ipv4", abi.POLICY_PREFIXES_IPV4, abi.POLICY_LONG_IPV4, 32),
            (6, "prefixes_ipv6", abi.POLICY_PREFIXES_IPV6, abi.POLICY_LONG_IPV6, 64),
        ):
            of_family = {n: c for n, c in networks.items() if n.version == version}
            if not of_family:
                continue
            size = 4 + (4 if version == 4 else 16)
            trie = libbpf.map_create(
                libbpf.MAP_LPM_TRIE, name[:15], size, 4, 1000, libbpf.F_NO_PREALLOC
            )
            for network, index in of_family.items():
                key = network.prefixlen.to_bytes(4, "little") + network.network_address.packed
                upstream = str(network) in upstreams
                value = abi.pack_prefix_value(index, network.prefixlen, upstream)
                libbpf.map_update(trie, key, value.to_bytes(4, "little"))
            outer = self.object.map_fd(name)
            libbpf.map_update(outer, bytes(4), trie.to_bytes(4, "little"))
            os.close(trie)
            self.policy[0].flags |= flag
            if any(n.prefixlen > bits for n in of_family):
                self.policy[0].flags |= long

    def add_entry(
        self,
        prefix: str,
        action: Action,
        expires_ns: int = 0,
        fallback: int = abi.ENTRY_NO_FALLBACK,
    ) -> None:
        """A live entry; sets the root word's bit."""
        network = ipaddress.ip_network(prefix)
        key = network.prefixlen.to_bytes(4, "little") + network.network_address.packed
        entry = abi.Entry(expires_ns, action, fallback)
        libbpf.map_update(self.object.map_fd(f"entries_ipv{network.version}"), key, bytes(entry))
        self.shared.root.word |= 1 << abi.ROOT_ENTRIES_SHIFT + (network.version == 6)

    def local(self) -> list[abi.Local]:
        """What each CPU keeps for itself."""
        fd = self.object.map_fd("local")
        raws = libbpf.map_lookup_percpu(fd, bytes(4), abi.size(abi.Local))
        return [abi.Local.from_buffer_copy(raw) for raw in raws]

    def advance(self, seconds: float) -> None:
        """Moves the clock."""
        self.inputs.clock_ns += int(seconds * SECOND)

    def run(self, frame: Frame | bytes) -> tuple[abi.Xdp, bytes]:
        """One packet: the XDP return code, and the packet afterwards."""
        code, out = testrun.run(self.fd, bytes(frame))
        return abi.Xdp(code), out

    def verdict(self, frame: Frame | bytes) -> Verdict:
        """One packet: what happened to it."""
        code, _ = self.run(frame)
        return {
            abi.Xdp.PASS: Verdict.PASS,
            abi.Xdp.TX: Verdict.KOD,
            abi.Xdp.DROP: Verdict.DROP,
        }[code]

    def counted(self, table: str = "packets") -> dict[tuple[Family, Verdict, Reason, int], int]:
        """Every counter that is not zero: (family, verdict, reason, class) -> packets."""
        found: dict[tuple[Family, Verdict, Reason, int], int] = {}
        size = abi.size(abi.Counters)
        for index in range(abi.CLASSES):
            for raw in libbpf.map_lookup_percpu(
                self.object.map_fd("counters"), index.to_bytes(4, "little"), size
            ):
                cells = getattr(abi.Counters.from_buffer_copy(raw), table)
                for family in Family:
                    for verdict in Verdict:
                        for reason in Reason:
                            count = cells[family][verdict][reason]
                            if count:
                                key = (family, verdict, reason, index)
                                found[key] = found.get(key, 0) + count
        return found

    def table_counters(self) -> abi.TableCounters:
        """Sum over the CPUs."""
        total = abi.TableCounters()
        for raw in libbpf.map_lookup_percpu(
            self.object.map_fd("table_counters"), bytes(4), abi.size(abi.TableCounters)
        ):
            one = abi.TableCounters.from_buffer_copy(raw)
            for family in Family:
                total.inserted[family] += one.inserted[family]
                total.replaced[family] += one.replaced[family]
            total.full += one.full
            total.lost += one.lost
            total.gated += one.gated
        return total

    def slots(self) -> Iterator[tuple[int, int, int, int]]:
        """(key, gcra, aux, stat) of every slot in use."""
        for bucket in self.sources:
            for way in range(abi.WAYS):
                if bucket.key[way]:
                    yield bucket.key[way], bucket.gcra[way], bucket.aux[way], bucket.stat[way]

    def close(self) -> None:
        """Lets go of the maps; the kernel frees them."""
        del self.inputs, self.shared, self.policy, self.sources
        for one in self._maps:
            one.close()
        self.object.close()


def hammer(one: Guard, frame: Frame) -> tuple[int, float]:
    """Two CPUs run one packet for a second: how many times it passed, and in how many seconds."""
    passed = [0, 0]
    packet = bytes(frame)

    def run(cpu: int) -> None:
        os.sched_setaffinity(0, {cpu % (os.cpu_count() or 1)})
        end = time.monotonic() + 1
        while time.monotonic() < end:
            passed[cpu] += testrun.run(one.fd, packet)[0] == abi.Xdp.PASS

    begin = time.monotonic()
    threads = [threading.Thread(target=run, args=(cpu,)) for cpu in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(passed), time.monotonic() - begin


def load_with_log(program: libbpf.Object, load: Callable[[], None]) -> str:
    """What the verifier counted while `load` loaded the program; printed if it is refused."""
    log = ctypes.create_string_buffer(BPF_LOG_BYTES)
    pointer = ctypes.c_void_p(program._program("ntpguard"))
    library = binding.library()
    library.bpf_program__set_log_level(pointer, BPF_LOG_STATS)
    library.bpf_program__set_log_buf(pointer, log, ctypes.c_size_t(len(log)))
    try:
        load()
    except BaseException:
        print(log.value.decode())
        raise
    return log.value.decode()


@contextmanager
def one_cpu() -> Iterator[int]:
    """This thread stays on the CPU that it is on: some of the program's budgets are each CPU's own."""
    home = os.sched_getaffinity(0)
    cpu = int(ctypes.CDLL(None).sched_getcpu())
    os.sched_setaffinity(0, {cpu})
    try:
        yield cpu
    finally:
        os.sched_setaffinity(0, home)


@contextmanager
def guard(
    buckets: int = 1024,
    *,
    virtual: bool = True,
    ports: tuple[int, ...] = (123,),
    ipv4_prefix: int = 32,
    ipv6_prefix: int = 64,
) -> Iterator[Guard]:
    """A freshly loaded program over an empty table."""
    padded = (ports + (ports[0],) * abi.PORTS)[: abi.PORTS]
    constants = abi.Constants(
        seed=(ctypes.c_uint64 * 2)(*SEED),
        ipv6_mask=(abi.U64 << (64 - ipv6_prefix)) & abi.U64,
        bucket_mask=buckets - 1,
        ipv4_mask=(0xFFFFFFFF << (32 - ipv4_prefix)) & 0xFFFFFFFF,
        ports=(ctypes.c_uint16 * abi.PORTS)(*(p >> 8 | (p & 255) << 8 for p in padded)),
        mac=(ctypes.c_uint8 * 6)(*SERVER_MAC),
        ipv4_prefix=ipv4_prefix,
        test=abi.TEST_INPUTS if virtual else 0,
    )
    with one_cpu(), libbpf.Object(OBJECT) as program:
        program.set_constants(bytes(constants))
        program.set_max_entries("sources", buckets)
        program.load()
        loaded = Guard(program, buckets)
        try:
            yield loaded
        finally:
            loaded.close()
