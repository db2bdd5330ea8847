"""doctor on hosts that are well and on hosts that are not: real interfaces, sockets, programs.

What a test may not change on a machine (its clock, its memory) is shown to doctor by a bind mount.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ntpguard import lifecycle
from ntpguard.errors import NotRunning
from ntpguard.kernel import interfaces, libbpf
from ntpguard.policy.check import parse_policy
from tests import NTPGUARD
from tests.bpf.daemon import wait_for
from tests.bpf.test_lifecycle import (
    BRIDGE,
    NAMES,
    PEER,
    compile_object,
    ip,
    pytestmark,
    up,
    where,
)

__all__ = ["pytestmark", "where"]
PASS = 'SEC("xdp") int passing(void *c) { return XDP_PASS; }'
TAP = "guard-tap"
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
GUARDED = NAMES[0]
LINUX = tuple(map(int, os.uname().release.split(".")[:2]))  # since 6.3 drivers tell of their XDP
Found = dict[str, dict[str, Any]]


def doctor(*arguments: str, wrap: tuple[str, ...] = (), **environment: str) -> tuple[int, Found]:
    """Exit code and findings; those of an interface as "INTERFACE CHECK"."""
    done = subprocess.run(
        [*wrap, NTPGUARD, "-o", "json", *arguments],
        capture_output=True,
        text=True,
        timeout=90,
        env={**os.environ, **environment},
    )
    assert "Traceback" not in done.stderr, done.stderr
    if not done.stdout:
        return done.returncode, {"stderr": {"found": done.stderr}}
    found = json.loads(done.stdout)["data"]
    named = {f"{one['interface'] or ''} {one['check']}".strip(): one for one in found}
    assert len(named) == len(found)
    return done.returncode, named


def seen(found: Found, check: str) -> tuple[str, str, str | None]:
    one = found[check]
    return one["result"], one["found"], one["remedy"]


def shown_instead(tmp_path: Path, text: str, path: str) -> tuple[str, ...]:
    """Makes a command see `text` where it reads `path`, in a mount namespace of its own."""
    file = tmp_path / "instead"
    file.write_text(text)
    return over(str(file), path)


def over(instead: str, path: str) -> tuple[str, ...]:
    script = f'mount --bind {instead} {path} && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", script, "sh")


@contextmanager
def daemon(address: str = "127.0.0.1", buffer: int = 4 << 20) -> Iterator[socket.socket]:
    """A socket on UDP port 123 that nobody reads, with so many bytes of buffer."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        one.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer // 2)
        one.bind((address, 123))
        yield one


def well(tmp_path: Path) -> None:
    """Mends what veth has by default: tags beside the frame, one queue, a peer without a program."""
    own = str(compile_object(tmp_path, PASS))
    for name in NAMES:
        subprocess.run(["ethtool", "-K", name, "rxvlan", "off", "txvlan", "off"], check=True)
        subprocess.run(["ethtool", "-L", name, "rx", f"{min(os.cpu_count() or 1, 2)}"])
        ip("-n", PEER, "link", "set", "dev", name, "xdp", "obj", own, "sec", "xdp")


@pytest.fixture
def tap(where: Path) -> Iterator[str]:
    """An interface whose driver has native XDP, but not for frames of several buffers."""
    if subprocess.run(["ip", "tuntap", "add", TAP, "mode", "tap"]).returncode:
        pytest.skip("no tun driver here")
    try:
        yield TAP
    finally:
        down(where)
        ip("link", "del", TAP)


def down(where: Path) -> None:
    with contextlib.suppress(NotRunning):
        lifecycle.down(None, bpffs=where)


@pytest.mark.parametrize("guarded", [False, True])
def test_where_all_is_well_every_line_is_ok(where: Path, tmp_path: Path, guarded: bool) -> None:
    well(tmp_path)
    if guarded:
        up(where, *NAMES)
    with daemon():
        code, found = doctor("doctor", *(() if guarded else NAMES))
    assert {name: one for name, one in found.items() if one["result"] != "ok"} == {}
    assert code == 0
    state = "guarded in mode native" if guarded else "not guarded"
    for name in NAMES:
        assert found[f"{name} xdp"]["found"].startswith(f"{state}, driver veth")
    assert found["guard"]["found"] == ("runs, mode enforce" if guarded else "not running")


def test_findings_have_the_same_shape_and_a_remedy_where_one_is_needed(where: Path) -> None:
    _, found = doctor("doctor", GUARDED)
    for one in found.values():
        assert list(one) == ["check", "interface", "result", "found", "remedy"]
        assert one["result"] in ("ok", "warn", "fail", "unknown")
        assert one["found"] and "\n" not in one["found"]
        assert bool(one["remedy"]) == (one["result"] in ("warn", "fail"))
        assert one["interface"] in (None, GUARDED)


def test_the_table_has_a_line_for_each_check_and_the_command_below(where: Path) -> None:
    done = subprocess.run([NTPGUARD, "doctor", GUARDED], capture_output=True, text=True, timeout=90)
    lines = done.stdout.splitlines()
    (index,) = (i for i, line in enumerate(lines) if f"{GUARDED} vlan" in line)
    assert lines[index].startswith("warn     guard0 vlan          rx-vlan-offload is on")
    assert lines[index + 1].strip() == f"try: ethtool -K {GUARDED} rxvlan off txvlan off"


def test_it_changes_nothing_and_sends_nothing(where: Path) -> None:
    def leaves(value: object, at: str) -> Iterator[tuple[str, object]]:
        if isinstance(value, dict | list):
            for key, one in value.items() if isinstance(value, dict) else enumerate(value):
                yield from leaves(one, f"{at}.{key}")
        else:
            yield at, value

    def state() -> dict[str, object]:
        shown = subprocess.run(
            ["ip", "-s", "-d", "-j", "link", "show"], capture_output=True, text=True, check=True
        )
        found: dict[str, object] = dict.fromkeys(map(str, where.rglob("*")), "pinned")
        for link in json.loads(shown.stdout):
            found |= leaves(link, link["ifname"])
        return found

    for name in NAMES:
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
    # the kernel tells that the peers are down when it comes round to it
    wait_for(
        lambda: "UNKNOWN" not in {state()[f"{name}.operstate"] for name in NAMES},
        "the links are known to be down",
    )
    for guarded in (False, True):
        if guarded:
            up(where)
        before = state()
        doctor("doctor", *NAMES)
        assert state() == before


def test_an_unknown_interface_is_answered_with_those_there_are(where: Path) -> None:
    code, said = doctor("doctor", "guard9")
    assert code == 2
    assert "guard9: no such interface: there are " in said["stderr"]["found"]
    assert GUARDED in said["stderr"]["found"]


def test_another_program_is_named_with_its_id(where: Path, tmp_path: Path) -> None:
    own = compile_object(tmp_path, PASS)
    ip("link", "set", "dev", GUARDED, "xdp", "obj", str(own), "sec", "xdp")
    program = interfaces.interface(GUARDED).program_id
    code, found = doctor("doctor", GUARDED)
    assert code == 1
    assert seen(found, f"{GUARDED} other program") == (
        "fail",
        f'another XDP program is attached: "passing", id {program}',
        f"if it is not needed: ip link set dev {GUARDED} xdp off",
    )


def test_who_holds_another_program_is_named(where: Path, tmp_path: Path) -> None:
    with libbpf.Object(compile_object(tmp_path, PASS)) as own:
        own.load()
        ifindex = interfaces.interface(GUARDED).ifindex
        link = libbpf.link_create(own.program_fd("passing"), ifindex, 0)
        try:
            result, text, remedy = seen(doctor("doctor", GUARDED)[1], f"{GUARDED} other program")
        finally:
            os.close(link)
    assert result == "fail" and f"(pid {os.getpid()})" in text
    assert remedy == f"if it is not needed: kill {os.getpid()}"


@pytest.mark.parametrize("name", ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"])
def test_a_missing_capability_is_named(where: Path, name: str) -> None:
    word = name.removeprefix("CAP_").lower()
    without = ("setpriv", f"--bounding-set=-sys_admin,-{word}")
    code, found = doctor("doctor", GUARDED, wrap=without)
    assert (code, seen(found, "capabilities")[:2]) == (
        1,
        ("fail", f"no {name}: up and every live change need it"),
    )
    if name == "CAP_BPF":  # then the verifier cannot be asked
        assert found["program"]["result"] == "unknown"


def test_without_root_what_cannot_be_seen_is_unknown(where: Path) -> None:
    up(where)
    nobody = ("setpriv", "--reuid=65534", "--clear-groups")
    code, found = doctor("doctor", GUARDED, wrap=nobody)
    assert code == 1
    assert found["capabilities"]["remedy"] == "sudo ntpguard doctor"
    unknown = {name for name, one in found.items() if one["result"] == "unknown"}
    assert {"guard", "program", f"{GUARDED} other program", f"{GUARDED} peer"} <= unknown
    assert f"{GUARDED} queues" not in unknown and "daemon" not in unknown


def test_without_a_bpffs_the_command_to_mount_one_is_given(where: Path, tmp_path: Path) -> None:
    code, found = doctor("--bpffs", str(tmp_path), "doctor", GUARDED)
    assert (code, seen(found, "bpffs")) == (
        1,
        ("fail", f"{tmp_path}: no bpffs is mounted there", f"mount -t bpf bpf {tmp_path}"),
    )


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_packets_that_a_full_socket_dropped_are_counted(where: Path, address: str) -> None:
    assert seen(doctor("doctor", GUARDED)[1], "daemon")[0] == "warn"  # nobody serves
    with daemon(address, buffer=1) as one, socket.socket(one.family, socket.SOCK_DGRAM) as client:
        for _ in range(100):
            client.sendto(bytes(48), (address, 123))
        result, text, remedy = seen(doctor("doctor", GUARDED)[1], "daemon")
    dropped = int(text.split(": ")[1].split()[0])
    assert result == "warn" and 50 < dropped < 100
    assert remedy == "sysctl -w net.core.rmem_default=4194304, and restart the daemon"


def test_a_receive_buffer_that_a_flood_would_fill_is_warned_of(where: Path) -> None:
    with daemon():
        assert seen(doctor("doctor", GUARDED)[1], "daemon") == (
            "ok",
            "UDP port 123: none of its packets dropped; "
            "room for 4194304 bytes, 910 to 5461 requests",
            None,
        )
    with daemon(buffer=212992):
        result, text, remedy = seen(doctor("doctor", GUARDED)[1], "daemon")
    assert result == "warn" and text.endswith("room for 212992 bytes, 46 to 277 requests")
    assert remedy == "sysctl -w net.core.rmem_default=4194304, and restart the daemon"


def test_offloads_queues_and_peer_that_veth_has_by_default_are_warned_of(where: Path) -> None:
    _, found = doctor("doctor", GUARDED)
    assert seen(found, f"{GUARDED} vlan")[0] == "warn"
    assert seen(found, f"{GUARDED} peer") == (
        "warn",
        f"peer {GUARDED} has no XDP program: in native mode every KoD is lost",
        f"ntpguard up {GUARDED} --xdp skb",
    )
    up(where, xdp="skb")
    _, found = doctor("doctor", GUARDED)
    assert found[f"{GUARDED} peer"]["result"] == found[f"{GUARDED} xdp"]["result"] == "ok"


@pytest.mark.skipif((os.cpu_count() or 1) == 1, reason="one CPU takes every packet anyway")
def test_one_queue_for_several_cpus_is_warned_of(where: Path) -> None:
    subprocess.run(["ethtool", "-L", GUARDED, "rx", "1", "tx", "1"])
    result, text, remedy = seen(doctor("doctor", GUARDED)[1], f"{GUARDED} queues")
    assert result == "warn" and text.endswith("one CPU takes every packet")
    assert remedy
    subprocess.run(remedy.split(), check=True)
    assert doctor("doctor", GUARDED)[1][f"{GUARDED} queues"]["result"] == "ok"


def test_an_interface_without_native_xdp_is_told(where: Path) -> None:
    ip("link", "add", BRIDGE, "type", "bridge")
    _, found = doctor("doctor", BRIDGE)
    told = (
        "warn",
        "driver bridge has no native XDP: skb works, several times slower",
        f"ntpguard up {BRIDGE} --xdp skb",
    )
    untold = (
        "unknown",
        "driver bridge: not known whether it has native XDP",
        f"ntpguard up {BRIDGE} --xdp native",
    )
    assert seen(found, f"{BRIDGE} xdp") == (told if LINUX >= (6, 3) else untold)
    assert f"{BRIDGE} peer" not in found
    assert found[f"{BRIDGE} queues"]["result"] == "unknown"


def test_skb_mode_where_native_would_work_is_warned_of(where: Path, tap: str) -> None:
    up(where, tap, xdp="skb")
    result, text, remedy = seen(doctor("doctor")[1], f"{tap} xdp")
    assert (result, remedy) == ("warn", f"ntpguard down {tap} && ntpguard up {tap} --xdp native")
    assert text.startswith("guarded in mode skb")


def test_an_mtu_too_large_for_one_buffer_is_warned_of(where: Path, tap: str) -> None:
    ip("link", "set", tap, "mtu", "9000")
    result, text, _ = seen(doctor("doctor", tap)[1], f"{tap} mtu")
    assert (result, text.partition(":")[0]) == ("warn", "9000 bytes")
    ip("link", "set", GUARDED, "mtu", "9000")  # veth takes frames of several buffers
    result = doctor("doctor", GUARDED)[1][f"{GUARDED} mtu"]["result"]
    assert result == ("ok" if LINUX >= (6, 3) else "warn")


def test_an_old_kernel_is_refused() -> None:
    code, found = doctor("doctor", wrap=("setarch", "--uname-2.6"))
    result, text, _ = seen(found, "kernel")
    assert (code, result) == (1, "fail")
    assert text.startswith("2.6.") and text.endswith("5.15 or newer is needed")


def test_a_program_that_the_kernel_refuses_is_shown_with_the_reason(
    where: Path, tmp_path: Path
) -> None:
    bad = compile_object(
        tmp_path,
        "struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, int);\n"
        '__type(value, int); } sources SEC(".maps");\n'
        'SEC("xdp") int ntpguard(struct xdp_md *c) { return *(int *)(long)c->data; }\n',
    )
    code, found = doctor("doctor", GUARDED, NTPGUARD_OBJECT=str(bad))
    result, text, _ = seen(found, "program")
    assert (code, result) == (1, "fail")
    assert text.startswith("loading the BPF program: EACCES")


def test_a_missing_libbpf_is_told_with_the_package(where: Path) -> None:
    libbpf.possible_cpus()  # loads it
    lines = Path("/proc/self/maps").read_text().splitlines()
    library = next(line.split()[-1] for line in lines if "libbpf.so" in line)
    code, found = doctor("doctor", GUARDED, wrap=over("/dev/null", library))
    assert (code, seen(found, "libbpf")[::2]) == (1, ("fail", "apt-get install libbpf1"))


def test_without_bcc_trace_is_said_not_to_work(where: Path, tmp_path: Path) -> None:
    import bcc

    wrap = over(str(tmp_path), str(Path(bcc.__file__).parent))
    _, found = doctor("doctor", GUARDED, wrap=wrap)
    assert seen(found, "trace")[::2] == ("warn", "apt-get install python3-bpfcc")


def test_a_slow_clock_is_warned_of_with_the_better_one(where: Path, tmp_path: Path) -> None:
    path = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
    _, found = doctor("doctor", GUARDED, wrap=shown_instead(tmp_path, "hpet\n", path))
    result, text, remedy = seen(found, "clock")
    assert result == "warn" and text.startswith("hpet: ")
    assert remedy and remedy.endswith(f">{path}")


@pytest.mark.parametrize(("available", "result"), [(1000, "fail"), (100_000, "warn")])
def test_memory_is_compared_with_what_the_policy_needs(
    where: Path, tmp_path: Path, available: int, result: str
) -> None:
    wrap = shown_instead(tmp_path, f"MemAvailable: {available} kB\n", "/proc/meminfo")
    file = tmp_path / "policy.toml"
    file.write_text("[sources]\ncapacity = 1048576\n")
    code, found = doctor("doctor", GUARDED, "--policy", str(file), wrap=wrap)
    assert (found["memory"]["result"], code) == (result, int(result == "fail"))
    assert found["memory"]["remedy"].endswith(f"ntpguard policy check {file}")
    up(where)  # then it has what it needs
    _, found = doctor("doctor", GUARDED, "--policy", str(file), wrap=wrap)
    assert found["memory"]["result"] == "ok"


def test_a_bad_policy_file_is_one_of_the_findings(where: Path, tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("ports = []\n")
    code, found = doctor("doctor", GUARDED, "--policy", str(file))
    assert (code, found["policy"]["result"]) == (1, "fail")
    assert f"{file}:1: ports" in found["policy"]["found"]
    assert found["memory"]["result"] == "unknown"


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_a_host_that_forwards_is_told_to_name_its_addresses(
    where: Path, tmp_path: Path, family: str
) -> None:
    key = {"IPv4": "net/ipv4/ip_forward", "IPv6": "net/ipv6/conf/all/forwarding"}[family]
    switch = Path("/proc/sys", key)
    file = tmp_path / "policy.toml"
    file.write_text('destinations = ["198.51.100.1"]\n')
    switch.write_text("1")
    try:
        result, text, remedy = seen(doctor("doctor", GUARDED)[1], "forwarding")
        assert (result, f"forwards {family}:" in text) == ("warn", True)
        assert remedy and remedy.startswith(f"sysctl -w {key.replace('/', '.')}=0")
        _, found = doctor("doctor", GUARDED, "--policy", str(file))
        assert found["forwarding"]["result"] == "ok"
    finally:
        switch.write_text("0")


def test_flows_made_of_ntp_requests_are_warned_of_and_the_remedy_ends_them(where: Path) -> None:
    def ask(port: int = 123) -> tuple[str, str | None]:
        """A request from another host, and then the finding."""
        code = f"import socket; socket.socket(2, 2).sendto(bytes(48), ('198.51.100.1', {port}))"
        subprocess.run(["ip", "netns", "exec", PEER, sys.executable, "-c", code], check=True)
        result, _, remedy = seen(doctor("doctor", GUARDED)[1], "conntrack")
        return result, remedy

    def track() -> None:
        rule = "add rule inet t c ct state new accept"
        chain = "add chain inet t c { type filter hook input priority 0; }"
        subprocess.run(["nft", f"add table inet t; {chain}; {rule}"], check=True)
        # 30 seconds by default: under emulation, doctor may take longer
        Path("/proc/sys/net/netfilter/nf_conntrack_udp_timeout").write_text("600")

    def requests() -> int:
        return Path("/proc/net/nf_conntrack").read_text().count(" dport=123 ")

    ip("address", "add", "198.51.100.1/24", "dev", GUARDED)
    ip("-n", PEER, "address", "add", "198.51.100.2/24", "dev", GUARDED)
    ip("-n", PEER, "link", "set", GUARDED, "up")
    track()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(bytes(48), ("198.51.100.2", 123))  # this host's own, to another
        assert ask(1123)[0] == "ok"
        assert requests() == 1
        result, remedy = ask()
        assert result == "warn" and remedy and requests() == 2
        subprocess.run(["nft", "delete", "table", "inet", "t"], check=True)
        subprocess.run(["sh", "-c", remedy], check=True)
        track()
        ask()
        assert requests() == 2
    finally:
        subprocess.run(["nft", "flush", "ruleset"], check=True)


def test_what_status_finds_wrong_is_told_here_too(where: Path) -> None:
    up(where)
    ip("link", "set", GUARDED, "address", "02:00:00:00:00:77")
    result, text, remedy = seen(doctor("doctor")[1], "guard")
    assert (result, remedy) == ("warn", "ntpguard status")
    assert "its MAC address is now 02:00:00:00:00:77" in text


def test_without_names_the_interfaces_of_the_policy_are_looked_at(
    where: Path, tmp_path: Path
) -> None:
    def looked_at(*arguments: str) -> set[str]:
        return {one["interface"] for one in doctor("doctor", *arguments)[1].values()} - {None}

    file = tmp_path / "policy.toml"
    file.write_text(f'interfaces = ["{NAMES[1]}"]\n')
    assert set(NAMES) <= looked_at()
    assert looked_at("--policy", str(file)) == {NAMES[1]}
    file.write_text('interfaces = ["guard9"]\n')
    code, found = doctor("doctor", "--policy", str(file))
    result, text, remedy = seen(found, "guard9 xdp")
    assert (code, result, remedy) == (1, "fail", f"set interfaces in {file}")
    assert text.startswith("guard9: no such interface: there are ")
    up(where, policy=parse_policy('mode = "enforce"\n[sources]\ncapacity = 4096\n'))
    assert looked_at("--policy", str(file)) == {GUARDED}
