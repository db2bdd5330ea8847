"""What a driver counts of its XDP packets: a verdict to transmit is no packet on the wire yet."""

import re
import struct
from collections import Counter

from ntpguard.kernel import interfaces

# linux/ethtool.h
ETHTOOL_GDRVINFO, ETHTOOL_GSTRINGS, ETHTOOL_GSTATS = 0x03, 0x1B, 0x1D
ETH_SS_STATS = 1
NAME_BYTES = 32
N_STATS = slice(180, 184)  # of struct ethtool_drvinfo
QUEUE = re.compile(r"(?:[rt]x_queue_|[rt]x[_-]?|queue_)\d+[_.:-]+")


def xdp_counters(name: str) -> dict[str, int]:
    """The driver's own XDP counters by their names, those of its queues added up; empty if it has
    none. Raises NtpguardError if it cannot be asked.
    """
    info = interfaces.ethtool(name, struct.pack("I192x", ETHTOOL_GDRVINFO))
    count = struct.unpack("I", info[N_STATS])[0] if info else 0
    if not count:
        return {}
    head = struct.pack("3I", ETHTOOL_GSTRINGS, ETH_SS_STATS, count)
    strings = interfaces.ethtool(name, head + bytes(NAME_BYTES * count))
    values = interfaces.ethtool(name, struct.pack("2I", ETHTOOL_GSTATS, count) + bytes(8 * count))
    if strings is None or values is None:
        return {}
    found: Counter[str] = Counter()
    for index, value in enumerate(struct.unpack_from(f"{count}Q", values, 8)):
        raw = strings[12 + NAME_BYTES * index :][:NAME_BYTES]
        counter = raw.split(b"\0")[0].decode("ascii", "replace").strip()
        if "xdp" in counter.lower():
            found[QUEUE.sub("", counter)] += value
    return dict(found)
