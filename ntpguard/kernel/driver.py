"""What an interface's driver tells by ethtool (linux/ethtool.h). Changes nothing."""

import array
import errno
import fcntl
import re
import socket
import struct
from collections import Counter

from ntpguard.errors import NtpguardError

SIOCETHTOOL = 0x8946
ETHTOOL_GDRVINFO, ETHTOOL_GSTRINGS, ETHTOOL_GSTATS, ETHTOOL_GFLAGS = 0x03, 0x1B, 0x1D, 0x25
ETH_FLAG_RXVLAN = 1 << 8
ETH_SS_STATS = 1
NAME_BYTES = 32
NAME, N_STATS = slice(4, 36), slice(180, 184)  # of struct ethtool_drvinfo
# counters that there is room for: the kernel writes as many as the driver has, and it may have got
# more queues since it was asked how many these are
ROOM = 1 << 15
QUEUE = re.compile(r"(?:[rt]x_queue_|[rt]x[_-]?|queue_)\d+[_.:-]+")


def ethtool(name: str, command: bytes | bytearray) -> bytes | None:
    """What the driver makes of an ethtool command; None if it does not know it.

    Raises NtpguardError if it cannot be asked.
    """
    memory = array.array("B", command)
    request = struct.pack("16sP", name.encode(), memory.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            fcntl.ioctl(one, SIOCETHTOOL, request)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.ENODEV, errno.EPERM):
                return None
            raise NtpguardError(f"{name}: asking its driver: {error.strerror}") from None
    return memory.tobytes()


def _info(name: str) -> bytes | None:
    return ethtool(name, struct.pack("I192x", ETHTOOL_GDRVINFO))


def name_of(name: str) -> str | None:
    """Name of the driver behind an interface; None if it does not tell. Raises as ethtool does."""
    info = _info(name)
    return info[NAME].rstrip(b"\0").decode() if info else None


def vlan_stripping(name: str) -> bool | None:
    """Whether the NIC takes VLAN tags off before XDP sees the frame; None if it does not tell.
    Raises as ethtool does.
    """
    flags = ethtool(name, struct.pack("II", ETHTOOL_GFLAGS, 0))
    return bool(struct.unpack("II", flags)[1] & ETH_FLAG_RXVLAN) if flags else None


def xdp_counters(name: str) -> dict[str, int]:
    """The driver's own XDP counters by their names, those of its queues added up: a verdict to
    transmit is no packet on the wire yet. Empty if it has none, or if they change meanwhile.
    Raises as ethtool does.
    """
    info = _info(name)
    count = struct.unpack("I", info[N_STATS])[0] if info else 0
    if not count:
        return {}
    room = max(ROOM, 2 * count)
    command = struct.pack("3I", ETHTOOL_GSTRINGS, ETH_SS_STATS, count)
    strings = ethtool(name, command + bytes(NAME_BYTES * room))
    values = ethtool(name, struct.pack("2I", ETHTOOL_GSTATS, count) + bytes(8 * room))
    if strings is None or values is None:
        return {}
    if not count == struct.unpack_from("I", strings, 8)[0] == struct.unpack_from("I", values, 4)[0]:
        return {}
    found: Counter[str] = Counter()
    for index, value in enumerate(struct.unpack_from(f"{count}Q", values, 8)):
        raw = strings[12 + NAME_BYTES * index :][:NAME_BYTES]
        counter = raw.split(b"\0")[0].decode("ascii", "replace").strip()
        if "xdp" in counter.lower():
            found[QUEUE.sub("", counter)] += value
    return dict(found)
