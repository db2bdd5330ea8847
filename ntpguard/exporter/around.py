"""What is around the packet path: memory, the driver, the daemon's sockets, the program's time."""

from pathlib import Path

from prometheus_client.core import Metric

from ntpguard.exporter.family import counter, gauge
from ntpguard.kernel import driver, sockets
from ntpguard.reading import Running
from ntpguard.words import Family

STATISTICS = Path("/proc/sys/kernel/bpf_stats_enabled")


def memory(guard: Running) -> list[Metric]:
    """Kernel memory."""
    return [
        gauge(
            "ntpguard_map_memory_bytes",
            "Kernel memory of a map.",
            ("map",),
            [((name,), size) for name, size in sorted(guard.memory_bytes().items())],
        )
    ]


def counters(guard: Running) -> list[Metric]:
    """The driver's own counters: a KoD that the guard has decided on is not yet on the wire."""
    return [
        counter(
            "ntpguard_driver_xdp",
            "The driver's own counters of XDP packets, its queues added up.",
            ("interface", "counter"),
            [
                ((each.name, name), value)
                for each in guard.interfaces()
                for name, value in sorted(driver.xdp_counters(each.name).items())
            ],
        )
    ]


def daemon(guard: Running) -> list[Metric]:
    """Requests that the guard passed and the daemon was too slow to read."""
    found = sockets.udp_sockets(tuple(guard.policy().ports))
    dropped = {
        family: sum(one.dropped for one in found if one.version == version)
        for family, version in ((Family.IPV4, 4), (Family.IPV6, 6))
    }
    return [
        counter(
            "ntpguard_daemon_socket_drops",
            "Packets that found the receive buffer of the NTP daemon's open sockets full.",
            ("family",),
            [((family.word,), count) for family, count in dropped.items()],
        )
    ]


def program(guard: Running) -> list[Metric]:
    """What the program takes, if the kernel counts it (sysctl kernel.bpf_stats_enabled)."""
    if STATISTICS.read_text(encoding="ascii").strip() != "1":
        return []
    runs = guard.runs()
    return [
        counter(
            "ntpguard_program_runs",
            "Packets that the program has seen, also those that are not NTP.",
            ("interface",),
            [((name,), count) for name, (count, _) in runs.items()],
        ),
        counter(
            "ntpguard_program_seconds",
            "Time that the program has taken.",
            ("interface",),
            [((name,), ns / 1e9) for name, (_, ns) in runs.items()],
        ),
    ]
