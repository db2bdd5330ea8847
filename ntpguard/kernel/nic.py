"""What an interface and its driver can do, as netlink and ethtool tell it. Changes nothing."""

import struct
from dataclasses import dataclass
from functools import cache
from typing import Any

from ntpguard.errors import UsageError
from ntpguard.kernel import driver, interfaces

ETHTOOL_GCHANNELS = 0x3C
# linux/netdev.h (Linux 6.3)
NETDEV_CMD_DEV_GET = 1
XDP_BASIC = 1 << 0
XDP_RX_SG = 1 << 5


@dataclass(frozen=True)
class Channels:
    """Queues in use and queues at most; a NIC counts rx and tx apart, or together as combined."""

    max_rx: int
    max_tx: int
    max_combined: int
    rx: int
    tx: int
    combined: int

    @property
    def receiving(self) -> int:
        """Queues that receive."""
        return self.rx + self.combined

    @property
    def max_receiving(self) -> int:
        """As many as there could be."""
        return max(self.max_rx, self.max_combined)


@dataclass(frozen=True)
class Peer:
    """The other end of a veth pair."""

    name: str
    program_id: int | None


@dataclass(frozen=True)
class Nic:
    """One interface; None where driver or kernel do not tell.

    xdp_features: bits of linux/netdev.h (Linux 6.3); features: ethtool's, by the kernel's names.
    """

    name: str
    ifindex: int
    driver: str | None
    mtu: int
    xdp: str
    program_id: int | None
    xdp_features: int | None
    channels: Channels | None
    features: dict[str, bool] | None
    peer: Peer | None


def nic(name: str) -> Nic:
    """All that is known of an interface. Raises UsageError, naming those that exist."""
    one = interfaces.interface(name)
    driver_name = driver.name_of(name)
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    with IPRoute() as netlink:
        try:
            (message,) = netlink.link("get", index=one.ifindex)
        except NetlinkError:
            raise UsageError(f"{name}: the interface went away") from None
        return Nic(
            name=name,
            ifindex=one.ifindex,
            driver=driver_name,
            mtu=message.get_attr("IFLA_MTU"),
            xdp=one.xdp,
            program_id=one.program_id,
            xdp_features=_xdp_features(one.ifindex),
            channels=_channels(name),
            features=_features(name),
            peer=_peer(netlink, message) if driver_name == "veth" else None,
        )


def _channels(name: str) -> Channels | None:
    raw = driver.ethtool(name, struct.pack("9I", ETHTOOL_GCHANNELS, *[0] * 8))
    if raw is None:
        return None
    _, max_rx, max_tx, _, max_combined, rx, tx, _, combined = struct.unpack("9I", raw)
    return Channels(max_rx, max_tx, max_combined, rx, tx, combined)


def _features(name: str) -> dict[str, bool] | None:
    from pyroute2 import Ethtool

    ethtool = Ethtool()
    try:
        return {key: one.enable for key, one in ethtool.get_features(name).features.items()}
    except (OSError, NotImplementedError):
        return None
    finally:
        ethtool.close()


def _peer(netlink: Any, message: Any) -> Peer | None:
    """The peer, in whichever network namespace it is; None if the kernel may not tell us."""
    from pyroute2.netlink.exceptions import NetlinkError
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    where = message.get_attr("IFLA_LINK_NETNSID")
    # the kernel's attribute 46; pyroute2 has had it under two names
    known = {row[0] for row in ifinfmsg.nla_map}
    name = "IFLA_TARGET_NETNSID" if "IFLA_TARGET_NETNSID" in known else "IFLA_IF_NETNSID"
    there = {} if where is None else {name: where}
    try:
        (peer,) = netlink.link("get", index=message.get_attr("IFLA_LINK"), **there)
    except NetlinkError:
        return None
    xdp = peer.get_attr("IFLA_XDP")
    program = xdp.get_attr("IFLA_XDP_PROG_ID") if xdp else None
    return Peer(peer.get_attr("IFLA_IFNAME"), program or None)


@cache
def _netdev_message() -> Any:
    """The layout of the generic netlink family `netdev`, which pyroute2 does not know."""
    from pyroute2.netlink import genlmsg

    class NetdevMessage(genlmsg):  # type: ignore[misc]
        nla_map = (
            ("NETDEV_A_DEV_UNSPEC", "none"),
            ("NETDEV_A_DEV_IFINDEX", "uint32"),
            ("NETDEV_A_DEV_PAD", "none"),
            ("NETDEV_A_DEV_XDP_FEATURES", "uint64"),
        )

    return NetdevMessage


def _xdp_features(ifindex: int) -> int | None:
    from pyroute2.netlink import NLM_F_REQUEST
    from pyroute2.netlink.exceptions import NetlinkError
    from pyroute2.netlink.generic import GenericNetlinkSocket

    layout = _netdev_message()
    message = layout()
    message["cmd"], message["version"] = NETDEV_CMD_DEV_GET, 1
    message["attrs"] = [("NETDEV_A_DEV_IFINDEX", ifindex)]
    netlink = GenericNetlinkSocket()
    netlink.module_err_level = "debug"  # that a kernel has no such family is no error to log
    try:
        netlink.bind("netdev", layout)
        (answer,) = netlink.nlm_request(message, netlink.prid, NLM_F_REQUEST)
        features: int | None = answer.get_attr("NETDEV_A_DEV_XDP_FEATURES")
        return features
    except NetlinkError:
        return None
    finally:
        netlink.close()
