"""Checks of the whole host."""

import importlib.util
import ipaddress
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ntpguard.doctor.finding import FAIL, OK, UNKNOWN, WARN, Answer, Host
from ntpguard.errors import NtpguardError, PermissionNeeded
from ntpguard.kernel import bpffs as pinned
from ntpguard.kernel import interfaces, libbpf, sockets
from ntpguard.kernel.capabilities import missing
from ntpguard.policy.compile import memory_bytes

MIB = 2**20
FLOOR = (5, 15)
KERNEL_PACKAGE = "linux-image-$(dpkg --print-architecture)"
CAPABILITIES = ("CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON")
JIT = Path("/proc/sys/net/core/bpf_jit_enable")
CONNTRACK = Path("/proc/sys/net/netfilter")
CLOCK = Path("/sys/devices/system/clocksource/clocksource0")
# what a request takes of a receive buffer: some drivers hand over a page for each
SMALLEST_SKB, LARGEST_SKB = 768, 4608
# docs/explanation/benchmark.md: with the usual 208 KiB a flood costs others up to a third of theirs
ENOUGH_BUFFER = MIB
SLOW_CLOCKS = ("hpet", "acpi_pm", "pit", "jiffies", "refined-jiffies")
NOTRACK = (
    "nft 'add table inet ntp; "
    "add chain inet ntp in { type filter hook prerouting priority raw; }; "
    "add chain inet ntp out { type filter hook output priority raw; }; "
    "add rule inet ntp in udp dport 123 notrack; add rule inet ntp out udp sport 123 notrack'"
)


def kernel(host: Host) -> Answer:
    """The floor of design.md, decision 2."""
    release = os.uname().release
    if host.release < FLOOR:
        return Answer(
            FAIL, f"{release}: 5.15 or newer is needed", f"apt-get install {KERNEL_PACKAGE}"
        )
    return Answer(OK, f"{release}, 5.15 or newer is needed")


def capabilities(_: Host) -> Answer:
    """What loading and attaching need."""
    lacking = missing(CAPABILITIES)
    if lacking:
        remedy = "sudo ntpguard doctor"
        if os.geteuid() == 0:
            remedy = f"allow the service or the container {' '.join(lacking)}"
        return Answer(FAIL, f"no {', '.join(lacking)}: up and every live change need it", remedy)
    return Answer(OK, ", ".join(CAPABILITIES))


def library(_: Host) -> Answer:
    """The libbpf that ntpguard would use."""
    try:
        own = libbpf.version()
    except NtpguardError as error:
        return Answer(FAIL, str(error), "apt-get install libbpf1")
    return Answer(OK, f"libbpf {own}, 1.0 or newer is needed")


def features(host: Host) -> Answer:
    """Whether this kernel's verifier takes the program: more than any list of features says."""
    try:
        size = host.trial
    except PermissionNeeded:
        raise
    except NtpguardError as error:
        first, *log = str(error).splitlines()
        found = f"{first}: {log[-1].strip()}" if log else first
        return Answer(FAIL, found, f"apt-get install ntpguard {KERNEL_PACKAGE}")
    return Answer(OK, f"this kernel verifies the program ({size} bytes of machine code)")


def jit(host: Host) -> Answer:
    """Machine code or an interpreter."""
    try:
        on = _read(JIT) != "0"
    except OSError:  # not in a network namespace of its own, and root's: see what comes out
        on = host.trial > 0
    if not on:
        return Answer(
            WARN,
            "off: the program is interpreted, ten times slower",
            "sysctl -w net.core.bpf_jit_enable=1",
        )
    return Answer(OK, "on")


def mounted(host: Host) -> Answer:
    """Where enforcement is pinned."""
    try:
        pinned.require(host.bpffs)
    except NtpguardError:
        return Answer(
            FAIL, f"{host.bpffs}: no bpffs is mounted there", f"mount -t bpf bpf {host.bpffs}"
        )
    return Answer(OK, f"mounted at {host.bpffs}")


def memory(host: Host) -> Answer:
    """What the policy's table needs, against what there is."""
    if host.policy is None:
        return Answer(UNKNOWN, "the policy file has errors", "ntpguard policy check")
    needed = sum(memory_bytes(host.policy, libbpf.possible_cpus()).values())
    (kibibytes,) = re.findall(r"^MemAvailable:\s*(\d+) kB$", _read("/proc/meminfo"), re.M)
    available = int(kibibytes) * 1024
    found = f"{needed / MIB:.0f} MiB for {host.policy.capacity} sources"
    if host.guard.policy:
        return Answer(OK, f"{found} in use, {available / MIB:.0f} MiB more available")
    file = host.policy_file or "/etc/ntpguard/ntpguard.toml"
    remedy = f"set a smaller [sources] capacity in {file}, then: ntpguard policy check {file}"
    found = f"{found} needed, {available / MIB:.0f} MiB available"
    if needed > available:
        return Answer(FAIL, found, remedy)
    if needed > available / 2:
        return Answer(WARN, f"{found}: more than half of it", remedy)
    return Answer(OK, found)


def daemon(host: Host) -> Answer:
    """Sockets of the NTP daemon: what their receive buffers hold, and what found them full."""
    ports = tuple(host.policy.ports) if host.policy else (123,)
    listed = ", ".join(map(str, ports))
    try:
        found = sockets.udp_sockets(ports)
    except OSError as error:
        return Answer(UNKNOWN, f"the kernel does not tell: {error}", "modprobe udp_diag")
    if not found:
        return Answer(
            WARN, f"no socket on UDP port {listed}: no NTP daemon serves", "systemctl start chrony"
        )
    dropped = sum(one.dropped for one in found)
    smallest = min(one.buffer_bytes for one in found)
    text = (
        f"UDP port {listed}: {dropped} packets dropped since the daemon opened its sockets: "
        "their receive buffer was full"
        if dropped
        else f"UDP port {listed}: none of its packets dropped"
    )
    requests = f"{smallest // LARGEST_SKB} to {smallest // SMALLEST_SKB} requests"
    text += f"; room for {smallest} bytes, {requests}"
    if dropped or smallest < ENOUGH_BUFFER:
        remedy = f"sysctl -w net.core.rmem_default={4 * MIB}, and restart the daemon"
        return Answer(WARN, text, remedy)
    return Answer(OK, text)


def conntrack(host: Host) -> Answer:
    """Whether each NTP request makes a flow: that costs more than answering it, and fills up."""
    try:
        count = int(_read(CONNTRACK / "nf_conntrack_count"))
    except FileNotFoundError:
        return Answer(OK, "nf_conntrack is not loaded")
    if not count:
        return Answer(OK, "nf_conntrack is loaded and tracks nothing here")
    ports = host.policy.ports if host.policy else (123,)
    # the first pair of addresses is the request's; our own requests to others do not count
    mark = re.compile(rf" udp .*?dst=(\S+) sport=\d+ dport=(?:{'|'.join(map(str, ports))}) ")
    try:
        with Path("/proc/net/nf_conntrack").open(encoding="ascii") as flows:
            asked = Counter(hit[1] for line in flows if (hit := mark.search(line)))
    except FileNotFoundError:
        found = f"{count} flows, and this kernel has no /proc/net/nf_conntrack to see which"
        return Answer(UNKNOWN, found, "conntrack -L -p udp --dport 123")
    largest = int(_read(CONNTRACK / "nf_conntrack_max"))
    own = interfaces.local_addresses()
    tracked = sum(n for address, n in asked.items() if ipaddress.ip_address(address) in own)
    if tracked:
        found = f"tracks NTP: {tracked} of {count} flows (at most {largest}) are requests"
        return Answer(WARN, found, NOTRACK)
    return Answer(OK, f"{count} flows, none of them NTP")


def clock(_: Host) -> Answer:
    """What the daemon's timestamps cost."""
    current = _read(CLOCK / "current_clocksource")
    if current not in SLOW_CLOCKS:
        return Answer(OK, current)
    others = [
        one for one in _read(CLOCK / "available_clocksource").split() if one not in SLOW_CLOCKS
    ]
    remedy = f"echo {others[0]} >{CLOCK}/current_clocksource" if others else "dmesg | grep -i tsc"
    return Answer(WARN, f"{current}: each timestamp of the daemon costs a microsecond", remedy)


def forwarding(host: Host) -> Answer:
    """A router's packets to others are limited too, unless it says which addresses are its own."""
    families = interfaces.forwarding()
    if not families:
        return Answer(OK, "off")
    found = f"this host forwards {' and '.join(families)}"
    if host.policy and host.policy.destinations:
        return Answer(OK, f"{found}; the policy's destinations say which addresses are guarded")
    keys = {"IPv4": "net.ipv4.ip_forward", "IPv6": "net.ipv6.conf.all.forwarding"}
    switches = " ".join(f"{keys[family]}=0" for family in families)
    return Answer(
        WARN,
        f"{found}: NTP packets on their way through are limited too",
        f"sysctl -w {switches}, or set destinations in the policy file",
    )


def tracing(_: Host) -> Answer:
    """bcc, for trace only; PyPI's package of that name is another one."""
    spec = importlib.util.find_spec("bcc")
    places = spec.submodule_search_locations if spec else None
    if not any((Path(place) / "libbcc.py").is_file() for place in places or ()):
        return Answer(WARN, "no bcc: all but ntpguard trace works", "apt-get install python3-bpfcc")
    return Answer(OK, "bcc is there")


def _read(path: str | Path) -> str:
    return Path(path).read_text(encoding="utf-8").strip()


def guard(host: Host) -> Answer:
    """What status would say."""
    if host.guard.programs is None:
        return Answer(UNKNOWN, host.guard.why, "sudo ntpguard doctor")
    if host.guard.problems:
        return Answer(WARN, "; ".join(host.guard.problems), "ntpguard status")
    if host.guard.policy is None:
        return Answer(OK, "not running")
    return Answer(OK, f"runs, mode {host.guard.policy.mode}")


CHECKS: tuple[tuple[str, Callable[[Host], Answer]], ...] = (
    ("kernel", kernel),
    ("capabilities", capabilities),
    ("libbpf", library),
    ("program", features),
    ("jit", jit),
    ("bpffs", mounted),
    ("guard", guard),
    ("memory", memory),
    ("daemon", daemon),
    ("conntrack", conntrack),
    ("clock", clock),
    ("forwarding", forwarding),
    ("trace", tracing),
)
