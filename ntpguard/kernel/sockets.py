"""The daemon's UDP sockets, as the kernel's socket diagnostics tell of them. Changes nothing."""

import errno
import os
import socket
import struct
from dataclasses import dataclass

INET_DIAG_SKMEMINFO = 7  # linux/inet_diag.h
# linux/sock_diag.h: of the words of SK_MEMINFO
RCVBUF, DROPS = 1, 8
VERSIONS = {socket.AF_INET: 4, socket.AF_INET6: 6}


@dataclass(frozen=True)
class Socket:
    """A UDP socket: what its receive buffer holds, and packets that found it full since the socket
    was opened.
    """

    version: int  # of IP
    port: int
    buffer_bytes: int
    dropped: int


def udp_sockets(ports: tuple[int, ...]) -> list[Socket]:
    """The UDP sockets of this network namespace that are bound to one of the ports.

    Raises OSError if the kernel has no udp_diag.
    """
    from pyroute2 import DiagSocket
    from pyroute2.netlink.exceptions import NetlinkError

    found = []
    with DiagSocket() as diagnostics:
        diagnostics.bind()
        for family in VERSIONS:
            try:
                for one in diagnostics.get_sock_stats(
                    family=family,
                    protocol=socket.IPPROTO_UDP,
                    extensions=1 << INET_DIAG_SKMEMINFO - 1,
                ):
                    if "idiag_sport" not in one:
                        # Linux 6.1 without udp_diag: the end of the list, and an error in it
                        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
                    memory = one.get_attr("INET_DIAG_SKMEMINFO")
                    if one["idiag_sport"] in ports and memory:
                        found.append(_socket(VERSIONS[family], one["idiag_sport"], memory))
            except NetlinkError as error:
                raise OSError(error.code, str(error)) from None
    return found


def _socket(version: int, port: int, memory: str) -> Socket:
    raw = bytes.fromhex(memory.replace(":", ""))
    words = struct.unpack(f"={len(raw) // 4}I", raw)
    return Socket(version, port, words[RCVBUF], words[DROPS])
