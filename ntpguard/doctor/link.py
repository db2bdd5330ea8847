"""Checks of one interface: its driver, its queues, its offloads, what else is attached."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from ntpguard.doctor.finding import FAIL, OK, UNKNOWN, WARN, Answer, Host
from ntpguard.errors import NtpguardError
from ntpguard.kernel import libbpf
from ntpguard.kernel.nic import XDP_BASIC, XDP_RX_SG, Channels, Nic

# with native XDP by 5.15; from 6.3 on the kernel itself tells
NATIVE_DRIVERS = (
    "bnxt_en", "ena", "fec", "hv_netvsc", "i40e", "ice", "igb", "igc", "ixgbe", "ixgbevf",
    "mlx4_en", "mlx5_core", "mvneta", "mvpp2", "nfp", "octeontx2", "qede", "sfc", "stmmac",
    "tun", "veth", "virtio_net",
)  # fmt: skip
# a page without headroom, tail and headers: ena's limit, and about that of others
SINGLE_BUFFER_MTU = 3498
STANDARD_MTU = 1500
LARGE_RECEIVE = {"rx-lro": "lro", "rx-gro-hw": "rx-gro-hw"}
VLAN_STRIPPING = "rx-vlan-hw-parse"


def _ours(host: Host, nic: Nic) -> bool | None:
    """Whether the program attached is the guard's; None: its pins cannot be read."""
    if host.guard.programs is None:
        return None
    return host.guard.programs.get(nic.ifindex) == nic.program_id


def other_program(host: Host, nic: Nic) -> Answer:
    """One interface takes one XDP program."""
    if nic.program_id is None:
        return Answer(OK, "none")
    ours = _ours(host, nic)
    if ours:
        return Answer(OK, f"none but the guard's, id {nic.program_id}")
    if ours is None:
        found = f"program {nic.program_id} is attached, perhaps the guard's: {host.guard.why}"
        return Answer(UNKNOWN, found, "sudo ntpguard doctor")
    holders = _holders(nic.program_id)
    held = "".join(f", held by {name} (pid {pid})" for name, pid in holders)
    detach = f"ip link set dev {nic.name} xdp off"
    return Answer(
        FAIL,
        f'another XDP program is attached: "{_name(nic.program_id)}", id {nic.program_id}{held}',
        f"if it is not needed: {f'kill {holders[0][1]}' if holders else detach}",
    )


def _name(program: int) -> str:
    try:
        fd = libbpf.prog_by_id(program)
    except NtpguardError:
        return "?"
    try:
        return str(libbpf.prog_info(fd).name.decode())
    finally:
        os.close(fd)


def _holders(program: int) -> list[tuple[str, str]]:
    """(name, pid) of processes that hold the program or its link, as far as /proc shows them."""
    mark = re.compile(rf"^prog_id:\t{program}$", re.M)
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(mark.search(one.read_text()) for one in (process / "fdinfo").iterdir()):
                found.append(((process / "comm").read_text().strip(), process.name))
        except OSError:  # it ended, or is not ours to see
            continue
    return found


def attachment(host: Host, nic: Nic) -> Answer:
    """native: in the driver; skb: after the kernel has made a packet of the frame."""
    driver = f"driver {nic.driver or 'unknown'}"
    native = _native(nic)
    if nic.program_id is not None and _ours(host, nic):
        wants_skb = host.policy is not None and host.policy.xdp == "skb"
        if nic.xdp != "skb" or wants_skb or not native or nic.driver == "veth":
            return Answer(OK, f"guarded in mode {nic.xdp}, {driver}")
        return Answer(
            WARN,
            f"guarded in mode skb, several times slower than native, which {driver} has",
            f"ntpguard down {nic.name} && ntpguard up {nic.name} --xdp native",
        )
    if native is None:
        return Answer(
            UNKNOWN,
            f"{driver}: not known whether it has native XDP",
            f"ntpguard up {nic.name} --xdp native",
        )
    if not native:
        return Answer(
            WARN,
            f"{driver} has no native XDP: skb works, several times slower",
            f"ntpguard up {nic.name} --xdp skb",
        )
    return Answer(OK, f"not guarded, {driver} has native XDP")


def _native(nic: Nic) -> bool | None:
    if nic.xdp_features is not None:
        return bool(nic.xdp_features & XDP_BASIC)
    return True if nic.driver in NATIVE_DRIVERS else None


def queues(_: Host, nic: Nic) -> Answer:
    """Queues enough for native XDP's own sending, and more than one CPU that receives."""
    cpus = os.cpu_count() or 1
    if nic.channels is None:
        return Answer(UNKNOWN, f"driver {nic.driver or 'unknown'} does not tell its queues")
    return judge_queues(nic.name, nic.driver, nic.channels, cpus)


def judge_queues(name: str, driver: str | None, channels: Channels, cpus: int) -> Answer:
    """What these queues mean for native XDP with this driver, on so many CPUs."""
    used, most = channels.receiving, channels.max_receiving
    word = "combined" if channels.max_combined else "rx"
    set_channels = f"ethtool -L {name} {word}"
    found = f"{used} of {most} receive queues in use, {cpus} CPUs"
    half = max(most // 2, 1)
    if driver in ("ena", "gve") and used > most // 2:
        return Answer(
            WARN,
            f"{found}: native XDP on {driver} needs as many again for sending",
            f"{set_channels} {half}" + (f" tx {half}" if word == "rx" else ""),
        )
    if driver == "virtio_net" and used + cpus > most:
        spare = most - cpus
        return Answer(
            WARN,
            f"{found}: with one more for each CPU, virtio_net would send KoDs without a lock",
            f"{set_channels} {spare}"
            if spare > 0
            else f"give the virtual machine more (libvirt: <driver queues='{used + cpus}'/>)",
        )
    if used == 1 and most > 1 and cpus > 1:
        return Answer(
            WARN, f"{found}: one CPU takes every packet", f"{set_channels} {min(most, cpus)}"
        )
    if driver == "mlx5_core":  # it counts as sent what a full queue has lost
        found += f"; KoDs that did not leave: ethtool -S {name} | grep xdp_tx_full"
    return Answer(OK, found)


def vlan(_: Host, nic: Nic) -> Answer:
    """A tag taken off before XDP is missing from the KoD."""
    if nic.features is None or VLAN_STRIPPING not in nic.features:
        return Answer(UNKNOWN, f"driver {nic.driver or 'unknown'} does not tell its offloads")
    if nic.features[VLAN_STRIPPING]:
        return Answer(
            WARN,
            "rx-vlan-offload is on: on a tagged network a KoD would leave without its tag",
            f"ethtool -K {nic.name} rxvlan off txvlan off",
        )
    return Answer(OK, "rx-vlan-offload is off: tags stay in the frame")


def large_receive(_: Host, nic: Nic) -> Answer:
    """Frames that the NIC has merged are none that XDP can look at."""
    if nic.features is None:
        return Answer(UNKNOWN, f"driver {nic.driver or 'unknown'} does not tell its offloads")
    return judge_large_receive(nic.name, nic.features)


def judge_large_receive(name: str, features: dict[str, bool]) -> Answer:
    """What LRO and GRO_HW mean for native XDP."""
    on = [key for key in LARGE_RECEIVE if features.get(key)]
    if on:
        return Answer(
            WARN,
            f"{' and '.join(on)} is on: drivers refuse native XDP then, or turn it off themselves",
            " && ".join(f"ethtool -K {name} {LARGE_RECEIVE[key]} off" for key in on),
        )
    return Answer(OK, "rx-lro and rx-gro-hw are off")


def mtu(host: Host, nic: Nic) -> Answer:
    """Native XDP wants a frame in one buffer, unless driver and kernel know of fragments."""
    found = f"{nic.mtu} bytes"
    if nic.mtu <= SINGLE_BUFFER_MTU or nic.xdp == "native":
        return Answer(OK, found)
    if nic.xdp_features is not None and nic.xdp_features & XDP_RX_SG:
        return Answer(OK, f"{found}, the driver takes frames of several buffers")
    if _native(nic) is False or nic.xdp == "skb":
        return Answer(OK, f"{found}, no matter in mode skb")
    return Answer(
        WARN,
        f"{found}: more than {SINGLE_BUFFER_MTU} may be refused in native mode",
        f"ip link set dev {nic.name} mtu {STANDARD_MTU}, or ntpguard up {nic.name} --xdp skb",
    )


def peer(_: Host, nic: Nic) -> Answer | None:
    """veth hands over what XDP sends only to a peer that has a program itself."""
    if nic.driver != "veth":
        return None
    if nic.peer is None:
        return Answer(UNKNOWN, "its peer cannot be seen from here", "sudo ntpguard doctor")
    if nic.peer.program_id:
        return Answer(OK, f"peer {nic.peer.name} has XDP program {nic.peer.program_id}")
    found = f"peer {nic.peer.name} has no XDP program"
    if nic.xdp == "skb":
        return Answer(OK, f"{found}, no matter in mode skb")
    return Answer(
        WARN,
        f"{found}: in native mode every KoD is lost",
        (f"ntpguard down {nic.name} && " if nic.program_id else "")
        + f"ntpguard up {nic.name} --xdp skb",
    )


CHECKS: tuple[tuple[str, Callable[[Host, Nic], Answer | None]], ...] = (
    ("other program", other_program),
    ("xdp", attachment),
    ("queues", queues),
    ("vlan", vlan),
    ("large receive", large_receive),
    ("mtu", mtu),
    ("peer", peer),
)
