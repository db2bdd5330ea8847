"""What is put in front of the server: ntpguard, what it is measured against, and nothing."""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from ntpguard import abi, running
from ntpguard.kernel import bpffs, libbpf, maps
from ntpguard.policy.check import parse_policy
from ntpguard.policy.compile import compile_policy
from ntpguard.words import Mode
from tests.bench.load import Wire, build
from tests.lab.lab import SERVER, inside, namespace
from tests.lab.lab import run as command

SLOTS = 8_388_608  # of the peers' tables: more than any source of the bench
Subject = Callable[[Wire], AbstractContextManager[None]]

# every source once, then nothing: the limit of the runs that measure a drop
STRICT = """
mode = "enforce"
[limit]
rate = "1/hour"
burst = 1
leak_max = "256/second"
"""


@contextmanager
def rules(*lines: str) -> Iterator[None]:
    """nftables rules on the server."""
    for line in lines:
        command(*inside(SERVER, "nft", *line.split()))
    try:
        yield
    finally:
        command(*inside(SERVER, "nft", "flush", "ruleset"))


def sweeper() -> AbstractContextManager[None]:
    """Drops what an XDP program passes at the earliest place in the stack: a pass costs the same in
    front of every server.
    """
    return rules(
        "add table netdev sweep",
        "add chain netdev sweep in { type filter hook ingress device eth0 priority 0 ; }",
        "add rule netdev sweep in udp dport { 53, 123 } drop",
    )


def xdp(name: str, *, sweep: bool = True, buckets: int = 1) -> Subject:
    """A program of peers.bpf.c."""

    @contextmanager
    def attached(wire: Wire) -> Iterator[None]:
        with ExitStack() as stack:
            program = stack.enter_context(libbpf.Object(build("peers")))
            program.set_constants(
                bytes(
                    abi.Constants(
                        bucket_mask=buckets - 1,
                        ports=(ctypes.c_uint16 * abi.PORTS)(*([123 << 8] * abi.PORTS)),
                        seed=(ctypes.c_uint64 * 2)(1, 2),
                        mac=(ctypes.c_uint8 * 6)(*wire.server_mac),
                        ipv4_mask=0xFFFFFFFF,
                        ipv4_prefix=32,
                        ipv6_mask=abi.U64,
                        test=abi.TEST_NO_TRIAL,
                    )
                )
            )
            program.set_max_entries("lru_sources", SLOTS // 4)
            program.set_max_entries("buckets", buckets)
            program.load()
            policy = compile_policy(parse_policy(STRICT)).policy
            libbpf.map_update(program.map_fd("policy"), bytes(4), bytes(policy))
            root = abi.Shared(root=abi.Line(word=Mode.ENFORCE))
            libbpf.map_update(program.map_fd("shared"), bytes(4), bytes(root))
            if sweep:
                stack.enter_context(sweeper())
            with namespace(SERVER):
                link = libbpf.link_create(
                    program.program_fd(name), wire.server_index, libbpf.XDP_FLAGS_DRV_MODE
                )
            try:
                yield
            finally:
                os.close(link)

    return attached


# of a stream of one source (tests.bench.load.request)
FIRST_SOURCES = ("11.0.0.0", "2001:db8::123")


def ntpguard(
    policy: str = STRICT,
    *,
    sweep: bool = True,
    change: Callable[[abi.Policy], None] | None = None,
) -> Subject:
    """The real thing, put up by its own command. `change` does to the compiled policy what no policy
    may say.
    """

    @contextmanager
    def attached(wire: Wire) -> Iterator[None]:
        file = wire.directory / "ntpguard.toml"
        file.write_text(policy)
        with sweeper() if sweep else ExitStack():
            wire.guard("up", "eth0", "--policy", str(file))
            # of the streams that are all kissed, the one source must be: each time, by another hash
            while change is kiss_everything and not all(map(wire.kisses, FIRST_SOURCES)):
                wire.guard("down")
                wire.guard("up", "eth0", "--policy", str(file))
            try:
                if change:
                    with namespace(SERVER):
                        edit_policy(change)
                yield
            finally:
                wire.guard("down")

    return attached


def edit_policy(change: Callable[[abi.Policy], None]) -> None:
    """Changes both copies of the policy of this network namespace's guard."""
    with maps.opened(bpffs.pins(bpffs.directory(None))) as descriptors:
        for copy in range(abi.COPIES):
            policy = running.read_policy_map(descriptors, copy)
            change(policy)
            key = copy.to_bytes(4, "little")
            libbpf.map_update(descriptors["policy"], key, bytes(policy))


def open_gate(policy: abi.Policy) -> None:
    """Lets every source in at once: through the gate, a table's worth of them needs a minute."""
    policy.bounds[abi.BOUND_GATE] = abi.Bound(abi.Limit(), 1)


def kiss_everything(policy: abi.Policy) -> None:
    """A KoD for each packet over its limit."""
    open_gate(policy)
    policy.kod_interval, policy.kod_flood, policy.kod_patience = 0, 255, 15
    policy.bounds[abi.BOUND_KOD] = abi.Bound(abi.Limit(), 1)
    policy.classes[0].leak = 0
    policy.leak_shard = abi.Limit(abi.U64 >> 1, 0)


def never_limit(policy: abi.Policy) -> None:
    """A limit that the flood is under."""
    open_gate(policy)
    policy.classes[0].limit = abi.Limit(1 << abi.GCRA_TAT_SHIFT, 1 << 60)


def nft(hook: str, per_second: str = "1/hour", burst: int = 1) -> Subject:
    """nftables' own limiter: a dynamic set with a limit for each element."""
    family, chain = {
        "prerouting": ("ip", "hook prerouting priority raw"),
        "ingress": ("netdev", "hook ingress device eth0 priority 0"),
    }[hook]

    @contextmanager
    def attached(_: Wire) -> Iterator[None]:
        last = [f"add rule {family} bench in udp dport 123 drop"] if per_second == "1/hour" else []
        with rules(
            f"add table {family} bench",
            f"add set {family} bench sources {{ type ipv4_addr ; size {SLOTS} ; flags dynamic ; }}",
            f"add chain {family} bench in {{ type filter {chain} ; }}",
            f"add rule {family} bench in udp dport 123 add @sources "
            f"{{ ip saddr limit rate over {per_second} burst {burst} packets }} drop",
            *last,
        ):
            yield

    return attached


def hashlimit(per_second: str = "1/hour", burst: int = 1) -> Subject:
    """iptables' limiter, in the raw table."""

    @contextmanager
    def attached(_: Wire) -> Iterator[None]:
        limit = [
            *("-m", "hashlimit", "--hashlimit-above", per_second, "--hashlimit-burst", str(burst)),
            *("--hashlimit-mode", "srcip", "--hashlimit-name", "bench"),
            *("--hashlimit-htable-size", "1048576", "--hashlimit-htable-max", str(SLOTS)),
            *("--hashlimit-htable-expire", "600000"),
        ]
        raw = ["iptables-legacy", "-w", "-t", "raw"]
        udp = ["PREROUTING", "-p", "udp", "--dport", "123"]
        command(*inside(SERVER, *raw, "-A", *udp, *limit, "-j", "DROP"))
        if per_second == "1/hour":
            command(*inside(SERVER, *raw, "-A", *udp, "-j", "DROP"))
        try:
            yield
        finally:
            command(*inside(SERVER, *raw, "-F"))

    return attached


@contextmanager
def nothing(_: Wire) -> Iterator[None]:
    """No limiter."""
    yield
