"""Interfaces and addresses of this network namespace, as netlink tells them (pyroute2)."""

import errno
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ntpguard.errors import UsageError

ARPHRD_ETHER = 1
IFF_UP = 1
# pyroute2 gives IFLA_XDP_ATTACHED as the word that `ip link` prints
XDP_MODES: dict[str | None, str] = {"xdp": "native", "xdpgeneric": "skb", "xdpoffload": "hw"}


@dataclass(frozen=True)
class Interface:
    """One interface; xdp is the mode of the program attached to it ("none": no program)."""

    name: str
    ifindex: int
    mac: bytes
    ethernet: bool
    xdp: str
    program_id: int | None
    is_up: bool

    @property
    def guardable(self) -> bool:
        """Whether a guard can be attached: an Ethernet interface, and not the loopback one."""
        return self.ethernet and len(self.mac) == 6 and self.name != "lo"


def _netlink() -> Any:
    # imported when needed: it takes longer than most commands
    from pyroute2 import IPRoute

    return IPRoute()


def _interface(message: Any) -> Interface:
    name = message.get_attr("IFLA_IFNAME")
    xdp = message.get_attr("IFLA_XDP")
    mode = xdp.get_attr("IFLA_XDP_ATTACHED") if xdp else None
    mac = message.get_attr("IFLA_ADDRESS") or ""
    return Interface(
        name=name,
        ifindex=message["index"],
        mac=bytes.fromhex(mac.replace(":", "")),
        ethernet=message["ifi_type"] == ARPHRD_ETHER,
        xdp=XDP_MODES.get(mode, "none"),
        program_id=(xdp.get_attr("IFLA_XDP_PROG_ID") or None) if xdp else None,
        is_up=bool(message["flags"] & IFF_UP),
    )


def interfaces() -> list[Interface]:
    """Every interface of this network namespace."""
    with _netlink() as netlink:
        return [_interface(message) for message in netlink.get_links()]


def interfaces_of(indexes: Iterable[int]) -> list[Interface]:
    """Those with these indexes that exist, by index: a host may have hundreds of others."""
    from pyroute2 import NetlinkError

    found: list[Interface] = []
    with _netlink() as netlink:
        for index in sorted(indexes):
            try:
                found += map(_interface, netlink.get_links(index))
            except NetlinkError as error:
                if error.code != errno.ENODEV:
                    raise
    return found


def interface(name: str) -> Interface:
    """The interface of that name. Raises UsageError, naming those that exist."""
    found = interfaces()
    for one in found:
        if one.name == name:
            if not one.guardable:
                raise UsageError(f"{name}: not an Ethernet interface: ntpguard guards those")
            return one
    known = ", ".join(one.name for one in found if one.name != "lo") or "none"
    raise UsageError(f"{name}: no such interface: there are {known}")


def local_addresses() -> set[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Every unicast address of this host."""
    with _netlink() as netlink:
        texts = [
            message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            for message in netlink.get_addr()
        ]
    return {ipaddress.ip_address(text) for text in texts if text}


def forwarding() -> list[str]:
    """The families that this host forwards packets of."""
    switches = {
        "IPv4": "/proc/sys/net/ipv4/ip_forward",
        "IPv6": "/proc/sys/net/ipv6/conf/all/forwarding",
    }
    on = []
    for family, path in switches.items():
        try:
            if Path(path).read_text(encoding="ascii").strip() == "1":
                on.append(family)
        except OSError:
            continue
    return on
